"""Look at a run again: replay any part of it, look at any step, find its best, fork it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check
from jaxfit._counterparts import with_counterparts
from jaxfit._problem import Problem
from jaxfit._reach import check_stretch, keyframes, reach
from jaxfit._types import Data, Loss, Optimizer, PyTree, Recorder
from jaxfit.record import whole
from jaxfit.run import Run, State, Step
from jaxfit.train import init, train

__all__ = ["at", "best", "fork", "replay"]


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
    check_stretch(start, stop, keyframes(run).step, run.state.step)
    record_every = _check.count("record_every", record_every)
    reached = reach(Problem(loss, optimizer, data, has_aux), run, start)
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
        check_stretch(step, step + 1, keyframes(run).step, run.state.step)
    reached = reach(Problem(loss, optimizer, data, has_aux), run, step)
    _, info = reached.take(reached.state)
    return reached.step_of(reached.state, info)


def best(
    loss: Loss,
    run: Run,
    optimizer: Optimizer,
    by: str | Callable[[PyTree], Any] | None = None,
    *,
    data: Data | None = None,
    has_aux: bool = False,
) -> State:
    """Return the State of a run whose evaluation has the lowest score.

    It need not have been stored: it is reached from the last keyframe before it, and with
    ``keyframe_every=evaluate_every`` it is one of the keyframes. A pure function, like `replay`.

    Args:
      loss: the loss of the run.
      run: a run with evaluations (``train(…, evaluate=…, evaluate_every=k)``) and keyframes.
      optimizer: the optimizer of the run.
      by: the score to minimise, an array ``[evaluations]`` of real numbers: a function that
        computes it from ``run.evaluations``; or its key there; or None if ``run.evaluations`` is
        the score itself. Evaluations that score NaN are passed over.
      data: the data of the run.
      has_aux: as in `train`.

    Returns:
      The `State` at the best of ``run.evaluated_steps``.

    Raises:
      TypeError, ValueError: if the run has no evaluations, or not one number for each, or if all
        are NaN; and as in `replay`.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss, sgd = lambda a: jnp.sum((a - 1.0) ** 2), optax.sgd(0.1)
    >>> held_out = lambda state: {"loss": jnp.sum((state.params - 0.9) ** 2)}
    >>> every = {"evaluate": held_out, "evaluate_every": 5, "keyframe_every": 5}
    >>> run = jaxfit.train(loss, jnp.zeros(2), sgd, 50, **every)
    >>> jaxfit.best(loss, run, sgd, "loss").step
    Array(10, dtype=int32)
    """
    _check.kind("run", run, Run, "what train returned")
    found = run.evaluations
    if found is None or run.evaluated_steps is None:
        raise ValueError(
            "the run has no evaluations to choose by: make it with train(…, evaluate=…, "
            "evaluate_every=100, keyframe_every=100)."
        )
    scores = by(found) if callable(by) else found if by is None else found[by]
    number = jnp.shape(run.evaluated_steps)
    if getattr(scores, "shape", None) != number or np.iscomplexobj(scores):
        raise ValueError(
            f"by gives {_check.shapes(scores)}, but the best State is that of the lowest number, "
            f"of shape {list(number)}: give by=lambda evaluations: … with one for each evaluation."
        )
    step: Any
    if isinstance(scores, jax.core.Tracer):
        step = run.evaluated_steps[jnp.nanargmin(scores)]
    else:
        scores = np.asarray(scores)
        if np.isnan(scores).all():
            raise ValueError("all evaluations score NaN, so none is best: score a number.")
        step = int(run.evaluated_steps[int(np.nanargmin(scores))])
        if step == int(run.state.step):
            return run.state
    reached = reach(Problem(loss, optimizer, data, has_aux), run, step)
    return reached.restore(reached.state)


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
    opt_state = with_counterparts(state, fresh) if carry_over else fresh.opt_state
    return State(state.step, fresh.params, opt_state, state.carry)
