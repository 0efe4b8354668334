"""The length of chunks, chosen by the clock so that what they cost goes unnoticed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

_SECONDS = 0.5  # that a chunk takes
_MOST_SECONDS = 5.0  # in a long run with a directory
_BYTES = 2**24  # of rows and batches that a chunk has on the device, at most


class Pace:
    """Chooses how many rows the next chunk has.

    Attributes:
      capacity: the most rows a chunk can have, for which its program has room.
    """

    def __init__(self, rows: int, capacity: int, every: int, growing: bool | None):
        """Begin with chunks of some rows.

        Args:
          rows: how many rows the first chunk has.
          capacity: how many rows a chunk can have.
          every: how many steps there are to a row.
          growing: whether chunks grow with the length of the run; None keeps their length.
        """
        self.capacity = capacity
        self._rows, self._every, self._growing = rows, every, growing
        self._seconds, self._storing, self._measured = _SECONDS, 0.0, 0
        self._begun = self._clock = time.perf_counter()

    @classmethod
    def fixed(cls, rows: int, every: int) -> Pace:
        """Return a pace of chunks of one length."""
        return cls(rows, rows, every, None)

    @classmethod
    def measured(cls, num_rows: int, every: int, row_bytes: int, growing: bool) -> Pace:
        """Return a pace that begins with one row and follows the clock.

        Args:
          num_rows: how many rows the run has in all.
          every: how many steps there are to a row.
          row_bytes: bytes of a row and of the batches of its steps.
          growing: whether chunks grow with the length of the run, because each makes files.
        """
        return cls(1, max(1, min(num_rows, _BYTES // max(row_bytes, 1))), every, growing)

    @property
    def room(self) -> int:
        """How many steps a chunk can have."""
        return self.capacity * self._every

    def steps(self, remaining: int) -> int:
        """Return how many of the remaining steps to take next: whole rows, or the last part."""
        steps = min(self._rows * self._every, remaining)
        return steps - steps % self._every or steps

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Measure how long it takes to store a chunk."""
        begun = time.perf_counter()
        yield
        self._storing = time.perf_counter() - begun

    def measure(self, num_rows: int) -> None:
        """Choose the next length, once a chunk of some rows has been stored."""
        # Processes must agree: all follow what the first one measures on the first chunks.
        if self._growing is None or (jax.process_count() > 1 and self._measured == 16):
            return
        now = time.perf_counter()
        elapsed, storing = now - self._clock, self._storing
        if self._growing:
            self._seconds = max(self._seconds, min((now - self._begun) / 100, _MOST_SECONDS))
            if storing > elapsed / 10:
                self._seconds = min(2 * self._seconds, 60)
        fitting = int(self._seconds * num_rows / max(elapsed - storing, 1e-6))
        rows = max(1, min(fitting, 8 * num_rows, self.capacity))
        if jax.process_count() > 1:
            rows = int(multihost_utils.broadcast_one_to_all(np.int32(rows)))
        self._rows, self._clock, self._measured = rows, now, self._measured + 1
