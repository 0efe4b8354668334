"""The values a run is made of: `State`, `Step` and `Run`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

__all__ = ["Run", "State", "Step"]


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
      _known_steps: the steps of the keyframes, or of the rows if there are none, where they are
        known when the run is compiled, for it began at step 0; None otherwise. Part of the
        structure, so that it stays what it is under ``jax.vmap``.
      stop_reason: why the run ended before its last step; None if it did not. Part of the structure
        as well.
    """

    steps: jax.Array
    trajectory: Any
    keyframes: State | None
    state: State
    _known_steps: range | None = dataclasses.field(default=None, metadata={"static": True})
    stop_reason: str | None = dataclasses.field(default=None, metadata={"static": True})
