"""The values a run consists of: `State`, `Step` and `Run`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from jaxfit import _summary

__all__ = ["Run", "State", "Step"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "opt_state", "carry"),
    meta_fields=(),
    drop_fields=("_memory",),
)
@dataclasses.dataclass(frozen=True, repr=False)
class State:
    """Where a run stands between two updates: all that is needed to go on exactly.

    The State that ``jaxfit.fit`` returns also knows what its stopping rule remembered, so that
    another `fit` with the rule goes on counting. This is not part of the tree: a copy that
    ``jax.tree.map`` or a compiled function makes does not have it.

    Attributes:
      step: int32 [], the number of updates so far.
      params: the parameters, a pytree.
      opt_state: the optimizer's state, a pytree.
      carry: what the loss takes from step to step beside the parameters, a pytree; None without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    carry: Any = None
    # The leaves of a stopping rule's memory. Dropped from the tree, so that the State of a run
    # that was watched has the structure of any other.
    _memory: Any = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        shown = self.params if self.carry is None else {"params": self.params, "carry": self.carry}
        return f"State({_at(self.step)}{_summary.line(shown)}; {_summary.size(self)})"

    def _repr_html_(self) -> str:
        names = ["params", "opt_state"] + ["carry"] * (self.carry is not None)
        return _summary.table(repr(self), {name: getattr(self, name) for name in names})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """What one step saw and did; recorders are given it.

    All of it belongs to the parameters *before* the update. The parameters after it are
    ``optax.apply_updates(params, updates)``.

    Attributes:
      step: int32 [], counted from 0.
      params: the parameters, a pytree.
      opt_state: the optimizer's state before the update. What the optimizer reports about this
        step, such as the evaluations of a line search, is in the state of the next step.
      batch: the data the loss was given; None if it takes none.
      loss: floating [], the loss at ``params`` on ``batch``.
      aux: what the loss returned beside it with ``has_aux``; None without.
      grads: the gradient of the loss as ``jax.grad`` returns it (in complex leaves, its conjugate
        is the direction of ascent); None in place of leaves that are not trained.
      updates: what the optimizer adds to ``params``; None in place of leaves that are not trained.
      carry: what the loss was given of the step before; None without ``carry``.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    batch: Any
    loss: jax.Array
    aux: Any
    grads: Any
    updates: Any
    carry: Any = None

    @property
    def state(self) -> State:
        """The `State` before this step's update."""
        return State(self.step, self.params, self.opt_state, self.carry)

    def __repr__(self) -> str:
        shown = {"params": self.params, "batch": self.batch, "loss": self.loss}
        return f"Step({_at(self.step)}{_summary.line(shown)}; {_summary.size(self)})"

    def _repr_html_(self) -> str:
        names = [field.name for field in dataclasses.fields(self) if field.name != "step"]
        return _summary.table(repr(self), {name: getattr(self, name) for name in names})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A finished run, as a value.

    Attributes:
      steps: int32 [rows], the step of every row.
      trajectory: what ``record`` returned, stacked: every array has a leading axis [rows].
      keyframes: the `State` at every ``keyframe_every``-th step, stacked [keyframes, …]; None
        without ``keyframe_every``.
      state: the `State` after the last step, from which a run can go on.
      stop_reason: why the run ended before its last step; None if it did not. Part of the
        structure of the tree.
      evaluations: what ``evaluate`` returned, stacked: every array has a leading axis
        [evaluations]; None without ``evaluate``.
      evaluated_steps: int32 [evaluations], the step of the State that each was given; None without
        ``evaluate``.

    >>> import optax, jaxfit
    >>> jaxfit.train(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.25), 1000)
    Run(1000 steps, 1000 rows: loss float32[1000], params float32[1000], step int32[1000]; 16 kB)
    """

    steps: jax.Array
    trajectory: Any
    keyframes: State | None
    state: State
    # The steps of the keyframes, or of the rows if there are none, where they are known when the
    # run is compiled, because it began at step 0. Static, so that it stays as it is under vmap.
    _known_steps: range | None = dataclasses.field(default=None, metadata={"static": True})
    stop_reason: str | None = dataclasses.field(default=None, metadata={"static": True})
    evaluations: Any = None
    evaluated_steps: jax.Array | None = None

    def __repr__(self) -> str:
        shape = getattr(self.steps, "shape", ())
        first = _summary.known(self.steps, 0)
        end = _summary.known(self.state.step) if isinstance(self.state, State) else None
        taken = f"{end - first} steps, " if first is not None and end is not None else ""
        parts = [f"{taken}{'×'.join(map(str, shape))} rows: {_summary.line(self.trajectory)}"]
        if isinstance(self.keyframes, State):
            number = getattr(self.keyframes.step, "shape", ())
            parts.append(f"{'×'.join(map(str, number))} keyframes")
        if self.evaluations is not None:
            number = getattr(self.evaluated_steps, "shape", ())
            shown = _summary.line(self.evaluations)
            parts.append(f"{'×'.join(map(str, number))} evaluations: {shown}")
        parts.append(_summary.size(self))
        if self.stop_reason is not None:
            parts.append(f"stopped: {self.stop_reason}")
        return f"Run({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        names = "trajectory", "keyframes", "evaluations", "state"
        return _summary.table(repr(self), {name: getattr(self, name) for name in names})


def _at(step: Any) -> str:
    number = _summary.known(step)
    if number is not None:
        return f"step {number}: "
    return f"{'×'.join(map(str, step.shape))} steps: " if getattr(step, "shape", ()) else ""
