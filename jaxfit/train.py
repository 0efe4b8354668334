"""The training loop: a pure function from a loss to the whole trajectory.

Read this file first. `State` is where a run stands, `Step` is everything one step saw and did,
`Run` is a finished run. `train` is a ``lax.scan`` over steps; there is nothing else behind it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxfit import _check, _tree
from jaxfit._tie import tie
from jaxfit.record import whole

__all__ = ["Run", "State", "Step", "init", "train"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands between two updates: all that is needed to go on exactly.

    Attributes:
      step: int32 [], the number of updates made so far.
      params: the parameters, a pytree.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """Everything one step saw and did; what a recorder is given.

    All of it belongs to the parameters *before* the update; the parameters after it are
    ``optax.apply_updates(params, updates)``.

    Attributes:
      step: int32 [], counted from 0.
      params: the parameters, a pytree.
      opt_state: the optimizer's state that the update started from; what the optimizer says of
        this very step, a line search of its evaluations, say, is in the state of the next.
      batch: the data the loss was given; None if the loss takes none.
      loss: floating [], the loss at ``params`` on ``batch``.
      aux: what the loss returned beside it with ``has_aux``, else None.
      grads: the gradient of the loss as ``jax.grad`` gives it (its conjugate is the direction of
        ascent in complex leaves), None in place of leaves that are not trained.
      updates: what the optimizer adds to ``params``, None likewise.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    batch: Any
    loss: jax.Array
    aux: Any
    grads: Any
    updates: Any

    @property
    def state(self) -> State:
        """The `State` before this step's update."""
        return State(self.step, self.params, self.opt_state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as a value.

    Attributes:
      steps: int32 [rows], the step of every row.
      trajectory: what ``record`` returned, stacked: every array has a leading axis [rows].
      keyframes: the `State` at every ``keyframe_every``-th step, stacked [keyframes, …]; None
        unless ``keyframe_every`` was given.
      state: the `State` after the last step, from which a run goes on.
      known_steps: the steps of the keyframes, or of the rows if there are none, where they are
        known when the run is compiled, for it began at step 0; None otherwise. Part of the
        structure, so that it stays what it is under ``jax.vmap``.
      ended: why it ended before its last step, if it did; part of the structure, too.
    """

    steps: jax.Array
    trajectory: Any
    keyframes: State | None
    state: State
    known_steps: range | None = dataclasses.field(default=None, metadata={"static": True})
    ended: str | None = dataclasses.field(default=None, metadata={"static": True})


def init(params: Any, optimizer: Any) -> State:
    """The `State` before the first step.

    Args:
      params: a pytree. Its floating and complex leaves are trained, and Python floats among them
        become arrays; every other leaf rides along untouched.
      optimizer: an optax optimizer, or a rule as in `train`.

    Returns:
      ``State(step=0, params, opt_state)``.

    Raises:
      TypeError: if the optimizer is not one.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> jaxfit.init({"w": jnp.zeros(2), "b": 0.0}, optax.sgd(0.1)).params
    {'b': Array(0., dtype=float32), 'w': Array([0., 0.], dtype=float32)}
    """
    optimizer = _check.optimizer(optimizer)
    params = _tree.as_arrays(params)
    return State(jnp.asarray(np.int32(0)), params, optimizer.init(_tree.trainable(params)))


def train(
    loss: Callable[..., Any],
    params: Any,
    optimizer: Any,
    num_steps: int,
    *,
    data: Any = None,
    has_aux: bool = False,
    record: Callable[[Step], Any] = whole,
    record_every: int = 1,
    keyframe_every: int | None = None,
) -> Run:
    r"""Follow a loss downhill, and return the whole trajectory.

    One step is

    .. math::
      g_t = \nabla_p\, \ell(p_t, b_t), \qquad
      u_t, s_{t+1} = \mathrm{update}(g_t, s_t, p_t), \qquad
      p_{t+1} = p_t + u_t ,

    with :math:`b_t` the batch, :math:`s_t` the optimizer's state and *update* the optimizer's
    rule. A pure function, to be used inside ``jax.jit``, ``vmap``, ``grad``, ``jvp`` and
    ``shard_map``. It does not jit itself: wrap it, and only what you use of the result is
    computed.

    Args:
      loss: ``loss(params, batch) -> scalar``, or ``loss(params)`` when ``data`` is None; with
        ``has_aux`` it returns ``(scalar, aux)``.
      params: where to start: a pytree, of which floating and complex leaves are trained and all
        others ride along untouched; or a `State`, to go on exactly from there. With
        ``optax.lookahead`` it is ``optax.LookaheadParams``, and the loss sees its ``fast`` half.
      optimizer: an optax optimizer; or, for a rule without state, a function of
        ``(gradients, params)`` that returns what is to be added to the parameters
        (``optax.stateless``). Optimizers that need the value, the gradient or the loss itself
        (line searches, ``sam``, ``sophia``, …) are given them, on the step's own batch.
      num_steps: how many updates to make.
      data: what a step sees. A pytree of arrays ``[examples, …]``, all of which every step sees;
        or a function ``step -> batch`` of the step (int32 []), pure and traceable, such as
        ``jaxfit.minibatches`` makes. Anything a step needs, a dropout key too, comes in through
        the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      record: a function of a `Step` that returns the pytree to keep; see ``jaxfit.record``.
      record_every: keep a row at the first step and every so many steps after it; rows that are
        not kept cost neither the recorder's time nor memory.
      keyframe_every: keep the whole `State` at the first step and every so many steps after it,
        a multiple of ``record_every``. Reverse-mode differentiation then stores these states and
        recomputes the steps between them: memory for T/k + k steps in the place of T. One that
        does not divide ``num_steps`` is compiled twice.

    Returns:
      A `Run`. Row t holds what belongs to the parameters before update t, so ``run.state`` is
      row ``num_steps``. If ``record_every`` or ``keyframe_every`` does not divide ``num_steps``,
      the last rows are joined to the others in a copy, which for a moment takes the memory of the
      trajectory once more.

      On the CPU the states are the same to the last bit whatever is recorded and however the run
      is cut into pieces. To that end a piece of a single step takes two and drops one: step in
      stretches. A recorder's own arithmetic may be rounded differently where ``record_every`` is 1.

    Raises:
      TypeError, ValueError: before the loop is compiled, if the arguments do not fit together.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> def loss(a, batch):
    ...     x, y = batch
    ...     return jnp.mean((x @ a - y) ** 2)
    >>> x, y = jnp.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.3), 100, data=(x, y))
    >>> run.trajectory["params"].shape, run.trajectory["loss"].shape
    ((100, 2), (100,))
    >>> run.state.params.round(3)
    Array([2., 1.], dtype=float32)
    """
    num_steps, record_every, keyframe_every = _check.lengths(
        num_steps, record_every, keyframe_every
    )
    _check.function("record", record, 1)
    resumed = isinstance(params, State)
    state, take_step, complete = _prepare(loss, params, optimizer, data, has_aux)
    start = state.step

    def keep(step: Step) -> Any:
        return _tree.pack(_check.recorded(record(complete(step))))

    def steps(state: State, number: int) -> tuple[State, Any]:
        """So many steps, and the rows they leave: [rows, …]."""
        if record_every > 1:
            return _blocks(row, state, number, record_every)

        def body(state, _):
            state, step = take_step(state)
            return state, (keep(step), state if number == 1 else None)

        # XLA makes no loop of a single step, and compiled alone it may differ in the last bit; so
        # one more is taken after it, and dropped.
        state, (rows, states) = lax.scan(body, state, length=max(number, 2))
        if number > 1:
            return state, rows
        return _at(states, 0), jax.tree.map(lambda leaf: leaf[:1], rows)

    def row(state: State, number: int) -> tuple[State, Any]:
        """So many steps, of which the first leaves a row: [1, …]."""
        after, step = _first_of(take_step, state, number)
        return after, _lead(keep(step))

    def segment(state: State, number: int) -> tuple[State, Any]:
        """So many steps after a keyframe, made again from it under reverse-mode differentiation."""
        keyframe = _tree.pack(complete(state))
        # The steps are loops already, so nothing can merge the second making with the first.
        remade = jax.checkpoint(lambda state: steps(state, number), prevent_cse=False)
        after, rows = remade(state)
        return after, (_lead(keyframe), rows)

    if keyframe_every is None:
        state, trajectory = steps(state, num_steps)
        keyframes = None
    else:
        state, (keyframes, trajectory) = _blocks(segment, state, num_steps, keyframe_every)
    every_row = start + np.arange(0, num_steps, record_every, dtype=np.int32)
    known = None if resumed else range(0, num_steps, keyframe_every or record_every)
    return Run(every_row, _tree.unpack(trajectory), _tree.unpack(keyframes), complete(state), known)


def advance(
    loss: Callable[..., Any],
    state: State,
    optimizer: Any,
    stop: jax.Array | int,
    *,
    data: Any = None,
    has_aux: bool = False,
) -> State:
    """Take the steps of `train` until a step, whose number may be traced, and keep nothing."""
    state, take_step, complete = _prepare(loss, state, optimizer, data, has_aux)

    def body(carry):
        state, _ = carry
        state, step = take_step(state)
        return state, step.loss

    _, step = jax.eval_shape(take_step, state)
    carry = state, jnp.zeros(step.loss.shape, step.loss.dtype)
    state, value = lax.while_loop(lambda carry: carry[0].step < stop, body, carry)
    # In a loop that nobody needs the loss of, XLA may round otherwise than in one that keeps it.
    return complete(dataclasses.replace(state, params=tie(value, state.params)))


def advance_recording(
    loss: Callable[..., Any],
    state: State,
    optimizer: Any,
    num_rows: jax.Array | int,
    capacity: int,
    *,
    data: Any = None,
    has_aux: bool = False,
    record: Callable[[Step], Any] = whole,
    record_every: int = 1,
    watch: Callable[[Step, Any], Any] = lambda step, seen: seen,
    seen: Any = None,
) -> tuple[State, Any, Any]:
    """Take the steps of `train` that leave so many rows, a number that may be traced.

    Returns the state, the rows [capacity, …], of which the first ``num_rows`` are filled, and what
    ``watch`` makes of ``seen``, step by step.
    """
    state, bare_step, complete = _prepare(loss, state, optimizer, data, has_aux)

    def take_step(state):
        """A step that carries what was seen beside the optimizer's state."""
        carried = state.opt_state
        state, step = bare_step(dataclasses.replace(state, opt_state=carried[0]))
        opt_state = state.opt_state, watch(complete(step), carried[1])
        return (
            dataclasses.replace(state, opt_state=opt_state),
            dataclasses.replace(step, opt_state=carried),
        )

    def row(state):
        take = (
            take_step if record_every == 1 else partial(_first_of, take_step, number=record_every)
        )
        state, step = take(state)
        step = dataclasses.replace(step, opt_state=step.opt_state[0])
        return state, _tree.pack(_check.recorded(record(complete(step))))

    def body(index, carry):
        state, rows = carry
        state, new = row(state)
        return state, jax.tree.map(lambda rows, new: rows.at[index].set(new), rows, new)

    state = dataclasses.replace(state, opt_state=(state.opt_state, seen))
    _, shapes = jax.eval_shape(row, state)
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    state, rows = lax.fori_loop(0, num_rows, body, (state, rows))
    opt_state, seen = state.opt_state
    return complete(dataclasses.replace(state, opt_state=opt_state)), rows, seen


