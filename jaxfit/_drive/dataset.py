"""The results of a sweep as an ``xarray.Dataset``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxfit import _tree
from jaxfit._disk.rows import DiskArray
from jaxfit._drive.axes import Axis
from jaxfit._types import PyTree
from jaxfit.run import Run


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
    steps, rows = _rows(values, len(axes))
    coordinates, variables = named(axes, values, steps, rows)
    return xarray.Dataset(variables, coordinates)


def named(
    axes: Sequence[Axis], values: PyTree, steps: np.ndarray | None = None, rows: Sequence[Any] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name the coordinates and the arrays of a sweep.

    Args:
      axes: the axes of the sweep.
      values: arrays ``[*axes, …]``, without keys.
      steps: the steps of all rows, if all runs have the same.
      rows: which arrays have a further dimension of rows.

    Returns:
      The coordinates and the variables, each a dimension or a list of them with an array.
    """
    dimensions = [axis.name for axis in axes]
    free = _namer(dimensions)
    coordinates: dict[str, Any] = {axis.name: (axis.name, np.asarray(axis.labels)) for axis in axes}
    row = free("row" if steps is None else "step") if len(rows) else ""
    if steps is not None:
        coordinates[row] = row, steps
    for axis in axes:
        for path, leaf in _arrays(axis.items) if axis.inside else []:
            if path and leaf.ndim == 1:
                coordinates[free(f"{axis.name}.{path}")] = axis.name, leaf
    arrays = [
        (free(path or "value"), leaf)
        for path, leaf in _arrays(values)
        if steps is None or path != "step"  # which is a coordinate
    ]
    variables: dict[str, Any] = {}
    for name, leaf in arrays:
        further = [f"{name}_dim_{i}" for i in range(np.ndim(leaf) - len(axes))]
        first = [row] if any(leaf is one for one in rows) else []
        variables[name] = [*dimensions, *first, *map(free, further[len(first) :])], leaf
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


def _rows(values: PyTree, num_axes: int) -> tuple[np.ndarray | None, list[Any]]:
    """Return the steps of the rows, None if they differ between runs, and the arrays of rows."""
    steps: Any
    recorded: PyTree
    if isinstance(values, Run):
        steps, recorded = values.steps, (values.steps, values.trajectory)
    elif isinstance(values, Mapping) and np.ndim(values.get("step", 0)) == num_axes + 1:
        steps, recorded = values["step"], values
    else:
        return None, []
    length = np.shape(steps)[num_axes]
    steps = np.reshape(steps, (-1, length))
    rows = [
        leaf
        for _, leaf in _arrays(recorded)
        if np.shape(leaf)[num_axes : num_axes + 1] == (length,)
    ]
    return steps[0] if (steps == steps[0]).all() else None, rows
