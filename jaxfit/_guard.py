"""What keeps products from being merged with sums in one program and not in another.

LLVM makes one operation of a product and a sum, which rounds once instead of twice, where it finds
both in one block of code and the product nowhere else. In three places that depends on what stands
around a unit of compilation:

- XLA makes one kernel of a loop of simple operations, in which LLVM sees through the calls of
  units, and sums dot products in an order of its own.
- What is the same for all turns of a loop over elements is computed once before it, or not,
  depending on what LLVM knows of the buffers.
- Where one number decides between arrays, LLVM may make branches, and move some of what is chosen
  into them.

There, a guard stands behind every product: an integer operation on its bits that changes nothing
and that no compiler can remove.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

# XLA makes one kernel of a loop that reads and writes fewer bytes than this in a turn. Found by
# bisecting sizes: 1 KiB on jax 0.10; on 0.12 there is no limit to be seen.
_OLD = jax.__version_info__ < (0, 11)
_KERNEL_BYTES = 2**10 if _OLD else math.inf
# Elements of a result that may be the same for all turns of a loop over others, and so few that
# guards of them cost nothing.
_SMALL = 2**10
# Elements of one that may be so for the members of a batch.
_FEWEST = 16
# Operations of a unit that takes long enough for half a microsecond not to matter, and of one whose
# guards would take long to compile.
_FEW, _MANY = 300, 1_000
# Products of numbers in a dot product that is written as such, and in one of two matrices from
# which on it is a call of a library, which no kernel of a loop holds.
_DOT = 2**12

# Operations that round alike in such a kernel and outside of one: moves, comparisons, sums, …
_SUMS = frozenset(
    "add add_any sub neg sign floor ceil round abs max min clamp select_n nextafter is_finite"
    " eq ne lt le gt ge eq_to le_to lt_to convert_element_type reduce_precision copy copy_p"
    " bitcast_convert_type broadcast_in_dim reshape squeeze expand_dims transpose rev concatenate"
    " pad slice split stack unstack tile dynamic_slice dynamic_update_slice gather iota"
    " stop_gradient reduce_sum reduce_max reduce_min argmax argmin hide unit guard"
    " short_dot".split()
)
# … and those whose last operation is a product, or may be.
_PRODUCTS = frozenset(
    "mul div rem square integer_pow pow exp exp2 expm1 log log1p log2 sqrt rsqrt cbrt tanh logistic"
    " sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erf_inv"
    " one_minus_square reduce_prod dot_general".split()
)
# Of these, the ones that round differently in a kernel, or were not tried there long enough.
_UNLIKE = frozenset("tan asin acos atan atan2 sinh cosh asinh acosh atanh cbrt".split())
# The parameters that hold the jaxprs of operations that consist of others.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat2"), "jaxpr"),
    **dict.fromkeys(
        ("closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"
    ),
    "cond": "branches",
}
_LOOPS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}


def guarded(jaxpr: Any) -> tuple[Any, bool]:
    """Return a jaxpr with the guards that it needs, and whether guards are not enough for it.

    They are not if it can be part of a kernel, and holds operations that may round differently
    there: it has to be kept out of kernels.
    """
    number = sum(1 for _ in _equations(jaxpr))
    in_kernel = _least_bytes(jaxpr) < _KERNEL_BYTES and not _has_matrix_product(jaxpr)
    # On jax 0.10, exponentials differ there too; but its kernels are so small that few are lost.
    simple = in_kernel and not _OLD and number <= _FEW and _is_simple(jaxpr)
    most = math.inf if _has_choice(jaxpr) else _SMALL if number <= _MANY else 0
    return _with_guards(jaxpr, simple, most), in_kernel and not simple


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, each call followed by the equations in it."""
    for equation in jaxpr.eqns:
        yield equation
        inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
        for one in inner if isinstance(inner, tuple | list) else [inner] if inner else []:
            yield from _equations(one)


