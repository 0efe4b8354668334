"""The scalars of a run, by name, for callbacks that log them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._types import Callback, PyTree, Row
from jaxfit.run import State


class Scalars(NamedTuple):
    """What one call logs."""

    steps: np.ndarray  # int [rows]
    rows: dict[str, np.ndarray]  # [rows] each
    step: int  # of the State
    evaluation: dict[str, np.ndarray]  # [] each

    def points(self, every: int = 1) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield, in the order of the steps, each with what there is to log at it."""
        for number in np.flatnonzero(self.steps % every == 0) if self.rows else ():
            values = {name: column[number] for name, column in self.rows.items()}
            yield int(self.steps[number]), values
        if self.evaluation:
            yield self.step, self.evaluation


def logs(begin: Callable[[], Callable[[Scalars], None]]) -> Callback:
    """Return a callback that logs scalars, if this is the first process.

    Args:
      begin: begins to log, and returns what is to be called with the scalars.
    """
    log = begin() if jax.process_index() == 0 else None

    def callback(state: State, rows: Row, evaluation: PyTree) -> None:
        if log is None:
            return
        columns = _scalars(rows, 1)
        steps = columns.pop("step", None)
        if steps is None:
            raise ValueError(
                f"the rows hold {', '.join(columns) or 'no scalars'}, but no step to log them at: "
                f'record it, as in record=lambda step: {{"step": step.step, "loss": step.loss}}.'
            )
        log(Scalars(steps, columns, int(state.step), _scalars(evaluation, 0, "evaluation")))

    return callback


def _scalars(tree: PyTree, ndim: int, prefix: str = "") -> dict[str, np.ndarray]:
    """Name the real arrays of a tree that have a number of axes."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if getattr(leaf, "ndim", None) == ndim and _is_real(leaf.dtype):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            array = np.asarray(leaf)
            array = array.astype(np.int8) if array.dtype == bool else array
            named["/".join(filter(None, (prefix, place)))] = array
    return named


def _is_real(dtype: Any) -> bool:
    kinds = np.bool_, np.integer, jnp.floating
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)
