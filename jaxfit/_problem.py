"""A problem (loss, optimizer, data), converted and checked before anything is compiled.

Each error says in one sentence what was given, what is expected and what to do.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _check, _tree
from jaxfit._types import Data, Loss, Optimizer, OptState, Params, PyTree, Updates
from jaxfit.run import Run, State, Step


class Problem(NamedTuple):
    """The arguments of `train` that decide what its steps compute."""

    loss: Loss
    optimizer: Optimizer
    data: Data | None = None
    has_aux: bool = False


def check_loss(loss: Any, has_carry: bool, has_data: bool) -> None:
    """Check that the loss is a function of the parameters, and of carry and batch if given."""
    if not callable(loss):
        raise TypeError(f"loss is {_check.show(loss)}, but must be a function.")
    names = ["params", *["carry"] * has_carry, *["batch"] * has_data]
    if not _check.takes(loss, len(names)):
        given = {
            (False, False): "no data was given",
            (False, True): "data was given",
            (True, False): "carry was given, and no data",
            (True, True): "carry and data were given",
        }[has_carry, has_data]
        way_out = "leave data out" if has_data else "give data=(x, y)"
        raise TypeError(
            f"loss {_check.show(loss)} takes other arguments, but {given}, so it is called as "
            f"loss({', '.join(names)}): {way_out}, or change its signature."
        )


def as_data(data: Any) -> Data | None:
    """Return None, a function of the step, or arrays that share a leading axis."""
    if data is None:
        return None
    if callable(data):
        if not _check.takes(data, 1):
            raise TypeError(
                f"data is the function {_check.show(data)}, but a function of data takes one "
                f"argument, the step: write data=lambda step: batch."
            )
        return data
    if isinstance(data, Iterator):
        raise TypeError(
            f"data is {_check.show(data)}, but only fit takes batches one after the other: give "
            f"arrays, or a function of the step, such as jaxfit.host_batches makes of one of "
            f"Python's."
        )
    return _check.examples(
        "data", data, "; or a function of the step; or to fit, batch by batch, iter(batches)"
    )[0]


def as_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """Return an optax optimizer, made of an object with its two methods, or of a rule."""
    has_methods = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    if inspect.isclass(optimizer) or not (callable(optimizer) or has_methods):
        raise TypeError(
            f"optimizer is {_check.show(optimizer)}, but must be an optax optimizer, or a function "
            f"of (gradients, parameters) that returns updates: build one, as in optax.adam(1e-3)."
        )
    if hasattr(optimizer, "update"):
        return optax.GradientTransformation(optimizer.init, optimizer.update)
    if _num_required(optimizer) != 2:
        raise TypeError(
            f"optimizer is the function {_check.show(optimizer)}, but must be an optax optimizer "
            f"or a rule of two arguments, (gradients, parameters): call a factory such as "
            f"optax.adam first, and give a schedule to an optimizer as its learning rate."
        )
    return optax.stateless(optimizer)


def _num_required(function: Callable[..., Any]) -> int:
    """Return how many positional arguments a function requires."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def check_start(params: Any, num_steps: int, carry: PyTree = None) -> None:
    """Check that a run can start from the params, and that int32 can count its steps."""
    if isinstance(params, Run | Step):
        kind = type(params).__name__
        raise TypeError(
            f"params is a {kind}, but must be parameters or a State: "
            f"give {kind.lower()}.state to go on from there."
        )
    if not isinstance(params, State):
        return
    if carry is not None:
        raise ValueError(
            "carry was given beside a State, which has its own: leave it out, or start from "
            "dataclasses.replace(state, carry=…)."
        )
    step = params.step
    if np.ndim(step):
        raise ValueError(
            f"params holds States of shape {np.shape(step)}, but a run goes on from one: pick one "
            f"with jax.tree.map(lambda leaf: leaf[0], states), or map train over them with "
            f"jax.vmap."
        )
    if isinstance(step, jax.core.Tracer):
        return
    try:
        first = operator.index(step)
    except TypeError:
        raise TypeError(
            f"params is a State whose step is {_check.show(step)}, but a step is a whole number: "
            f"begin at 0 with jaxfit.init(params, optimizer)."
        ) from None
    if not 0 <= first <= 2**31 - 1 - num_steps:
        raise ValueError(
            f"params is a State at step {first} and num_steps is {num_steps}, but steps are "
            f"counted from 0 to 2**31 - 1: take fewer, or count afresh from "
            f"jaxfit.State(0, state.params, state.opt_state)."
        )


# What JAX raises where Python asks for the value of a traced number.
_CONCRETIZATION_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_objective(
    called: Callable[..., Any],
    start: tuple[Params, PyTree, jax.Array],
    carry: PyTree,
    has_aux: bool,
    data: Data | None,
) -> None:
    """Check that the loss returns one real number that depends on the parameters, and its carry.

    Args:
      called: ``(params, carry, step) -> what the loss returns``, packed.
      start: the leaves that are trained, the arrays of the carry, and the step.
      carry: the whole carry; None without.
      has_aux: whether the loss returns aux, too.
      data: what the batches come from.
    """
    params = start[0]
    if not jax.tree.leaves(params):
        raise ValueError(
            "params has no floating or complex leaf, so there is nothing to train: "
            "write 1.0 where 1 was meant, or convert integer arrays to floating ones."
        )
    try:
        jaxpr, out = jax.make_jaxpr(called, return_shape=True)(*start)
    except _CONCRETIZATION_ERRORS as error:
        raise TypeError(
            f"the loss, or data, asks for a number before there is one ({_check.reason(error)}): "
            f"compute with jax.numpy alone, and choose with jnp.where in place of if."
        ) from error
    except Exception as error:
        if type(data) in (list, tuple):
            error.add_note(
                f"jaxfit: data is a {type(data).__name__}, of which every step sees the whole; "
                f"to take one batch after the other, give iter(batches) to jaxfit.fit."
            )
        raise
    _check_outputs(out, carry, has_aux)
    if not _depends(jaxpr.jaxpr, len(jax.tree.leaves(params))):
        raise ValueError(
            "the loss does not depend on the parameters, so every gradient would be zero: "
            "use its first argument in it."
        )


