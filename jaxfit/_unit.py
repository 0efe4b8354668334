"""What makes a piece of a program a unit of compilation, with the same bits in every program.

XLA fuses operations across whatever it can see, and computes with constants beforehand; both change
how results are rounded. So on the CPU, a unit is a call that XLA does not inline, of arguments that
are hidden where they are constants: it is compiled the same whatever stands around it. Of a loop,
XLA may make one kernel, in which LLVM sees through the call after all; against that, a unit has
guards (see ``_guard.py``), or sorts two numbers, which no such kernel can.

All of it comes in when a program is lowered. To derivatives and to ``vmap``, a unit is an ordinary
call of `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir

from jaxfit._guard import guarded


def unit(fn: Callable[..., Any], zeros: jax.Array) -> Callable[..., Any]:
    """Return a function that XLA compiles as a unit wherever it is called.

    Args:
      fn: a pure function of pytrees of arrays. It is traced once for all the places that the unit
        is called at, for each set of shapes.
      zeros: int32 [2], hidden. A single number could be written into a program as a constant.
    """
    traced: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        given = structure, *map(jax.typeof, leaves)
        if given not in traced:
            jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
            traced[given] = _without_moves(fn, jaxpr, zeros), jax.tree.structure(shape)
        alone, structure = traced[given]
        return jax.tree.unflatten(structure, alone(leaves))

    return call


def hide(tree: Any) -> Any:
    """Return a tree of arrays whose values XLA does not know, even where they are constants."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _hide.bind(*leaves) if leaves else [])


def _without_moves(fn: Callable[..., Any], jaxpr: Any, zeros: jax.Array) -> Callable[[list], list]:
    """Return what computes a jaxpr from the leaves, by a unit that is given those it needs."""
    program = jaxpr.jaxpr
    if not program.eqns:
        return lambda leaves: core.jaxpr_as_fun(jaxpr)(*leaves)
    places = {variable: place for place, variable in enumerate(program.invars)}
    read = {id(atom) for equation in program.eqns for atom in equation.invars}
    needed = [place for variable, place in places.items() if id(variable) in read]
    # What is handed on as it is does not go through the unit.
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


def _compiled_alone(fn: Callable[..., Any], jaxpr: Any) -> Callable[..., list[jax.Array]]:
    """Return what computes a jaxpr as a unit, a function of the zeros and the leaves."""
    jaxpr, sort = guarded(jaxpr)
    evaluate = core.jaxpr_as_fun(jaxpr)

    def body(zeros: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        return [*evaluate(*leaves), _apart.bind(zeros, *leaves, sort=sort)]

    body.__name__ = getattr(fn, "__name__", "unit")
    # Eagerly, too, it is called from a program around it.
    return jax.jit(lambda *leaves: _unit.bind(*jax.jit(body)(*leaves))[:-1])


def _identity(name: str) -> core.Primitive:
    """Make a primitive that returns the arrays it is given, and has the derivative of that."""
    primitive = core.Primitive(name)
    primitive.multiple_results = True
    bind = primitive.bind
    primitive.def_impl(lambda *leaves: list(leaves))
    primitive.def_abstract_eval(lambda *avals: list(avals))
    ad.primitive_jvps[primitive] = lambda leaves, tangents: (bind(*leaves), list(tangents))
    batching.primitive_batchers[primitive] = lambda leaves, axes: (bind(*leaves), axes)
    mlir.register_lowering(primitive, lambda context, *values: values)
    return primitive


_hide = _identity("hide")
mlir.register_lowering(
    _hide, mlir.lower_fun(lambda *leaves: lax.optimization_barrier(leaves)), platform="cpu"
)

# All results of a unit in one equation: where one is needed all are, so that JAX's elimination of
# dead code does not make other units of it.
_unit = _identity("unit")


def _batch_unit(leaves: Any, axes: Any) -> Any:
    """Batch all results if one is, so that a run goes on from many states as it came to them."""
    size = next(n.shape[a] for n, a in zip(leaves, axes, strict=True) if a is not None)
    whole = [
        jnp.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else leaf
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return _unit.bind(*whole), [axis or 0 for axis in axes]


def _forbid_inlining(context: Any, *values: ir.Value) -> tuple[ir.Value, ...]:
    """Forbid XLA to inline the call that the values come from, if it compiles for a CPU alone."""
    if tuple(context.module_context.platforms) == ("cpu",):
        for value in values:
            operation = value.owner
            if not isinstance(operation, ir.Block) and operation.operation.name == "func.call":
                operation.operation.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get(
                    {"inlineable": ir.StringAttr.get("false")}
                )
    return values


batching.primitive_batchers[_unit] = _batch_unit
mlir.register_lowering(_unit, _forbid_inlining, cacheable=False)

# The zeros again; as a result of a unit, they keep the loop around it from becoming a kernel.
_apart = core.Primitive("apart")
_apart.def_impl(lambda zeros, *leaves, sort: zeros)
_apart.def_abstract_eval(lambda zeros, *leaves, sort: zeros)


def _differentiate_apart(primals: Any, tangents: Any, *, sort: bool) -> Any:
    return _apart.bind(*primals, sort=sort), tangents[0]


def _batch_apart(args: Any, axes: Any, *, sort: bool) -> Any:
    return _apart.bind(args[0], sort=True), None


def _sort(zeros: jax.Array, *leaves: jax.Array, sort: bool) -> list[jax.Array]:
    return [lax.sort(zeros) if sort else zeros]


ad.primitive_jvps[_apart] = _differentiate_apart
batching.primitive_batchers[_apart] = _batch_apart
mlir.register_lowering(_apart, lambda context, zeros, *leaves, sort: [zeros])
mlir.register_lowering(_apart, mlir.lower_fun(_sort), platform="cpu")
