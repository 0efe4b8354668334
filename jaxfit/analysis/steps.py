"""How good a step was, and whether an optimizer is stable where it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxfit import _check, _step, _tree
from jaxfit._problem import Problem
from jaxfit._types import Batch, Loss, Optimizer, PRNGKey
from jaxfit.analysis import _krylov
from jaxfit.analysis._point import on_data, point_of, space_of
from jaxfit.run import State, Step

__all__ = ["Stability", "StepQuality", "edge", "stability", "step_quality"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepQuality:
    r"""How good one step was: its gradient g, its update u and the second derivative H.

    Attributes:
      predicted: floating [], the change of the loss by the quadratic model,
        :math:`g\cdot u + \tfrac12 u^\top H u`.
      actual: floating [], the change of the loss.
      alpha: floating [], :math:`-u^\top H u/(g\cdot u) - 1`, where the step ended in the parabola
        below it: -1 where it began, 0 at the bottom, 1 as high as before, more above.
      cauchy_rate: floating [], :math:`g^\top g/g^\top H g`, the rate of gradient descent that goes
        to the bottom; below zero where the loss curves down.
      critical_rate: floating [], the smallest rate at which going along u raises the loss, not by
        the model: the length of the way over that of the gradient. For gradient descent it is a
        learning rate. 2 over it is the critical sharpness.
      critical_factor: floating [], the same as a multiple of the learning rate of this step, for
        any optimizer. Infinite where the loss never rises, 0 where it does so at once.
    """

    predicted: jax.Array
    actual: jax.Array
    alpha: jax.Array
    cauchy_rate: jax.Array
    critical_rate: jax.Array
    critical_factor: jax.Array


def step_quality(
    loss: Loss, step: Step, *, data: Batch | None = None, has_aux: bool = False
) -> StepQuality:
    """Return how good a step was, beside its quadratic model and its rate.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      step: a `Step`, as a recorder or `jaxfit.at` has it.
      data: the batch to judge by; the step's own by default. Judged by that, a step looks better
        than on others.
      has_aux: whether the loss returns ``(scalar, aux)``.

    Returns:
      A `StepQuality`.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.

    Schneider, Dangel and Hennig 2021, `Cockpit: A Practical Debugging Tool for the Training of
    Deep Neural Networks <https://arxiv.org/abs/2102.06604>`_ (α, here without noise).

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> from jaxfit import analysis
    >>> loss = lambda a: 3 * a**2  # of curvature 6
    >>> record = lambda step: analysis.step_quality(loss, step)
    >>> run = jaxfit.train(loss, 1.0, optax.sgd(1 / 12), 1, record=record)
    >>> print(f"{run.trajectory.alpha[0]:.3f} {run.trajectory.critical_rate[0]:.3f}")
    -0.500 0.333
    """
    _check.kind("step", step, Step, "what a recorder is given, or jaxfit.at(loss, run, …)")
    point = point_of(loss, step, step.batch if data is None else data, has_aux, "step")
    update = point.space.vector(_step.evaluation_point(step.updates))
    grad, matvec = jax.linearize(jax.grad(point.loss), point.at)
    slope, bend = grad @ update, update @ matvec(update)
    before = point.loss(point.at)

    def height(factor: jax.Array) -> jax.Array:
        return point.loss(point.at + factor * update)

    factor = jnp.where(slope > 0, 0, _critical_factor(height, before))
    return StepQuality(
        predicted=slope + bend / 2,
        actual=height(jnp.ones_like(before)) - before,
        alpha=-bend / slope - 1,
        cauchy_rate=grad @ grad / (grad @ matvec(grad)),
        critical_rate=factor * jnp.linalg.norm(update) / jnp.linalg.norm(grad),
        critical_factor=factor,
    )


def _critical_factor(height: Callable[[jax.Array], jax.Array], before: jax.Array) -> jax.Array:
    """Return the factor at which a loss along an update rises above its start: by bisection."""
    one, most = jnp.ones_like(before), 2.0**60

    def rises(factor: jax.Array) -> jax.Array:
        return ~(height(factor) <= before)  # NaN has risen

    def is_inside(factor: jax.Array) -> jax.Array:
        return (factor > 1 / most) & (factor < most)

    first = rises(one)
    step = jnp.where(first, one / 2, 2 * one)
    end: jax.Array = lax.while_loop(
        lambda factor: is_inside(factor) & (rises(factor) == first),
        lambda factor: factor * step,
        one,
    )
    low = jnp.where(first, end, end / 2)

    def halve(_: Any, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        above = rises(middle)
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    _, found = lax.fori_loop(0, jnp.finfo(one.dtype).nmant, halve, (low, 2 * low))
    return jnp.where(is_inside(end), found, jnp.where(first, 0, jnp.inf))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stability:
    """How a small change of a state grows or fades with every step of an optimizer.

    Attributes:
      magnitudes: floating [k], the factors, the largest first: stable where all are at most 1.
      eigenvalues: complex [k], of which these are the magnitudes; the angle is the part of a turn
        that the change oscillates by in a step.
      residuals: floating [k], how far each is from solving the equation of an eigenvalue. An error
        bound only for normal matrices, such as those of gradient descent; with momentum, an
        eigenvalue can be further off.
    """

    magnitudes: jax.Array
    eigenvalues: jax.Array
    residuals: jax.Array


def stability(
    loss: Loss,
    state: State | Step,
    optimizer: Optimizer,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    k: int = 1,
    num_matvecs: int | None = None,
    key: PRNGKey | None = None,
) -> Stability:
    """Return the largest eigenvalues of one step, as a map from a state to the next.

    It holds for any optimizer, with its state at that point, where `edge` has closed forms for a
    few. By Arnoldi's method (from matfree) on the derivative of the step by the parameters and by
    all floating numbers that the optimizer remembers, but those it hands on as they are.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      state: a `State`, or the `Step` from it.
      optimizer: the optimizer that made the state.
      data: the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      k: how many eigenvalues.
      num_matvecs: the dimension of the Krylov space, at least k; 20 by default, or the number of
        dimensions if that is less.
      key: draws the start; ``jax.random.key(0)`` by default.

    Returns:
      A `Stability`. A direction in which the loss is flat has an eigenvalue of 1. All are NaN
      where a step has no derivative, as Adam's has none at a second moment of zero.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.
      ImportError: without matfree, which the extra ``analysis`` installs.

    Arnoldi 1951, `The principle of minimized iterations in the solution of the matrix eigenvalue
    problem <https://doi.org/10.1090/qam/42792>`_.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> from jaxfit import analysis
    >>> loss, sgd = lambda a: jnp.sum(jnp.array([1.0, 10.0]) * a**2) / 2, optax.sgd(2 / 11)
    >>> found = analysis.stability(loss, jaxfit.init(jnp.ones(2), sgd), sgd)
    >>> print(f"{found.magnitudes[0]:.4f}")  # 9/11
    0.8182
    """
    state = state.state if isinstance(state, Step) else state
    _check.kind("state", state, State, "a State, such as run.state or jaxfit.init(params, …)")
    on_data(loss, data)
    batches = None if data is None else lambda step: data
    stepper = _step.stepper(Problem(loss, optimizer, batches, has_aux), state)
    now = stepper.state
    floating, rest = _tree.partition((now.params, now.opt_state))
    leaves, structure = jax.tree.flatten(floating)

    def after(leaves: list[jax.Array]) -> list[jax.Array]:
        params, opt_state = _tree.combine(jax.tree.unflatten(structure, leaves), rest)
        then, _ = stepper.take(dataclasses.replace(now, params=params, opt_state=opt_state))
        return jax.tree.leaves(_tree.partition((then.params, then.opt_state))[0])

    program = jax.make_jaxpr(after)(leaves).jaxpr
    changed = [a is not b for a, b in zip(program.invars, program.outvars, strict=True)]

    def some(leaves: list[jax.Array]) -> list[jax.Array]:
        return [leaf for leaf, is_one in zip(leaves, changed, strict=True) if is_one]

    space = space_of(some(leaves))
    start = space.vector(some(leaves))

    def step(vector: jax.Array) -> jax.Array:
        given = iter(space.tree(vector))
        whole = [next(given) if is_one else x for x, is_one in zip(leaves, changed, strict=True)]
        return space.vector(some(after(whole)))

    if _check.count("k", k) > start.size:
        raise ValueError(
            f"k is {k}, but parameters and optimizer state have {start.size} dimensions that "
            f"change, and as many eigenvalues: ask for at most these."
        )
    _krylov.check_number(start.size, num_matvecs, k)
    num = num_matvecs or min(max(20, k), start.size)
    key = jax.random.key(0) if key is None else key
    matvec = jax.linearize(step, start)[1]
    values, residuals = _krylov.arnoldi(
        matvec, jax.random.normal(key, start.shape, start.dtype), num
    )
    return Stability(jnp.abs(values[:k]), values[:k], residuals[:k])


_FACTORS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("sgd", "rmsprop", "adagrad"), lambda beta: 1.0),
    "momentum": lambda beta: 1 + beta,
    "nesterov": lambda beta: (1 + beta) / (1 + 2 * beta),
    **dict.fromkeys(("ema", "adam", "adamw"), lambda beta: (1 + beta) / (1 - beta)),
    **dict.fromkeys(
        ("nesterov_ema", "nadam", "nadamw"),
        lambda beta: (1 + beta) / ((1 - beta) * (1 + 2 * beta)),
    ),
}


def edge(
    optimizer: str, learning_rate: Any, *, momentum: Any = 0.9, weight_decay: Any = 0.0
) -> Any:
    r"""Return the edge of stability: the largest curvature at which an optimizer does not diverge.

    With rate :math:`\eta`, momentum :math:`\beta` and decoupled weight decay :math:`w` it is
    :math:`2/\eta - w` times

    ==================================================  =============================
    ``"sgd"``, ``"rmsprop"``, ``"adagrad"``             1
    ``"momentum"``: heavy ball, :math:`m \gets βm + g`  :math:`1+β`
    ``"nesterov"``                                      :math:`(1+β)/(1+2β)`
    ``"ema"``, ``"adam"``, ``"adamw"``                  :math:`(1+β)/(1-β)`
    ``"nesterov_ema"``, ``"nadam"``, ``"nadamw"``       :math:`(1+β)/((1-β)(1+2β))`
    ==================================================  =============================

    For optimizers that divide by a root of squared gradients, it is the edge of the preconditioned
    curvature, ``curvature(…, precondition=preconditioner(opt_state))``, as long as the divisor
    changes slowly.

    Args:
      optimizer: one of these names.
      learning_rate: floating […].
      momentum: β, which is called ``b1`` in Adam; the first two rows have none.
      weight_decay: w, decoupled, as in ``optax.adamw``.

    Returns:
      floating […], in units of the loss over parameters squared.

    Raises:
      ValueError: for another name.

    Cohen et al. 2021, `Gradient Descent on Neural Networks Typically Occurs at the Edge of
    Stability <https://arxiv.org/abs/2103.00065>`_; Cohen et al. 2022, `Adaptive Gradient Methods at
    the Edge of Stability <https://arxiv.org/abs/2207.14484>`_.

    >>> from jaxfit import analysis
    >>> analysis.edge("sgd", 0.5), round(analysis.edge("adam", 0.5), 6)  # 38/η
    (4.0, 76.0)
    """
    if optimizer not in _FACTORS:
        raise ValueError(
            f"optimizer is {_check.show(optimizer)}, but the edge has a closed form for "
            f"{', '.join(_FACTORS)}: give one of these names, or ask stability."
        )
    return _FACTORS[optimizer](momentum) * (2 / learning_rate - weight_decay)
