"""Stopping rules: the functions that decide when ``jaxfit.fit`` ends before its last step.

A rule is any function of a `Step` that returns a boolean; ``fit`` ends at the first step for which
it is true. One that has to remember earlier steps is a `Rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._types import PyTree
from jaxfit.run import Step

__all__ = ["Rule", "loss_below", "no_improvement", "not_finite"]


class Rule(NamedTuple):
    """A stopping rule with a memory, as two pure functions.

    Attributes:
      init: ``init() -> memory``, a pytree of arrays, called before the first step.
      update: ``update(step, memory) -> (boolean [], memory)``, called for every step.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> def update(step, before):  # end where the loss rises
    ...     return step.loss > before, step.loss
    >>> rule = jaxfit.stop.Rule(lambda: jnp.array(jnp.inf), update)
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(1.1), 100, stop=rule, progress=False)
    >>> run.trajectory["loss"].tolist()
    [1.0]
    """

    init: Callable[[], PyTree]
    update: Callable[[Step, PyTree], tuple[jax.Array, PyTree]]


def loss_below(value: float) -> Callable[[Step], jax.Array]:
    """End at the first step whose loss is below a value.

    Args:
      value: the loss to get below.

    Returns:
      A rule, for ``fit(…, stop=…)``.

    >>> import optax, jaxfit
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> stop = jaxfit.stop.loss_below(1e-3)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=stop, progress=False)
    >>> int(run.state.step), loss(run.state.params) < 1e-3
    (5, Array(True, dtype=bool))
    """

    def loss_below(step: Step) -> jax.Array:
        return step.loss < value

    return loss_below


def not_finite(step: Step) -> jax.Array:
    """End at the first step whose loss, gradients or updates are not all finite.

    The run ends before that step's update, so its parameters are still finite, and
    ``jaxfit.blame`` finds out from its state which operation went wrong.

    Args:
      step: one step of a run.

    Returns:
      A boolean [].

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sqrt(a - 2.0)
    >>> stop = jaxfit.stop.not_finite
    >>> run = jaxfit.fit(loss, 3.0, optax.sgd(0.5), 100, stop=stop, progress=False)
    >>> run.stop_reason, bool(jnp.isfinite(run.state.params))
    ('not_finite was true at step 4', True)
    """
    leaves = jax.tree.leaves((step.loss, step.grads, step.updates))
    return ~jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


def no_improvement(patience: int, least: float = 0.0) -> Rule:
    """End when the loss has not improved for a number of steps in a row.

    Args:
      patience: the number of steps without an improvement after which to end.
      least: an improvement is a loss below the best so far by more than this.

    Returns:
      A rule, for ``fit(…, stop=…)``.

    >>> import optax, jaxfit
    >>> loss = lambda a: abs(a - 1.0)
    >>> stop = jaxfit.stop.no_improvement(10)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=stop, progress=False)
    >>> int(run.state.step)  # ten steps after the best, at step 4
    14
    """

    def init() -> tuple[jax.Array, jax.Array]:
        return jnp.array(jnp.inf), jnp.zeros((), np.int32)

    def no_improvement(
        step: Step, memory: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best, waited = memory
        better = step.loss < best - least
        waited = jnp.where(better, 0, waited + 1)
        return waited >= patience, (jnp.where(better, step.loss, best).astype(best.dtype), waited)

    return Rule(init, no_improvement)
