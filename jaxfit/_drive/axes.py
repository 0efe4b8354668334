"""The axes of a sweep. What the user gives is checked and parsed here, once, into an `Axis`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a sweep.

    Attributes:
      name: the keyword by which the function is given an item.
      labels: one label for each item: the names of Python objects, the numbers of a single array
        ``[items]``, or the positions 0, 1, … for all other arrays.
      items: a tuple of Python objects, or a pytree of NumPy arrays ``[items, …]`` in which PRNG
        keys are replaced by their numbers.
      inside: whether the items are arrays, which vary inside one compiled program. Python objects
        are compiled into one program each.
    """

    name: str
    labels: tuple[str, ...] | np.ndarray
    items: PyTree
    inside: bool

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kept(self) -> PyTree:
        """Return what ``Sweep.axes`` keeps of it, from which `read` makes it again."""
        return _tree.with_keys(self.items) if self.inside else self.labels


def parse(axes: Any) -> list[Axis]:
    """Check the axes that a sweep is given, and return them.

    A list, or a dict with a leaf that is not an array, holds Python objects; anything else must be
    arrays, which are converted to JAX's dtypes.
    """
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(
            f"axes is {_check.show(axes)}, but must be a dict of one axis or more by name: "
            f'give some, as in {{"lr": jnp.logspace(-3, 0, 32)}}.'
        )
    for name in axes:
        if not isinstance(name, str):
            raise TypeError(
                f"axes has the name {_check.show(name)}, but fn is called with one keyword for "
                f"each axis: name axes with strings."
            )
    return [
        _parse_objects(name, given)
        if isinstance(given, list) or (isinstance(given, Mapping) and not _holds_arrays(given))
        else _parse_arrays(name, given)
        for name, given in axes.items()
    ]


def read(axes: Mapping[str, Any]) -> list[Axis]:
    """Return the axes of a ``Sweep``, whose Python objects are known by their labels alone."""
    return [
        Axis(name, kept, kept, inside=False)
        if isinstance(kept, tuple) and all(isinstance(label, str) for label in kept)
        else _of_arrays(name, kept)
        for name, kept in axes.items()
    ]


def arrange(axes: Sequence[Axis], value: np.ndarray) -> np.ndarray:
    """Put what all runs returned in the order of the axes.

    Args:
      axes: all axes, in their order.
      value: an array ``[runs, …]``: for each choice of Python objects, all runs inside a program.

    Returns:
      An array ``[*axes, …]``.
    """
    made = sorted(axes, key=lambda axis: axis.inside)
    order = [made.index(axis) for axis in axes]
    split = value.reshape(*map(len, made), *value.shape[1:])
    return np.moveaxis(split, order, range(len(order)))


def summary(axis: Axis) -> str:
    """Write the length of an axis, and its labels if they are short."""
    if axis.inside and axis.labels is not axis.items:
        return f"{len(axis)} {_check.shapes(axis.kept)}"
    shown = [
        f"{label:.4g}" if isinstance(label, np.inexact) else str(label) for label in axis.labels
    ]
    if len(shown) > 3 and axis.inside:
        shown = [f"{shown[0]} … {shown[-1]}"]
    return f"{len(axis)} ({', '.join(shown)})"


def _parse_objects(name: str, given: Any) -> Axis:
    labels, items = (given, given.values()) if isinstance(given, Mapping) else (given, given)
    if isinstance(given, Mapping) and (
        unnamed := [one for one in given if not isinstance(one, str)]
    ):
        raise TypeError(
            f"axis {name!r} has the label {_check.show(unnamed[0])}, but Python objects in a dict "
            f"are labelled by strings: give these, or a list, whose items are labelled by their "
            f"str."
        )
    with contextlib.suppress(ValueError):  # some objects are dicts whose keys JAX cannot sort
        _check.concrete(f"axis {name!r}", list(items), "sweep")
    if not given:
        raise ValueError(f"axis {name!r} is empty, but needs one item or more.")
    names = tuple(map(str, labels))
    label, times = collections.Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"axis {name!r} has the label {label!r} more than once, but labels tell runs apart: "
            f"give a dict with a label for each."
        )
    return Axis(name, names, tuple(items), inside=False)


def _parse_arrays(name: str, given: Any) -> Axis:
    if not all(map(_is_array, _leaves(given))):
        raise TypeError(
            f"axis {name!r} is {_check.show(given)}, but must be an array of numbers or PRNG keys, "
            f"a pytree of such arrays, or Python objects in a dict or a list: "
            f"convert numbers with jnp.asarray, and put anything else in a dict."
        )
    _check.concrete(f"axis {name!r}", given, "sweep")
    alternative = ", or a list to compile for each item on its own"
    _check.leading_axis(f"axis {name!r}", given, "item", alternative)
    return _of_arrays(name, jax.tree.map(jnp.asarray, given))


def _of_arrays(name: str, arrays: PyTree) -> Axis:
    items = jax.tree.map(np.asarray, _tree.without_keys(arrays))
    if isinstance(items, np.ndarray) and items.ndim == 1:
        return Axis(name, items, items, inside=True)
    return Axis(name, np.arange(len(jax.tree.leaves(items)[0])), items, inside=True)


def _holds_arrays(given: Any) -> bool:
    leaves = _leaves(given)
    return bool(leaves) and all(map(_is_array, leaves))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and _tree.is_array(leaf)


def _leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree, or the tree if JAX cannot sort the keys of a dict in it."""
    try:
        return jax.tree.leaves(tree)
    except ValueError:
        return [tree]
