"""Reductions that XLA joins, which a kernel of a loop computes in another order."""

from __future__ import annotations

import collections
from typing import Any, TypeAlias

from jax.extend import core

from jaxfit._primitives import CALLS, called_jaxprs

Jaxpr: TypeAlias = Any
"""A closed jaxpr, or the jaxpr in one; newer versions of JAX have one class for both."""

# Operations that give the same elements in the same order another shape.
_VIEWS = frozenset("reshape squeeze expand_dims copy copy_p transpose rev".split())


def reduces_jointly(jaxpr: Jaxpr) -> bool:
    """Return whether a sum or a product runs over several axes at once, as XLA may see it.

    A kernel of a loop takes their elements in another order. XLA also joins the axes of a reduction
    with those of the reduction before it, or of a dot product, even where its results are changed
    one by one on the way; and it takes apart the axes that a reshape has joined.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found, _ = _follow_axes(jaxpr, [""] * len(jaxpr.invars))
    return found


def _follow_axes(jaxpr: Jaxpr, given: list[str]) -> tuple[bool, list[str]]:
    """Return whether a reduction runs over several axes, and how each output was made.

    Args:
      jaxpr: an open jaxpr.
      given: how each input was made: "reshaped", "reduced", "mapped" from what was reduced and
        serves nothing else, or "" for anything else.
    """
    found, made = False, dict(zip(jaxpr.invars, given, strict=True))
    readers = [*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars]
    uses = collections.Counter(name for atoms in readers for name in {id(atom) for atom in atoms})

    def read(atom: Any) -> str:
        return "" if isinstance(atom, core.Literal) else made.get(atom, "")

    for equation in jaxpr.eqns:
        name, atoms = equation.primitive.name, equation.invars
        states = [read(atom) for atom in atoms]
        if name in CALLS:
            inner = [getattr(one, "jaxpr", one) for one in called_jaxprs(equation)]
            number = len(inner[0].invars)  # without the index of a choice
            results = [_follow_axes(one, states[len(states) - number :]) for one in inner]
            found |= any(result for result, _ in results)
            outs = map(max, zip(*(outs for _, outs in results), strict=True))
            made.update(zip(equation.outvars, outs, strict=True))
            continue
        once = [state for state, atom in zip(states, atoms, strict=True) if uses[id(atom)] == 1]
        state = "reshaped" if "reshaped" in states else "mapped" if any(once) else ""
        if name == "dot_general":
            state = "mapped"
        elif name in _VIEWS:
            before, after = atoms[0].aval.shape, equation.outvars[0].aval.shape
            is_reshaped = name == "reshape" and _long(before) != _long(after)
            state = "reshaped" if is_reshaped else states[0]
        elif name in ("reduce_sum", "reduce_prod"):
            shape = atoms[0].aval.shape
            number = sum(shape[axis] > 1 for axis in equation.params["axes"])
            is_joined = states[0] in ("reshaped", "reduced") or any(once)
            found |= number > 1 or (number == 1 and is_joined)
            state = "reduced" if number else states[0]
        for variable in equation.outvars:
            made[variable] = state if _long(variable.aval.shape) else ""
    return found, [read(atom) for atom in jaxpr.outvars]


def _long(shape: tuple[int, ...]) -> list[int]:
    """Return the lengths of the axes that are longer than 1."""
    return [length for length in shape if length != 1]
