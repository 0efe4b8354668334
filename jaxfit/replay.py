"""Look at a run again: replay any part of it, look at any step, fork it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._problem import Problem
from jaxfit._step import Stepper, stepper
from jaxfit._types import Data, Loss, Optimizer, OptState, PyTree, Recorder
from jaxfit.record import whole
from jaxfit.run import Run, State, Step
from jaxfit.train import init, train

__all__ = ["at", "fork", "replay"]


def replay(
    loss: Loss,
    run: Run,
    optimizer: Optimizer,
    start: int,
    stop: int,
    *,
    data: Data | None = None,
    has_aux: bool = False,
    record: Recorder = whole,
    record_every: int = 1,
) -> Run:
    """Take the steps ``start`` to ``stop - 1`` of a run again, and record anything about them.

    The run is made again from the last keyframe at or before ``start``: without recording up to
    ``start``, and with it from there on. If loss, optimizer and data are those of the run, the rows
    have the same bits as in the original. A pure function, like `train`; under ``jax.vmap`` it
    replays many runs at once. Under ``jax.jit``, each stretch is a program of its own, whereas `at`
    has one for all steps.

    Args:
      loss: the loss of the run.
      run: a run with keyframes (``train(…, keyframe_every=k)``), or one recorded with
        ``jaxfit.record.state``, whose rows are all keyframes.
      optimizer: the optimizer of the run.
      start: the first step to replay, counted as in ``run.steps``.
      stop: the step after the last one. If it is ``start``, nothing is replayed, and the result
        holds only the state there.
      data: the data of the run.
      has_aux: as in `train`.
      record: what to keep of each step, as in `train`; not necessarily what the run recorded.
      record_every: the number of steps from one row to the next; the first row is at ``start``.

    Returns:
      A `Run` of these steps, without keyframes; its ``state`` is the one at ``stop``.

    Raises:
      TypeError, ValueError: if the run has no keyframes, or not these steps, or if the loss,
        the optimizer or the data are not those of the run.

    On the CPU, bits are reproduced on one machine, with one JAX version and one set of XLA flags.
    On a GPU, they are where its kernels are deterministic: set
    ``XLA_FLAGS=--xla_gpu_deterministic_ops=true`` for the run and the replay. Reverse-mode
    differentiation does not go through a replay, because it reaches ``start`` by a loop of unknown
    length; train from a replayed state instead.

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
    _check_stretch(start, stop, _keyframes(run).step, run.state.step)
    record_every = _check.count("record_every", record_every)
    reached = _reach(Problem(loss, optimizer, data, has_aux), run, start)
    state = reached.restore(reached.state)
    options: Any = {"data": data, "has_aux": has_aux, "record": record}
    return train(loss, state, optimizer, stop - start, record_every=record_every, **options)


def at(
    loss: Loss,
    run: Run,
    optimizer: Optimizer,
    step: int | jax.Array,
    *,
    data: Data | None = None,
    has_aux: bool = False,
) -> Step:
    """Return everything that there is to know about one step of a run.

    Args:
      loss: the loss of the run.
      run: a run with keyframes, as in `replay`.
      optimizer: the optimizer of the run.
      step: which step; it may be traced, so that ``jax.jit`` compiles once for all steps.
      data: the data of the run.
      has_aux: as in `train`.

    Returns:
      The `Step`: parameters, optimizer state, batch, loss, aux, gradient and update, as a recorder
      of the run would have seen them.

    Raises:
      TypeError, ValueError: as in `replay`. A traced step cannot be checked: one before the run is
        taken for its first, and one after its end goes on beyond it.

    >>> import jax, jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum((a - 1.0) ** 4)
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.01), 1000, keyframe_every=100)
    >>> step = jaxfit.at(loss, run, optax.sgd(0.01), 437)
    >>> print(f"{jax.hessian(loss)(step.params)[0, 0]:.3f}")  # what nobody recorded
    0.332
    """
    if not isinstance(step, jax.core.Tracer):
        step = int(step)
        _check_stretch(step, step + 1, _keyframes(run).step, run.state.step)
    reached = _reach(Problem(loss, optimizer, data, has_aux), run, step)
    _, info = reached.take(reached.state)
    return reached.step_of(reached.state, info)


