"""The JAX primitives that units of compilation are made of; see ``_unit.py`` and ``_guard.py``.

To eager code, derivatives and ``jax.vmap``, `short_dot_p` is a dot product, and the others return
operands unchanged. They take effect when a program is lowered for a CPU:

- `hide_p` hides values from XLA, which would compute with constants beforehand;
- `veil_p` hides them from LLVM as well, which knows constants in the kernel of a loop;
- `unit_p` keeps XLA from inlining the call that its operands come from;
- `apart_p` keeps the loop around it from being compiled as one kernel;
- `guard_p` keeps LLVM from fusing a product with a sum;
- `short_dot_p` becomes guarded products and their sum.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir

# JAX's calls and choices, by name, which differs between its versions.
CALLS = frozenset(
    primitive.name
    for primitive in (
        primitives.call_p,
        primitives.closed_call_p,
        primitives.cond_p,
        primitives.custom_jvp_call_p,
        primitives.custom_vjp_call_p,
        primitives.jit_p,
        primitives.remat_p,
    )
)


def call_parameter(equation: core.JaxprEqn) -> str:
    """Return the name of the parameter of a call that holds its jaxpr, or of a choice, several."""
    return next(name for name in ("branches", "call_jaxpr", "jaxpr") if name in equation.params)


def called_jaxprs(equation: core.JaxprEqn) -> tuple[Any, ...]:
    """Return the jaxpr of a call, or those of the branches of a choice."""
    inner = equation.params[call_parameter(equation)]
    return tuple(inner) if isinstance(inner, tuple | list) else (inner,)


def _identity(name: str) -> core.Primitive:
    """Make a primitive that returns the arrays it is given, and has the derivative of that."""
    primitive = core.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(lambda *leaves: list(leaves))
    primitive.def_abstract_eval(lambda *avals: list(avals))
    ad.primitive_jvps[primitive] = lambda leaves, tangents: (
        primitive.bind(*leaves),
        list(tangents),
    )
    batching.primitive_batchers[primitive] = lambda leaves, axes: (primitive.bind(*leaves), axes)
    mlir.register_lowering(primitive, lambda context, *values: values)
    return primitive


hide_p = _identity("hide")
mlir.register_lowering(
    hide_p, mlir.lower_fun(lambda *leaves: lax.optimization_barrier(leaves)), platform="cpu"
)


# The first of its operands are two zeros that the program computes.
veil_p = _identity("veil")

# No loop that a compiler unrolls reads more bytes than this.
_VEILED_BYTES = 2**20


def _choose(
    zeros: jax.Array, *leaves: jax.Array, may_be_known: tuple[bool, ...]
) -> list[jax.Array]:
    """Return the operands; those that may be known, by a choice that is made by the program."""
    is_zero = lax.eq(lax.index_in_dim(zeros, 0, keepdims=False), np.int32(0))
    hidden = lax.optimization_barrier(leaves)

    def chosen(leaf: jax.Array, may_be_known: bool) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        if is_key or not may_be_known or leaf.nbytes > _VEILED_BYTES:
            return leaf
        return lax.select(is_zero, leaf, lax.full_like(leaf, 0))

    return [zeros, *map(chosen, hidden, may_be_known)]


def _veil(context: Any, *values: ir.Value[Any]) -> Any:
    """Veil all values but the arguments of the program, which nothing knows before it runs."""

    def is_argument(value: ir.Value[Any]) -> bool:
        attributes: Any = value.owner.owner.attributes if isinstance(value.owner, ir.Block) else {}
        return "sym_name" in attributes and attributes["sym_name"].value == "main"

    may_be_known = tuple(not is_argument(value) for value in values[1:])
    return mlir.lower_fun(_choose)(context, *values, may_be_known=may_be_known)


mlir.register_lowering(veil_p, _veil, platform="cpu")


# All results of a unit go through one equation, so that all are needed if one is. A unit whose
# unused results JAX had removed as dead code would be a different unit.
unit_p = _identity("unit")


def _batch_unit(leaves: Any, axes: Any) -> Any:
    """Batch all results if one is, so that a loop carries batched leaves from the start."""
    size = next(n.shape[a] for n, a in zip(leaves, axes, strict=True) if a is not None)
    whole = [
        jnp.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else leaf
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return unit_p.bind(*whole), [axis or 0 for axis in axes]


def _forbid_inlining(context: Any, *values: ir.Value[Any]) -> tuple[ir.Value[Any], ...]:
    """Keep XLA from inlining the call that the values come from, if it compiles for a CPU alone."""
    if tuple(context.module_context.platforms) == ("cpu",):
        for value in values:
            operation = value.owner
            if not isinstance(operation, ir.Block) and operation.operation.name == "func.call":
                operation.operation.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get(
                    {"inlineable": ir.StringAttr.get("false")}
                )
    return values


batching.primitive_batchers[unit_p] = _batch_unit
mlir.register_lowering(unit_p, _forbid_inlining, cacheable=False)


# Its operands are two zeros, which it returns, and the leaves that a unit is given. It sorts the
# zeros if ``sort`` is true: no kernel of a loop contains a sort.
apart_p = core.Primitive("apart")
apart_p.def_impl(lambda zeros, *leaves, sort: zeros)
apart_p.def_abstract_eval(lambda zeros, *leaves, sort: zeros)


def _differentiate_apart(primals: Any, tangents: Any, *, sort: bool) -> Any:
    return apart_p.bind(*primals, sort=sort), tangents[0]


def _batch_apart(args: Any, axes: Any, *, sort: bool) -> Any:
    """Sort once for all members: a unit that is batched is kept out of kernels."""
    return apart_p.bind(args[0], sort=True), None


def _sort(zeros: jax.Array, *leaves: jax.Array, sort: bool) -> list[jax.Array]:
    return [lax.sort(zeros) if sort else zeros]


ad.primitive_jvps[apart_p] = _differentiate_apart
batching.primitive_batchers[apart_p] = _batch_apart
mlir.register_lowering(apart_p, lambda context, zeros, *leaves, sort: [zeros])
mlir.register_lowering(apart_p, mlir.lower_fun(_sort), platform="cpu")


# ``batched`` says whether the guard stays when its operand is batched.
guard_p = core.Primitive("guard")
guard_p.def_impl(lambda x, *, batched: x)
guard_p.def_abstract_eval(lambda aval, *, batched: aval)


def _differentiate_guard(primals: Any, tangents: Any, *, batched: bool) -> Any:
    return guard_p.bind(*primals, batched=batched), tangents[0]


def _batch_guard(leaves: Any, axes: Any, *, batched: bool) -> Any:
    """Drop the guard unless it is to stay: a unit that is batched is kept out of kernels."""
    return (guard_p.bind(*leaves, batched=True) if batched else leaves[0]), axes[0]


def _keep_bits(x: jax.Array, *, batched: bool) -> list[jax.Array]:
    """Return x, through a minimum that is x for all values but one NaN, which becomes another."""
    if x.dtype.itemsize == 1:
        return [x]  # in eight bits, every pattern may be a number
    with jax.enable_x64(True):
        integer = np.dtype(f"uint{8 * x.dtype.itemsize}")
        most = np.array(np.iinfo(integer).max - 1, integer)
        bits = lax.min(lax.bitcast_convert_type(x, integer), most)
        return [lax.bitcast_convert_type(bits, x.dtype)]


ad.primitive_jvps[guard_p] = _differentiate_guard
batching.primitive_batchers[guard_p] = _batch_guard
mlir.register_lowering(guard_p, lambda context, x, *, batched: [x])
mlir.register_lowering(guard_p, mlir.lower_fun(_keep_bits), platform="cpu")


def _products_and_sums(
    left: jax.Array, right: jax.Array, *, dimension_numbers: Any
) -> list[jax.Array]:
    """Compute a dot product, without batch axes, as guarded products and their sum."""
    (inner_left, inner_right), _ = dimension_numbers
    rows = [axis for axis in range(left.ndim) if axis not in inner_left]
    columns = [axis for axis in range(right.ndim) if axis not in inner_right]
    summed = range(len(rows), len(rows) + len(inner_left))
    left = lax.transpose(left, (*rows, *inner_left))
    right = lax.transpose(right, (*inner_right, *columns))
    shape = *left.shape, *right.shape[len(summed) :]
    left = lax.broadcast_in_dim(left, shape, range(left.ndim))
    right = lax.broadcast_in_dim(right, shape, range(len(rows), len(shape)))
    (products,) = _keep_bits(left * right, batched=True)
    return [lax.reduce_sum(products, axes=tuple(summed))]


def _library_dot(left: jax.Array, right: jax.Array, *, dimension_numbers: Any) -> jax.Array:
    return lax.dot_general(left, right, dimension_numbers)


def _differentiate_dot(primals: Any, tangents: Any, **params: Any) -> Any:
    tangents = map(ad.instantiate_zeros, tangents)
    _, tangent = jax.jvp(lambda *two: _library_dot(*two, **params), primals, tuple(tangents))
    return short_dot_p.bind(*primals, **params), tangent


def _batch_dot(factors: Any, axes: Any, **params: Any) -> Any:
    """Make it an ordinary dot product: a unit that is batched is kept out of kernels."""
    return jax.vmap(lambda *two: _library_dot(*two, **params), axes)(*factors), 0


short_dot_p = core.Primitive("short_dot")
short_dot_p.def_impl(_library_dot)
short_dot_p.def_abstract_eval(
    lambda left, right, **params: jax.typeof(
        jax.eval_shape(lambda *two: _library_dot(*two, **params), left, right)
    )
)
ad.primitive_jvps[short_dot_p] = _differentiate_dot
batching.primitive_batchers[short_dot_p] = _batch_dot
mlir.register_lowering(short_dot_p, mlir.lower_fun(_library_dot, multiple_results=False))
mlir.register_lowering(short_dot_p, mlir.lower_fun(_products_and_sums), platform="cpu")
