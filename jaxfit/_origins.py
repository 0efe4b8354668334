"""Follow infinities and NaNs through a program, one operation at a time, to what made them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from jaxfit._primitives import CALLS, called_jaxprs, hide_p, unit_p, veil_p

# An equation and those around it, from the innermost out.
Path: TypeAlias = tuple[core.JaxprEqn, ...]


class Origin(NamedTuple):
    """Where numbers that are not finite come from.

    Attributes:
      order: of several origins, the one of the lowest order counts. Inputs of the program have
        negative orders, operations are numbered as they are computed, and constants come last.
      path: the operation that made the numbers; empty for inputs and constants.
      made: ``"nan"``, ``"inf"`` or ``"-inf"``; None for inputs and constants.
      of: ``"finite numbers"`` or ``"constant infinities"``; None for inputs and constants.
    """

    order: float
    path: Path = ()
    made: str | None = None
    of: str | None = None


@dataclasses.dataclass(frozen=True)
class Value:
    """What a variable of the program holds.

    Attributes:
      array: an array, or a Python number.
      origin: where its infinities and NaNs come from, None if it holds none. Integers that are
        computed from such numbers have an origin as well, since they may hold their bits.
    """

    array: Any
    origin: Origin | None = None

    @property
    def is_nonfinite(self) -> bool:
        """Whether this holds an infinity or a NaN."""
        return self.origin is not None and _is_inexact(self.array)


_CONSTANT = Origin(math.inf)

# Computes the outputs of the first equation of a path; the iterator numbers operations in order.
_Rule: TypeAlias = Callable[[Sequence[Value], Path, Iterator[int]], list[Value]]


def follow(program: core.Jaxpr, arrays: Sequence[jax.Array]) -> list[Value]:
    """Return the outputs of a program with the origins of their infinities and NaNs.

    Args:
      program: what to compute.
      arrays: its inputs, each of which is the origin of its own infinities and NaNs.
    """
    orders = range(-len(arrays), 0)
    inputs = [_value(a, Origin(order)) for a, order in zip(arrays, orders, strict=True)]
    # JAX's settings for debugging would raise an error at the first NaN.
    with jax.debug_nans(False), jax.debug_infs(False):
        return _evaluate(program, inputs, (), itertools.count())


def kind_of(array: Any) -> str:
    """Return "nan", "inf" or "-inf", whichever an array that is not finite holds."""
    if _has_nan(array):
        return "nan"
    return "-inf" if jnp.isrealobj(array) and not (array == jnp.inf).any() else "inf"


def _evaluate(
    program: Any, inputs: Sequence[Value], outer: Path, clock: Iterator[int]
) -> list[Value]:
    """Evaluate a jaxpr, open or closed, that belongs to the outer equations."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    values = dict(zip(jaxpr.constvars, (_value(c, _CONSTANT) for c in consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        return _value(atom.val, _CONSTANT) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        rule = _RULES.get(equation.primitive.name, _operation)
        outputs = rule([read(atom) for atom in equation.invars], (equation, *outer), clock)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _operation(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
    """Compute an operation for which every input matters: the rule of most primitives."""
    return _with_origins(_compute(path[0], inputs), inputs, path, clock)


def _select(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
    """Compute a choice, for which a number matters only where it is chosen."""
    choice, *cases = inputs
    chosen = [
        case
        for index, case in enumerate(cases)
        if case.is_nonfinite and ((choice.array == index) & ~jnp.isfinite(case.array)).any()
    ]
    return _with_origins(_compute(path[0], inputs), chosen or inputs, path, clock)


def _identity(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
    """Hand on the inputs, each with its own origin."""
    return list(inputs)


def _call(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
    """Evaluate the equations inside a call."""
    (inner,) = called_jaxprs(path[0])
    return _evaluate(inner, inputs, path, clock)


def _cond(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
    """Evaluate the branch that is taken."""
    branch = called_jaxprs(path[0])[int(inputs[0].array)]
    return _evaluate(branch, inputs[1:], path, clock)


def _loop(origins_of: Callable[..., list[Origin | None]]) -> _Rule:
    """Return the rule of a loop: compute it as a whole, and again by rounds if that is not finite.

    Args:
      origins_of: ``(inputs, path, clock) -> origins of the outputs``, which goes round by round.
    """

    def rule(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
        arrays = _compute(path[0], inputs)
        if all(map(_is_finite, arrays)):
            return _with_origins(arrays, inputs, path, clock)
        origins = origins_of(inputs, path, clock)
        return [
            _value(array, origin or _made(array, "finite numbers", path, clock))
            for array, origin in zip(arrays, origins, strict=True)
        ]

    return rule


def _scan(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Origin | None]:
    """Return where the outputs of a scan come from."""
    equation = path[0]
    body = equation.params["jaxpr"]

    # By ranks, since the parameters that tell rows from the carry differ between JAX versions.
    def number_of_rows(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(np.ndim(a) > np.ndim(b) for a, b in zip(outside, inside, strict=True))

    num_inputs = number_of_rows([value.array for value in inputs], body.in_avals)
    num_outputs = number_of_rows([v.aval for v in equation.outvars], body.out_avals)
    num_carried = len(body.out_avals) - num_outputs
    start = len(inputs) - num_inputs
    consts, carry = inputs[: start - num_carried], inputs[start - num_carried : start]
    run = _runner(body)
    origins: list[Origin | None] = [None] * num_outputs
    rounds = range(equation.params["length"])
    for index in reversed(rounds) if equation.params["reverse"] else rounds:
        rows = [_value(value.array[index], value.origin) for value in inputs[start:]]
        outputs = run([*consts, *carry, *rows], path, clock)
        carry = outputs[:num_carried]
        new = [value.origin for value in outputs[num_carried:]]
        origins = [min(filter(None, pair), default=None) for pair in zip(origins, new, strict=True)]
    return [value.origin for value in carry] + origins


def _while(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Origin | None]:
    """Return where the outputs of a while loop come from."""
    params = path[0].params
    num_test = params["cond_nconsts"]
    start = num_test + params["body_nconsts"]
    test_consts, consts, carry = inputs[:num_test], inputs[num_test:start], inputs[start:]
    test, run = _runner(params["cond_jaxpr"]), _runner(params["body_jaxpr"])
    while bool(test([*test_consts, *carry], path, clock)[0].array):
        carry = run([*consts, *carry], path, clock)
    return [value.origin for value in carry]


def _runner(body: core.Jaxpr) -> _Rule:
    """Return a function that runs a loop's body: compiled, and by equations if not finite."""
    compiled = jax.jit(core.jaxpr_as_fun(body))

    def run(inputs: Sequence[Value], path: Path, clock: Iterator[int]) -> list[Value]:
        if not any(value.origin for value in inputs):
            arrays = compiled(*(value.array for value in inputs))
            if all(map(_is_finite, arrays)):
                return [Value(array) for array in arrays]
        return _evaluate(body, inputs, path, clock)

    return run


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(CALLS, _call),
    primitives.cond_p.name: _cond,
    primitives.scan_p.name: _loop(_scan),
    primitives.select_n_p.name: _select,
    primitives.while_p.name: _loop(_while),
    hide_p.name: _identity,
    unit_p.name: _identity,
    veil_p.name: _identity,
}


def _compute(equation: core.JaxprEqn, inputs: Sequence[Value]) -> list[Any]:
    """Return the output arrays of an equation."""
    primitive: Any = equation.primitive  # JAX leaves its methods untyped
    with equation.ctx.manager:
        arrays = primitive.bind(
            *(value.array for value in inputs), **primitive.get_bind_params(equation.params)
        )
    return list(arrays) if primitive.multiple_results else [arrays]


def _with_origins(
    arrays: Sequence[Any], causes: Sequence[Value], path: Path, clock: Iterator[int]
) -> list[Value]:
    """Return the outputs of an operation, with the earliest origin of the causes or a new one."""
    nonfinite = [cause for cause in causes if cause.is_nonfinite]
    origin = min((cause.origin for cause in nonfinite or causes if cause.origin), default=None)
    # An infinite constant may be intended, as in a mask. A NaN made of it is not, as in a row that
    # is masked as a whole.
    of_infinities = (
        bool(nonfinite)
        and origin == _CONSTANT
        and not any(_has_nan(cause.array) for cause in nonfinite)
    )

    def with_origin(array: Any) -> Value:
        if _is_finite(array):
            return Value(array, origin if jnp.issubdtype(_dtype(array), jnp.integer) else None)
        if origin is None:
            return Value(array, _made(array, "finite numbers", path, clock))
        if of_infinities and _has_nan(array):
            return Value(array, _made(array, "constant infinities", path, clock))
        return Value(array, origin)

    return [with_origin(array) for array in arrays]


def _made(array: Any, of: str, path: Path, clock: Iterator[int]) -> Origin:
    """Return the origin of numbers that an operation has just made."""
    return Origin(next(clock), path, kind_of(array), of)


def _value(array: Any, origin: Origin | None) -> Value:
    """Return a value with that origin if it is not finite."""
    return Value(array, None if _is_finite(array) else origin)


def _dtype(array: Any) -> Any:
    return array.dtype if hasattr(array, "dtype") else jnp.result_type(array)


def _is_inexact(array: Any) -> bool:
    return bool(jnp.issubdtype(_dtype(array), jnp.inexact))


def _is_finite(array: Any) -> bool:
    """Return whether nothing is infinite or NaN; integers, booleans and keys never are."""
    return not _is_inexact(array) or bool(_all_finite(array))


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def _has_nan(array: Any) -> bool:
    return bool(jnp.isnan(array).any())
