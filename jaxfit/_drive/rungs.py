"""The rungs of a race between runs: how long they are, who goes on, and how they are computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxfit import _check, _tree
from jaxfit._drive import tiles
from jaxfit._drive.axes import Axis
from jaxfit._drive.variant import Variant, carried_by, result_of
from jaxfit._tree import StaticLeaf
from jaxfit._types import PyTree


@dataclasses.dataclass(frozen=True)
class Leg:
    """What takes a member of a race from one rung to the next; two are equal if they do the same.

    Attributes:
      fn: the function of a state, a number of steps and a point.
      num_steps: how many steps it is asked for.
    """

    fn: StaticLeaf
    num_steps: int

    def __call__(self, member: dict[str, PyTree], **objects: Any) -> dict[str, PyTree]:
        state = _tree.unpack(member["state"])
        out = self.fn.value(state, self.num_steps, **member["point"], **objects)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                f"fn returned {_check.shapes(out)}, but must return a pair: the state to go on "
                f"from, and a result to judge the run by."
            )
        return {"state": out[0], "result": out[1]}

    @property
    def __name__(self) -> str:
        return _check.show(self.fn.value)


def ends_of(num_steps: int, keep: int, rungs: int | None, points: int) -> list[int]:
    """Return the step at which every rung ends, each about ``keep`` times the one before it.

    Args:
      num_steps: where the last ends.
      keep: one of how many goes on.
      rungs: how many there are; None for as many as the points and steps allow.
      points: how many points the first has.
    """
    most = 1
    while keep**most <= min(points, num_steps):
        most += 1
    if rungs is not None and rungs > most:
        raise ValueError(
            f"rungs is {rungs}, but {points} points and {num_steps} steps with keep={keep} are "
            f"enough for {most}: give fewer, or more points and steps."
        )
    number = most if rungs is None else rungs
    return [num_steps // keep ** (number - 1 - rung) for rung in range(number)]


def share_out(points: int, rungs: int, keep: int, brackets: int) -> np.ndarray:
    """Return the bracket of every point, int32 [points]; the brackets cost about the same.

    Which points are in which is random, but the same in every call.
    """
    left = [rungs - bracket for bracket in range(brackets)]  # rungs of each
    parts = np.cumsum([keep ** (one - 1) / one for one in left])
    bounds = np.round(points * parts / parts[-1]).astype(int)
    shuffled = np.random.default_rng(0).permutation(points)
    return np.searchsorted(bounds, shuffled, side="right").astype(np.int32)


def zeros_like(tree: PyTree, members: int) -> PyTree:
    """Make arrays ``[members, …]`` for the arrays of one member."""
    return jax.tree.map(lambda leaf: np.zeros((members, *leaf.shape), leaf.dtype), tree)


@dataclasses.dataclass(frozen=True)
class Field:
    """All members of a race, and how they are computed.

    Attributes:
      variants: the choices of Python objects; their function is the user's.
      axes: the axes inside a program.
      batch_size: how many members a tile has; None to choose.
      devices: the devices.
    """

    variants: Sequence[Variant]
    axes: Sequence[Axis]
    batch_size: int | None
    devices: Sequence[jax.Device]

    def check(self, starts: Sequence[int], legs: Sequence[int]) -> PyTree:
        """Check what is returned, and return one result, packed, with ShapeDtypeStructs in it.

        Args:
          starts: how many steps members take from the start.
          legs: how many they take from a state.
        """
        first: PyTree = None
        for length, from_start in [*((n, True) for n in starts), *((n, False) for n in legs)]:
            state = None if from_start else zeros_like(first["state"], 1)
            axis = self._members(np.zeros(1, int), state)
            result = result_of(self._legs(length), [axis])
            first = result if first is None else first
            if found := _check.difference(first, result):
                raise ValueError(
                    f"fn returns one shape after {starts[0]} steps and another after {length} more "
                    f"({found}), but what it returned before is replaced: return a state and a "
                    f"result whose shapes do not depend on the number of steps."
                )
        return first

    def run(
        self, ids: np.ndarray, state: PyTree, length: int, size: int
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Take members a leg further.

        Args:
          ids: int [members], their positions among all, in increasing order.
          state: their states, arrays ``[members, …]``, packed; None at the start.
          length: how many steps.
          size: the bytes of a member's result.

        Yields:
          Places in ``ids``, and the arrays ``[places, …]`` of the packed results.
        """
        number = math.prod(map(len, self.axes))
        groups = np.split(np.arange(len(ids)), np.searchsorted(ids, self._starts(number)))
        legs, batch_size = self._legs(length), self.batch_size
        if batch_size is None:
            one = self._members(ids[:1] % number, jax.tree.map(lambda leaf: leaf[:1], state))
            largest, carried = max(map(len, groups)), carried_by(legs, [one])
            batch_size = tiles.default_batch_size(self.devices, largest, size, carried)
        for leg, places in zip(legs, groups, strict=True):
            if len(places):
                own = jax.tree.map(lambda leaf, places=places: leaf[places], state)
                axis = self._members(ids[places] % number, own)
                for part in tiles.compute([leg], [axis], batch_size, self.devices):
                    yield places[part.runs.start : part.runs.stop], part.arrays

    def _starts(self, number: int) -> list[int]:
        return [variant * number for variant in range(1, len(self.variants))]

    def _legs(self, length: int) -> list[Variant]:
        return [
            dataclasses.replace(variant, fn=StaticLeaf(Leg(variant.fn, length)))
            for variant in self.variants
        ]

    def _members(self, runs: np.ndarray, state: PyTree) -> Axis:
        """Return members of one variant, by their positions in it, as one zipped axis."""
        index = np.unravel_index(runs, tuple(map(len, self.axes))) if self.axes else ()
        point = {
            axis.name: jax.tree.map(lambda leaf, at=at: leaf[at], axis.items)
            for axis, at in zip(self.axes, index, strict=True)
        }
        items = {"point": point, "state": state}
        return Axis("member", np.arange(len(runs)), items, inside=True)
