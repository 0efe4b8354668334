"""Guards, which keep products from being fused with sums in one program and not in another.

Where LLVM finds a product and a sum in one block of code, and no other use of the product, it fuses
them into one operation, which rounds once instead of twice. In three places, whether it does so
depends on the program around a unit of compilation:

- XLA may compile a loop of simple operations as one kernel, in which LLVM inlines the calls of
  units, and sums dot products in an order of its own.
- LLVM may move what is the same in every iteration out of a loop over the elements of an array,
  depending on what it knows about the buffers.
- Where one number decides between arrays, LLVM may make branches, and move into them some of the
  operations that compute the arrays.

In these places, a guard follows every product: an integer operation on its bits that changes
nothing and that no compiler can remove.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxfit._primitives import CALLS, call_parameter, called_jaxprs, guard_p, short_dot_p
from jaxfit._reductions import Jaxpr, reduces_jointly

Equation: TypeAlias = Any
"""A ``jax.extend.core.JaxprEqn``."""

# XLA compiles a loop as one kernel only if an iteration reads and writes fewer bytes than this.
# Found by bisecting sizes: 1 KiB on jax 0.10; jax 0.12 shows no limit.
_OLD = jax.__version_info__ < (0, 11)
_KERNEL_BYTES = 2**10 if _OLD else math.inf
# Results of at most this many elements may be the same in every iteration of a loop over a larger
# array. Guards of so few elements cost nothing.
_SMALL = 2**10
# Results of at most this many elements may be the same for every member of a batch.
_FEWEST = 16
# A unit of more operations than this takes so long that the half microsecond of a sort does not
# matter. Smaller units have guards instead.
_FEW = 300
# In a unit of more operations than this, guards would take long to compile.
_MANY = 1_000
# A dot product of at most this many multiplications can be written as products and a sum. One of
# two matrices with more is a library call, which no kernel of a loop contains.
_DOT = 2**12

# Operations that do not round, or round each number by itself.
MOVES = frozenset(
    "neg abs max min clamp select_n is_finite convert_element_type copy copy_p"
    " bitcast_convert_type broadcast_in_dim reshape squeeze expand_dims transpose rev concatenate"
    " pad slice split stack unstack tile dynamic_slice dynamic_update_slice gather iota"
    " stop_gradient reduce_max reduce_min argmax argmin empty hide veil unit guard".split()
)
# Operations that round the same in a kernel as outside of one …
_SUMS = MOVES | frozenset(
    "add add_any sub sign floor ceil round nextafter reduce_precision eq ne lt le gt ge eq_to le_to"
    " lt_to reduce_sum short_dot".split()
)
# … and operations that end, or may end, in a product.
_PRODUCTS = frozenset(
    "mul div rem square integer_pow pow exp exp2 expm1 log log1p log2 sqrt rsqrt cbrt tanh logistic"
    " sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erf_inv"
    " one_minus_square reduce_prod dot_general".split()
)
# Of these, the ones that round differently in a kernel, or have not been tested enough there.
_UNLIKE = frozenset("tan asin acos atan atan2 sinh cosh asinh acosh atanh cbrt".split())
# Likewise, of arrays: LLVM computes several numbers at a time in one program, and not in another.
_SEVERAL = frozenset(
    "pow exp exp2 expm1 log log1p log2 tanh logistic sin cos erf erfc erf_inv".split()
)
# The parameters of loops that hold jaxprs.
_LOOPS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}


def guarded(jaxpr: Jaxpr) -> tuple[Jaxpr, bool]:
    """Return a jaxpr with the guards that it needs, and whether it must be kept out of kernels.

    It must if it can be part of a kernel, and holds operations that may round differently there
    even with guards.
    """
    number = sum(1 for _ in equations(jaxpr))
    in_kernel = _least_bytes(jaxpr) < _KERNEL_BYTES and not _has_matrix_product(jaxpr)
    # On jax 0.10, exponentials round differently in a kernel too. Its kernels are so small that
    # little is lost by keeping every unit out of them.
    simple = in_kernel and not _OLD and number <= _FEW and _is_simple(jaxpr)
    most = math.inf if _has_choice(jaxpr) else _SMALL if number <= _MANY else 0
    return _with_guards(jaxpr, simple, most), in_kernel and not simple


def equations(jaxpr: Jaxpr) -> Iterator[Equation]:
    """Yield the equations of a jaxpr, each call followed by the equations in it."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name in CALLS:
            for inner in called_jaxprs(equation):
                yield from equations(inner)


def _dots(jaxpr: Jaxpr) -> list[Equation]:
    """Return the equations of the dot products in a jaxpr."""
    return [one for one in equations(jaxpr) if one.primitive.name == "dot_general"]