def _prepare(
    loss: Callable, params: Any, optimizer: Any, data: Any, has_aux: bool
) -> tuple[State, Callable[[State], tuple[State, Step]], Callable[[Any], Any]]:
    """Check what a run is made of; return its first state, how to take a step, and `complete`.

    Inside the loop there are only trained leaves, and batches that change. What stays the same for
    the whole run is closed over, and ``complete`` puts it back into a `State` or a `Step`.
    """
    _check.function("loss", loss, 1 if data is None else 2)
    data = _check.data(data)
    optimizer = _check.optimizer(optimizer)
    params, given = (params.params, params) if isinstance(params, State) else (params, None)
    params = _tree.as_arrays(params)
    trained, rest = _tree.trainable(params), _tree.others(params)
    start = jnp.asarray(np.int32(0) if given is None else given.step, np.int32)
    varies = callable(data)
    batch_at = data if varies else lambda step: None

    def objective(trained, batch):
        params = _tree.merge(trained, _iterate(rest))
        return loss(params) if data is None else loss(params, batch if varies else data)

    def complete(tree):
        tree = dataclasses.replace(tree, params=_tree.merge(tree.params, rest))
        return tree if varies or isinstance(tree, State) else dataclasses.replace(tree, batch=data)

    _check.value(
        lambda iterate, step: objective(iterate, batch_at(step)), _iterate(trained), start, has_aux
    )
    _check.opt_state(None if given is None else given.opt_state, optimizer, trained)
    state = State(start, trained, optimizer.init(trained) if given is None else given.opt_state)
    return state, _stepper(objective, batch_at, optimizer, has_aux), complete


