"""One step of a run: what it consists of, and how it is taken."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _check, _problem, _tree
from jaxfit._guard import MOVES, equations
from jaxfit._primitives import CALLS
from jaxfit._problem import Problem, as_data, as_optimizer
from jaxfit._types import (
    Batch,
    Data,
    Evaluate,
    OptState,
    Params,
    PyTree,
    Recorder,
    Row,
    Updates,
)
from jaxfit._unit import hide, unit, veil
from jaxfit.run import State, Step


class Info(NamedTuple):
    """What one step saw and did: a `Step` without the State that it started from."""

    batch: Batch  # packed; None if the data are the same at every step
    loss: jax.Array
    aux: PyTree  # packed
    grads: Updates
    updates: Updates


class Stepper(NamedTuple):
    """A checked problem, ready to take steps.

    The loop carries only trained leaves, and batches that change. What stays the same for the whole
    run is closed over; `restore` and `step_of` put it back.
    """

    state: State  # the first, of trained leaves alone
    take: Callable[[State], tuple[State, Info]]
    restore: Callable[[State], State]
    step_of: Callable[[State, Info], Step]
    row_of: Callable[[Recorder], Callable[[State, Info], Row]]  # a unit, whose rows are packed
    evaluation_of: Callable[[Evaluate], Callable[[State], PyTree]]  # likewise
    unit: Callable[..., Callable[..., Any]]  # for what else is computed of a step


def stepper(problem: Problem, params: Params | State, carry: PyTree = None) -> Stepper:
    """Check a problem and where it starts, and return how its steps are taken.

    Args:
      problem: the problem.
      params: the parameters to start from, or a State.
      carry: what the loss is given beside the parameters; that of a State is in it.
    """
    loss, has_aux = problem.loss, problem.has_aux
    optimizer, data = as_optimizer(problem.optimizer), as_data(problem.data)
    varies = callable(data)
    given = params if isinstance(params, State) else None
    start = in_arrays(given or State(jnp.asarray(np.int32(0)), params, None, carry))
    carry = start.carry
    trained, rest = _tree.partition(start.params)
    carried, objects = _tree.partition(carry, _tree.is_proper_array)
    _problem.check_loss(loss, carry is not None, data is not None)

    def batch_at(data: Data, step: jax.Array) -> Batch:
        return _tree.hold(_tree.unpack(data)(step)) if varies else data

    def called(trained: Params, carried: PyTree, batch: Batch) -> Any:
        """Call the loss; return what it does, packed."""
        given = [_tree.combine(trained, evaluation_point(rest))]
        given += [] if carry is None else [_tree.combine(carried, objects)]
        given += [] if data is None else [_tree.unpack(batch)]
        return _tree.pack(_check_carried("the loss", loss(*given), (rest, objects)))

    def objective(trained: Params, carried: PyTree, batch: Batch) -> tuple[jax.Array, Any]:
        """Return the loss, and beside it the carry after it and aux."""
        out = called(trained, carried, batch)
        if carry is None:
            return (out[0], (None, out[1])) if has_aux else (out, (None, None))
        value, (after, aux) = out if has_aux else (out[0], (out[1], None))
        after = _tree.as_arrays(_tree.unpack(after), _tree.is_array)
        return value, (_tree.partition(after, _tree.is_proper_array)[0], aux)

    def restore(state: State) -> State:
        params = _tree.combine(state.params, rest)
        return State(state.step, params, state.opt_state, _tree.combine(state.carry, objects))

    def step_of(state: State, info: Info) -> Step:
        batch = _tree.unpack(info.batch) if varies else data
        info = info._replace(batch=batch, aux=_tree.unpack(info.aux))
        state = restore(state)
        return Step(state.step, state.params, state.opt_state, *info, carry=state.carry)

    def row_of(record: Recorder) -> Callable[[State, Info], Row]:
        def row(state: State, info: Info) -> Row:
            made = record(step_of(state, info))
            return _kept("record", made, (rest, objects), "a row", "step.loss")

        return as_unit(row, lambda: (state, take(state)[1]))

    def evaluation_of(evaluate: Evaluate) -> Callable[[State], PyTree]:
        shown = lambda state: evaluated(evaluate, restore(state), (rest, objects))
        return as_unit(shown, lambda: (state,))

    source = _tree.hold(data)
    on_batch = lambda point, carried, step: called(point, carried, batch_at(source, step))
    first = evaluation_point(trained), carried, start.step
    _problem.check_objective(on_batch, first, carry, has_aux, data)
    _problem.check_opt_state(given and start, optimizer, trained)
    opt_state = first_state(optimizer, trained) if given is None else start.opt_state
    state = State(start.step, trained, opt_state, carried)
    state, zeros = hide((state, jnp.zeros(2, np.int32)))
    source, as_unit = veil(source, zeros), functools.partial(unit, zeros)
    batch_of = as_unit(batch_at, lambda: (source, state.step)) if varies else batch_at

    def needed(state: State) -> tuple[Params, OptState, PyTree, Batch]:
        return state.params, state.opt_state, state.carry, batch_of(source, state.step)

    update_unit = as_unit(_update(objective, optimizer), lambda: needed(state))

    def take(state: State) -> tuple[State, Info]:
        *_, batch = inputs = needed(state)
        *after, info = update_unit(*inputs)
        return State(state.step + 1, *after), info._replace(batch=batch if varies else None)

    return Stepper(state, take, restore, step_of, row_of, evaluation_of, as_unit)


def first_state(optimizer: optax.GradientTransformation, trained: Params) -> OptState:
    """Return the state of an optimizer before the first step, with the same bits in any program."""
    jaxpr = jax.make_jaxpr(optimizer.init)(trained)
    rounds = any(
        one.primitive.name not in MOVES | CALLS
        and any(jnp.issubdtype(out.aval.dtype, np.inexact) for out in one.outvars)
        for one in equations(jaxpr)
    )
    if not rounds:
        return optimizer.init(trained)
    trained, zeros = hide((trained, jnp.zeros(2, np.int32)))
    return unit(zeros, optimizer.init, lambda: (trained,))(trained)


def in_arrays(state: State) -> State:
    """Convert what steps change of a State into JAX arrays; it may hold NumPy's and numbers."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) or not _tree.is_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(leaf))

    step, params = jnp.asarray(state.step, np.int32), _tree.as_arrays(state.params)
    carry = _tree.as_arrays(state.carry, _tree.is_array)
    return State(step, params, jax.tree.map(convert, state.opt_state), carry)


