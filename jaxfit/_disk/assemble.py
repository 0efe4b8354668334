"""The `Run` that the chunks of a directory make, with rows that stay on disk."""

from __future__ import annotations

import dataclasses
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
    evaluation: PyTree,
) -> Run:
    """Return the run that a directory holds.

    Args:
      path: the directory.
      manifest: its manifest.
      chunks: its chunks, at least one.
      end: the State after the last of them.
      state: a State of the run without keys, whose arrays give shapes and dtypes.
      row: likewise a tree like one row.
      evaluation: likewise a tree like one evaluation; None if there are none.
    """
    first, every = manifest["first"], manifest["record_every"]
    frames = _one_from_each(state, chunks, "state")
    steps = np.array([chunk.stop for chunk in chunks], np.int32)
    number = row_at(manifest, chunks[-1].stop)
    evaluate_every = manifest["evaluate_every"]
    evaluated = [] if evaluate_every is None else _evaluated(chunks, first, evaluate_every)
    evaluated_steps = np.array([chunk.stop for chunk in evaluated], np.int32)
    return Run(
        steps=jnp.asarray(first + every * np.arange(number, dtype=np.int32)),
        trajectory=trajectory(manifest, chunks, row),
        keyframes=dataclasses.replace(frames, step=cast(Any, steps)),
        state=end,
        stop_reason=_read_stop_reason(path, chunks[-1].stop),
        evaluations=_one_from_each(evaluation, evaluated, "evaluation") if evaluated else None,
        evaluated_steps=jnp.asarray(evaluated_steps) if evaluated else None,
    )


def trajectory(manifest: Manifest, chunks: list[StoredChunk], row: Row) -> PyTree:
    """Return the rows that a directory holds: a tree like one row, with `DiskRows` for arrays."""
    with_rows = [chunk for chunk in chunks if chunk.stop > chunk.start]
    ends = [row_at(manifest, chunk.stop) for chunk in with_rows]
    counts = np.diff(ends, prepend=0).tolist()
    readers = [
        functools.partial(_read_rows, chunk, count)
        for chunk, count in zip(with_rows, counts, strict=True)
    ]
    return _on_disk(row, readers, ends)


def row_at(manifest: Manifest, step: int) -> int:
    """Return the number of the first row that begins at a step or after it."""
    return -((manifest["first"] - step) // manifest["record_every"])


def _evaluated(chunks: list[StoredChunk], first: int, every: int) -> list[StoredChunk]:
    """Return the chunks at whose ends the run was evaluated: every few steps, and at its end."""
    marked = [chunk for chunk in chunks if (chunk.stop - first) % every == 0]
    last = chunks[-1]
    if last not in marked and files.count_arrays(last, "evaluation"):
        marked.append(last)
    return marked


def _one_from_each(tree: PyTree, chunks: list[StoredChunk], item: str) -> PyTree:
    """Put the arrays ``[chunks, …]`` of an item, of which every chunk has one tree, in a tree."""
    readers = [functools.partial(_read_one, chunk, item) for chunk in chunks]
    return _on_disk(tree, readers, range(1, len(chunks) + 1))


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


def _read_one(chunk: StoredChunk, item: str, number: int, like: jax.ShapeDtypeStruct) -> np.ndarray:
    return files.read_array(chunk, item, number, like)[None]


def write_end(path: pathlib.Path, step: int, stop_reason: str | None) -> None:
    """Write to a directory at which step its run ended, and why."""
    files.write_json(path / "end.json", {"step": step, "stop_reason": stop_reason})


def read_end(path: pathlib.Path) -> tuple[int, str | None]:
    """Return at which step the run of a directory last ended, and why; -1 if it never did."""
    if not (path / "end.json").exists():
        return -1, None
    end = files.read_json(path / "end.json")
    with files.raise_as_damage(path / "end.json"):
        step, reason = int(end["step"]), end["stop_reason"]
        if not isinstance(reason, str | None):
            raise ValueError(f"stop_reason is {reason}")
    return step, reason


def _read_stop_reason(path: pathlib.Path, step: int) -> str | None:
    """Return why the run ended early, if ``end.json`` is of a run that ended at this step."""
    ended, reason = read_end(path)
    return reason if ended == step else None