def fork(state: State, optimizer: Optimizer, *, carry_over: bool = False) -> State:
    """Return a state with the same step, parameters and carry, for another optimizer.

    Args:
      state: where to go on from: ``run.state``, or ``replay(…, t, t).state``.
      optimizer: the optimizer to go on with.
      carry_over: whether to take over what the old optimizer has gathered, such as moments and
        counts of steps, wherever the new one has a part of the same type and shapes. If not, the
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
    opt_state = _with_counterparts(state, fresh) if carry_over else fresh.opt_state
    return State(state.step, fresh.params, opt_state, state.carry)


def _with_counterparts(state: State, fresh: State) -> OptState:
    """Return the fresh optimizer state, with the parts it shares with the old one taken from it."""
    like_params = jax.tree.structure(_tree.partition(state.params)[0])

    def is_part(node: Any) -> bool:
        """Return whether a node is a state of optax's, and not a tree like the parameters."""
        fields = getattr(node, "_fields", None)
        # The rates in a state of inject_hyperparams belong to the optimizer: they are not gathered.
        if not isinstance(node, tuple) or fields is None or "hyperparams" in fields:
            return False
        structure: Any = jax.tree.structure(node)
        return bool(structure != like_params)

    def parts(node: Any) -> list[Any]:
        """List the parts in a node, outer ones first."""
        found = []
        for inner in jax.tree.leaves(list(node), is_leaf=is_part):
            if is_part(inner):
                found += [inner, *parts(inner)]
        return found

    unused: list[Any] = parts([state.opt_state])
    taken: dict[int, Any] = {}

    def pair(node: Any) -> None:
        """Find a counterpart for each part in a node, or for the parts in that part."""
        for inner in filter(is_part, jax.tree.leaves(list(node), is_leaf=is_part)):
            for index, other in enumerate(unused):
                if type(other) is type(inner) and not _check.difference(inner, other):
                    taken[id(inner)] = unused.pop(index)
                    break
            else:
                pair(inner)

    pair([fresh.opt_state])
    return jax.tree.map(
        lambda node: taken.get(id(node), node),
        fresh.opt_state,
        is_leaf=lambda node: id(node) in taken,
    )


def _keyframes(run: Run) -> State:
    """Return the states that a replay can start from, stacked."""
    _check.kind("run", run, Run, "what train returned")
    frames: Any = run.trajectory if run.keyframes is None else run.keyframes
    if not isinstance(frames, State):
        raise ValueError(
            "the run has no keyframes to replay it from: make it with "
            "train(…, keyframe_every=100), or record=jaxfit.record.state."
        )
    if 0 in jnp.shape(frames.step):
        raise ValueError("the run has no steps, so there is nothing to replay: train for some.")
    return frames


def _reach(problem: Problem, run: Run, step: Any) -> Stepper:
    """Return a stepper at a step, reached from the last keyframe before it."""
    frames, known = _keyframes(run), run._known_steps
    if isinstance(frames.step, np.ndarray):
        # On the host or on disk: which one to read must be known, even under jax.jit.
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
        # Under vmap, a step that is known is that of all runs, as it was when they were made.
        index = min(step // known.step, len(known) - 1)
        state = dataclasses.replace(_row(frames, index), step=jnp.int32(known[index]))
    _check_replayable(problem, state)
    start = stepper(problem, state)
    return start._replace(state=_loops.until(start, step))


def _row(tree: PyTree, index: Any) -> Any:
    """Pick one of stacked trees; a leaf that is no array, or has no axis, is the same in all."""

    def pick(leaf: Any) -> Any:
        if not getattr(leaf, "ndim", 0):
            return leaf
        # A traced number cannot index arrays that are not JAX's.
        return leaf[index] if isinstance(leaf, jax.Array) else jnp.asarray(leaf[index])

    return jax.tree.map(pick, tree)


def _check_stretch(start: Any, stop: Any, frames: Any, end: Any) -> None:
    """Check two steps of a run and their order, as far as its keyframes and end are known."""
    for name, step in (("start", start), ("stop", stop)):
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError(
                f"{name} is {_check.show(step)}, but must be the number of a step: give a Python "
                f"int."
            )
    if jnp.ndim(end):
        raise ValueError(
            f"run holds runs of shape {jnp.shape(end)}, but one is replayed at a time: "
            f"map over them with jax.vmap."
        )
    if start > stop:
        raise ValueError(f"start is {start} and stop {stop}, but start comes first: swap them.")
    if any(isinstance(known, jax.core.Tracer) for known in (frames, end)):
        return
    first = np.asarray(frames)[0]  # not as JAX's: under jit, that would be traced
    if not first <= start <= stop <= int(end):
        raise ValueError(
            f"start is {start} and stop {stop}, but the run goes from step {first} to {end}: "
            f"stay within, and use train to go on."
        )


def _check_replayable(problem: Problem, state: State) -> None:
    """Check that the loss takes the parameters of a run on this data."""
    loss, _, data, _ = problem
    given = [state.params] if state.carry is None else [state.params, state.carry]
    try:
        if data is None:
            jax.eval_shape(lambda: loss(*given))
        else:
            jax.eval_shape(lambda: loss(*given, data(state.step) if callable(data) else data))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"the loss cannot be computed from the parameters of the run and this data "
            f"({_check.reason(error)}): replay with the loss and the data of the run."
        ) from error
