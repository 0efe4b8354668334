"""Stopping rules: functions of a Step, or of a Step and a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxfit import _check
from jaxfit._types import PyTree
from jaxfit.run import Step
from jaxfit.stop import Rule

Stop: TypeAlias = Callable[[Step], Any] | Rule | None


def check_rule(stop: Any) -> None:
    """Check that it is None, a function of a step, or a `Rule`."""
    if stop is None:
        return
    if isinstance(stop, Rule):
        for name, function, number in ("init", stop.init, 0), ("update", stop.update, 2):
            if not callable(function) or not _check.takes(function, number):
                raise TypeError(
                    f"the rule stop has {_check.show(function)} as its {name}, but that must be a "
                    f"function of {number} arguments: write Rule(lambda: memory, "
                    f"lambda step, memory: (boolean, memory))."
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


def first_memory(stop: Stop) -> PyTree:
    """Return what a rule remembers before the first step, as arrays."""
    return jax.tree.map(jnp.asarray, stop.init() if isinstance(stop, Rule) else ())


def verdict(stop: Stop, step: Step, memory: PyTree) -> tuple[jax.Array, PyTree]:
    """Return whether a rule says to stop before a step (bool []), and what it then remembers."""
    fires: Any = jnp.array(False)
    if isinstance(stop, Rule):
        fires, memory = stop.update(step, memory)
    elif stop is not None:
        fires = stop(step)
    if not _check.is_carried(fires) or _check.short(fires) != "bool[]":
        raise TypeError(
            f"stop {_check.show(stop)} returned {_check.shapes(fires)}, but must return one "
            f"boolean: compare something, as in step.loss < 0.1, or call a maker of rules first, "
            f"as in jaxfit.stop.loss_below(0.1)."
        )
    return fires, memory
