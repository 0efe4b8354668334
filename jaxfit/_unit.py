"""What makes a piece of a program a unit of compilation, with the same bits in every program.

A product and the sum it goes into are rounded once instead of twice where XLA and LLVM make them
one operation, a fused multiply-add. Whether they do depends on who else needs the product, so that
recording it would change the last bits of a run; as would constants, with which XLA computes
beforehand. On the CPU, three things prevent that:

- A unit is a call that XLA does not inline, and its arguments are hidden from XLA if they are
  constants. So it is compiled the same whatever stands around it.
- XLA makes one kernel of a loop of simple operations, and in it LLVM inlines the calls after all.
  In a unit of such operations every product is guarded: an integer operation that no compiler can
  remove stands between it and any sum.
- A unit that holds anything else, or is batched by ``vmap``, sorts two numbers on the way, which no
  such kernel can.

All of it comes in when a program is lowered. To derivatives and to ``vmap``, a unit is an ordinary
call of `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir

# XLA makes one kernel of a loop that reads and writes fewer bytes than this a turn. Found by
# bisecting sizes: 1 KiB on jax 0.10; from 0.11 on there is no limit to be seen.
_KERNEL_BYTES = 2**10 if jax.__version_info__ < (0, 11) else math.inf

# Operations that round alike in such a kernel and outside of one: moves, choices, sums, ...
_SUMS = frozenset(
    "add add_any sub neg sign floor ceil round abs max min clamp select_n nextafter is_finite"
    " eq ne lt le gt ge eq_to le_to lt_to convert_element_type reduce_precision copy copy_p"
    " bitcast_convert_type broadcast_in_dim reshape squeeze expand_dims transpose rev concatenate"
    " pad slice split stack unstack tile dynamic_slice dynamic_update_slice gather iota"
    " stop_gradient reduce_sum reduce_max reduce_min argmax argmin hide unit guard".split()
)
# ... and those whose last operation is a product, or may be.
_PRODUCTS = frozenset(
    "mul div rem square integer_pow pow exp exp2 expm1 log log1p log2 sqrt rsqrt cbrt tanh logistic"
    " sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erf_inv"
    " one_minus_square reduce_prod dot_general".split()
)
# The parameter that holds the jaxpr, or the jaxprs, of operations that consist of others.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat2"), "jaxpr"),
    **dict.fromkeys(
        ("closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"
    ),
    "cond": "branches",
}


def unit(fn: Callable[..., Any], zero: jax.Array) -> Callable[..., Any]:
    """Return a function that XLA compiles as a unit wherever it is called.

    Args:
      fn: a pure function of pytrees of arrays. It is traced once for all the places that the unit
        is called at, for each set of shapes.
      zero: int32 [], 0, hidden.
    """
    traced: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        given = structure, *map(jax.typeof, leaves)
        if given not in traced:
            jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
            traced[given] = _without_moves(fn, jaxpr, zero), jax.tree.structure(shape)
        alone, structure = traced[given]
        return jax.tree.unflatten(structure, alone(leaves))

    return call


def hide(tree: Any) -> Any:
    """Return a tree of arrays whose values XLA does not know, even where they are constants."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _hide.bind(*leaves) if leaves else [])


def _without_moves(fn: Callable[..., Any], jaxpr: Any, zero: jax.Array) -> Callable[[list], list]:
    """Return what computes a jaxpr from the leaves, of which the unit is given those it needs."""
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
        results = iter(alone(zero, *(leaves[place] for place in needed)))
        return [next(results) if place is None else leaves[place] for place in handed]

    return call


