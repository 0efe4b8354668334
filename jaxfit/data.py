"""Data as pure functions of a key."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["line", "linear_problem"]


def line(
    key: jax.Array, n: int = 100, coefficients: Sequence[float] | jax.Array = (3.0, 2.0)
) -> tuple[jax.Array, jax.Array]:
    r"""Draw noisy points on a line: the data of the lesson on gradient descent.

    .. math:: y_i = c_1 x_i + c_2 + u_i, \qquad x_i \sim U(-1, 1), \quad u_i \sim U(0, 1).

    The noise has mean 1/2, so the best intercept is :math:`c_2 + 1/2`, and variance 1/12, which is
    the least mean squared error.

    Args:
      key: a PRNG key.
      n: how many points.
      coefficients: [2], slope and intercept.

    Returns:
      x [n, 2], whose second column is ones, and y [n].

    >>> import jax, jaxfit
    >>> x, y = jaxfit.data.line(jax.random.key(0))
    >>> x.shape, y.shape
    ((100, 2), (100,))
    """
    place, noise = jax.random.split(key)
    x = jnp.stack([jax.random.uniform(place, (n,), minval=-1.0, maxval=1.0), jnp.ones(n)], axis=1)
    return x, x @ jnp.asarray(coefficients, x.dtype) + jax.random.uniform(noise, (n,))


def linear_problem(
    key: jax.Array, n: int, features: int, *, condition: float = 1.0, noise: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Draw a least-squares problem of a given condition number.

    The singular values of :math:`x/\sqrt{n}` are spaced geometrically, so that the eigenvalues of
    the Hessian of half the mean squared error, :math:`x^\top x / n`, run from 1 down to exactly
    :math:`1/\kappa`; its eigenvectors are random.

    Args:
      key: a PRNG key.
      n: how many examples, at least ``features``.
      features: how many columns x has.
      condition: :math:`\kappa \ge 1`, the largest eigenvalue of the Hessian over its smallest.
      noise: the standard deviation of the Gaussian noise in y.

    Returns:
      x [n, features], y [n] and the coefficients [features], drawn from N(0, 1), with
      ``y = x @ coefficients + noise * N(0, 1)``.

    Raises:
      ValueError: if ``n < features``, or no such matrix has this condition number.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> x, y, a = jaxfit.data.linear_problem(jax.random.key(0), 50, 3, condition=100.0)
    >>> print(f"{jnp.linalg.cond(x) ** 2:.1f}")
    100.0
    """
    if n < features or features < 1:
        raise ValueError(
            f"n is {n} and features {features}, but a problem with a condition number needs at "
            f"least as many examples as features, and one feature: raise n."
        )
    if not condition >= 1:
        raise ValueError(
            f"condition is {condition}, but a condition number is at least 1: give κ, not 1/κ."
        )
    if features == 1 and condition > 1:
        raise ValueError(
            f"condition is {condition}, but with one feature it can only be 1: give two features."
        )
    left, right, truth, error = jax.random.split(key, 4)
    u, _ = jnp.linalg.qr(jax.random.normal(left, (n, features)))
    v, _ = jnp.linalg.qr(jax.random.normal(right, (features, features)))
    eigenvalues = jnp.geomspace(1.0, 1.0 / condition, features)
    x = (u * jnp.sqrt(n * eigenvalues)) @ v.T
    coefficients = jax.random.normal(truth, (features,))
    return x, x @ coefficients + noise * jax.random.normal(error, (n,)), coefficients
