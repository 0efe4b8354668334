"""Points to try, drawn from distributions: an axis of a sweep that is no grid.

A distribution is its quantile function: it takes numbers between 0 and 1, an array [n], and returns
as many values. ``scipy.stats.norm(0, 1).ppf`` is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._types import PRNGKey, PyTree

__all__ = ["choice", "log_uniform", "samples", "uniform"]

Distribution: TypeAlias = Callable[[np.ndarray], Any]
"""A quantile function, from numbers in (0, 1), float64 [n], to values [n]."""

_METHODS = "sobol", "halton", "random"


def samples(key: PRNGKey, n: int, space: PyTree, method: str = "sobol") -> PyTree:
    """Draw points from a space, for a zipped axis of ``jaxfit.sweep`` or ``jaxfit.halving``.

    Sobol's and Halton's points fill the space more evenly than a grid or random points of the same
    number: each projection on some of the coordinates is filled evenly, too, so that no runs are
    wasted on a coordinate that turns out not to matter. Both sequences are scrambled by the key. To
    draw fewer points with one key is to draw the first of them; Sobol's are most even if their
    number is a power of 2.

    Args:
      key: a PRNG key. The same key draws the same points.
      n: how many.
      space: a distribution for each coordinate, in a dict, or any other pytree of them: `uniform`,
        `log_uniform`, `choice`, or a quantile function of your own.
      method: ``"sobol"`` or ``"halton"``, which are quasi-random, or ``"random"``.

    Returns:
      The tree with an array ``[n]`` in place of every distribution.

    Raises:
      TypeError, ValueError: if the space has something else than functions, or nothing, if one does
        not return n values, or if there is no such method.

    References:
      Sobol', *USSR Computational Mathematics and Mathematical Physics* 7 (1967); Owen, *Journal of
      Complexity* 14 (1998); Bergstra and Bengio, *Random search for hyper-parameter optimization*,
      JMLR 13 (2012).

    >>> import jax, jaxfit
    >>> from jaxfit.search import choice, log_uniform
    >>> space = {"lr": log_uniform(1e-4, 1.0), "batch": choice(16, 32, 64)}
    >>> points = jaxfit.search.samples(jax.random.key(0), 64, space)
    >>> jaxfit.sweep(lambda point: point["lr"] * point["batch"], {"point": points})
    Sweep({point: 64 {'batch': int32[64], 'lr': float32[64]}}, float32[64])
    """
    from scipy.stats import qmc  # JAX needs SciPy, but does not import this part of it

    n = _check.count("n", n)
    distributions, structure = jax.tree.flatten(space)
    if not distributions:
        raise ValueError(
            'space is empty, but needs a distribution or more: give {"lr": log_uniform(1e-4, 1)}.'
        )
    for one in distributions:
        if not callable(one):
            raise TypeError(
                f"space holds {_check.show(one)}, but its leaves must be distributions: give "
                f"uniform(low, high), log_uniform(low, high), choice(…), or a quantile function."
            )
    if method not in _METHODS:
        raise ValueError(
            f'method is {method!r}, but must be "sobol", "halton" or "random": choose one.'
        )
    _check.concrete("key", key, "samples")
    words = key if not _tree.is_key(key) else jax.random.key_data(key)
    rng = np.random.default_rng(np.asarray(words).ravel().tolist())
    if method == "random":
        points = rng.random((n, len(distributions)))
    elif method == "halton":
        points = qmc.Halton(len(distributions), rng=rng).random(n)
    else:
        points = qmc.Sobol(len(distributions), rng=rng).random_base2(math.ceil(math.log2(n)))[:n]
    points = np.clip(points, 2.0**-33, 1 - 2.0**-33)  # where quantiles are finite
    drawn = [_values(one, column, n) for one, column in zip(distributions, points.T, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _values(distribution: Distribution, column: np.ndarray, n: int) -> jax.Array:
    values = jnp.asarray(distribution(column))
    if values.shape[:1] != (n,):
        raise ValueError(
            f"the distribution {_check.show(distribution)} returned {_check.shapes(values)}, but "
            f"is called with an array [{n}] of numbers between 0 and 1: return a value for each."
        )
    return values


def uniform(low: float, high: float) -> Distribution:
    """Return the uniform distribution between two numbers.

    Args:
      low: the least value.
      high: the greatest, above it.

    Returns:
      Its quantile function, of numbers from 0 to 1, for `samples`.

    Raises:
      ValueError: if the bounds are not in this order.

    >>> import numpy as np
    >>> uniform(1.0, 3.0)(np.array([0.25, 0.5]))
    array([1.5, 2. ])
    """
    low, high = _bounds("uniform", low, high, -math.inf)
    return lambda u: np.clip(low + u * (high - low), low, high)


def log_uniform(low: float, high: float) -> Distribution:
    """Return the distribution between two positive numbers whose logarithm is uniform.

    Args:
      low: the least value, above 0.
      high: the greatest, above it.

    Returns:
      Its quantile function, of numbers from 0 to 1, for `samples`.

    Raises:
      ValueError: if the bounds are not in this order.

    >>> import numpy as np
    >>> log_uniform(0.01, 1.0)(np.array([0.5])).round(6)
    array([0.1])
    """
    low, high = _bounds("log_uniform", low, high, 0.0)
    return lambda u: np.clip(low * (high / low) ** u, low, high)


def choice(*values: Any) -> Distribution:
    """Return the distribution that takes some numbers with equal probability.

    What is no number, such as an optimizer, cannot vary inside a compiled program: sweep it as an
    axis of its own.

    Args:
      *values: the numbers.

    Returns:
      Its quantile function, of numbers from 0 to 1, for `samples`.

    Raises:
      TypeError: if a value is not a number.

    >>> import numpy as np
    >>> choice(16, 32, 64)(np.array([0.1, 0.5, 0.99]))
    array([16, 32, 64])
    """
    numbers = np.asarray(values) if values else np.zeros(0)
    if not numbers.size or numbers.dtype.kind not in "biufc" or numbers.ndim != 1:
        raise TypeError(
            f"choice was given {_check.show(values)}, but takes numbers: give these, as in "
            f"choice(16, 32), and sweep other things as an axis of their own."
        )
    return lambda u: numbers[(u * len(numbers)).astype(int)]


def _bounds(name: str, low: Any, high: Any, least: float) -> tuple[float, float]:
    if not least < low < high < math.inf:
        positive = "positive " * (least == 0)
        raise ValueError(
            f"{name} was given {low} and {high}, but takes two {positive}numbers, the lower first."
        )
    return float(low), float(high)
