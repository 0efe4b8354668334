"""Ctrl-C, noted instead of raised."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Note the first Ctrl-C in a list; let the second do what it did before.

    Nothing is noted outside the main thread, where Python handles no signals; among several
    processes, which would not end together; or where SIGINT is ignored, as in a process that a
    shell script starts in the background.
    """
    interrupts: list[int] = []
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    if not on_main or jax.process_count() > 1 or before is signal.SIG_IGN:
        yield interrupts
        return

    def note(number: int, _: object) -> None:
        interrupts.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
