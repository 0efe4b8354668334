"""The callback of a run: called between steps, on the host, with what was made since."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxfit import _check, _tree
from jaxfit._drive.chunks import End
from jaxfit._drive.host import replicated
from jaxfit._drive.pace import Marks
from jaxfit._drive.program import Chunk, Stand
from jaxfit._drive.sinks import Sink
from jaxfit._types import Callback, Evaluate, PyTree


def check_pauses(
    record_every: int,
    evaluate: Evaluate | None,
    evaluate_every: Any,
    callback: Callback | None,
) -> int | None:
    """Check what happens between chunks, and return after how many steps it does, as an int."""
    period = _check.period("evaluate_every", evaluate_every, record_every)
    if callback is not None:
        _check.function("callback", callback, "state", "rows", "evaluation")
    if callback is None or evaluate is not None:
        _check.evaluation(evaluate, period, None)
    return period


class Hook:
    """Calls a callback at the marks of a run and at its end, or after every chunk without marks.

    Attributes:
      seconds: how long its call after the last chunk took; 0 if there was none.
    """

    def __init__(self, callback: Callback | None, row: PyTree, marks: Marks):
        """Begin before the first chunk.

        Args:
          callback: the callback, if any.
          row: a tree like one row, with shapes for arrays, and without keys.
          marks: after which steps it is called.
        """
        self._callback, self._marks = callback, marks
        self._structure = jax.tree.structure(_tree.hold(row))
        self._rows: list[PyTree] = []  # that it has not been shown
        self.seconds = 0.0

    def catch_up(self, sink: Sink, done: int, end: int) -> None:
        """Take the rows that an earlier `fit` committed after its last call, for the next one.

        Args:
          sink: where they are.
          done: the step up to which the run was committed.
          end: the step at which it ends; if that is the same, there is no next call.
        """
        if self._callback is None or done == end:
            return
        rows = sink.rows_since(self._marks.last(done))
        if rows is not None:
            self._rows.append(rows)

    def ends(self, chunk: Chunk, end: End) -> bool:
        """Take the rows of a chunk, call the callback if it is due, and return what it says.

        Args:
          chunk: the chunk.
          end: where the run ends; moved to the end of the chunk if the callback says so.
        """
        self.seconds = 0.0
        if self._callback is None:
            return False
        # Copied, because a row of NumPy's would keep the memory of its whole chunk on the device.
        rows = jax.tree.unflatten(self._structure, [np.array(leaf) for leaf in chunk.rows])
        self._rows.append(_tree.unpack(_tree.with_keys(rows)))
        if self._marks.period is not None and not self._marks.has(chunk.stop):
            return False
        begun = time.perf_counter()
        says = self._call(chunk.after)
        self.seconds = time.perf_counter() - begun
        if says and (chunk.stop < end.step or end.error is not None):
            end.move(chunk.stop, f"callback returned True at step {chunk.stop}")
        return says

    def finish(self, stand: Stand) -> None:
        """Call the callback with the steps after the last mark, if there are any."""
        if self._rows:
            self._call(stand)

    def _call(self, stand: Stand) -> bool:
        assert self._callback is not None
        rows, self._rows = jax.tree.map(_joined, *self._rows), []
        state, evaluation = replicated(stand.state), _tree.with_keys(stand.evaluation)
        says = self._callback(_on_host(state), rows, _on_host(evaluation))
        if not isinstance(says, bool | np.bool_ | None):
            raise TypeError(
                f"callback returned {_check.show(says)}, but must return True to end the run, and "
                f"None or False to go on."
            )
        if jax.process_count() > 1:  # all end together, as the first says
            says = multihost_utils.broadcast_one_to_all(np.bool_(says or False))
        return bool(says)


def _on_host(tree: PyTree) -> PyTree:
    """Return a tree with NumPy's arrays in place of JAX's, all but PRNG keys."""

    def convert(leaf: Any) -> Any:
        is_read = isinstance(leaf, jax.Array) and not _tree.is_key(leaf)
        return np.asarray(leaf) if is_read else leaf

    return jax.tree.map(convert, tree)


def _joined(*parts: Any) -> Any:
    """Join the rows of chunks; what is no array is the same in all."""
    if not hasattr(parts[0], "ndim"):
        return parts[0]
    if isinstance(parts[0], jax.Array):  # of keys
        return jax.numpy.concatenate(parts)
    return np.concatenate([np.asarray(part) for part in parts])
