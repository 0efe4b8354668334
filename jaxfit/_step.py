"""One step of a run: what it consists of, and how it is taken."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _check, _problem, _tree
from jaxfit._problem import Problem, as_data, as_optimizer
from jaxfit._types import Batch, Data, OptState, Params, PyTree, Recorder, Row, Updates
from jaxfit._unit import hide, unit
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
    unit: Callable[[Callable[..., Any]], Callable[..., Any]]  # for what else is computed of a step


def stepper(problem: Problem, params: Params | State) -> Stepper:
    """Check a problem and where it starts, and return how its steps are taken."""
    loss, optimizer, data, has_aux = problem
    _check.function("loss", loss, 1 if data is None else 2)
    data = as_data(data)
    optimizer = as_optimizer(optimizer)
    given = in_arrays(params) if isinstance(params, State) else None
    params = _tree.as_arrays(params) if given is None else given.params
    trained, rest = _tree.partition(params)
    step = jnp.asarray(np.int32(0)) if given is None else given.step
    varies = callable(data)

    def batch_at(data: Data, step: jax.Array) -> Batch:
        return _tree.hold(_tree.unpack(data)(step)) if varies else data

    def objective(trained: Params, batch: Batch) -> Any:
        params = _tree.combine(trained, evaluation_point(rest))
        out = loss(params) if data is None else loss(params, _tree.unpack(batch))
        return _tree.pack(_check_carried("the loss", out, rest))

    def restore(state: State) -> State:
        return dataclasses.replace(state, params=_tree.combine(state.params, rest))

    def step_of(state: State, info: Info) -> Step:
        batch = _tree.unpack(info.batch) if varies else data
        info = info._replace(batch=batch, aux=_tree.unpack(info.aux))
        state = restore(state)
        return Step(state.step, state.params, state.opt_state, *info)

    def row_of(record: Recorder) -> Callable[[State, Info], Row]:
        def row(state: State, info: Info) -> Row:
            return _tree.pack(_check_row(record(step_of(state, info)), rest))

        return as_unit(row)

    source = _tree.hold(data)
    on_batch = lambda point, step: objective(point, batch_at(source, step))
    _problem.check_objective(on_batch, evaluation_point(trained), step, has_aux)
    _problem.check_opt_state(given, optimizer, trained)
    opt_state = optimizer.init(trained) if given is None else given.opt_state
    state, source, zeros = hide((State(step, trained, opt_state), source, jnp.zeros(2, np.int32)))

    def as_unit(fn: Callable[..., Any]) -> Callable[..., Any]:
        return unit(fn, zeros)

    batch_unit, update_unit = as_unit(batch_at), as_unit(_update(objective, optimizer, has_aux))

    def take(state: State) -> tuple[State, Info]:
        batch = batch_unit(source, state.step) if varies else source
        params, opt_state, info = update_unit(state.params, state.opt_state, batch)
        info = info._replace(batch=batch) if varies else info
        return State(state.step + 1, params, opt_state), info

    return Stepper(state, take, restore, step_of, row_of, as_unit)


def in_arrays(state: State) -> State:
    """Convert what steps change of a State into JAX arrays; it may hold NumPy's and numbers."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) or not _tree.is_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(leaf))

    step, params = jnp.asarray(state.step, np.int32), _tree.as_arrays(state.params)
    return State(step, params, jax.tree.map(convert, state.opt_state))


def evaluation_point(params: Params) -> Params:
    """Return the parameters a loss is evaluated at: optax.lookahead keeps slow ones beside them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _update(
    objective: Callable[..., Any], optimizer: optax.GradientTransformation, has_aux: bool
) -> Callable[[Params, OptState, Batch], tuple[Params, OptState, Info]]:
    """Return the function ``(params, opt_state, batch) -> (params, opt_state, info)`` of a step."""
    keywords = _keywords(optimizer.update)

    def update(params: Params, opt_state: OptState, batch: Batch) -> tuple[Params, OptState, Info]:
        value_and_grad = jax.value_and_grad(objective, has_aux=has_aux)
        out, grads = value_and_grad(evaluation_point(params), batch)
        value, aux = out if has_aux else (out, None)

        # A line search refuses keywords that value_fn does not name, for it hands them on to it.
        def value_fn(params: Params, *, obj_fn: Any = None) -> jax.Array:
            out: Any = objective(params, batch)
            return out[0] if has_aux else out  # type: ignore[no-any-return]

        descent = _conjugate(grads)
        offered = {
            "value": value,
            "grad": descent,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: _conjugate(jax.grad(value_fn)(params)),
        }
        with _problem.explained_update():
            updates, after = optimizer.update(
                descent, opt_state, params, **{name: offered[name] for name in keywords}
            )
        _problem.check_update(opt_state, after, params, updates)
        return optax.apply_updates(params, updates), after, Info(None, value, aux, grads, updates)

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


def _check_row(row: Row, rest: Params) -> Row:
    """Return a row, which must hold at least one array."""
    if not any(map(_check.is_carried, jax.tree.leaves(_check_carried("record", row, rest)))):
        raise ValueError(
            f"record returned {_check.show(row)}, but a row needs at least one array: "
            f"return what to keep, such as step.loss."
        )
    return row


def _check_carried(name: str, tree: PyTree, rest: Params) -> PyTree:
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
