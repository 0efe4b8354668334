"""The results of a sweep as an ``xarray.Dataset``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfit import _tree
from jaxfit._disk.rows import DiskArray
from jaxfit._drive.axes import Axis
from jaxfit._types import PyTree
from jaxfit.run import Run


class Further(NamedTuple):
    """Hold a dimension beside the axes, of rows or of evaluations."""

    name: str
    steps: np.ndarray | None  # its coordinate, if all runs have the same
    arrays: list[Any]  # those that have it


def dataset(axes: Sequence[Axis], values: PyTree) -> Any:
    """Return an ``xarray.Dataset`` with the axes as dimensions and the arrays as variables.

    Args:
      axes: the axes of the sweep.
      values: what its runs returned, a pytree of arrays ``[*axes, …]``.

    Raises:
      ImportError: if xarray is missing.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            'to_xarray needs xarray: run pip install "jaxfit-train[analysis]".'
        ) from error
    read = lambda leaf: leaf[...] if isinstance(leaf, DiskArray) else leaf
    values = _tree.without_keys(jax.tree.map(read, values))
    coordinates, variables = named(axes, values, _further(values, len(axes)))
    return xarray.Dataset(variables, coordinates)


def named(
    axes: Sequence[Axis], values: PyTree, further: Sequence[Further] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name the coordinates and the arrays of a sweep.

    Args:
      axes: the axes of the sweep.
      values: arrays ``[*axes, …]``, without keys.
      further: dimensions that arrays have beside the axes.

    Returns:
      The coordinates and the variables, each a dimension or a list of them with an array.
    """
    dimensions = [axis.name for axis in axes]
    free = _namer(dimensions)
    coordinates: dict[str, Any] = {axis.name: (axis.name, np.asarray(axis.labels)) for axis in axes}
    further = [one._replace(name=free(one.name)) for one in further]
    coordinates |= {one.name: (one.name, one.steps) for one in further if one.steps is not None}
    for axis in axes:
        for path, leaf in _arrays(axis.items) if axis.inside else []:
            if path and leaf.ndim == 1:
                coordinates[free(f"{axis.name}.{path}")] = axis.name, leaf
    arrays = [
        (free(path or "value"), leaf)
        for path, leaf in _arrays(values)
        if path != "step" or all(one.steps is None for one in further)  # else a coordinate
    ]
    variables: dict[str, Any] = {}
    for name, leaf in arrays:
        others = [f"{name}_dim_{i}" for i in range(np.ndim(leaf) - len(axes))]
        first = [one.name for one in further if any(leaf is array for array in one.arrays)]
        variables[name] = [*dimensions, *first, *map(free, others[len(first) :])], leaf
    return coordinates, variables


def _namer(taken: Iterable[str]) -> Callable[[str], str]:
    """Return a function that appends underscores to a name until it is not taken, and takes it."""
    known = set(taken)

    def free(name: str) -> str:
        while name in known:
            name += "_"
        known.add(name)
        return name

    return free


def _arrays(tree: PyTree) -> list[tuple[str, Any]]:
    """Return the arrays of a tree with their paths, as in params.w."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if _tree.is_array(leaf)
    ]


def _further(values: PyTree, num_axes: int) -> list[Further]:
    """Return the dimension of rows, if there is one, and that of evaluations."""
    if isinstance(values, Run):
        found = [_dimension(("step", "row"), values.steps, values.trajectory, num_axes)]
        if values.evaluated_steps is not None:
            names = "evaluated_step", "evaluation"
            found += [_dimension(names, values.evaluated_steps, values.evaluations, num_axes)]
        return found
    if isinstance(values, Mapping) and np.ndim(values.get("step", 0)) == num_axes + 1:
        return [_dimension(("step", "row"), values["step"], values, num_axes)]
    return []


def _dimension(names: tuple[str, str], steps: Any, tree: PyTree, num_axes: int) -> Further:
    """Return a dimension; its name depends on whether all runs have the same steps."""
    length = np.shape(steps)[num_axes]
    arrays = [
        leaf
        for _, leaf in _arrays((steps, tree))
        if np.shape(leaf)[num_axes : num_axes + 1] == (length,)
    ]
    steps = np.reshape(steps, (-1, length))
    same = bool((steps == steps[0]).all())
    return Further(names[0] if same else names[1], steps[0] if same else None, arrays)
