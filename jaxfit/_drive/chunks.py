"""The chunks of a run, made one after the other, up to where the run ends."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from jaxfit._drive import rules
from jaxfit._drive.host import wait
from jaxfit._drive.pace import Pace
from jaxfit._drive.program import Chunk, Program, Stand
from jaxfit._drive.sources import Source
from jaxfit._types import Data


@dataclasses.dataclass
class End:
    """Where a run ends, why before its last step, and with which error.

    Whatever ends it moves this to an earlier step, and says why.
    """

    step: int
    reason: str | None = None
    error: Exception | None = None

    def move(self, step: int, reason: str | None = None, error: Exception | None = None) -> None:
        self.step, self.reason, self.error = step, reason, error


def chunks(
    program: Program,
    before: Stand,
    source: Source,
    pace: Pace,
    end: End,
    interrupts: list[int],
) -> Iterator[Chunk]:
    """Yield the finished chunks of a run in order, while the device computes the next one.

    Args:
      program: what to compute.
      before: where the run stands.
      source: where the data come from.
      pace: how long chunks are.
      end: where the run ends; moved by whatever ends it earlier.
      interrupts: not empty once the run is to end with what has been started.
    """
    for chunk in _two_at_a_time(_started(program, before, source, pace, end, interrupts)):
        wait(chunk.stacked)
        fired = int(np.asarray(chunk.after.watch.fired))
        if fired < 0:
            yield chunk
            continue
        end.move(fired, f"{rules.name_of(program.stop)} was true at step {fired}")
        # Make the chunk again, as far as that step; what was started after it is dropped.
        for part in _parts(program, chunk.before, chunk.data, chunk.start, end, end, pace):
            wait(part.stacked)
            yield part
        return


def _started(
    program: Program,
    before: Stand,
    source: Source,
    pace: Pace,
    end: End,
    interrupts: list[int],
) -> Iterator[Chunk]:
    """Yield chunks as soon as they are started."""
    first = at = int(before.state.step)
    while at < end.step:
        if interrupts and at > first:
            end.move(at, f"interrupted before step {at}")
            return
        read = source.read(at, end.step - at, pace)
        if read.is_over:
            over = at + read.number
            end.move(over, f"data ended before step {over}", read.error)
        stretch = End(at + read.number)
        for chunk in _parts(program, before, read.data, at, stretch, end, pace):
            yield chunk
            at, before = chunk.stop, chunk.after
        if stretch.error is not None:
            end.move(at, error=stretch.error)


def _parts(
    program: Program,
    before: Stand,
    data: Data,
    start: int,
    stretch: End,
    end: End,
    pace: Pace,
) -> Iterator[Chunk]:
    """Start the steps of a stretch as chunks: those of whole rows, and the rest.

    After an error, nothing more is started.
    """
    whole = stretch.step - (stretch.step - start) % program.record_every
    for stop in whole, stretch.step:
        if start < stop:
            try:
                chunk = program.start(before, data, start, stop, end.step, pace)
            except Exception as error:  # raised when the chunks before this one can be stored
                stretch.move(start, error=error)
                return
            yield chunk
            start, before = stop, chunk.after


T = TypeVar("T")


def _two_at_a_time(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one has been made."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting
