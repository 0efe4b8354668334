"""Where the rows of a run go: arrays in memory, or a directory."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _tree
from jaxfit._drive import host
from jaxfit._types import PyTree
from jaxfit.run import Run, State


class Sink(Protocol):
    """Keeps what a run makes; `Directory` is another."""

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        """Return the State and the rule's memory to start from, for a run up to step ``stop``."""

    def commit(
        self, start: int, stop: int, state: State, memory: PyTree, rows: list[np.ndarray]
    ) -> None:
        """Keep a chunk: its rows [rows, …], and the State and the rule's memory after it."""

    def kept(self, step: int) -> str | None:
        """Return a sentence on what became of the steps before ``step``, for a note on an error."""

    def run(self, state: State, stop_reason: str | None) -> Run:
        """Return the run so far."""


class MemoryRows:
    """Rows in the host's memory."""

    def __init__(self, row: PyTree, first: int, num_steps: int, every: int, from_start: bool):
        """Make room.

        Args:
          row: a tree like one row, with shapes for arrays, and without keys.
          first: the step at which the run starts.
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
        self._first, self._every, self._from_start = first, every, from_start

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        return state, memory

    def commit(
        self, start: int, stop: int, state: State, memory: PyTree, rows: list[np.ndarray]
    ) -> None:
        at = (start - self._first) // self._every
        for stored, part in zip(self._arrays, rows, strict=True):
            stored[at : at + len(part)] = part

    def kept(self, step: int) -> str | None:
        return f"the steps before step {step} are lost, without a checkpoint_dir."

    def run(self, state: State, stop_reason: str | None) -> Run:
        num_steps = int(state.step) - self._first
        steps = jnp.asarray(self._first + np.arange(0, num_steps, self._every, dtype=np.int32))
        arrays = [stored[: len(steps)] for stored in self._arrays]
        rows = _tree.unpack(_tree.with_keys(jax.tree.unflatten(self._structure, arrays)))
        known = range(0, num_steps, self._every) if self._from_start else None
        return Run(steps, rows, None, state, known, stop_reason)