def _is_simple(jaxpr: Jaxpr) -> bool:
    """Return whether guards are enough to round all operations alike in a kernel."""
    if reduces_jointly(jaxpr):
        return False
    for equation in equations(jaxpr):
        name, atoms = equation.primitive.name, (*equation.invars, *equation.outvars)
        dtypes = {np.dtype(one.aval.dtype) for one in atoms if _is_inexact(one)}
        if not dtypes or name in CALLS:
            continue  # integers are not rounded
        # A complex product is a sum of products, and sums in 16 bits are kept in 32 for a while.
        if not dtypes <= {np.dtype("float32"), np.dtype("float64")}:
            return False
        if name not in _SUMS and name not in _PRODUCTS - _UNLIKE:
            return False
        if name in _SEVERAL and equation.outvars[0].aval.shape:
            return False
        if name == "dot_general" and not _is_short(equation):
            return False
    return True


def _is_inexact(atom: Any) -> bool:
    """Return whether a variable or literal is floating or complex."""
    return hasattr(atom.aval, "dtype") and jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def _is_short(dot: Equation) -> bool:
    """Return whether a dot product can be written as products and their sum."""
    dtypes = {np.dtype(atom.aval.dtype) for atom in (*dot.invars, *dot.outvars)}
    batch = dot.params["dimension_numbers"][1]
    return (
        dtypes in ({np.dtype("float32")}, {np.dtype("float64")})
        and not any(batch)
        and len(dot.params["dimension_numbers"][0][0]) <= 1
        and math.prod(_sizes(dot)) <= _DOT
    )


def _sizes(dot: Equation) -> tuple[int, int, int]:
    """Return the number of rows, their length, and the number of columns of a dot product."""
    contracted, batch = dot.params["dimension_numbers"]
    left, right = (atom.aval.shape for atom in dot.invars)
    length = math.prod(left[axis] for axis in contracted[0])
    number = max(length * math.prod(left[axis] for axis in batch[0]), 1)
    return math.prod(left) // number, length, math.prod(right) // number


def _has_matrix_product(jaxpr: Jaxpr) -> bool:
    """Return whether there is a product of two matrices that no kernel of a loop contains."""
    return any(min(_sizes(dot)) > 1 and math.prod(_sizes(dot)) > _DOT for dot in _dots(jaxpr))


def _least_bytes(jaxpr: Jaxpr) -> int:
    """Return a lower bound on the bytes that a computation reads and writes."""
    atoms = [*jaxpr.jaxpr.outvars, *(atom for dot in _dots(jaxpr) for atom in dot.invars)]
    return sum(
        math.prod(atom.aval.shape) * atom.aval.dtype.itemsize
        for atom in atoms
        if hasattr(atom.aval, "dtype")
    )


def _has_choice(jaxpr: Jaxpr) -> bool:
    """Return whether one number decides between arrays."""
    return any(
        equation.primitive.name == "cond"
        or (
            equation.primitive.name == "select_n"
            and equation.invars[0].aval.shape == () != equation.outvars[0].aval.shape
        )
        for equation in equations(jaxpr)
    )


def _with_guards(closed: Jaxpr, simple: bool, most: float) -> Jaxpr:
    """Return a jaxpr with guards.

    Args:
      closed: the jaxpr.
      simple: whether every product is guarded, as in a kernel.
      most: if not, the number of elements up to which a product is guarded; infinity for all.
    """

    def with_guards(jaxpr: Jaxpr) -> Jaxpr:
        equations: list[Equation] = []
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "dot_general" and (simple or most == math.inf) and _is_short(equation):
                equations.append(_short_dot(equation))
            elif name in CALLS or name in _LOOPS:
                equations.append(_with_guards_inside(equation, name, simple, most))
            elif name in _PRODUCTS and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
                equations += _guarded_product(equation, simple, most)
            else:
                equations.append(equation)
        return jaxpr.replace(eqns=equations)

    return closed.map_jaxpr(with_guards) if hasattr(closed, "map_jaxpr") else with_guards(closed)


def _with_guards_inside(equation: Equation, name: str, simple: bool, most: float) -> Equation:
    """Return the equation of a call, a loop or a choice, with guards in its jaxprs."""

    def inner(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(inner, value))
        # A loop in the unit may be a kernel of its own.
        is_kernel = name in _LOOPS and not _has_matrix_product(value)
        return _with_guards(value, simple, math.inf if is_kernel else most)

    keys = _LOOPS.get(name) or (call_parameter(equation),)
    params = {key: inner(equation.params[key]) for key in keys}
    return equation.replace(params={**equation.params, **params})


def _guarded_product(equation: Equation, simple: bool, most: float) -> list[Equation]:
    """Return the equation of a product, followed by its guard if it needs one."""
    (out,) = equation.outvars
    size = math.prod(out.aval.shape)
    if not simple and size > most:
        return [equation]
    bare = core.Var(out.aval)
    guard = core.new_jaxpr_eqn(
        [bare],
        [out],
        guard_p,
        {"batched": most == math.inf or size <= _FEWEST},
        set(),
        equation.source_info,
        equation.ctx,
    )
    return [equation.replace(outvars=[bare]), guard]


def _short_dot(dot: Equation) -> Equation:
    """Return the equation of a dot product that is lowered as products and their sum."""
    params = {"dimension_numbers": dot.params["dimension_numbers"]}
    return dot.replace(primitive=short_dot_p, params=params)