def _stepper(
    objective: Callable, batch_at: Callable, optimizer: Any, has_aux: bool
) -> Callable[[State], tuple[State, Step]]:
    """One step of a run; the parameters in its `State` and `Step` are the trained leaves alone."""
    keywords = _keywords(optimizer.update)

    def take_step(state: State) -> tuple[State, Step]:
        batch = batch_at(state.step)
        out, grads = jax.value_and_grad(objective, has_aux=has_aux)(_iterate(state.params), batch)
        value, aux = out if has_aux else (out, None)
        value, grads = tie(value, (value, grads))

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
            updates, opt_state = optimizer.update(
                descent,
                state.opt_state,
                state.params,
                **{name: offered[name] for name in keywords},
            )
        _check.update(state.opt_state, opt_state, state.params, updates)
        updates = tie(value, updates)
        step = Step(state.step, state.params, state.opt_state, batch, value, aux, grads, updates)

        params = optax.apply_updates(state.params, updates)
        if isinstance(params, optax.LookaheadParams):
            grads = optax.LookaheadParams(fast=grads, slow=grads)
        params = tie(value, params, grads, updates)
        # Under vmap, counts of steps are then of each run, as they are when it is resumed: a power
        # of one number is rounded otherwise than that of many.
        opt_state = jax.tree.map(
            lambda leaf: tie(value, leaf) if _is_number(leaf) else leaf, opt_state
        )
        return State(state.step + 1, params, opt_state), step

    return take_step


