"""The `Run` that the chunks of a directory make, with rows that stay on disk."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _tree
from jaxfit._disk import files, spec
from jaxfit._disk.files import StoredChunk
from jaxfit._disk.manifest import Manifest
from jaxfit._disk.rows import DiskRows
from jaxfit._types import PyTree, Row
from jaxfit.run import Run, State


def assemble(
    path: pathlib.Path,
    manifest: Manifest,
    chunks: list[StoredChunk],
    end: State,
    state: State,
    row: Row,
) -> Run:
    """Return the run that a directory holds.

    Args:
      path: the directory.
      manifest: its manifest.
      chunks: its chunks, at least one.
      end: the State after the last of them.
      state: a State of the run without keys, whose arrays give shapes and dtypes.
      row: likewise a tree like one row.
    """
    first, every = manifest["first"], manifest["record_every"]
    with_rows = [chunk for chunk in chunks if chunk.stop > chunk.start]
    ends = [-((first - chunk.stop) // every) for chunk in with_rows]  # rounded up
    counts = np.diff(ends, prepend=0).tolist()
    readers = [
        functools.partial(_read_rows, chunk, count)
        for chunk, count in zip(with_rows, counts, strict=True)
    ]
    frame_readers = [functools.partial(_read_frame, chunk) for chunk in chunks]
    frames = _on_disk(state, frame_readers, range(1, len(chunks) + 1))
    steps = np.array([chunk.stop for chunk in chunks], np.int32)
    number = ends[-1] if ends else 0
    return Run(
        steps=jnp.asarray(first + every * np.arange(number, dtype=np.int32)),
        trajectory=_on_disk(row, readers, ends),
        keyframes=State(cast(Any, steps), frames.params, frames.opt_state),
        state=end,
        stop_reason=_read_stop_reason(path, chunks[-1].stop),
    )


def _on_disk(
    tree: PyTree, readers: Sequence[Callable[[int, Any], np.ndarray]], ends: Sequence[int]
) -> PyTree:
    """Put `DiskRows` in place of a tree's arrays and keys.

    Args:
      tree: a tree without keys.
      readers: for every chunk, a function of an array's number and of one row's shape and dtype.
      ends: for every chunk, the row after its last.
    """
    numbers = itertools.count()

    def rows(leaf: Any, key_kind: Any = None) -> DiskRows:
        number, like = next(numbers), jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        parts = [functools.partial(read, number, like) for read in readers]
        return DiskRows(parts, ends, like, key_kind)

    def join(leaf: Any) -> Any:
        if isinstance(leaf, _tree.Keys):
            return rows(leaf.data, leaf.kind)
        return rows(leaf) if spec.is_stored(leaf) else leaf

    return jax.tree.map(join, tree, is_leaf=lambda node: isinstance(node, _tree.Keys))


def _read_rows(
    chunk: StoredChunk, count: int, number: int, row: jax.ShapeDtypeStruct
) -> np.ndarray:
    like = jax.ShapeDtypeStruct((count, *row.shape), row.dtype)
    return files.read_array(chunk, "rows", number, like)


def _read_frame(chunk: StoredChunk, number: int, like: jax.ShapeDtypeStruct) -> np.ndarray:
    return files.read_array(chunk, "state", number, like)[None]


def write_end(path: pathlib.Path, step: int, stop_reason: str | None) -> None:
    """Write to a directory at which step its run ended, and why."""
    files.write_json(path / "end.json", {"step": step, "stop_reason": stop_reason})


def _read_stop_reason(path: pathlib.Path, step: int) -> str | None:
    """Return why the run ended early, if ``end.json`` is of a run that ended at this step."""
    if not (path / "end.json").exists():
        return None
    end = files.read_json(path / "end.json")
    with files.raise_as_damage(path / "end.json"):
        ended, reason = end["step"], end["stop_reason"]
        if not isinstance(reason, str | None):
            raise ValueError(f"stop_reason is {reason}")
    return reason if ended == step else None
