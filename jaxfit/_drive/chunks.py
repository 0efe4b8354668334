"""The chunks of a run, made one after the other, up to where the run ends."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _loops, _tree
from jaxfit._drive import rules
from jaxfit._drive.host import replicated, wait
from jaxfit._drive.pace import Pace
from jaxfit._drive.rules import Stop
from jaxfit._drive.sources import Source
from jaxfit._jit import jit
from jaxfit._problem import Problem
from jaxfit._step import Info, stepper
from jaxfit._tree import StaticLeaf
from jaxfit._types import Data, PyTree, Recorder
from jaxfit.run import State


@dataclasses.dataclass
class End:
    """Where a run ends, why before its last step, and with which error.

    Whatever ends it moves this to an earlier step, and says why.
    """

    step: int
    reason: str | None = None
    error: Exception | None = None

    def move(self, step: int, reason: str | None = None, error: Exception | None = None) -> None:
        self.step, self.reason, self.error = step, reason, error


class Watch(NamedTuple):
    """What the steps so far have shown, beside the State."""

    memory: PyTree  # of the stopping rule
    fired: jax.Array  # int32 [], the step at which the rule said to stop, or -1
    loss: jax.Array  # float32 [], the last


class Chunk(NamedTuple):
    """Steps that were started together; their results may not be ready yet."""

    start: int
    stop: int
    num_rows: int
    data: Data
    before: tuple[State, Watch]
    state: State
    watch: Watch
    stacked: list[jax.Array]  # the rows, [capacity, …]

    @property
    def memory(self) -> PyTree:
        """What the stopping rule remembers after the last step."""
        return self.watch.memory

    @property
    def loss(self) -> float:
        """The loss at the last step."""
        return float(np.asarray(self.watch.loss))

    @property
    def rows(self) -> list[np.ndarray]:
        """The arrays [rows, …] of its rows."""
        # By NumPy: whatever JAX computes would wait for the chunk that was started next.
        return [np.asarray(leaf)[: self.num_rows] for leaf in self.stacked]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is computed at every step: one program for the chunks of all lengths."""

    problem: Problem  # without its data
    record: Recorder
    record_every: int
    stop: Stop

    def watch(self, memory: PyTree) -> Watch:
        """Return what is known before a step, with what the stopping rule remembers."""
        return Watch(memory, jnp.asarray(np.int32(-1)), jnp.zeros((), np.float32))

    def trace(self, state: State, source: Source) -> Any:
        """Trace the program of one row, as ``jax.jit(…).trace``."""
        watch, data = self.watch(rules.first_memory(self.stop)), source.like(self.record_every)
        return _steps.trace(*self._arguments(state, data, watch, self.record_every, 1, 1))

    def row(self, state: State, source: Source) -> PyTree:
        """Return a tree like one row: shapes for arrays, and no keys."""
        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        _, rows, _ = self.trace(state, source).out_info
        return _tree.unpack(jax.tree.map(one, rows))

    def start(
        self, state: State, watch: Watch, data: Data, start: int, stop: int, pace: Pace
    ) -> Chunk:
        """Start to compute steps: whole rows, or fewer steps than a row has."""
        every = min(self.record_every, stop - start)
        capacity = pace.capacity if every == self.record_every else 1
        num_rows = (stop - start) // every
        arguments = self._arguments(state, data, watch, every, capacity, num_rows)
        after, rows, saw = _steps(*arguments)
        # Right after the start, before the next chunk is in the way.
        stacked = replicated(_tree.arrays(rows))
        return Chunk(start, stop, num_rows, data, (state, watch), after, saw, stacked)

    def _arguments(
        self, state: State, data: Data, watch: Watch, every: int, capacity: int, num_rows: int
    ) -> tuple[Any, ...]:
        loss, optimizer, _, has_aux = self.problem
        # Constants of the program, even where they are pytrees of arrays.
        fixed = [StaticLeaf(one) for one in (loss, optimizer, has_aux, self.record, self.stop)]
        return (*fixed, every, capacity, state, data, watch, jnp.asarray(np.int32(num_rows)))


