"""Which operation of a step first made an infinity or a NaN, and where it is written."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.source_info_util
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._step import Problem, stepper
from jaxfit.run import State

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SITE = os.sep + "site-packages" + os.sep
_GIVEN = ("batch", "params", "opt_state")
# What is but another way to write down the equations inside.
_INLINE = "jit pjit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call"


class Blame(NamedTuple):
    """What went wrong in a step; ``str`` makes a sentence of it.

    Attributes:
      step: the step, counted from 0.
      leaf: the first leaf that is not finite, in the order loss, gradient, update: ``"loss"``,
        ``"grads['w']"``, ``"updates[0]"``; or, where it became so because of what the step was
        given, that leaf: ``"batch[0]"``, ``"params['w']"``, ``"opt_state[0].mu['w']"``. None if
        there is none.
      value: what the leaf holds: ``"nan"``, ``"inf"`` or ``"-inf"``.
      primitive: the JAX primitive behind it, the first to make such numbers of finite ones:
        ``"log"``, ``"div"``. None if there is none, because they were there before the step, in an
        array that the loss closes over, say.
      where: the line of the user's that the primitive comes from, ``"train.py:12 (loss)"``; one of
        a library's where no other is known. That of a derivative is the line it was derived from.
      made: what the primitive made: ``"nan"``, ``"inf"`` or ``"-inf"``.
      of: what it made it of: ``"finite numbers"``; or ``"constant infinities"``, which may be meant
        while a NaN that comes of them is not.
    """

    step: int
    leaf: str | None = None
    value: str | None = None
    primitive: str | None = None
    where: str | None = None
    made: str | None = None
    of: str | None = None

    def __str__(self) -> str:
        if self.leaf is None:
            return (
                f"step {self.step}: loss, gradient and update are finite when computed operation "
                f"by operation; compiled, the step may have been rounded otherwise."
            )
        is_loss = self.leaf == "loss"
        what = (
            f"step {self.step}: {'the loss is' if is_loss else f'{self.leaf} holds'} {self.value}"
        )
        if self.primitive is not None:
            at = f"{self.primitive} at {self.where}" if self.where else self.primitive
            return f"{what}; {at} was the first to make {self.made} of {self.of}."
        if self.leaf.startswith(_GIVEN):
            return f"{what} before anything is computed."
        return f"{what}, which comes from a constant that is not finite."


def blame(
    loss: Callable[..., Any],
    state: State,
    optimizer: Any,
    *,
    data: Any = None,
    has_aux: bool = False,
) -> Blame:
    """Find what first made an infinity or a NaN in the step after a state.

    The step is made again, operation by operation, and the first leaf of loss, gradient and update
    that is not finite is followed back through numbers that are not finite to the operation that
    made them of finite ones. What is infinite on purpose, a mask of ``-jnp.inf``, or is never used,
    as behind a ``jnp.where``, is not blamed.

    Args:
      loss: the loss of the run.
      state: where the run stood before that step: ``run.state`` of a run that
        ``jaxfit.stop.not_finite`` ended, or of ``jaxfit.replay(…, step, step)``.
      optimizer: the optimizer of the run.
      data: the data of the run.
      has_aux: as in `train`.

    Returns:
      A `Blame`. Its ``leaf`` is None if nothing is infinite or NaN, as can be where XLA, which
      compiles a step as a whole, rounds otherwise.

    Raises:
      TypeError, ValueError: if the state is not one, or is that of many runs, or is traced; and as
        `train` does, if the arguments do not fit together.

    Every operation is computed by itself, which takes some seconds for a large model, and a loop
    that went bad is taken round by round from there on.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum(jnp.log(a))
    >>> start, sgd = jnp.array([1.0, 3.0]), optax.sgd(0.7)
    >>> run = jaxfit.fit(loss, start, sgd, 100, stop=jaxfit.stop.not_finite, progress=False)
    >>> run.stop_reason
    'not_finite was true at step 2'
    >>> blame = jaxfit.blame(loss, run.state, sgd)
    >>> blame.leaf, blame.primitive, blame.made
    ('loss', 'log', 'nan')
    """
    _check.kind("state", state, State, "run.state")
    _check.concrete("state or data", (state, data), "blame")
    if jnp.ndim(state.step):
        raise ValueError(
            f"state holds states of shape {jnp.shape(state.step)}, but one is examined at a time: "
            f"pick one with jax.tree.map(lambda leaf: leaf[0], run.state)."
        )
    fixed = None if callable(data) else _check.data(data)

    def take_step(state, fixed):
        given = data if callable(data) else fixed
        there = stepper(Problem(loss, optimizer, given, has_aux), _tree.unpack(state))
        return _tree.pack(there.step_of(there.state, there.take(there.state)[1]))

    given = _tree.hold(state), fixed
    program, shapes = jax.make_jaxpr(take_step, return_shape=True)(*given)
    # What is given is there before any operation, and each leaf by itself.
    inputs = [
        _value(leaf, _Origin(order)) for order, leaf in enumerate(jax.tree.leaves(given), -(2**31))
    ]
    # The user may look for NaNs with JAX's own means, which raise where this goes on.
    with jax.debug_nans(False), jax.debug_infs(False):
        values = _evaluate(program, inputs, (), itertools.count())
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    names = [jax.tree_util.keystr(path).lstrip(".") for path in paths]
    bad = lambda *kinds: [
        (name, value)
        for kind in kinds
        for name, value in zip(names, values, strict=True)
        if re.match(rf"{kind}\b", name) and _bad(value)
    ]
    for name, value in bad("loss", "grads", "updates")[:1]:
        same = [(other, found) for other, found in bad(*_GIVEN) if found.origin == value.origin]
        name, value = (*same, (name, value))[0]
        return Blame(int(state.step), name, _shown(value.array), *(value.origin or _CONSTANT)[1:])
    return Blame(int(state.step))


class _Origin(NamedTuple):
    """What made a number that is not finite; the earliest counts, and constants last."""

    order: float
    primitive: str | None = None
    where: str | None = None
    made: str | None = None
    of: str | None = None


class _Value(NamedTuple):
    """What an equation gives; and if it is not finite, or the bits of such, where that is from."""

    array: Any
    origin: _Origin | None = None


_CONSTANT = _Origin(math.inf)


def _evaluate(program: Any, values: Sequence[_Value], outer: tuple, clock: Any) -> list[_Value]:
    """Evaluate a jaxpr, equation by equation; ``outer`` are the equations that it is part of."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    env = dict(zip(jaxpr.constvars, (_value(const, _CONSTANT) for const in consts), strict=True))
    env.update(zip(jaxpr.invars, values, strict=True))
    # A literal has a value, a variable has none.
    read = lambda atom: _value(atom.val, _CONSTANT) if hasattr(atom, "val") else env[atom]
    for equation in jaxpr.eqns:
        inputs, path = [read(atom) for atom in equation.invars], (equation, *outer)
        env.update(zip(equation.outvars, _apply(equation, inputs, path, clock), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, inputs: list[_Value], path: tuple, clock: Any) -> list[_Value]:
    """The outputs of one equation."""
    name, params = equation.primitive.name, equation.params
    if name in _INLINE.split():
        inner = next(params[key] for key in ("jaxpr", "call_jaxpr") if key in params)
        return _evaluate(inner, inputs, path, clock)
    if name == "unit":  # which hands on what it is given
        return inputs
    if name == "cond":
        return _evaluate(params["branches"][int(inputs[0].array)], inputs[1:], path, clock)
    with equation.ctx.manager:
        arrays = equation.primitive.bind(
            *(value.array for value in inputs), **equation.primitive.get_bind_params(params)
        )
    arrays = list(arrays) if equation.primitive.multiple_results else [arrays]
    finite = [_finite(array) for array in arrays]
    made = lambda array, of="finite numbers": _Origin(
        next(clock), name, _where(path), _shown(array), of
    )
    if name in ("scan", "while") and not all(finite):
        origins = (_scan if name == "scan" else _while)(params, inputs, path, clock)
        return [
            _value(array, origin or made(array))
            for array, origin in zip(arrays, origins, strict=True)
        ]
    bad = [value for value in inputs if _bad(value)]
    if name == "select_n":
        # A case matters only where it is chosen and not finite.
        chosen = lambda index, case: (inputs[0].array == index) & ~jnp.isfinite(case.array)
        cases = [(index, case) for index, case in enumerate(inputs[1:]) if _bad(case)]
        bad = [case for index, case in cases if chosen(index, case).any()]
    # Bits of such numbers are followed, too: the tie of a step goes through them.
    origin = min((value.origin for value in bad or inputs if value.origin), default=None)
    outputs = []
    for array, fine in zip(arrays, finite, strict=True):
        cause = origin
        if fine:
            cause = origin if jnp.issubdtype(_dtype(array), jnp.integer) else None
        elif origin is None:
            cause = made(array)
        elif (
            bad
            and origin == _CONSTANT
            and _nan(array)
            and not any(_nan(value.array) for value in bad)
        ):
            # An infinity may be meant, but not what comes of it in a row masked as a whole, say.
            cause = made(array, "constant infinities")
        outputs.append(_Value(array, cause))
    return outputs


def _scan(params: dict, inputs: list[_Value], path: tuple, clock: Any) -> list[_Origin | None]:
    """Where the outputs of a scan come from, iteration by iteration."""
    body = params["jaxpr"]
    # By their shapes, as JAX versions differ in how they tell them apart.
    ranks = lambda outer, inner: sum(
        np.ndim(one) != len(other.shape) for one, other in zip(outer, inner, strict=True)
    )
    sliced = ranks([value.array for value in inputs], body.in_avals)
    given = len(inputs) - sliced
    stacked = ranks([v.aval for v in path[0].outvars], body.out_avals)
    carried = len(body.out_avals) - stacked
    consts, carry, rows = inputs[: given - carried], inputs[given - carried : given], inputs[given:]
    origins: list[_Origin | None] = [None] * stacked
    program = _program(body)
    for index in range(params["length"])[:: -1 if params["reverse"] else 1]:
        row = [_value(value.array[index], value.origin) for value in rows]
        out = program([*consts, *carry, *row], path, clock)
        carry, new = out[:carried], [value.origin for value in out[carried:]]
        origins = [min(filter(None, pair), default=None) for pair in zip(origins, new, strict=True)]
    return [value.origin for value in carry] + origins


def _while(params: dict, inputs: list[_Value], path: tuple, clock: Any) -> list[_Origin | None]:
    """Where the outputs of a while loop come from, iteration by iteration."""
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    tests, consts, carry = inputs[: split[0]], inputs[split[0] : split[1]], inputs[split[1] :]
    program, test = _program(params["body_jaxpr"]), _program(params["cond_jaxpr"])
    while bool(test([*tests, *carry], path, clock)[0].array):
        carry = program([*consts, *carry], path, clock)
    return [value.origin for value in carry]


def _program(body: Any) -> Callable[[list[_Value], tuple, Any], list[_Value]]:
    """The body of a loop: compiled, and equation by equation only where that is not finite."""
    compiled = jax.jit(lambda *arrays: jax.core.eval_jaxpr(body.jaxpr, body.consts, *arrays))

    def run(values: list[_Value], path: tuple, clock: Any) -> list[_Value]:
        if not any(value.origin for value in values):
            arrays = compiled(*(value.array for value in values))
            if all(map(_finite, arrays)):
                return [_Value(array) for array in arrays]
        return _evaluate(body, values, path, clock)

    return run


def _where(path: tuple) -> str | None:
    """The innermost line of the user's that an equation, or one around it, comes from."""
    anywhere = None
    for equation in path:
        text = jax.extend.source_info_util.summarize(equation.source_info, num_frames=1000)
        lines = re.findall(r"^(.*?):(\d+)(?::\d+)? \((.*)\)$", text, re.MULTILINE)
        # The frames around the step are those of whoever asks for the blame.
        ours = [i for i, (file, *_) in enumerate(lines) if file == f"{_HERE}_step.py"]
        for file, line, function in reversed(lines[ours[-1] + 1 if ours else 0 :]):
            library = file.startswith(_HERE) or _SITE in file
            start = os.path.dirname(file) + os.sep
            if library:  # from the name of the package on
                start = _HERE[: -len("jaxfit/")] if file.startswith(_HERE) else _SITE
            short = file.rpartition(start)[2]
            found = f"{short}:{line} ({function.rpartition('<locals>.')[2]})"
            if not library:
                return found
            anywhere = anywhere or found
    return anywhere


def _value(array: Any, origin: _Origin | None) -> _Value:
    """A value that comes from there if it is not finite."""
    return _Value(array, None if _finite(array) else origin)


def _dtype(array: Any) -> Any:
    return array.dtype if hasattr(array, "dtype") else jnp.result_type(array)


def _bad(value: _Value) -> bool:
    return value.origin is not None and jnp.issubdtype(_dtype(value.array), jnp.inexact)


def _finite(array: Any) -> bool:
    """Whether nothing is infinite or NaN; integers, booleans and keys never are."""
    return not jnp.issubdtype(_dtype(array), jnp.inexact) or bool(_all_finite(array))


_all_finite = jax.jit(lambda array: jnp.isfinite(array).all())


def _nan(array: Any) -> bool:
    return bool(jnp.isnan(array).any())


def _shown(array: Any) -> str:
    if _nan(array):
        return "nan"
    return "-inf" if jnp.isrealobj(array) and not (array == jnp.inf).any() else "inf"
