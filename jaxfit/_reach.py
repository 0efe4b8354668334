"""How a step of a run is reached: from the last keyframe at or before it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops
from jaxfit._problem import Problem
from jaxfit._step import Stepper, stepper
from jaxfit._types import PyTree
from jaxfit.run import Run, State


def keyframes(run: Run) -> State:
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


def reach(problem: Problem, run: Run, step: Any) -> Stepper:
    """Return a stepper at a step, reached from the last keyframe before it."""
    frames, known = keyframes(run), run._known_steps
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


def check_stretch(start: Any, stop: Any, frames: Any, end: Any) -> None:
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
