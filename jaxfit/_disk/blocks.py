"""The blocks of a sweep on disk: runs that are consecutive, and a box on the axes of the sweep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the runs of a sweep are split into blocks.

    The runs are those of each choice of Python objects, a variant, one after the other. The chunk
    of a block is one item on the first axes inside a program, some on one of them, and all on those
    after it, so that its runs are consecutive.

    Attributes:
      lengths: the lengths of all axes.
      inside: for every axis, whether it varies inside a program.
      chunk: the lengths of a chunk on all axes.
    """

    lengths: tuple[int, ...]
    inside: tuple[bool, ...]
    chunk: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], inside: Sequence[bool], most: int) -> Blocks:
        """Split runs into blocks of about equal lengths, of at most ``most`` runs."""
        chunk, runs = [1] * len(lengths), 1
        for axis in reversed(range(len(lengths))):
            if inside[axis] and most // runs > 0:
                blocks = math.ceil(lengths[axis] / (most // runs))
                chunk[axis] = math.ceil(lengths[axis] / blocks)
                runs *= chunk[axis]
                if blocks > 1:
                    break
        return cls(tuple(lengths), tuple(inside), tuple(chunk))

    @property
    def bounds(self) -> np.ndarray:
        """Return where the blocks of a variant begin and end, int [blocks + 1]."""
        own = [(n, k) for n, k, one in zip(*self._columns, strict=True) if one]
        bounds = np.zeros(1, int)
        for length, chunk in own:
            bounds = (bounds[:, None] * length + np.arange(0, length, chunk)).ravel()
        return np.append(bounds, math.prod(n for n, _ in own))

    @property
    def _columns(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
        return self.lengths, self.chunk, self.inside

    def box(self, variant: int, run: int) -> tuple[slice, ...]:
        """Return the box of the block of a variant that begins with a run."""
        begin, left = [0] * len(self.lengths), {True: run, False: variant}
        for axis in reversed(range(len(self.lengths))):
            kind = self.inside[axis]
            left[kind], begin[axis] = divmod(left[kind], self.lengths[axis])
        return tuple(
            slice(start, min(start + chunk, length))
            for start, chunk, length in zip(begin, self.chunk, self.lengths, strict=True)
        )
