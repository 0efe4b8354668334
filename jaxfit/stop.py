"""Stopping rules: the functions that decide when ``jaxfit.fit`` ends before its last step.

A rule is any function of a `Step` that returns a boolean; ``fit`` ends at the first step for which
it is true. One that has to remember earlier steps, or looks at evaluations, is a `Rule`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit._types import PyTree
from jaxfit.run import Step

__all__ = ["Rule", "any", "gradient_below", "loss_below", "no_improvement", "not_finite"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A stopping rule with a memory, as pure functions.

    What a rule remembers is kept in the State that ``fit`` returns, and in a ``checkpoint_dir``, so
    that a run that goes on with the same rule goes on counting.

    Attributes:
      init: ``init() -> memory``, a pytree of arrays, called before the first step.
      update: ``update(step, memory) -> (boolean [], memory)``, called for every step; None for a
        rule that looks at evaluations alone.
      evaluated: ``evaluated(evaluation, memory) -> (boolean [], memory)``, called for what
        ``fit(…, evaluate=…)`` computes before the steps that follow it; the run ends there if it is
        true. None for a rule that looks at steps alone.
      name: what ``stop_reason`` calls the rule; by default the name of its function.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> def rises(step, before):
    ...     return step.loss > before, step.loss
    >>> rule = jaxfit.stop.Rule(lambda: jnp.array(jnp.inf), rises)
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(1.1), 100, stop=rule, progress=False)
    >>> run.trajectory["loss"].tolist(), run.stop_reason
    ([1.0], 'rises was true at step 1')
    """

    init: Callable[[], PyTree]
    update: Callable[[Step, PyTree], tuple[jax.Array, PyTree]] | None = None
    evaluated: Callable[[Any, PyTree], tuple[jax.Array, PyTree]] | None = None
    name: str | None = None


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

    return _named(f"loss_below({value})", lambda step: step.loss < value)


def gradient_below(norm: float) -> Callable[[Step], jax.Array]:
    """End at the first step whose gradient has a Euclidean norm below a value.

    Args:
      norm: the norm to get below, over all trained leaves together.

    Returns:
      A rule, for ``fit(…, stop=…)``.

    >>> import optax, jaxfit
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> stop = jaxfit.stop.gradient_below(1e-3)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=stop, progress=False)
    >>> run.stop_reason
    'gradient_below(0.001) was true at step 11'
    """
    return _named(f"gradient_below({norm})", lambda step: optax.tree.norm(step.grads) < norm)


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


def no_improvement(
    patience: int, least: float = 0.0, of: Callable[[Any], jax.Array] | None = None
) -> Rule:
    """End when the loss has not improved for a number of steps in a row.

    Args:
      patience: the number of steps, or evaluations, without an improvement after which to end.
      least: an improvement is a loss below the best so far by more than this.
      of: a function of an evaluation that returns a number to look at in place of the loss of
        every step, as in ``of=lambda evaluation: evaluation["loss"]``.

    Returns:
      A rule, for ``fit(…, stop=…)``.

    >>> import optax, jaxfit
    >>> loss = lambda a: abs(a - 1.0)
    >>> stop = jaxfit.stop.no_improvement(10)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=stop, progress=False)
    >>> int(run.state.step)  # ten steps after the best, at step 4
    14
    >>> held_out = lambda state: abs(state.params - 0.5)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.125), 100, evaluate=held_out, evaluate_every=2,
    ...                  stop=jaxfit.stop.no_improvement(1, of=lambda value: value), progress=False)
    >>> run.evaluations.tolist(), run.stop_reason
    ([0.5, 0.25, 0.0, 0.25], 'no_improvement(1, of=…) was true at step 6')
    """

    def init() -> tuple[jax.Array, jax.Array]:
        return jnp.array(jnp.inf), jnp.zeros((), np.int32)

    def look(
        loss: jax.Array, memory: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best, waited = memory
        better = loss < best - least
        waited = jnp.where(better, 0, waited + 1)
        return waited >= patience, (jnp.where(better, loss, best).astype(best.dtype), waited)

    name = f"no_improvement({patience}{f', {least}' if least else ''}"
    if of is None:
        return Rule(init, lambda step, memory: look(step.loss, memory), name=f"{name})")
    return Rule(
        init,
        evaluated=lambda evaluation, memory: look(of(evaluation), memory),
        name=f"{name}, of=…)",
    )


def any(*rules: Callable[[Step], jax.Array] | Rule) -> Rule:
    """End as soon as one of some rules says so.

    Args:
      *rules: functions of a `Step`, and rules with a memory.

    Returns:
      A rule, for ``fit(…, stop=…)``.

    >>> import optax, jaxfit
    >>> from jaxfit import stop
    >>> either = stop.any(stop.not_finite, stop.loss_below(1e-3))
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> jaxfit.fit(loss, 0.0, optax.sgd(0.25), 100, stop=either, progress=False).stop_reason
    'any(not_finite, loss_below(0.001)) was true at step 5'
    """
    if not rules:
        raise ValueError("any was given no rule: give one or more, as in any(not_finite, …).")
    parts = [rule if isinstance(rule, Rule) else _without_memory(rule) for rule in rules]

    def combine(which: str) -> Callable[[Any, PyTree], tuple[jax.Array, PyTree]]:
        def look(seen: Any, memories: PyTree) -> tuple[jax.Array, PyTree]:
            verdicts = [
                (jnp.array(False), memory)
                if (function := getattr(rule, which)) is None
                else function(seen, memory)
                for rule, memory in zip(parts, memories, strict=True)
            ]
            fires = functools.reduce(operator.or_, (fires for fires, _ in verdicts))
            return fires, tuple(memory for _, memory in verdicts)

        return look

    looked_at = {
        which: combine(which)
        for which in ("update", "evaluated")
        if [rule for rule in parts if getattr(rule, which)]
    }
    names = ", ".join(rule.name or "a rule" for rule in parts)
    return Rule(lambda: tuple(rule.init() for rule in parts), **looked_at, name=f"any({names})")


def _named(name: str, rule: Callable[[Step], jax.Array]) -> Callable[[Step], jax.Array]:
    rule.__name__ = name
    return rule


def _without_memory(rule: Callable[[Step], jax.Array]) -> Rule:
    name = getattr(rule, "__name__", "a rule").replace("<lambda>", "a rule")
    return Rule(tuple, lambda step, memory: (rule(step), memory), name=name)