@jit
def _steps(
    loss: Any,
    optimizer: Any,
    has_aux: bool,
    record: Recorder,
    stop: Stop,
    every: int,
    capacity: int,
    state: State,
    data: Data,
    watch: Watch,
    num_rows: jax.Array,
) -> tuple[State, PyTree, Watch]:
    """Take the steps of some rows; return the State after them, the rows, and what was seen."""
    problem = stepper(Problem(loss, optimizer, data, has_aux), state)

    @problem.unit
    def watched(state: State, info: Info, watch: Watch) -> Watch:
        step = problem.step_of(state, info)
        fires, memory = rules.verdict(stop, step, watch.memory)
        fired = jnp.where((watch.fired < 0) & fires, step.step, watch.fired)
        return Watch(memory, fired, step.loss.astype(np.float32))

    def take(carry: tuple[State, Watch]) -> tuple[tuple[State, Watch], Info]:
        state, watch = carry
        after, info = problem.take(state)
        return (after, watched(state, info, watch)), info

    row_of = problem.row_of(record)
    (state, watch), rows = _loops.recording(
        take,
        lambda carry, info: row_of(carry[0], info),
        (problem.state, watch),
        num_rows,
        capacity,
        every,
    )
    return problem.restore(state), _tree.without_keys(rows), watch


def chunks(
    program: Program,
    state: State,
    memory: PyTree,
    source: Source,
    pace: Pace,
    end: End,
    interrupts: list[int],
) -> Iterator[Chunk]:
    """Yield the finished chunks of a run in order, while the device computes the next one.

    Args:
      program: what to compute.
      state: the State to start from.
      memory: what the stopping rule remembers before it.
      source: where the data come from.
      pace: how long chunks are.
      end: where the run ends; moved by whatever ends it earlier.
      interrupts: not empty once the run is to end with what has been started.
    """
    watch = program.watch(memory)
    for chunk in _two_at_a_time(_started(program, state, watch, source, pace, end, interrupts)):
        wait(chunk.stacked)
        fired = int(np.asarray(chunk.watch.fired))
        if fired < 0:
            yield chunk
            continue
        end.move(fired, f"{_check.show(program.stop)} was true at step {fired}")
        # Make the chunk again up to that step; what was started after it is dropped.
        for part in _parts(program, *chunk.before, chunk.data, chunk.start, end, pace):
            wait(part.stacked)
            yield part
        return


def _started(
    program: Program,
    state: State,
    watch: Watch,
    source: Source,
    pace: Pace,
    end: End,
    interrupts: list[int],
) -> Iterator[Chunk]:
    """Yield chunks as soon as they are started."""
    first = at = int(state.step)
    while at < end.step:
        if interrupts and at > first:
            end.move(at, f"interrupted before step {at}")
            return
        read = source.read(at, end.step - at, pace)
        if read.is_over:
            over = at + read.number
            end.move(over, f"data ended before step {over}", read.error)
        stretch = End(at + read.number)
        for chunk in _parts(program, state, watch, read.data, at, stretch, pace):
            yield chunk
            at, state, watch = chunk.stop, chunk.state, chunk.watch
        if stretch.error is not None:
            end.move(at, error=stretch.error)


def _parts(
    program: Program,
    state: State,
    watch: Watch,
    data: Data,
    start: int,
    end: End,
    pace: Pace,
) -> Iterator[Chunk]:
    """Start steps as chunks: whole rows, then the rest; nothing after an error."""
    whole = end.step - (end.step - start) % program.record_every
    for stop in whole, end.step:
        if start < stop:
            try:
                chunk = program.start(state, watch, data, start, stop, pace)
            except Exception as error:  # raised once the chunks before this one are stored
                end.move(start, error=error)
                return
            yield chunk
            start, state, watch = stop, chunk.state, chunk.watch


T = TypeVar("T")


def _two_at_a_time(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one has been made."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) == 2:
            yield waiting.popleft()
    yield from waiting
