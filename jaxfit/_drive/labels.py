"""The search for a label on an axis of a sweep, exact or for the nearest number."""

from __future__ import annotations

import cmath
import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _tree
from jaxfit._drive.axes import Axis, summary


def position(axis: Axis, label: Any, method: str | None) -> int:
    """Return the first position of a label, or, with ``"nearest"``, of the number nearest to it.

    Args:
      axis: where to search.
      label: a number, or for Python objects anything whose ``str`` is a name, or, on an axis whose
        items are no single numbers, an item. On a floating axis it is rounded to the precision of
        the axis; on any other, the numbers must be equal.
      method: None or ``"nearest"``, which is for numbers alone.

    Raises:
      KeyError: if there is no such label.
    """
    number = _number(label)
    if not isinstance(axis.labels, np.ndarray):
        found = [i for i, name in enumerate(axis.labels) if name == str(label)]
    elif number is None:
        found = _positions_of_item(axis, label)
    else:
        found = _positions(axis.labels, number, method)
    if not found:
        near = "near " if method and axis.inside else ""
        raise KeyError(f"axis {axis.name!r} has no label {near}{label!r}: it has {summary(axis)}.")
    return found[0]


def _positions_of_item(axis: Axis, label: Any) -> list[int]:
    """Return where an item, a tree of arrays like the others, is on an axis of such trees."""
    if axis.labels is axis.items:
        return []
    with contextlib.suppress(TypeError, ValueError):  # if it is no tree of numbers
        label = _tree.without_keys(label)
        structure: Callable[[Any], Any] = jax.tree.structure
        if structure(label) != structure(axis.items):
            return []
        same = np.ones(len(axis), bool)
        for leaf, one in zip(jax.tree.leaves(axis.items), jax.tree.leaves(label), strict=True):
            given = np.asarray(one)
            if given.shape != leaf.shape[1:]:
                return []
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                given = given.astype(leaf.dtype)
            equal = (leaf == given) | ((leaf != leaf) & (given != given))
            same &= equal.reshape(len(axis), -1).all(axis=1)
        return np.flatnonzero(same).tolist()
    return []


def _number(label: Any) -> Any:
    """Return a label as one of Python's numbers, and None for anything else."""
    if not _tree.is_array(label) or _tree.is_key(label) or np.ndim(label):
        return None
    return np.asarray(label).item() if hasattr(label, "dtype") else label


def _positions(labels: np.ndarray, number: Any, method: str | None) -> list[int]:
    """Return where a number is among labels or, with a method, where the nearest to it is."""
    numbers, wanted = labels.tolist(), _in_precision(number, labels.dtype)
    is_nan = wanted != wanted
    if method and is_nan:
        return []
    if method and wanted not in numbers:
        wanted = _nearest(numbers, number)
    return [i for i, one in enumerate(numbers) if one == wanted or (is_nan and one != one)]


def _nearest(numbers: list[Any], wanted: Any) -> Any:
    """Return the finite number nearest to another one, and None if there is none."""
    near = [one for one in numbers if cmath.isfinite(one)]
    if near and not any(isinstance(one, complex) for one in (near[0], wanted)):
        # Only its neighbours: from far away, all numbers are at one distance in floating point.
        wanted = min(max(wanted, min(near)), max(near))
        sides = max(one for one in near if one <= wanted), min(one for one in near if one >= wanted)
        near = [one for one in near if one in sides]
    return min(near, key=lambda one: abs(one - wanted), default=None)


def _in_precision(number: Any, dtype: Any) -> Any:
    """Return a number rounded to a floating dtype; as it is where that overflows, or for others."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return number
    with contextlib.suppress(OverflowError, TypeError), np.errstate(over="ignore"):
        rounded = dtype.type(number).item()
        return rounded if cmath.isfinite(rounded) else number
    return number
