"""What `fit` compiles: the steps of a chunk, and an evaluation between chunks."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._drive import rules
from jaxfit._drive.host import replicated
from jaxfit._drive.pace import Marks, Pace
from jaxfit._drive.rules import Stop
from jaxfit._drive.sinks import Sink
from jaxfit._drive.sources import Source
from jaxfit._jit import jit
from jaxfit._problem import Problem
from jaxfit._step import Info, evaluated, stepper
from jaxfit._tree import StaticLeaf
from jaxfit._types import Data, Evaluate, PyTree, Recorder
from jaxfit._unit import hide, unit
from jaxfit.run import State


class Watch(NamedTuple):
    """What the steps so far have shown, beside the State."""

    memory: PyTree  # of the stopping rule
    fired: jax.Array  # int32 [], the step at which the rule said to stop, or -1
    loss: jax.Array  # float32 [], the last


class Stand(NamedTuple):
    """Where a run stands between two chunks."""

    state: State
    watch: Watch
    evaluation: PyTree  # of the State, without keys; None if it was not evaluated
    seen: Watch  # the watch once the rule has seen the evaluation, for the steps that follow

    @property
    def memory(self) -> PyTree:
        """What the rule remembers; a run that goes on from here evaluates the State again."""
        return self.watch.memory

    @property
    def kept(self) -> tuple[State, PyTree, PyTree]:
        """What a sink keeps: the State, the rule's memory, and the evaluation."""
        return self.state, self.memory, self.evaluation

    @property
    def loss(self) -> float:
        """The loss at the last step."""
        return float(np.asarray(self.watch.loss))