def _first_of(take_step: Callable, state: State, number: int) -> tuple[State, Step]:
    """Take so many steps; return the state after them, and the first step.

    All of them go through one compiled body, as the innermost loop, and what is to be returned is
    carried to the end: taken out of the loop and compiled by itself, a step may differ in the last
    bit. XLA makes no loop of a single step, so one more is taken after it, and dropped. What no
    recorder looks at, XLA removes from the carry.
    """

    def found(state):
        after, step = take_step(state)
        # The rest of a Step is in the state that the steps start from.
        step = dataclasses.replace(step, step=None, params=None, opt_state=None)
        return after, step, after if number == 1 else None

    def body(carry, index):
        state, first = carry
        state, *new = found(state)
        first = jax.tree.map(lambda one, other: jnp.where(index == 0, one, other), new, first)
        return (state, first), None

    _, *shapes = jax.eval_shape(found, state)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (last, (step, after)), _ = lax.scan(body, (state, empty), jnp.arange(max(number, 2)))
    step = dataclasses.replace(
        step, step=state.step, params=state.params, opt_state=state.opt_state
    )
    return after if number == 1 else last, step


def _blocks(body: Callable, carry: Any, total: int, every: int) -> tuple[Any, Any]:
    """Run ``body(carry, n)`` for n = every, every, … and the remainder; join what it returns."""
    count, remainder = divmod(total, every)
    blocks = []
    if count:
        carry, stacked = lax.scan(lambda carry, _: body(carry, every), carry, length=count)
        blocks.append(
            jax.tree.map(
                lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), stacked
            )
        )
    if remainder:
        carry, block = body(carry, remainder)
        blocks.append(block)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *blocks)


def _keywords(update: Callable) -> tuple[str, ...]:
    """The extra arguments that an optimizer's ``update`` is to be given."""
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("value", "grad", "value_fn", "obj_fn")
    names = ("value", "grad", "value_fn", "obj_fn", "grad_fn")
    return tuple(name for name in names if name in parameters)


def _iterate(params: Any) -> Any:
    """The parameters a loss is evaluated at: optax.lookahead keeps them beside slow ones."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _conjugate(grads: Any) -> Any:
    """What an optimizer takes for a gradient: in JAX's, ascent in complex leaves is conjugated."""
    return jax.tree.map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, grads)


def _is_number(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.number)


def _at(tree: Any, index: Any) -> Any:
    """One of the rows along the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _lead(tree: Any) -> Any:
    """Give every leaf a leading axis of length 1."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)