def _check_outputs(out: Any, carry: PyTree, has_aux: bool) -> None:
    """Check the shapes of what the loss returned, packed."""
    is_pair: Callable[[Any], bool] = lambda out: isinstance(out, tuple) and len(out) == 2
    shapes = _check.shapes(out)
    expected = [None, "(loss, aux)", "(loss, carry)", "(loss, (carry, aux))"]
    form = expected[has_aux + 2 * (carry is not None)]
    if form and not (is_pair(out) and (form != expected[3] or is_pair(out[1]))):
        given = "", "has_aux=True was", "carry was", "carry and has_aux=True were"
        raise TypeError(
            f"{given[expected.index(form)]} given, but the loss returned {shapes}: return the pair "
            f"{form}, or leave {'carry' if carry is not None else 'has_aux'} out."
        )
    if is_pair(out) and not form:
        raise TypeError(
            f"the loss returned the pair {shapes}, but one scalar was expected: "
            f"give has_aux=True if it returns (loss, aux)."
        )
    value = out[0] if form else out
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape:
        raise ValueError(
            f"the loss returned {_check.shapes(value)}, but one scalar was expected: take its mean "
            f"or sum."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"the loss returned {_check.shapes(value)}, but a real floating number was expected: "
            f"convert it, or take its real part."
        )
    if carry is not None:
        after = out[1][0] if has_aux else out[1]
        if found := _check.difference(_tree.pack(carry), after):
            raise ValueError(
                f"the loss returned another carry than it was given ({found}), but a compiled loop "
                f"needs it to stay: return the same structure, shapes and dtypes, as in "
                f"new.astype(old.dtype)."
            )


def _depends(jaxpr: Any, num_inputs: int) -> bool:
    """Return whether the first output can depend on any of the first inputs."""
    reached = {id(variable) for variable in jaxpr.invars[:num_inputs]}
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(id(variable) for variable in equation.outvars)
    return id(jaxpr.outvars[0]) in reached


def check_opt_state(
    given: State | None, optimizer: optax.GradientTransformation, trained: Params
) -> None:
    """Check that a step can serve the optimizer, and that a given State belongs to it."""
    with explained("begin"):
        expected = jax.eval_shape(optimizer.init, trained)
    if _holds(expected, optax.contrib.DifferentiallyPrivateAggregateState):
        raise ValueError(
            "the optimizer is a differentially private one, which takes per-example gradients, but "
            "a step has one gradient of its batch: write your own loop with jax.vmap(jax.grad)."
        )
    if _holds(expected, optax.LookaheadState) and not isinstance(trained, optax.LookaheadParams):
        raise ValueError(
            "the optimizer is optax.lookahead, which keeps slow parameters beside the fast ones, "
            "but params is not a pair: give optax.LookaheadParams.init_synced(params)."
        )
    if given is not None and (found := _check.difference(expected, given.opt_state)):
        raise ValueError(
            f"the given State does not belong to this optimizer ({found} in its optimizer "
            f"state): go on with the optimizer that made it, or start this one afresh with "
            f"jaxfit.init(state.params, optimizer)."
        )


def _holds(tree: PyTree, kind: type) -> bool:
    """Return whether a node of a type is somewhere in a tree."""
    is_one = lambda node: isinstance(node, kind)
    return any(map(is_one, jax.tree.leaves(tree, is_leaf=is_one)))


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what to do about an error in an optimizer, which could not do what it was to."""
    try:
        yield
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"the optimizer could not {what} ({_check.reason(error)}): mend it to take these "
            f"parameters, or, if it wraps lbfgs, a line search or sam, let that be outermost."
        ) from error


def check_update(before: OptState, after: OptState, trained: Params, updates: Updates) -> None:
    """Check that the optimizer's state keeps its shapes, and that updates have the parameters'."""
    if found := _check.difference(before, after):
        raise ValueError(
            f"the optimizer's update changed the shape of its state ({found}), but a compiled "
            f"loop needs it to stay: let its init return what its update does, and record with "
            f"record=… what optax.monitor would."
        )
    # Leaf by leaf: nodes need not know how to compare themselves.
    (ours, ours_in), (theirs, theirs_in) = map(jax.tree.flatten, (trained, updates))
    if [*map(jnp.shape, ours), ours_in] != [*map(jnp.shape, theirs), theirs_in]:
        raise ValueError(
            f"the optimizer returned {_check.shapes(updates)} as updates of "
            f"{_check.shapes(trained)}, but both must have one structure and the same shapes: "
            f"return what is to be added."
        )
