"""Ask a run again: replay any stretch of it, look at any step, fork it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._rows import Rows
from jaxfit._step import Problem, Stepper, stepper
from jaxfit.record import whole
from jaxfit.run import Run, State, Step
from jaxfit.train import init, train

__all__ = ["at", "fork", "replay"]


def replay(
    loss: Callable[..., Any],
    run: Run,
    optimizer: Any,
    start: int,
    stop: int,
    *,
    data: Any = None,
    has_aux: bool = False,
    record: Callable[[Step], Any] = whole,
    record_every: int = 1,
) -> Run:
    """Take the steps ``start`` to ``stop - 1`` of a run again, and record what you like of them.

    From the last keyframe at or before ``start`` the run is made again without recording, and from
    there on with it. The rows are those of the original to the last bit, if loss, optimizer and
    data are. A pure function, like `train`; under ``jax.vmap`` it replays many runs at once. Under
    ``jax.jit``, every stretch is a program of its own; `at` has one for all steps.

    Args:
      loss: the loss of the run.
      run: a run with keyframes (``train(…, keyframe_every=k)``), or one recorded with
        ``jaxfit.record.state``, whose every row is a keyframe.
      optimizer: the optimizer of the run.
      start: the first step to replay, counted as in ``run.steps``.
      stop: the step after the last; if it is ``start``, no step is replayed, and the result holds
        the state there alone.
      data: the data of the run.
      has_aux: as in `train`.
      record: what to keep of every step, as in `train`. It need not be what the run recorded.
      record_every: keep a row at ``start`` and every so many steps after it.

    Returns:
      A `Run` of these steps, without keyframes; its ``state`` is the one at ``stop``.

    Raises:
      TypeError, ValueError: if the run has no keyframes or not these steps, or if the loss,
        the optimizer or the data are not those of the run.

    On the CPU the bits hold for one machine, one JAX version and one set of XLA flags. On a GPU
    they hold where its kernels are deterministic: for the run and the replay, set
    ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``. Reverse-mode differentiation does not go through
    a replay, whose way from the keyframe is a loop of unknown length; train from a replayed state
    instead.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss, adam = lambda a: jnp.sum((a - 1.0) ** 4), optax.adam(0.1)
    >>> losses = lambda step: step.loss
    >>> run = jaxfit.train(loss, jnp.zeros(3), adam, 1000, keyframe_every=100, record=losses)
    >>> part = jaxfit.replay(loss, run, adam, 437, 441, record=lambda s: (s.loss, s.grads))
    >>> part.steps
    Array([437, 438, 439, 440], dtype=int32)
    >>> (part.trajectory[0] == run.trajectory[437:441]).all()
    Array(True, dtype=bool)
    """
    _check.stretch(start, stop, _frames(run).step, run.state.step)
    record_every = _check.count("record_every", record_every)
    there = _at(Problem(loss, optimizer, data, has_aux), run, start)
    state = there.restore(there.state)
    more = lambda state: train(
        loss,
        state,
        optimizer,
        max(stop - start, 1),
        data=data,
        has_aux=has_aux,
        record=record,
        record_every=record_every,
    )
    if stop > start:
        return more(state)
    row = jax.eval_shape(lambda: _tree.pack(more(state).trajectory))
    none = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape[1:]), leaf.dtype), row)
    return Run(jnp.zeros(0, np.int32), _tree.unpack(none), None, state)


def at(
    loss: Callable[..., Any],
    run: Run,
    optimizer: Any,
    step: int | jax.Array,
    *,
    data: Any = None,
    has_aux: bool = False,
) -> Step:
    """Everything there is to know of one step of a run.

    Args:
      loss: the loss of the run.
      run: a run with keyframes, as in `replay`.
      optimizer: the optimizer of the run.
      step: which step; it may be traced, so that ``jax.jit`` compiles once for all steps.
      data: the data of the run.
      has_aux: as in `train`.

    Returns:
      The `Step`: parameters, optimizer's state, batch, loss, aux, gradient and update, as a
      recorder of the run would have seen them.

    Raises:
      TypeError, ValueError: as in `replay`. A traced step cannot be checked: one before the run
        or after it gives the nearest keyframe's, or goes on beyond the end.

    >>> import jax, jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum((a - 1.0) ** 4)
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.01), 1000, keyframe_every=100)
    >>> step = jaxfit.at(loss, run, optax.sgd(0.01), 437)
    >>> print(f"{jax.hessian(loss)(step.params)[0, 0]:.3f}")  # what nobody recorded
    0.332
    """
    if not isinstance(step, jax.core.Tracer):
        step = int(step)
        _check.stretch(step, step + 1, _frames(run).step, run.state.step)
    there = _at(Problem(loss, optimizer, data, has_aux), run, step)
    _, info = there.take(there.state)
    return there.step_of(there.state, info)


def fork(state: State, optimizer: Any, *, carry_over: bool = False) -> State:
    """Go on with another optimizer: the same step and parameters, with its state.

    Args:
      state: where to go on from, ``run.state`` or ``replay(…, t, t).state``.
      optimizer: the optimizer to go on with.
      carry_over: whether to take over what the state's optimizer has gathered wherever the new one
        has a part of the same type and shapes, moments and counts of steps, say; otherwise the
        new optimizer starts afresh.

    Returns:
      A `State` for ``train(loss, fork(state, optimizer), optimizer, …)``.

    Raises:
      TypeError: if the state or the optimizer is not one.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum((a - 1.0) ** 4)
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.adam(0.1), 100)
    >>> slower = optax.adamw(0.01)
    >>> end = jaxfit.fork(run.state, slower, carry_over=True)
    >>> jaxfit.train(loss, end, slower, 100).steps[0], int(end.opt_state[0].count)
    (Array(100, dtype=int32), 100)
    """
    _check.kind("state", state, State, "run.state, or replay(…, step, step).state")
    fresh = init(state.params, optimizer)
    opt_state = _carried(state, fresh) if carry_over else fresh.opt_state
    return State(state.step, fresh.params, opt_state)


def _carried(state: State, fresh: State) -> Any:
    """The fresh optimizer's state, with every part that the other has too taken from there."""
    like_params = jax.tree.structure(_tree.partition(state.params)[0])

    def is_part(node):
        """Whether this is a state of optax's, and not a tree that looks like the parameters."""
        # The rates in a state of inject_hyperparams belong to the optimizer: they are not gathered.
        named = isinstance(node, tuple) and "hyperparams" not in getattr(
            node, "_fields", ["hyperparams"]
        )
        return named and jax.tree.structure(node) != like_params

    def parts(tree):
        for node in jax.tree.leaves(list(tree), is_leaf=is_part):
            if is_part(node):
                yield node
                yield from parts(node)

    old = list(parts([state.opt_state]))

    def place(node):
        """Where the first old part of the same type and shapes is; None if there is none."""
        for index, other in enumerate(old):
            if is_part(node) and type(other) is type(node) and not _check.difference(node, other):
                return index
        return None

    def carry(node):
        index = place(node)
        return node if index is None else old.pop(index)

    return jax.tree.map(carry, fresh.opt_state, is_leaf=lambda node: place(node) is not None)


