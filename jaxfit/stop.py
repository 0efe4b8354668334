"""When a run ends before its last step: rules for ``jaxfit.fit``.

A rule is any function of a `Step` that returns a boolean; ``fit`` ends at the first step for which
it is true. What has to remember earlier steps is a `Rule` with a state of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxfit.run import Step

__all__ = ["Rule", "loss_below", "no_improvement", "not_finite"]


class Rule(NamedTuple):
    """A rule that remembers, as two pure functions.

    Attributes:
      init: ``init() -> memory``, a pytree of arrays, before the first step.
      update: ``update(step, memory) -> (boolean [], memory)``.
    """

    init: Callable[[], Any]
    update: Callable[[Step, Any], tuple[jax.Array, Any]]


def loss_below(value: float) -> Callable[[Step], jax.Array]:
    """End where the loss is below a value.

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
    """End where the loss, a gradient or an update is infinite or not a number.

    The parameters of the ending run are the last from before the accident, and ``jaxfit.blame``
    says of its state what went bad first.
    """
    leaves = jax.tree.leaves((step.loss, step.grads, step.updates))
    return ~jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]))


def no_improvement(patience: int, least: float = 0.0) -> Rule:
    """End where the loss has not fallen below its best, by more than ``least``, for some steps.

    Args:
      patience: how many steps in a row may bring no improvement.
      least: by how much the loss must be below the best so far to count as one.

    >>> import optax, jaxfit
    >>> loss = lambda a: abs(a - 1.0)
    >>> stop = jaxfit.stop.no_improvement(10)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=stop, progress=False)
    >>> int(run.state.step)  # the best was that of step 4
    14
    """

    def init():
        return jnp.array(jnp.inf), jnp.zeros((), np.int32)

    def no_improvement(step, memory):
        best, waited = memory
        better = step.loss < best - least
        waited = jnp.where(better, 0, waited + 1)
        return waited >= patience, (jnp.where(better, step.loss, best).astype(best.dtype), waited)

    return Rule(init, no_improvement)
