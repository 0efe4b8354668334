"""Units of compilation: functions whose results have the same bits in every program.

XLA fuses operations with whatever surrounds them, and computes with constants beforehand; both
change how results are rounded. So on a CPU, a unit is a call that XLA does not inline, and its
constant arguments are hidden: it is compiled the same whatever surrounds it.

XLA may also compile a whole loop as one kernel, in which LLVM inlines the call after all, and knows
the constants. A unit has guards against that (see ``_guard.py``), and takes veiled constants as
arguments; where this is not enough, it sorts two numbers, which keeps the loop from being a kernel.

All of this takes effect when a program is lowered. To derivatives and ``jax.vmap``, a unit is an
ordinary call of a jitted function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxfit._guard import guarded
from jaxfit._primitives import apart_p, hide_p, unit_p, veil_p
from jaxfit._reductions import Jaxpr
from jaxfit._types import PyTree


def unit(
    zeros: jax.Array, fn: Callable[..., PyTree], first: Callable[[], Sequence[PyTree]]
) -> Callable[..., PyTree]:
    """Return a function that XLA compiles as a unit wherever it is called.

    Args:
      zeros: int32 [2], hidden, for the sort and for veils. A single number could be written into a
        program as a constant.
      fn: a pure function of pytrees of arrays. It is traced once for each set of shapes, however
        many places call the unit.
      first: returns arguments of ``fn``. It is traced for their shapes; what ``fn`` closes over is
        hidden here, outside of any loop.

    Returns:
      A function of the arguments of ``fn`` that returns the same as ``fn``.
    """
    traced: dict[Any, Any] = {}

    def given(args: Sequence[PyTree]) -> Any:
        """Return the shapes of arguments, for which ``fn`` is traced if it was not yet."""
        leaves, structure = jax.tree.flatten(args)
        shapes = structure, *map(jax.typeof, leaves)
        if shapes not in traced:
            jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
            jaxpr, consts = _open(jaxpr, leaves)
            traced[shapes] = _without_moves(fn, jaxpr, zeros), consts, jax.tree.structure(shape)
        return shapes

    def call(*args: PyTree) -> PyTree:
        alone, consts, structure = traced[given(args)]
        return jax.tree.unflatten(structure, alone([*consts, *jax.tree.leaves(args)]))

    def begin() -> None:
        given(first())

    jax.eval_shape(begin)
    for shapes, (alone, consts, structure) in traced.items():
        traced[shapes] = alone, veil(list(map(jnp.asarray, consts)), zeros), structure
    return call


def _open(jaxpr: Jaxpr, leaves: list[jax.Array]) -> tuple[Jaxpr, list[jax.Array]]:
    """Return a jaxpr that takes its constants before the leaves, and the constants."""
    if not all(isinstance(jax.typeof(const), jax.core.ShapedArray) for const in jaxpr.consts):
        return jaxpr, []  # a reference that can be written to cannot be handed over

    def opened(consts: list[jax.Array], leaves: list[jax.Array]) -> list[jax.Array]:
        results: list[jax.Array] = core.jaxpr_as_fun(jaxpr.replace(consts=consts))(*leaves)
        return results

    consts = list(jaxpr.consts)
    return jax.make_jaxpr(opened)(consts, leaves) if consts else jaxpr, consts


def hide(tree: PyTree) -> PyTree:
    """Return a tree of arrays whose values XLA does not know, even where they are constants."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, hide_p.bind(*leaves) if leaves else [])


def veil(tree: PyTree, zeros: jax.Array) -> PyTree:
    """Return a tree of arrays that is hidden from LLVM as well; see `unit` for the zeros."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, veil_p.bind(zeros, *leaves)[1:] if leaves else [])


def _without_moves(
    fn: Callable[..., PyTree], jaxpr: Jaxpr, zeros: jax.Array
) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """Return a function that computes a jaxpr from leaves, as a unit of those that it reads.

    Leaves that are returned as they are go around the unit.
    """
    program = jaxpr.jaxpr
    if not program.eqns:
        return lambda leaves: core.jaxpr_as_fun(jaxpr)(*leaves)
    places = {variable: place for place, variable in enumerate(program.invars)}
    read = {id(atom) for equation in program.eqns for atom in equation.invars}
    needed = [place for variable, place in places.items() if id(variable) in read]
    handed = [None if isinstance(v, core.Literal) else places.get(v) for v in program.outvars]
    made = [v for v, place in zip(program.outvars, handed, strict=True) if place is None]
    invars = [program.invars[place] for place in needed]
    alone = _compiled_alone(
        fn, jaxpr.map_jaxpr(lambda program: program.replace(invars=invars, outvars=made))
    )

    def call(leaves: list[jax.Array]) -> list[jax.Array]:
        results = iter(alone(zeros, *(leaves[place] for place in needed)))
        return [next(results) if place is None else leaves[place] for place in handed]

    return call


def _compiled_alone(fn: Callable[..., PyTree], jaxpr: Jaxpr) -> Callable[..., list[jax.Array]]:
    """Return a function of the zeros and the leaves that computes a jaxpr as a unit."""
    jaxpr, sort = guarded(jaxpr)
    evaluate = core.jaxpr_as_fun(jaxpr)

    def body(zeros: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        # A sort among the results of the unit keeps the loop around it from being a kernel.
        return [*evaluate(*leaves), apart_p.bind(zeros, *leaves, sort=sort)]

    body.__name__ = getattr(fn, "__name__", "unit")
    # The outer jit makes a program around the call when it is called eagerly, too.
    return jax.jit(lambda *leaves: unit_p.bind(*jax.jit(body)(*leaves))[:-1])