def _dots(jaxpr: Any) -> list[Any]:
    return [one for one in _equations(jaxpr) if one.primitive.name == "dot_general"]


def _is_simple(jaxpr: Any) -> bool:
    """Return whether guards are enough to round all operations alike in a kernel."""
    for equation in _equations(jaxpr):
        name, atoms = equation.primitive.name, (*equation.invars, *equation.outvars)
        dtypes = {np.dtype(one.aval.dtype) for one in atoms if _is_inexact(one)}
        if not dtypes or name in _CALLS:
            continue  # integers are not rounded
        # A complex product is a sum of products; and sums in 16 bits are kept in 32 for a while.
        if not dtypes <= {np.dtype("float32"), np.dtype("float64")}:
            return False
        if name not in _SUMS and name not in _PRODUCTS - _UNLIKE:
            return False
        if name == "dot_general" and not _is_short(equation):
            return False
    return True


def _is_short(dot: Any) -> bool:
    """Return whether a dot product can be written as products and their sums."""
    dtypes = {np.dtype(atom.aval.dtype) for atom in (*dot.invars, *dot.outvars)}
    batch = dot.params["dimension_numbers"][1]
    return (
        dtypes in ({np.dtype("float32")}, {np.dtype("float64")})
        and not any(batch)
        and math.prod(_sizes(dot)) <= _DOT
    )


def _sizes(dot: Any) -> tuple[int, int, int]:
    """Return the rows, the length of a row, and the columns of a product of matrices."""
    contracted, batch = dot.params["dimension_numbers"]
    left, right = (atom.aval.shape for atom in dot.invars)
    length = math.prod(left[axis] for axis in contracted[0])
    number = max(length * math.prod(left[axis] for axis in batch[0]), 1)
    return math.prod(left) // number, length, math.prod(right) // number


def _has_matrix_product(jaxpr: Any) -> bool:
    """Return whether there is a product of two matrices that no kernel of a loop holds."""
    return any(min(_sizes(dot)) > 1 and math.prod(_sizes(dot)) > _DOT for dot in _dots(jaxpr))


def _least_bytes(jaxpr: Any) -> int:
    """Return a lower bound of the bytes that a computation reads and writes."""
    atoms = [*jaxpr.jaxpr.outvars, *(atom for dot in _dots(jaxpr) for atom in dot.invars)]
    return sum(
        math.prod(atom.aval.shape) * atom.aval.dtype.itemsize
        for atom in atoms
        if hasattr(atom.aval, "dtype")
    )


def _has_choice(jaxpr: Any) -> bool:
    """Return whether one number decides between arrays."""
    return any(
        equation.primitive.name == "cond"
        or (
            equation.primitive.name == "select_n"
            and equation.invars[0].aval.shape == () != equation.outvars[0].aval.shape
        )
        for equation in _equations(jaxpr)
    )


def _with_guards(closed: Any, simple: bool, most: float) -> Any:
    """Return a jaxpr with guards.

    Args:
      closed: the jaxpr.
      simple: whether all products are guarded, as in a kernel.
      most: the largest number of elements of a product that is guarded in any case.
    """

    def with_guards(jaxpr: Any) -> Any:
        equations: list[Any] = []
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "dot_general" and (simple or most == math.inf) and _is_short(equation):
                equations.append(_short_dot(equation))
                continue
            if name in _CALLS or name in _LOOPS:
                equations.append(_with_guards_inside(equation, name, simple, most))
            elif name in _PRODUCTS and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
                equations += _guarded_product(equation, simple, most)
            else:
                equations.append(equation)
        return jaxpr.replace(eqns=equations)

    return closed.map_jaxpr(with_guards) if hasattr(closed, "map_jaxpr") else with_guards(closed)