def _compiled_alone(fn: Callable[..., Any], jaxpr: Any) -> Callable[..., list[jax.Array]]:
    """Return what computes a jaxpr as a unit, a function of zero and the leaves."""
    in_kernel = _least_bytes(jaxpr) < _KERNEL_BYTES and not _has_matrix_product(jaxpr)
    simple = in_kernel and _is_simple(jaxpr)
    evaluate = core.jaxpr_as_fun(_guarded(jaxpr) if simple else jaxpr)

    def body(zero: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        apart = _apart.bind(zero, *leaves, sort=in_kernel and not simple)
        return [*evaluate(*leaves), apart]

    body.__name__ = getattr(fn, "__name__", "unit")
    # Eagerly, too, it is called from a program around it.
    return jax.jit(lambda *leaves: _unit.bind(*jax.jit(body)(*leaves))[:-1])


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, and those of the calls in it in their place."""
    for equation in jaxpr.eqns:
        inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
        if inner is None:
            yield equation
        for one in inner if isinstance(inner, tuple | list) else [inner] if inner else []:
            yield from _equations(one)


def _is_simple(jaxpr: Any) -> bool:
    """Return whether all operations are known to round alike in a kernel of a whole loop."""
    for equation in _equations(jaxpr):
        atoms = *equation.invars, *equation.outvars
        dtypes = [atom.aval.dtype for atom in atoms if hasattr(atom.aval, "dtype")]
        name = equation.primitive.name
        if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
            return False  # whose products are sums of products
        if not any(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
            continue  # integers are not rounded
        if name not in _SUMS and name not in _PRODUCTS:
            return False
        if name == "dot_general" and not _is_simple_dot(equation):
            return False
    return True


def _is_simple_dot(dot: Any) -> bool:
    """Return whether a dot product is rounded alike in a kernel, or can be made so.

    A row-major matrix times a vector is not, once its rows fill a vector register: in the kernel,
    each row is summed in several parts. A small one is written as products and their sums.
    """
    (_, batch), (rows, length, columns) = dot.params["dimension_numbers"], _sizes(dot)
    if any(batch):
        return False
    itemsize = dot.outvars[0].aval.dtype.itemsize
    if length * itemsize < 16:
        return True
    if min(rows, columns) > 1:
        return False
    return not _is_by_rows(dot) or (rows * length * columns <= 2**12 and itemsize >= 4)


def _is_by_rows(dot: Any) -> bool:
    """Return whether a dot product is that of a row-major matrix, of rows that are long, and a vector."""
    contracted, (rows, length, columns) = dot.params["dimension_numbers"][0], _sizes(dot)
    axes = contracted[0] if rows > 1 else contracted[1]
    short = length * dot.outvars[0].aval.dtype.itemsize < 16
    return not short and max(rows, columns) > 1 and tuple(axes) != tuple(range(len(axes)))


def _sizes(dot: Any) -> tuple[int, int, int]:
    """Return how many rows the first matrix of a product has, how long they are, and the columns of the second."""
    contracted, batch = dot.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in dot.invars]
    length = math.prod(shapes[0][axis] for axis in contracted[0])
    batches = math.prod(shapes[0][axis] for axis in batch[0])
    rows, columns = (math.prod(shape) // max(length * batches, 1) for shape in shapes)
    return rows, length, columns


def _has_matrix_product(jaxpr: Any) -> bool:
    """Return whether there is a product of matrices that no kernel of a whole loop can hold."""
    dots = [e for e in _equations(jaxpr) if e.primitive.name == "dot_general"]
    return any(min(_sizes(dot)) > 1 and math.prod(_sizes(dot)) >= 2**12 for dot in dots)


def _summed_by_rows(dot: Any) -> Any:
    """Return the equation of a matrix times a vector, as products and their sums."""
    contracted, _ = dot.params["dimension_numbers"]
    first = _sizes(dot)[0] > 1  # is the matrix
    axes, others = contracted if first else contracted[::-1]

    def dot_by_rows(*factors: jax.Array) -> jax.Array:
        matrix, vector = factors if first else factors[::-1]
        order = [other for _, other in sorted(zip(axes, others, strict=True))]
        vector = lax.broadcast_in_dim(lax.transpose(vector, order), matrix.shape, sorted(axes))
        return lax.reduce_sum(matrix * vector, axes=tuple(axes))

    shapes = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in dot.invars]
    (equation,) = jax.make_jaxpr(jax.jit(dot_by_rows))(*shapes).eqns
    return equation.replace(invars=dot.invars, outvars=dot.outvars, source_info=dot.source_info)


def _least_bytes(jaxpr: Any) -> int:
    """Return a lower bound of the bytes that a computation reads and writes."""
    bytes_of = lambda atoms: sum(
        math.prod(atom.aval.shape) * atom.aval.dtype.itemsize
        for atom in atoms
        if hasattr(atom.aval, "dtype")
    )
    dots = [e for e in _equations(jaxpr) if e.primitive.name == "dot_general"]
    return bytes_of(jaxpr.jaxpr.outvars) + sum(bytes_of(dot.invars) for dot in dots)


def _guarded(closed: Any) -> Any:
    """Return a jaxpr with a guard on the result of every operation that may end in a product."""

    def guarded(jaxpr: Any) -> Any:
        equations = []
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general" and _is_by_rows(equation):
                equation = _summed_by_rows(equation)
            name, ctx = equation.primitive.name, equation.ctx
            if name in _CALLS:
                inner = equation.params[_CALLS[name]]
                several = isinstance(inner, tuple | list)
                inner = type(inner)(map(_guarded, inner)) if several else _guarded(inner)
                params = {**equation.params, _CALLS[name]: inner}
                equations.append(equation.replace(params=params))
            elif name in _PRODUCTS and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
                (out,) = equation.outvars
                bare = core.Var(out.aval)
                source = equation.source_info
                equations += [
                    equation.replace(outvars=[bare]),
                    core.new_jaxpr_eqn([bare], [out], _guard, {}, set(), source, ctx),
                ]
            else:
                equations.append(equation)
        return jaxpr.replace(eqns=equations)

    return closed.map_jaxpr(guarded) if hasattr(closed, "map_jaxpr") else guarded(closed)


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


_guard, _hide = _identity("guard"), _identity("hide")
# Batched, a unit is kept apart from kernels, and needs no guards.
batching.primitive_batchers[_guard] = lambda leaves, axes: (leaves, axes)
# All results of a unit in one equation: where one is needed all are, so that JAX's elimination of
# dead code does not make other units of it.
_unit = _identity("unit")


# Zero again; as part of a unit, it keeps the loop around the unit from becoming a kernel.
_apart = core.Primitive("apart")
_apart.def_impl(lambda zero, *leaves, sort: zero)
_apart.def_abstract_eval(lambda zero, *leaves, sort: zero)


def _differentiate_apart(primals: Any, tangents: Any, *, sort: bool) -> Any:
    zero = _apart.bind(*primals, sort=sort)
    return zero, ad.Zero.from_primal_value(zero)


def _batch_apart(args: Any, axes: Any, *, sort: bool) -> Any:
    return _apart.bind(args[0], sort=True), None


ad.primitive_jvps[_apart] = _differentiate_apart
batching.primitive_batchers[_apart] = _batch_apart
mlir.register_lowering(_apart, lambda context, zero, *leaves, sort: [zero])


def _sort(zero: jax.Array, *leaves: jax.Array, sort: bool) -> list[jax.Array]:
    return [lax.sort(jnp.stack([zero, -zero]))[0] if sort else zero]


def _keep_bits(x: jax.Array) -> list[jax.Array]:
    """Return x, through a minimum that is x for all values but one NaN, which becomes another."""
    if x.dtype.itemsize == 1:
        return [x]  # of eight bits, all patterns may be numbers
    with jax.enable_x64(True):
        integer = np.dtype(f"uint{8 * x.dtype.itemsize}")
        most = np.array(np.iinfo(integer).max - 1, integer)
        bits = lax.min(lax.bitcast_convert_type(x, integer), most)
        return [lax.bitcast_convert_type(bits, x.dtype)]


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


mlir.register_lowering(_apart, mlir.lower_fun(_sort), platform="cpu")
mlir.register_lowering(_guard, mlir.lower_fun(_keep_bits), platform="cpu")
mlir.register_lowering(
    _hide, mlir.lower_fun(lambda *leaves: lax.optimization_barrier(leaves)), platform="cpu"
)
mlir.register_lowering(_unit, _forbid_inlining, cacheable=False)