class Chunk(NamedTuple):
    """Steps that were started together; their results may still be computed."""

    start: int
    stop: int
    num_rows: int
    data: Data
    before: Stand
    after: Stand
    stacked: list[jax.Array]  # the rows, [capacity, …]

    @property
    def rows(self) -> list[np.ndarray]:
        """The arrays [rows, …] of its rows."""
        # By NumPy: whatever JAX computes would wait for the chunk that was started next.
        return [np.asarray(leaf)[: self.num_rows] for leaf in self.stacked]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is computed at every step, and between steps: one program for chunks of all lengths."""

    problem: Problem  # without its data
    record: Recorder
    record_every: int
    stop: Stop
    evaluate: Evaluate | None
    marks: Marks  # where it is evaluated, beside its end

    def trace(self, state: State, source: Source) -> Any:
        """Trace the program of one row, as ``jax.jit(…).trace``."""
        watch, data = _unwatched(rules.first_memory(self.stop)), source.like(self.record_every)
        return _steps.trace(*self._arguments(state, watch, data, self.record_every, 1, 1))

    def trace_all(self, state: State, source: Source) -> list[Any]:
        """Trace the programs of one row and of an evaluation, without the stopping rule."""
        alone = dataclasses.replace(self, stop=None)
        traced = [alone.trace(state, source)]
        return traced if self.evaluate is None else [*traced, alone._trace_evaluation(state)]

    def _trace_evaluation(self, state: State) -> Any:
        watch = _unwatched(rules.first_memory(self.stop))
        return _evaluate.trace(StaticLeaf(self.evaluate), StaticLeaf(self.stop), state, watch)

    def evaluation_like(self, state: State) -> PyTree:
        """Return a tree like an evaluation: shapes for arrays, and no keys; None without any."""
        if self.evaluate is None:
            return None
        return _tree.unpack(self._trace_evaluation(state).out_info[0])

    def row(self, state: State, source: Source) -> PyTree:
        """Return a tree like one row: shapes for arrays, and no keys."""
        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        _, rows, _ = self.trace(state, source).out_info
        return _tree.unpack(jax.tree.map(one, rows))

    def stand(self, state: State, watch: Watch, is_evaluated: bool) -> Stand:
        """Return where a run stands; start to evaluate the State if asked to."""
        if self.evaluate is None or not is_evaluated:
            return Stand(state, watch, None, watch)
        fixed = StaticLeaf(self.evaluate), StaticLeaf(self.stop)
        evaluation, seen = _evaluate(*fixed, state, watch)
        return Stand(state, watch, replicated(evaluation), seen)

    def begin(self, state: State, memory: PyTree, sink: Sink, end: int) -> Stand:
        """Return where a run stands at its start, which a new sink keeps."""
        step = int(state.step)
        goes_on = sink.is_new or step < end
        stand = self.stand(state, _unwatched(memory), self.marks.has(step) and goes_on)
        if sink.is_new:
            sink.commit(step, step, *stand.kept, [])
        return stand

    def finish(self, stand: Stand, sink: Sink, step: int) -> Stand:
        """Return where a run stands at its end, evaluated."""
        if self.evaluate is None or sink.is_evaluated(step):
            return stand
        stand = self.stand(stand.state, stand.watch, True)
        sink.commit(step, step, *stand.kept, [])
        return stand

    def start(
        self, before: Stand, data: Data, start: int, stop: int, end: int, pace: Pace
    ) -> Chunk:
        """Start to compute steps: whole rows, or fewer steps than a row has.

        Args:
          before: where the run stands.
          data: the data of these steps.
          start: the first step.
          stop: the step after the last.
          end: the step at which the run ends, where it is evaluated.
          pace: how long chunks can be.
        """
        every: int | jax.Array = self.record_every
        num_rows, capacity = (stop - start) // self.record_every, pace.capacity
        if num_rows == 0:  # a traced number, so that one program serves all remainders
            every, num_rows, capacity = jnp.asarray(np.int32(stop - start)), 1, 1
        arguments = self._arguments(before.state, before.seen, data, every, capacity, num_rows)
        state, rows, watch = _steps(*arguments)
        _check.concrete("what the loss, the optimizer or data close over", (state, watch), "fit")
        # Right after it was started, before the next chunk is in the way.
        stacked = replicated(_tree.arrays(rows))
        after = self.stand(state, watch, stop == end or self.marks.has(stop))
        return Chunk(start, stop, num_rows, data, before, after, stacked)

    def _arguments(
        self,
        state: State,
        watch: Watch,
        data: Data,
        every: int | jax.Array,
        capacity: int,
        num_rows: int,
    ) -> tuple[Any, ...]:
        loss, optimizer, _, has_aux = self.problem
        # Constants of the program, even where they are pytrees of arrays.
        fixed = [StaticLeaf(one) for one in (loss, optimizer, has_aux, self.record, self.stop)]
        return (*fixed, every, capacity, state, data, watch, jnp.asarray(np.int32(num_rows)))


def _unwatched(memory: PyTree) -> Watch:
    """Return what is known before the first step, with what the stopping rule remembers."""
    return Watch(memory, jnp.asarray(np.int32(-1)), jnp.zeros((), np.float32))


@jit
def _steps(
    loss: Any,
    optimizer: Any,
    has_aux: bool,
    record: Recorder,
    stop: Stop,
    every: int | jax.Array,
    capacity: int,
    state: State,
    data: Data,
    watch: Watch,
    num_rows: jax.Array,
) -> tuple[State, PyTree, Watch]:
    """Take the steps of some rows; return the State after them, the rows, and what was seen."""
    problem = stepper(Problem(loss, optimizer, data, has_aux), state)

    def seen(state: State, info: Info, watch: Watch) -> Watch:
        step = problem.step_of(state, info)
        fires, memory = rules.verdict(stop, step, watch.memory)
        fired = jnp.where((watch.fired < 0) & fires, step.step, watch.fired)
        return Watch(memory, fired, step.loss.astype(np.float32))

    start = problem.state
    watched = problem.unit(seen, lambda: (start, problem.take(start)[1], watch))

    def take(carry: tuple[State, Watch]) -> tuple[tuple[State, Watch], Info]:
        state, watch = carry
        after, info = problem.take(state)
        return (after, watched(state, info, watch)), info

    row_of = problem.row_of(record)
    (state, watch), rows = _loops.recording(
        take,
        lambda carry, info: row_of(carry[0], info),
        (start, watch),
        num_rows,
        capacity,
        every,
    )
    return problem.restore(state), _tree.without_keys(rows), watch


@jit
def _evaluate(evaluate: Evaluate, stop: Stop, state: State, watch: Watch) -> tuple[PyTree, Watch]:
    """Evaluate a State; return what came of it, and the watch once the rule has seen it."""
    arrays, objects = _tree.partition(state, _tree.is_proper_array)
    arrays, zeros = hide((arrays, jnp.zeros(2, np.int32)))

    def shown(arrays: State) -> PyTree:
        return evaluated(evaluate, _tree.combine(arrays, objects), objects)

    evaluation = unit(zeros, shown, lambda: (arrays,))(arrays)
    fires, memory = rules.verdict_on_evaluation(stop, _tree.unpack(evaluation), watch.memory)
    fired = jnp.where((watch.fired < 0) & fires, state.step, watch.fired)
    return _tree.without_keys(evaluation), watch._replace(memory=memory, fired=fired)