def _with_guards_inside(equation: Any, name: str, simple: bool, most: float) -> Any:
    """Return the equation of a call, a loop or a choice, with guards in its jaxprs."""

    def inner(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(inner, value))
        # A loop may be a kernel of its own.
        is_kernel = name in _LOOPS and not _has_matrix_product(value)
        return _with_guards(value, simple, math.inf if is_kernel else most)

    keys = _LOOPS.get(name) or (_CALLS[name],)
    params = {key: inner(equation.params[key]) for key in keys}
    return equation.replace(params={**equation.params, **params})


def _guarded_product(equation: Any, simple: bool, most: float) -> list[Any]:
    """Return an equation, and its guard if it has one."""
    (out,) = equation.outvars
    size = math.prod(out.aval.shape)
    if not simple and size > most:
        return [equation]
    bare = core.Var(out.aval)
    guard = core.new_jaxpr_eqn(
        [bare],
        [out],
        _guard,
        {"batched": most == math.inf or size <= _FEWEST},
        set(),
        equation.source_info,
        equation.ctx,
    )
    return [equation.replace(outvars=[bare]), guard]


def _short_dot(dot: Any) -> Any:
    """Return the equation of a dot product that is lowered as products and their sums."""
    params = {"dimension_numbers": dot.params["dimension_numbers"]}
    return dot.replace(primitive=_dot, params=params)


def _products_and_sums(
    left: jax.Array, right: jax.Array, *, dimension_numbers: Any
) -> list[jax.Array]:
    """Compute a dot product as guarded products, which are summed."""
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
    return _dot.bind(*primals, **params), tangent


def _batch_dot(factors: Any, axes: Any, **params: Any) -> Any:
    # Batched, a unit is kept out of kernels.
    return jax.vmap(lambda *two: _library_dot(*two, **params), axes)(*factors), 0


_dot = core.Primitive("short_dot")
_dot.def_impl(_library_dot)
_dot.def_abstract_eval(
    lambda left, right, **params: jax.typeof(
        jax.eval_shape(lambda *two: _library_dot(*two, **params), left, right)
    )
)
ad.primitive_jvps[_dot] = _differentiate_dot
batching.primitive_batchers[_dot] = _batch_dot
mlir.register_lowering(_dot, mlir.lower_fun(_library_dot, multiple_results=False))


def _is_inexact(atom: Any) -> bool:
    return hasattr(atom.aval, "dtype") and jnp.issubdtype(atom.aval.dtype, jnp.inexact)


_guard = core.Primitive("guard")
_guard.def_impl(lambda x, *, batched: x)
_guard.def_abstract_eval(lambda aval, *, batched: aval)


def _differentiate(primals: Any, tangents: Any, *, batched: bool) -> Any:
    return _guard.bind(*primals, batched=batched), tangents[0]


def _batch(leaves: Any, axes: Any, *, batched: bool) -> Any:
    # A unit that is batched is kept out of kernels.
    return (_guard.bind(*leaves, batched=True) if batched else leaves[0]), axes[0]


def _keep_bits(x: jax.Array, *, batched: bool) -> list[jax.Array]:
    """Return x, through a minimum that is x for all values but one NaN, which becomes another."""
    if x.dtype.itemsize == 1:
        return [x]  # of eight bits, all patterns may be numbers
    with jax.enable_x64(True):
        integer = np.dtype(f"uint{8 * x.dtype.itemsize}")
        most = np.array(np.iinfo(integer).max - 1, integer)
        bits = lax.min(lax.bitcast_convert_type(x, integer), most)
        return [lax.bitcast_convert_type(bits, x.dtype)]


ad.primitive_jvps[_guard] = _differentiate
batching.primitive_batchers[_guard] = _batch
mlir.register_lowering(_guard, lambda context, x, *, batched: [x])
mlir.register_lowering(_guard, mlir.lower_fun(_keep_bits), platform="cpu")
mlir.register_lowering(_dot, mlir.lower_fun(_products_and_sums), platform="cpu")
