"""A race: after every rung, the best members go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfit import _tree
from jaxfit._drive.rungs import Field, zeros_like
from jaxfit._drive.scores import Average, By, average_over, order, scores_of
from jaxfit._drive.variant import restore
from jaxfit._types import PyTree


class Table(NamedTuple):
    """What a race leaves of all members."""

    members: PyTree  # what they returned last, arrays [members, …], packed
    numbers: dict[str, np.ndarray]  # [members, …]


@dataclasses.dataclass(frozen=True)
class Race:
    """Who runs how far, and how the best are found.

    Attributes:
      points: the positions of all members, ``[points, *over]``. Those of a point go on together.
      ends: the step at which every rung ends.
      bracket_of: the bracket of every point, int32 [points]: on which rung it begins.
      keep: one of how many points goes on.
      by: how results are judged.
      average: how the scores of a point are averaged.
    """

    points: np.ndarray
    ends: Sequence[int]
    bracket_of: np.ndarray
    keep: int
    by: By
    average: Average

    def run(self, field: Field, like: PyTree, bar: Any) -> Table:
        """Run all brackets.

        Args:
          field: the members.
          like: what one returns, packed, with ``jax.ShapeDtypeStruct`` for arrays.
          bar: a progress bar.
        """
        total = self.points.size
        members, rung_of = zeros_like(like, total), np.zeros(total, np.int32)
        probe = self._scores(like, zeros_like(like, 1))  # refuses what is no score
        dtype = np.promote_types(probe.dtype, np.float32)
        scores = np.full((total, len(self.ends)), np.nan, dtype)
        for bracket in np.unique(self.bracket_of).tolist():
            going = self.points[self.bracket_of == bracket]
            began = len(going)
            for rung in range(bracket, len(self.ends)):
                ids = np.sort(going, axis=None)
                bar.total = bar.n + len(ids)
                start, state = 0, None
                if rung > bracket:
                    start, state = self.ends[rung - 1], _take(members, ids)["state"]
                length = self.ends[rung] - start
                for places, made in field.run(ids, state, length, _tree.nbytes(like)):
                    for leaf, new in zip(jax.tree.leaves(members), made, strict=True):
                        leaf[ids[places]] = new
                    bar.update(len(places))
                rung_of[ids] = rung
                scores[ids, rung] = self._scores(like, _take(members, ids))
                going = going[self._best(scores[going, rung], began, rung + 1 - bracket)]
                if not len(going):  # all others score NaN
                    break
        numbers = {
            "score": scores[:, -1],
            "scores": scores,
            "rung": rung_of,
            "steps": np.asarray(self.ends, np.int32)[rung_of],
            "bracket": self._bracket_of_members(),
        }
        return Table(members, numbers)

    def _scores(self, like: PyTree, members: PyTree) -> np.ndarray:
        """Judge members by what they returned last."""
        arrays = jax.tree.leaves(members)
        result = restore(like, arrays)["result"]
        return scores_of(self.by, result, arrays[0].shape[:1])

    def _best(self, scores: np.ndarray, began: int, rungs: int) -> np.ndarray:
        """Return which points, of scores ``[points, *over]``, go on after a number of rungs."""
        own = average_over(scores, tuple(range(1, scores.ndim)), self.average)
        return order(own)[: max(1, began // self.keep**rungs)]

    def _bracket_of_members(self) -> np.ndarray:
        brackets = np.empty(self.points.size, np.int32)
        shape = len(self.points), *[1] * (self.points.ndim - 1)
        brackets[self.points] = self.bracket_of.reshape(shape)
        return brackets


def _take(tree: PyTree, ids: np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[ids], tree)