def _frames(run: Run) -> State:
    """The states of a run that a replay can start from, stacked."""
    _check.kind("run", run, Run, "what train returned")
    frames = run.keyframes
    if frames is None and isinstance(run.trajectory, State):
        frames = run.trajectory
    if frames is None:
        raise ValueError(
            "the run has no keyframes to replay it from: make it with "
            "train(…, keyframe_every=100), or record=jaxfit.record.state."
        )
    return frames


def _at(problem: Problem, run: Run, step: Any) -> Stepper:
    """Return the problem at a step, whose state is made again from the last keyframe before it."""
    frames, known = _frames(run), run._known_steps
    if isinstance(frames.step, np.ndarray):
        # On the host or on disk: which one is read must be known, under jax.jit, too.
        if isinstance(step, jax.core.Tracer):
            raise TypeError(
                "step is traced, but the keyframes are on the host or on disk: pass the run "
                "into the jitted function as jax.tree.map(np.asarray, run), or give a Python int."
            )
        index = int(np.searchsorted(frames.step, step, side="right")) - 1
        state = _row(frames, index)
    elif known is None or len(known) != len(frames.step) or isinstance(step, jax.core.Tracer):
        index = jnp.maximum(jnp.searchsorted(frames.step, step, side="right") - 1, 0)
        state = _row(frames, index)
    else:
        # Under vmap, a step that is known is that of all the runs, as it was when they were made.
        index = min(step // known.step, len(known) - 1)
        state = dataclasses.replace(_row(frames, index), step=jnp.int32(known[index]))
    _check.replayable(problem.loss, state.params, problem.data, state.step)
    there = stepper(problem, state)
    return there._replace(state=_loops.until(there, step))


def _row(tree: Any, index: Any) -> Any:
    """Pick one of stacked trees; what is no array, or has no axis, is the same in all."""

    def pick(leaf):
        if not isinstance(leaf, Rows | np.ndarray | jax.Array) or not leaf.ndim:
            return leaf
        # A traced number can pick nothing of what is not JAX's.
        return leaf[index] if isinstance(leaf, jax.Array) else jnp.asarray(leaf[index])

    return jax.tree.map(pick, tree)
