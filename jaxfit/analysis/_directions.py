"""Directions in the space of the parameters, and how far to go along them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check
from jaxfit._types import PyTree
from jaxfit.analysis._point import Space


def as_vector(space: Space, tree: PyTree) -> jax.Array:
    """Check a direction, and return it as a vector [P]."""
    given, like = (jax.tree.map(jnp.shape, one) for one in (tree, space.like))
    if given != like:
        raise ValueError(
            f"directions hold {_check.shapes(tree)}, but must be like the trained parameters, "
            f"{_check.shapes(space.like)}: give two such trees."
        )
    return space.vector(tree)


def extents(extent: Any) -> Any:
    """Return a lowest and a highest place for each direction."""
    if np.ndim(extent) == 0:
        return (-extent, extent), (-extent, extent)
    if np.shape(extent) == (2,):
        return extent, extent
    if np.shape(extent) == (2, 2):
        return extent
    raise ValueError(
        f"extent is {_check.show(extent)}, but must be a number, a pair (lowest, highest), or such "
        f"a pair for each direction."
    )


def normalized(tree: PyTree, like: PyTree, normalize: str | None, axis: int) -> PyTree:
    """Return a direction whose parts have the lengths of those of the parameters."""

    def scaled(part: jax.Array, whole: jax.Array) -> jax.Array:
        if normalize is None:
            return part
        if part.ndim < 2:
            return jnp.zeros_like(part)
        axes = tuple(np.delete(np.arange(part.ndim), axis).tolist())

        def length(leaf: jax.Array) -> jax.Array:
            along = axes if normalize == "filter" else None
            return jnp.sqrt(jnp.sum(jnp.abs(leaf) ** 2, axis=along, keepdims=True))

        return part * (length(whole) / length(part)).astype(part.dtype)

    return jax.tree.map(scaled, tree, like)
