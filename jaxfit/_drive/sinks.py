"""Where the rows of a run go: arrays in memory, or a directory."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _tree
from jaxfit._drive import host
from jaxfit._drive.pace import Marks
from jaxfit._types import PyTree, Row
from jaxfit.run import Run, State


class Sink(Protocol):
    """Keeps what a run makes; `Directory` is another."""

    @property
    def is_new(self) -> bool:
        """Whether nothing of the run is kept yet."""

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        """Return the State and the rule's memory to start from, for a run up to step ``stop``."""

    def commit(
        self,
        start: int,
        stop: int,
        state: State,
        memory: PyTree,
        evaluation: PyTree,
        rows: list[np.ndarray],
    ) -> None:
        """Keep a chunk: the State after it, the rule's memory and the evaluation there, its rows.

        Args:
          start: its first step.
          stop: the step after its last; a chunk can have no steps.
          state: the State after it.
          memory: the rule's memory after it, a pytree of JAX arrays.
          evaluation: that of the State, without keys; None if it was not evaluated.
          rows: the arrays ``[rows, …]`` of its rows; empty if it has no steps.
        """

    def is_evaluated(self, step: int) -> bool:
        """Return whether the State at a step, the last so far, was kept with an evaluation."""

    def rows_since(self, step: int) -> Row | None:
        """Return what an earlier `fit` kept of this run from a step on, if it did not end after.

        It is a tree of arrays ``[rows, …]``; None if there are no such rows.
        """

    def kept(self, step: int) -> str | None:
        """Return a sentence on what became of the steps before ``step``, for a note on an error."""

    def run(self, state: State, stop_reason: str | None) -> Run:
        """Return the run so far."""


class MemoryRows:
    """Rows in the host's memory."""

    is_new = True

    def __init__(self, row: PyTree, marks: Marks, num_steps: int, every: int, from_start: bool):
        """Make room.

        Args:
          row: a tree like one row, with shapes for arrays, and without keys.
          marks: where the run starts, and which of its steps are evaluated beside the last.
          num_steps: how many steps it has at most.
          every: how many steps there are to a row.
          from_start: whether it starts at step 0, which is known when a program is compiled.
        """
        leaves, self._structure = jax.tree.flatten(_tree.hold(row))
        number, size, available = -(-num_steps // every), _tree.nbytes(row), host.memory()
        if available is not None and number * size > available:
            raise ValueError(
                f"the trajectory would take {number * size / 1e9:,.1f} GB ({number:,} rows of "
                f"{size:,} bytes), but the host has {available / 1e9:,.1f} GB: record fewer rows "
                f"with record_every, or less in each, as in record=lambda step: step.loss, or give "
                f"a checkpoint_dir."
            )
        self._arrays = [np.empty((number, *leaf.shape), leaf.dtype) for leaf in leaves]
        self._marks, self._every, self._from_start = marks, every, from_start
        self._evaluations: dict[int, PyTree] = {}  # by their steps

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        return state, memory

    def commit(
        self,
        start: int,
        stop: int,
        state: State,
        memory: PyTree,
        evaluation: PyTree,
        rows: list[np.ndarray],
    ) -> None:
        at = (start - self._marks.first) // self._every
        for stored, part in zip(self._arrays, rows, strict=True) if rows else ():
            stored[at : at + len(part)] = part
        if evaluation is not None:
            self._evaluations[stop] = jax.tree.map(np.asarray, _tree.hold(evaluation))

    def is_evaluated(self, step: int) -> bool:
        return step in self._evaluations

    def rows_since(self, step: int) -> Row | None:
        return None

    def kept(self, step: int) -> str | None:
        return f"the steps before step {step} are lost, without a checkpoint_dir."

    def run(self, state: State, stop_reason: str | None) -> Run:
        first = self._marks.first
        num_steps = int(state.step) - first
        steps = jnp.asarray(first + np.arange(0, num_steps, self._every, dtype=np.int32))
        arrays = [stored[: len(steps)] for stored in self._arrays]
        rows = _tree.unpack(_tree.with_keys(jax.tree.unflatten(self._structure, arrays)))
        known = range(0, num_steps, self._every) if self._from_start else None
        made = Run(steps, rows, None, state, known, stop_reason)
        if not self._evaluations:
            return made
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *self._evaluations.values())
        return dataclasses.replace(
            made,
            evaluations=_tree.unpack(_tree.with_keys(stacked)),
            evaluated_steps=jnp.asarray(np.array([*self._evaluations], np.int32)),
        )