def evaluation_point(params: Params) -> Params:
    """Return the parameters a loss is evaluated at: optax.lookahead keeps slow ones beside them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _update(
    objective: Callable[..., Any], optimizer: optax.GradientTransformation
) -> Callable[[Params, OptState, PyTree, Batch], tuple[Params, OptState, PyTree, Info]]:
    """Return a step: ``(params, opt_state, carry, batch) -> (params, opt_state, carry, info)``."""
    keywords = _keywords(optimizer.update)

    def update(
        params: Params, opt_state: OptState, carry: PyTree, batch: Batch
    ) -> tuple[Params, OptState, PyTree, Info]:
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (value, (carried, aux)), grads = value_and_grad(evaluation_point(params), carry, batch)

        # A line search refuses keywords that value_fn does not name, for it hands them on to it.
        def value_fn(params: Params, *, obj_fn: Any = None) -> jax.Array:
            value: jax.Array = objective(params, carry, batch)[0]
            return value

        descent = _conjugate(grads)
        offered = {
            "value": value,
            "grad": descent,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: _conjugate(jax.grad(value_fn)(params)),
        }
        with _problem.explained("make an update"):
            updates, after = optimizer.update(
                descent, opt_state, params, **{name: offered[name] for name in keywords}
            )
        _problem.check_update(opt_state, after, params, updates)
        params = optax.apply_updates(params, updates)
        return params, after, carried, Info(None, value, aux, grads, updates)

    return update


def _keywords(update: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the extra arguments that an optimizer's ``update`` is to be given."""
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("value", "grad", "value_fn", "obj_fn")
    names = ("value", "grad", "value_fn", "obj_fn", "grad_fn")
    return tuple(name for name in names if name in parameters)


def _conjugate(grads: Updates) -> Updates:
    """Return what optimizers take for a gradient: JAX's has the conjugate in complex leaves."""
    return jax.tree.map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, grads)


def evaluated(evaluate: Evaluate, state: State, rest: PyTree) -> PyTree:
    """Return what a function makes of a State, packed; it may hold objects found in ``rest``."""
    return _kept("evaluate", evaluate(state), rest, "an evaluation", "a loss on other data")


def _kept(name: str, tree: PyTree, rest: PyTree, what: str, example: str) -> PyTree:
    """Return what a function returned, packed; it must hold at least one array."""
    if not any(map(_check.is_carried, jax.tree.leaves(_check_carried(name, tree, rest)))):
        raise ValueError(
            f"{name} returned {_check.show(tree)}, but {what} needs at least one array: "
            f"return what to keep, such as {example}."
        )
    return _tree.pack(tree)


def _check_carried(name: str, tree: PyTree, rest: PyTree) -> PyTree:
    """Return a tree, which must hold arrays, numbers, and objects found in the parameters.

    These are known by their identity: one that is made afresh at every call, a string or a
    function, would give the rows of a run different structures.
    """
    known = {id(leaf) for leaf in jax.tree.leaves(rest) if not _tree.is_array(leaf)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _check.is_carried(leaf) and id(leaf) not in known:
            at = f" at leaf {jax.tree_util.keystr(path)!r}" if path else ""
            raise TypeError(
                f"{name} returned {_check.show(leaf)}{at}, but may return only arrays and numbers "
                f"of JAX's dtypes, and objects found in the parameters: leave it out."
            )
    return tree
