"""Single eigenvalues of a loss's second derivative, as it is or preconditioned."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _check
from jaxfit._types import Batch, Loss, OptState, Params, PRNGKey, PyTree
from jaxfit.analysis import _krylov
from jaxfit.analysis._point import Point, hessian_of, point_of
from jaxfit.run import State, Step

__all__ = ["Curvature", "curvature", "preconditioner"]

_ENOUGH = 1e-3  # the error bound, relative to an eigenvalue, at which `curvature` is content
_MOST = 640  # products with the Hessian, beyond which it gives up
_LARGEST = 2**28  # numbers in the basis of a Krylov space, likewise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Curvature:
    """Some eigenvalues of a loss's second derivative, in units of the loss over parameters squared.

    Attributes:
      eigenvalues: floating [k], the largest first; the smallest first where k < 0.
      residuals: floating [k], an error bound for each: within that distance there is an
        eigenvalue. It counts the rounding of linear algebra, but not that of the loss itself.
      vectors: a tree like the trained parameters, with a leading axis [k]: eigenvectors of length
        1 and of either sign; None if they were not asked for.
    """

    eigenvalues: jax.Array
    residuals: jax.Array
    vectors: PyTree


def curvature(
    loss: Loss,
    params: Params | State | Step,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    k: int = 1,
    num_matvecs: int | None = None,
    key: PRNGKey | None = None,
    precondition: PyTree | None = None,
    vectors: bool = False,
) -> Curvature:
    r"""Return the largest or smallest eigenvalues of the Hessian, each with an error bound.

    The largest is called the sharpness. Gradient descent at rate :math:`\eta` is stable where it is
    below :math:`2/\eta`; see `edge` for other optimizers.

    By Lanczos's method (from matfree) with full reorthogonalisation, on products of the Hessian
    with vectors, so that it is never formed. Multiple eigenvalues come as often as they are there.
    Under ``jax.jit`` it is compiled once, and outside at every call, which costs about a second.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      params: where: parameters, or a `State` or `Step`, whose carry the loss is then given.
      data: the batch. The curvature on a small batch is not that on all data, but larger.
      has_aux: whether the loss returns ``(scalar, aux)``.
      k: how many: the k largest, or for k < 0 the -k smallest.
      num_matvecs: the dimension of the Krylov space, from |k| to P, the number of trained
        numbers; its basis takes as many vectors [P] of memory. By default it is doubled until each
        bound is below 1e-3 of its eigenvalue, up to 640, or to a basis of 2²⁸ numbers; under
        ``jax.jit`` and ``vmap``, where bounds cannot be read off, it is 20 + 2|k|.
      key: draws the start; ``jax.random.key(0)`` by default.
      precondition: a diagonal D > 0, a tree of real numbers like the trained parameters, for the
        eigenvalues of :math:`D^{-1/2} H D^{-1/2}`; see `preconditioner`.
      vectors: whether to return the eigenvectors, too.

    Returns:
      A `Curvature`.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.
      ImportError: without matfree, which the extra ``analysis`` installs.

    Warns:
      UserWarning: if the dimension is chosen here and does not suffice.

    Lanczos 1950, `An iteration method for the solution of the eigenvalue problem
    <https://doi.org/10.6028/jres.045.026>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> rosenbrock = lambda a: (1 - a[0]) ** 2 + 100 * (a[1] - a[0] ** 2) ** 2
    >>> found = analysis.curvature(rosenbrock, jnp.array([1.0, 1.0]), k=2)
    >>> print(f"{found.eigenvalues[0]:.2f} {found.eigenvalues[1]:.2f}")
    1001.60 0.40
    """
    point = point_of(loss, params, data, has_aux)
    _check_number(point, k, num_matvecs)
    key = jax.random.key(0) if key is None else key
    matvec, sign = hessian_of(point), 1 if k > 0 else -1
    scale = jnp.ones((), point.at.dtype)
    if precondition is not None:
        scale = 1 / jnp.sqrt(_diagonal(point, precondition))

    # The smallest are the largest with the other sign.
    def signed(v: jax.Array) -> jax.Array:
        return sign * scale * matvec(scale * v)

    eps = jnp.finfo(point.at.dtype).eps

    def attempt(num: int) -> tuple[_krylov.Top, jax.Array]:
        top = _krylov.top(signed, point.at, abs(k), num, key)
        misfit = jnp.linalg.norm(top.products - top.values[:, None] * top.vectors, axis=1)
        return top, misfit + 10 * eps * top.norm

    num = num_matvecs or min(20 + 2 * abs(k), point.size)
    top, bounds = attempt(num)
    while num_matvecs is None and not (enough := _sufficient(top, bounds)):
        if enough is None or num == point.size or num >= min(_MOST, _LARGEST // (2 * point.size)):
            break
        num = min(2 * num, point.size)
        top, bounds = attempt(num)
    if num_matvecs is None and _sufficient(top, bounds) is False:
        warnings.warn(
            f"curvature: after {num} products the error bounds {np.asarray(bounds)} are not all "
            f"below {_ENOUGH:g} of the eigenvalues {sign * np.asarray(top.values)}: give a larger "
            f"num_matvecs.",
            stacklevel=2,
        )
    as_trees = jax.vmap(point.space.tree)(top.vectors) if vectors else None
    return Curvature(sign * top.values, bounds, as_trees)


def _sufficient(top: _krylov.Top, bounds: jax.Array) -> bool | None:
    """Return whether all bounds are small; None where it is unknown, or more cannot help."""
    if isinstance(bounds, jax.core.Tracer) or not np.all(np.isfinite(top.values)):
        return None
    rounding = 100 * float(jnp.finfo(bounds.dtype).eps) * float(top.norm)
    enough = np.maximum(_ENOUGH * np.abs(top.values), rounding)
    return bool(np.all(np.asarray(bounds) <= enough))


def _check_number(point: Point, k: int, num_matvecs: int | None) -> None:
    """Check how many eigenvalues are asked for, and of how many products."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k == 0:
        raise ValueError(
            f"k is {_check.show(k)}, but must be a whole number: 1 for the largest eigenvalue, "
            f"-1 for the smallest."
        )
    if abs(k) > point.size:
        raise ValueError(
            f"k is {k}, but the loss has {point.size} trained numbers and as many eigenvalues: "
            f"ask for at most these."
        )
    _krylov.check_number(point.size, num_matvecs, abs(k))


def _diagonal(point: Point, precondition: PyTree) -> jax.Array:
    """Return a preconditioner as a vector [P]."""
    given, like = (jax.tree.map(jnp.shape, tree) for tree in (precondition, point.space.like))
    if given != like:
        raise ValueError(
            f"precondition is {_check.shapes(precondition)}, but must have a number for each that "
            f"is trained, {_check.shapes(point.space.like)}: give such a tree, as "
            f"jaxfit.analysis.preconditioner(opt_state) does."
        )
    return point.space.diagonal(precondition)


def preconditioner(
    opt_state: OptState, *, b2: float | jax.Array = 0.999, eps: float | jax.Array = 1e-8
) -> PyTree:
    r"""Return the diagonal by which an optimizer of Adam's kind divides its step.

    That is :math:`\sqrt{\nu/(1-b_2^t)} + \epsilon` for ``adam``, ``adamw`` and all else that keeps
    ``optax.ScaleByAdamState``; :math:`\sqrt{\nu+\epsilon}` for ``rmsprop``, and
    :math:`\sqrt{\sum g^2+\epsilon}` for ``adagrad``; found anywhere in a chain. Nothing is read but
    the state, so constants that are not optax's defaults have to be given.

    Args:
      opt_state: the state of an optax optimizer.
      b2: Adam's decay of the second moment.
      eps: the optimizer's ε.

    Returns:
      A tree like the trained parameters, for ``curvature(…, precondition=…)``. It belongs to the
      update that led to the state; before Adam's first, there is none, and all are NaN.

    Raises:
      ValueError: if the state has no second moment, or several.

    Cohen et al. 2022, `Adaptive Gradient Methods at the Edge of Stability
    <https://arxiv.org/abs/2207.14484>`_.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> from jaxfit import analysis
    >>> loss = lambda a: jnp.sum(jnp.array([1.0, 100.0]) * a**2) / 2
    >>> run = jaxfit.train(loss, jnp.ones(2), optax.adam(0.0), 10)
    >>> analysis.preconditioner(run.state.opt_state).round(2)  # the gradient is (1, 100)
    Array([  1., 100.], dtype=float32)
    """
    root = lambda nu: jnp.sqrt(nu.real + eps)
    kinds: dict[type, Callable[[Any], PyTree]] = {
        optax.ScaleByAdamState: lambda s: jax.tree.map(
            lambda nu: jnp.sqrt(nu.real / (1 - b2**s.count)) + eps, s.nu
        ),
        optax.ScaleByRmsState: lambda s: jax.tree.map(root, s.nu),
        optax.ScaleByRssState: lambda s: jax.tree.map(root, s.sum_of_squares),
    }
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: type(node) in kinds)
    found = [node for node in nodes if type(node) in kinds]
    if len(found) != 1:
        raise ValueError(
            f"opt_state has {len(found)} second moments that belong to adam, adamw, rmsprop or "
            f"adagrad, but one was expected: give curvature the diagonal itself as precondition."
        )
    return kinds[type(found[0])](found[0])
