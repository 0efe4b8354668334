"""The scores of the runs of a sweep, and which runs are best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check
from jaxfit._drive.axes import Axis
from jaxfit._types import PyTree

By: TypeAlias = str | Callable[[PyTree], Any] | None
"""The key of the scores, or a function that computes them, or None if they are all there is."""

Average: TypeAlias = Callable[..., Any]
"""``average(scores, axis=(1, 2))``, such as ``np.mean``, ``np.median`` or ``np.max``."""


def scores_of(by: By, values: PyTree, shape: tuple[int, ...]) -> np.ndarray:
    """Compute scores, and check that there is one real number per run.

    Args:
      by: as in ``Sweep.best``.
      values: what the runs returned.
      shape: the lengths of the axes.

    Returns:
      An array of the shape, in which NumPy knows NaN when it sees it.
    """
    given = by(values) if callable(by) else values if by is None else values[by]
    if not hasattr(given, "dtype") or np.shape(given) != shape or np.iscomplexobj(given):
        raise ValueError(
            f"by gives {_check.shapes(given)}, but a score is an array of real numbers of shape "
            f"{list(shape)}: give by=lambda values: … with one number per run."
        )
    scores: np.ndarray = np.asarray(given)
    if jnp.issubdtype(scores.dtype, jnp.floating):  # NumPy does not pass over bfloat16's NaNs
        scores = scores.astype(np.promote_types(scores.dtype, np.float32))
    return scores


def averaged(
    scores: np.ndarray, axes: Sequence[Axis], over: str | Sequence[str], average: Average
) -> tuple[list[Axis], np.ndarray]:
    """Average scores over some axes; return the other axes, and the scores ``[*others]``."""
    positions = positions_of(over, axes)
    kept = [axis for i, axis in enumerate(axes) if i not in positions]
    return kept, average_over(scores, positions, average)


def positions_of(over: str | Sequence[str], axes: Sequence[Axis]) -> tuple[int, ...]:
    """Return the positions of the axes to average over."""
    names = [over] if isinstance(over, str) else list(over)
    known = [axis.name for axis in axes]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"over names {unknown[0]!r}, but the axes are {', '.join(known)}: name some of these."
        )
    return tuple(i for i, name in enumerate(known) if name in names)


def average_over(scores: np.ndarray, axis: tuple[int, ...], average: Average) -> np.ndarray:
    """Average scores over some axes by a function of the user's."""
    left = [length for i, length in enumerate(scores.shape) if i not in axis]
    made: np.ndarray = np.asarray(average(scores, axis=axis) if axis else scores)
    if list(made.shape) != left:
        raise ValueError(
            f"average returned an array {list(made.shape)}, but the axes that are left have the "
            f"lengths {left}: give a function like np.mean, which takes axis=…."
        )
    return made


def order(scores: np.ndarray) -> np.ndarray:
    """Return the positions of scores in the flattened array, the lowest first and without NaN.

    Scores that are equal stay in their order.
    """
    flat = scores.ravel()
    positions: np.ndarray = np.argsort(flat, kind="stable")
    known: np.ndarray = positions[~np.isnan(flat[positions])]
    return known


def labels_at(axes: Sequence[Axis], position: int) -> dict[str, Any]:
    """Return what ``Sweep.sel`` selects one run by, from its position among all.

    These are the labels of Python objects, and the items of other axes.
    """
    index = np.unravel_index(position, tuple(map(len, axes)))
    return {
        axis.name: jax.tree.map(lambda leaf, i=i: leaf[i], axis.kept)
        if axis.inside
        else axis.labels[i]
        for axis, i in zip(axes, index, strict=True)
    }
