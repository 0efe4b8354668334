"""One step of a run: what it is made of, and how it is taken."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfit import _check, _tree
from jaxfit._unit import hide, unit
from jaxfit.run import State, Step


class Problem(NamedTuple):
    """What is trained: the arguments of `train` that make two runs compute the same."""

    loss: Callable[..., Any]
    optimizer: Any
    data: Any = None
    has_aux: bool = False


class Info(NamedTuple):
    """What one step saw and did: a `Step` without the state that it started from."""

    batch: Any  # packed; None if the data are the same at every step
    loss: jax.Array
    aux: Any  # packed
    grads: Any
    updates: Any


class Stepper(NamedTuple):
    """A checked problem, ready to take steps.

    Inside the loop there are only trained leaves, and batches that change. What stays the same for
    the whole run is closed over, and `restore` and `step_of` put it back.
    """

    state: State  # the first, of trained leaves alone
    take: Callable[[State], tuple[State, Info]]
    restore: Callable[[State], State]
    step_of: Callable[[State, Info], Step]
    row_of: Callable[[Callable], Callable]  # for a recorder, the unit (state, info) -> packed row
    unit: Callable[[Callable], Callable]  # for what else is computed of a step


def stepper(problem: Problem, params: Any) -> Stepper:
    """Check a problem and where it starts, and return how its steps are taken."""
    loss, optimizer, data, has_aux = problem
    _check.function("loss", loss, 1 if data is None else 2)
    data = _check.data(data)
    optimizer = _check.optimizer(optimizer)
    given = in_arrays(params) if isinstance(params, State) else None
    params = _tree.as_arrays(params) if given is None else given.params
    trained, rest = _tree.partition(params)
    step = jnp.asarray(np.int32(0)) if given is None else given.step
    varies = callable(data)

    def batch_at(data: Any, step: jax.Array) -> Any:
        return _tree.hold(_tree.unpack(data)(step)) if varies else data

    def objective(trained: Any, batch: Any) -> Any:
        params = _tree.combine(trained, evaluation_point(rest))
        out = loss(params) if data is None else loss(params, _tree.unpack(batch))
        return _tree.pack(_check.returned("the loss", out, rest))

    def restore(state: State) -> State:
        return dataclasses.replace(state, params=_tree.combine(state.params, rest))

    def step_of(state: State, info: Info) -> Step:
        batch = _tree.unpack(info.batch) if varies else data
        info = info._replace(batch=batch, aux=_tree.unpack(info.aux))
        state = restore(state)
        return Step(state.step, state.params, state.opt_state, *info)

    def row_of(record: Callable[[Step], Any]) -> Callable[[State, Info], Any]:
        def row(state: State, info: Info) -> Any:
            return _tree.pack(_check.recorded(record(step_of(state, info)), rest))

        return as_unit(row)

    source = _tree.hold(data)
    _check.value(
        lambda iterate, step: objective(iterate, batch_at(source, step)),
        evaluation_point(trained),
        step,
        has_aux,
    )
    _check.opt_state(given, optimizer, trained)
    opt_state = optimizer.init(trained) if given is None else given.opt_state
    state, source, zeros = hide((State(step, trained, opt_state), source, jnp.zeros(2, np.int32)))
    as_unit = lambda fn: unit(fn, zeros)
    batch_unit, update_unit = as_unit(batch_at), as_unit(_update(objective, optimizer, has_aux))

    def take(state: State) -> tuple[State, Info]:
        batch = batch_unit(source, state.step) if varies else source
        params, opt_state, info = update_unit(state.params, state.opt_state, batch)
        info = info._replace(batch=batch) if varies else info
        return State(state.step + 1, params, opt_state), info

    return Stepper(state, take, restore, step_of, row_of, as_unit)


def in_arrays(state: State) -> State:
    """Turn into JAX arrays what steps change of a State, which may hold NumPy's and numbers."""

    def convert(leaf):
        if isinstance(leaf, jax.Array) or not _tree.is_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(leaf))

    step, params = jnp.asarray(state.step, np.int32), _tree.as_arrays(state.params)
    return State(step, params, jax.tree.map(convert, state.opt_state))


def _update(objective: Callable, optimizer: Any, has_aux: bool) -> Callable:
    """Return the function ``(params, opt_state, batch) -> (params, opt_state, info)`` of a step."""
    keywords = _keywords(optimizer.update)

    def update(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, Info]:
        out, grads = jax.value_and_grad(objective, has_aux=has_aux)(evaluation_point(params), batch)
        value, aux = out if has_aux else (out, None)

        # A line search refuses keywords that value_fn does not name, for it hands them on to it.
        def value_fn(params, *, obj_fn=None):
            out = objective(params, batch)
            return out[0] if has_aux else out

        descent = _conjugate(grads)
        offered = {
            "value": value,
            "grad": descent,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: _conjugate(jax.grad(value_fn)(params)),
        }
        with _check.update_errors():
            updates, after = optimizer.update(
                descent, opt_state, params, **{name: offered[name] for name in keywords}
            )
        _check.update(opt_state, after, params, updates)
        return optax.apply_updates(params, updates), after, Info(None, value, aux, grads, updates)

    return update


def _keywords(update: Callable) -> tuple[str, ...]:
    """Return the names of the extra arguments that an optimizer's ``update`` is to be given."""
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("value", "grad", "value_fn", "obj_fn")
    names = ("value", "grad", "value_fn", "obj_fn", "grad_fn")
    return tuple(name for name in names if name in parameters)


def evaluation_point(params: Any) -> Any:
    """Return the parameters a loss is evaluated at: optax.lookahead keeps slow ones beside them."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _conjugate(grads: Any) -> Any:
    """Return what optimizers take for a gradient: JAX's has the conjugate in complex leaves."""
    return jax.tree.map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, grads)
