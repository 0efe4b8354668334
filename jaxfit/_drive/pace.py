"""The length of chunks, chosen by the clock so that what they cost goes unnoticed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

_SECONDS = 0.5  # that a chunk takes
_MOST_SECONDS = 5.0  # in a long run with a directory
_BYTES = 2**24  # of rows and batches that a chunk has on the device, at most


class Marks(NamedTuple):
    """The steps between which a run is evaluated, or its callback called."""

    first: int  # the step at which the run starts
    period: int | None  # None if there are none

    def has(self, step: int) -> bool:
        """Return whether a step is one of them."""
        return self.period is not None and (step - self.first) % self.period == 0

    def last(self, step: int) -> int:
        """Return the last of them up to a step; the step itself if there are none."""
        return step if self.period is None else step - (step - self.first) % self.period

    def until_next(self, step: int) -> int:
        """Return the number of steps until the next."""
        if self.period is None:
            return 2**31
        return self.period - (step - self.first) % self.period


class Pace:
    """Chooses how many rows the next chunk has.

    Attributes:
      capacity: the most rows a chunk can have, for which its program has room.
    """

    def __init__(self, rows: int, capacity: int, every: int, growing: bool | None, marks: Marks):
        """Begin with chunks of some rows.

        Args:
          rows: how many rows the first chunk has.
          capacity: how many rows a chunk can have.
          every: how many steps there are to a row.
          growing: whether chunks grow with the length of the run; None keeps their length.
          marks: the steps at which chunks have to end.
        """
        self.capacity = capacity
        self._rows, self._every, self._growing, self._marks = rows, every, growing, marks
        self._seconds, self._storing, self._measured = _SECONDS, 0.0, 0
        self._begun = self._clock = time.perf_counter()

    @classmethod
    def of(
        cls,
        chunk_size: int | None,
        num_steps: int,
        every: int,
        row_bytes: int,
        growing: bool,
        marks: Marks,
    ) -> Pace:
        """Return a pace of chunks of one length, or one that follows the clock from one row on.

        Args:
          chunk_size: how many steps a chunk has; None to follow the clock.
          num_steps: how many steps the run has.
          every: how many steps there are to a row.
          row_bytes: bytes of a row and of the batches of its steps.
          growing: whether chunks grow with the length of the run, as each makes files.
          marks: the steps at which chunks have to end.
        """
        # However long the run is, so that runs of other lengths share its program.
        most = max(1, _BYTES // max(row_bytes, 1))
        # Room that no chunk can use would be filled at every mark.
        longest = 2**31 if marks.period is None else marks.period // every
        if chunk_size is None:
            return cls(1, min(most, longest), every, growing, marks)
        rows = -(-chunk_size // every)
        if rows > most:
            rows = max(1, min(rows, num_steps // every))
        rows = min(rows, longest)
        return cls(rows, rows, every, None, marks)

    @property
    def room(self) -> int:
        """How many steps a chunk can have."""
        return self.capacity * self._every

    def steps(self, start: int, remaining: int) -> int:
        """Return how many of the remaining steps to take next: whole rows, or the last part."""
        steps = min(self._rows * self._every, self._marks.until_next(start), remaining)
        return steps - steps % self._every or steps

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Measure how long it takes to store a chunk."""
        begun = time.perf_counter()
        yield
        self._storing = time.perf_counter() - begun

    def measure(self, num_rows: int, calling: float) -> None:
        """Choose the next length, once a chunk has been stored.

        Args:
          num_rows: how many rows it had.
          calling: how many seconds its callback took.
        """
        # Processes must agree: all follow what the first one measures on the first chunks.
        if self._growing is None or (jax.process_count() > 1 and self._measured == 16):
            return
        now = time.perf_counter()
        elapsed, storing = now - self._clock, self._storing
        if self._growing:
            self._seconds = max(self._seconds, min((now - self._begun) / 100, _MOST_SECONDS))
            if storing > elapsed / 10:
                self._seconds = min(2 * self._seconds, 60)
        # A callback is in the time that has elapsed: a slow one must not make chunks short.
        seconds = max(self._seconds, 4 * calling)
        fitting = int(seconds * num_rows / max(elapsed - storing, 1e-6))
        rows = max(1, min(fitting, 8 * num_rows, self.capacity))
        if jax.process_count() > 1:
            rows = int(multihost_utils.broadcast_one_to_all(np.int32(rows)))
        self._rows, self._clock, self._measured = rows, now, self._measured + 1
