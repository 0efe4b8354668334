"""Stopping rules: functions of a Step, or of a Step and a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check
from jaxfit._types import Evaluate, PyTree
from jaxfit.run import State, Step
from jaxfit.stop import Rule

Stop: TypeAlias = Callable[[Step], Any] | Rule | None


def check_rule(stop: Any, evaluate: Evaluate | None) -> None:
    """Check that it is None, a function of a step, or a `Rule` that is given what it looks at."""
    if stop is None:
        return
    if isinstance(stop, Rule):
        seen = [("update", stop.update, 2), ("evaluated", stop.evaluated, 2)]
        for name, function, number in ("init", stop.init, 0), *seen:
            if function is None and name != "init" and (stop.update or stop.evaluated):
                continue
            if not callable(function) or not _check.takes(function, number):
                raise TypeError(
                    f"the rule stop has {_check.show(function)} as its {name}, but that must be a "
                    f"function of {number} arguments: write Rule(lambda: memory, "
                    f"lambda step, memory: (boolean, memory))."
                )
        if stop.evaluated and evaluate is None:
            raise ValueError(
                f"the rule {name_of(stop)} looks at evaluations, but there are none: give "
                f"evaluate=lambda state: … and evaluate_every=…."
            )
        return
    if not callable(stop):
        raise TypeError(
            f"stop is {_check.show(stop)}, but must be a function of a Step that returns a "
            f"boolean, or a rule: give one, such as jaxfit.stop.loss_below(0.1)."
        )
    if not _check.takes(stop, 1):
        raise TypeError(
            f"stop {_check.show(stop)} takes other arguments, but it is called as stop(step): "
            f"change its signature, or call it first, as in jaxfit.stop.no_improvement(10)."
        )


def name_of(stop: Stop) -> str:
    """Return the name of a rule, with its arguments if it is one of jaxfit's."""
    named: Any = stop
    if isinstance(stop, Rule):
        if stop.name is not None:
            return stop.name
        named = stop.update or stop.evaluated
    name = getattr(named, "__name__", "<lambda>")
    return "stop" if name in ("<lambda>", "update", "evaluated") else name


def first_memory(stop: Stop) -> PyTree:
    """Return what a rule remembers before the first step, as arrays."""
    return jax.tree.map(jnp.asarray, stop.init() if isinstance(stop, Rule) else ())


def remembered(stop: Stop, state: Any) -> PyTree:
    """Return what a rule remembers at a State: what that has kept of the same rule, or nothing."""
    memory = first_memory(stop)
    name, kept = (isinstance(state, State) and state._memory) or (None, [])
    leaves, structure = jax.tree.flatten(memory)
    if name != name_of(stop) or list(map(_check.short, kept)) != list(map(_check.short, leaves)):
        return memory
    return jax.tree.unflatten(structure, map(jnp.asarray, kept))


def to_remember(stop: Stop, memory: PyTree) -> tuple[str, list[np.ndarray]] | None:
    """Return what a State keeps of a rule for `remembered`."""
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(memory)]
    return (name_of(stop), kept) if kept else None


def verdict(stop: Stop, step: Step, memory: PyTree) -> tuple[jax.Array, PyTree]:
    """Return whether a rule says to stop before a step (bool []), and what it then remembers."""
    fires: Any = jnp.array(False)
    if isinstance(stop, Rule):
        if stop.update:
            fires, memory = stop.update(step, memory)
    elif stop is not None:
        fires = stop(step)
    return _checked(stop, fires), memory


def verdict_on_evaluation(
    stop: Stop, evaluation: PyTree, memory: PyTree
) -> tuple[jax.Array, PyTree]:
    """Return whether a rule says to stop at an evaluated State, and what it remembers then."""
    fires: Any = jnp.array(False)
    if isinstance(stop, Rule) and stop.evaluated:
        fires, memory = stop.evaluated(evaluation, memory)
    return _checked(stop, fires), memory


def _checked(stop: Stop, fires: Any) -> jax.Array:
    if not _check.is_carried(fires) or _check.short(fires) != "bool[]":
        name = name_of(stop) if isinstance(stop, Rule) else _check.show(stop)
        raise TypeError(
            f"stop {name} returned {_check.shapes(fires)}, but must return one "
            f"boolean: compare something, as in step.loss < 0.1, or call a maker of rules first, "
            f"as in jaxfit.stop.loss_below(0.1)."
        )
    return jnp.asarray(fires)
