"""Losses: pure functions of (prediction, target) that return one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["mse", "objective"]


def mse(prediction: jax.Array, target: jax.Array) -> jax.Array:
    r"""Mean squared error, :math:`\frac{1}{n}\sum_i (p_i - t_i)^2`.

    Args:
      prediction: an array of any shape.
      target: an array of the same shape: nothing is broadcast, for [n, 1] against [n] would give
        n² differences and a wrong answer without a word.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes differ.

    >>> import jax.numpy as jnp
    >>> mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
    Array(2., dtype=float32)
    """
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(
            f"mse was given predictions of shape {jnp.shape(prediction)} and targets of shape "
            f"{jnp.shape(target)}, but both must have one shape: reshape one of them."
        )
    return jnp.mean(jnp.square(prediction - target))


def objective(
    model: Callable[[Any, Any], jax.Array], loss: Callable[[jax.Array, jax.Array], jax.Array]
) -> Callable[[Any, tuple[Any, Any]], jax.Array]:
    """Compose a model and a loss into what ``train`` takes.

    Args:
      model: ``model(params, x) -> prediction``.
      loss: ``loss(prediction, target) -> scalar``.

    Returns:
      ``objective(params, (x, y)) -> scalar``.

    >>> import jax.numpy as jnp
    >>> from jaxfit.models import linear
    >>> objective(linear, mse)(jnp.array([2.0]), (jnp.array([[1.0], [2.0]]), jnp.array([2.0, 6.0])))
    Array(2., dtype=float32)
    """

    def objective(params: Any, batch: tuple[Any, Any]) -> jax.Array:
        x, y = batch
        return loss(model(params, x), y)

    return objective
