"""All of a loss's second derivative at once: the distribution of its eigenvalues, its trace."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check
from jaxfit._types import Batch, Loss, Params, PRNGKey, PyTree
from jaxfit.analysis import _krylov
from jaxfit.analysis._point import hessian_of, point_of
from jaxfit.run import State, Step

__all__ = ["Spectrum", "Trace", "spectrum", "trace"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The distribution of all eigenvalues, by quadrature; not single ones.

    Attributes:
      nodes: floating [probes, m], places on the axis of eigenvalues.
      weights: floating [probes, m], the part of all eigenvalues at each; their sum is 1. The mean
        of a function of the eigenvalues is ``sum(weights * f(nodes))``, exact per probe for
        polynomials of a degree below 2m.
      mean: floating [], the mean of the eigenvalues, ``sum(weights * nodes)``.
      sem: floating [], its standard error over the probes; NaN for a single one.
    """

    nodes: jax.Array
    weights: jax.Array
    mean: jax.Array
    sem: jax.Array

    def density(self, x: jax.Array, width: float | jax.Array) -> jax.Array:
        """Return the density of eigenvalues, each node smeared out to a normal distribution.

        Args:
          x: floating […], where.
          width: the standard deviation, in units of eigenvalues.

        Returns:
          floating […], of integral 1.
        """
        away = (jnp.asarray(x)[..., None] - self.nodes.reshape(-1)) / width
        heights = jnp.exp(-(away**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
        return heights @ self.weights.reshape(-1)


def spectrum(
    loss: Loss,
    params: Params | State | Step,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    num_matvecs: int | None = None,
    num_probes: int = 8,
    key: PRNGKey | None = None,
) -> Spectrum:
    """Return the distribution of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      params: where, as in `curvature`.
      data: the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      num_matvecs: m, products with the Hessian per probe, at most the number of trained numbers;
        40 by default, or that number if it is less.
      num_probes: how many random starts.
      key: draws them; ``jax.random.key(0)`` by default.

    Returns:
      A `Spectrum`.

    Raises:
      TypeError, ValueError, ImportError: as in `curvature`.

    Golub and Welsch 1969, `Calculation of Gauss quadrature rules
    <https://doi.org/10.1090/S0025-5718-69-99647-1>`_; Ghorbani, Krishnan and Xiao 2019, `An
    Investigation into Neural Net Optimization via Hessian Eigenvalue Density
    <https://arxiv.org/abs/1901.10159>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> loss = lambda a: jnp.sum(jnp.array([1.0, 1.0, 1.0, 5.0]) * a**2) / 2
    >>> found = analysis.spectrum(loss, jnp.ones(4), num_probes=100)
    >>> bool(abs(found.mean - 2) < 3 * found.sem)
    True
    """
    point = point_of(loss, params, data, has_aux)
    _krylov.check_number(point.size, num_matvecs)
    _check.count("num_probes", num_probes)
    matvec, num = hessian_of(point), num_matvecs or min(40, point.size)

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jax.random.normal(key, point.at.shape, point.at.dtype)
        ritz = _krylov.lanczos(matvec, start, num)
        # Where there is no eigenvalue there is no weight either, but zero times -inf would be NaN.
        return jnp.where(jnp.isneginf(ritz.values), ritz.values[-1], ritz.values), ritz.weights

    nodes, weights = lax.map(probe, _split(key, num_probes))
    mean, sem = mean_and_sem(jnp.sum(nodes * weights, axis=1))
    return Spectrum(nodes, weights / num_probes, mean, sem)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """The trace of a loss's second derivative, and what comes with it, estimated by probes.

    Attributes:
      mean: floating [], the trace, the sum of all eigenvalues; by leaf, a tree like the trained
        parameters with the trace of each leaf's own block.
      sem: its standard error over the probes, of the same structure; NaN for a single one.
      diagonal: a tree like the trained parameters: the diagonal of the Hessian.
      frobenius: floating [], the root of the sum of all squared eigenvalues.
    """

    mean: Any
    sem: Any
    diagonal: PyTree
    frobenius: jax.Array


def trace(
    loss: Loss,
    params: Params | State | Step,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    num_probes: int = 32,
    key: PRNGKey | None = None,
    by_leaf: bool = False,
) -> Trace:
    r"""Return the trace of the Hessian, whole or leaf by leaf, its diagonal and its norm.

    By Hutchinson's estimator: :math:`z^\top H z` with random signs z has the trace as its mean and
    :math:`2(\|H\|_F^2 - \sum_i H_{ii}^2)` as its variance, so that one probe is exact for a
    diagonal matrix.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      params: where, as in `curvature`.
      data: the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      num_probes: how many z, each a product with the Hessian.
      key: draws them; ``jax.random.key(0)`` by default.
      by_leaf: whether to return a trace for each leaf of the parameters.

    Returns:
      A `Trace`.

    Raises:
      TypeError, ValueError: as in `curvature`.

    Hutchinson 1990, `A stochastic estimator of the trace of the influence matrix
    <https://doi.org/10.1080/03610919008812866>`_; Bekas, Kokiopoulou and Saad 2007, `An estimator
    for the diagonal of a matrix <https://doi.org/10.1016/j.apnum.2007.01.003>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> loss = lambda p: jnp.sum(p["a"] ** 2) + 3 * p["b"] ** 2
    >>> found = analysis.trace(loss, {"a": jnp.ones(2), "b": 1.0}, num_probes=1, by_leaf=True)
    >>> found.mean
    {'a': Array(4., dtype=float32), 'b': Array(6., dtype=float32)}
    """
    point = point_of(loss, params, data, has_aux)
    _check.count("num_probes", num_probes)
    matvec, sizes = hessian_of(point), point.space.sizes()
    number = jnp.repeat(np.arange(len(sizes)), np.array(sizes))  # of the leaf of each entry

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        signs = jax.random.rademacher(key, point.at.shape, point.at.dtype)
        product = matvec(signs)
        diagonal = signs * product
        blocks = jax.ops.segment_sum(diagonal, number, len(sizes)) if by_leaf else diagonal.sum()
        return blocks, diagonal, product @ product

    def add(sums: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        blocks, *rest = probe(key)
        return jax.tree.map(jnp.add, sums, tuple(rest)), blocks

    zeros = jnp.zeros_like(point.at), jnp.zeros((), point.at.dtype)
    (diagonal, square), blocks = lax.scan(add, zeros, _split(key, num_probes))
    mean, sem = mean_and_sem(blocks)
    if by_leaf:
        structure = jax.tree.structure(point.space.like)
        mean, sem = (jax.tree.unflatten(structure, list(one)) for one in (mean, sem))
    as_tree = jax.tree.map(jnp.real, point.space.tree(diagonal / num_probes))
    return Trace(mean, sem, as_tree, jnp.sqrt(square / num_probes))


def _split(key: PRNGKey | None, number: int) -> jax.Array:
    return jax.random.split(jax.random.key(0) if key is None else key, number)


def mean_and_sem(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean over the first axis and its standard error, NaN for a single value."""
    number = len(values)
    if number == 1:
        return values[0], jnp.full_like(values[0], jnp.nan)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(number)
