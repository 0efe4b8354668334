"""The directory that `fit` writes a run to: chunks that are committed whole, behind a lock.

A directory holds ``run.json``, which says what the run is, and a folder for every chunk, named by
its steps: ``0000000100-0000000200`` has the rows of steps 100 to 199, the `State` after them, and
the memory of the rule that watched them. The first, ``0000000000-0000000000``, has the state that
the run started from. Orbax writes a folder under another name and renames it when it is complete,
so that a process that is killed leaves whole chunks, and unfinished ones that do not count. Every
array has a checksum. Nothing in a directory is ever executed.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator
from typing import IO, Any

import jax

from jaxfit import _tree
from jaxfit._disk import files, spec
from jaxfit._disk.assemble import assemble, read_end, row_at, trajectory, write_end
from jaxfit._disk.files import StoredChunk
from jaxfit._disk.manifest import Manifest, find_difference, write_manifest
from jaxfit._disk.paths import CHUNK, list_chunks
from jaxfit._disk.processes import lock, raise_in_all_processes
from jaxfit._disk.rows import DiskRows
from jaxfit._types import PyTree, Row
from jaxfit.run import Run, State

_TEMPORARY = ".orbax-checkpoint-tmp"
_UNFINISHED = re.compile(CHUNK.pattern + re.escape(_TEMPORARY) + ".*")
# The background threads of a save in Orbax identify it by a number that is global to the process,
# that of the save that began last: one save has to have begun before another begins.
_saving = threading.Lock()


class Directory:
    """A directory open for writing; no other `fit` can write to it until it is closed.

    Attributes:
      path: where it is.
      chunks: the committed chunks, and after them the one that is being written, if any.
    """

    def __init__(
        self, path: pathlib.Path, manifest: Manifest, row: Row, evaluation: PyTree
    ) -> None:
        """Open the directory of a run, or make a new one.

        Args:
          path: where it is, from ``paths.checked_path``.
          manifest: the run's `fingerprint`.
          row: a tree like one row, with ShapeDtypeStructs for arrays and without keys.
          evaluation: likewise a tree like one evaluation; None if there are none.

        Raises:
          ImportError: without orbax.
          OSError: if it cannot be written.
          RuntimeError: if another `fit` is writing to it.
          ValueError: if it holds another run, or is damaged.
        """
        orbax = files.import_orbax()
        self.path, self._manifest, self._failed = path, manifest, False
        self._shown = row, evaluation
        self._lock: IO[str] | None = None
        try:
            with raise_in_all_processes():
                if jax.process_index() == 0:
                    self._lock = lock(path)
                    _prepare(path, manifest)
            self.chunks = list_chunks(path, manifest["first"])
        except BaseException:
            self._unlock()
            raise
        self._writer = orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler())

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being written, and let others write."""
        try:
            if not self._failed:
                self.wait()
        finally:
            with contextlib.suppress(Exception):  # an error of the writer that was raised already
                self._writer.close()
            self._unlock()

    @property
    def is_new(self) -> bool:
        """Whether no chunk is committed yet."""
        return not self.chunks

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        """Return where the run stands: its State, and the memory of the rule that watches it.

        Args:
          state: the State that the run starts from.
          memory: the rule's memory at the start, a pytree of JAX arrays.
          stop: the step at which the run is to end.

        Raises:
          ValueError: if the directory has more steps, or its last chunk is damaged.
        """
        if self.is_new:
            return state, memory
        first, every = self._manifest["first"], self._manifest["record_every"]
        end = self.chunks[-1].stop
        if end > stop:
            raise ValueError(
                f"{self.path} holds the steps up to {end} of this run, but it is to end at {stop}: "
                f"give more steps, or read it with jaxfit.load."
            )
        while end < stop and (self.chunks[-1].stop - first) % every:
            self._drop_last()  # it ended amid the steps of a row, which are made again with more
        return self._restore_last(state, memory)

    def commit(
        self,
        start: int,
        stop: int,
        state: State,
        memory: PyTree,
        evaluation: PyTree,
        rows: list[Any],
    ) -> None:
        """Write a chunk in the background, once the chunk before it is written.

        Args:
          start: its first step.
          stop: the step after its last.
          state: the State after it.
          memory: the rule's memory after it, a pytree of JAX arrays.
          evaluation: that of the State, without keys; None if it was not evaluated.
          rows: the arrays ``[rows, …]`` of its rows; empty if it has no steps.

        Raises:
          OSError: if the chunk before it could not be written, or this one could not be begun.
        """
        self.wait()
        items = {
            "state": spec.stored(_tree.without_keys(state)),
            "rule": spec.stored(_tree.without_keys(memory)),
            "rows": rows,
            "evaluation": spec.stored(evaluation),
        }
        tree, sums = files.lay_out(items)
        path = self.path / f"{start:010d}-{stop:010d}"
        self.chunks.append(StoredChunk(path, start, stop))
        with self._raise_as_lost(), _saving:
            save = files.import_orbax().args.PyTreeSave(tree)
            self._writer.save(path, save, custom_metadata=sums)

    def wait(self) -> None:
        """Wait until all chunks are committed.

        Raises:
          OSError: if the last could not be written.
        """
        with self._raise_as_lost():
            self._writer.wait_until_finished()

    def is_evaluated(self, step: int) -> bool:
        """Return whether the State at a step, the last so far, was written with an evaluation."""
        self.wait()
        return files.count_arrays(self.chunks[-1], "evaluation") > 0

    def rows_since(self, step: int) -> Row | None:
        """Return the rows from a step on, or from where the run last ended, if that was later.

        They are a tree of arrays ``[rows, …]``; None if there are no such rows.
        """
        step = max(step, read_end(self.path)[0])
        if step >= self.chunks[-1].stop:
            return None
        at = row_at(self._manifest, step)
        return jax.tree.map(
            lambda leaf: leaf[at:] if isinstance(leaf, DiskRows) else leaf,
            trajectory(self._manifest, self.chunks, self._shown[0]),
        )

    def kept(self, step: int) -> str | None:
        """Return a sentence on what is safe of the steps before ``step``, for a note on an error.

        It is None if the error is that a chunk could not be written, which says so itself.
        """
        if self._failed:
            return None
        try:
            self.wait()
        except OSError as error:
            return str(error)
        return f"the steps before step {step} are committed in {self.path}."

    def run(self, state: State, stop_reason: str | None) -> Run:
        """Return the run so far, with all its rows on disk.

        Args:
          state: the State after it.
          stop_reason: why it ended early; None if it did not.
        """
        self.wait()
        with raise_in_all_processes():
            if jax.process_index() == 0:
                write_end(self.path, self.chunks[-1].stop, stop_reason)
        like = _tree.without_keys(state)
        return assemble(self.path, self._manifest, self.chunks, state, like, *self._shown)

    @contextlib.contextmanager
    def _raise_as_lost(self) -> Iterator[None]:
        """If the last chunk cannot be written, raise an error that says so, and what is safe."""
        try:
            yield
        except Exception as error:
            self._failed = True
            lost, reason = self.chunks.pop(), files.first_line(error)
            kept = f"the steps before {self.chunks[-1].stop} are" if self.chunks else "nothing is"
            raise OSError(
                f"the chunk {lost.path} could not be written ({reason}), and "
                f"{kept} committed: make room, and call fit again to go on."
            ) from error

    def _drop_last(self) -> None:
        """Remove the last chunk, to make it again with more steps."""
        with raise_in_all_processes():
            if jax.process_index() == 0:
                path = self.chunks[-1].path
                shutil.rmtree(path.rename(f"{path}{_TEMPORARY}-dropped"))
        self.chunks.pop()

    def _restore_last(self, state: State, memory: PyTree) -> tuple[State, PyTree]:
        """Return the State and the rule's memory after the last chunk.

        The given ones, at the start of the run, say what these are like. The given memory is
        returned if another rule was watching, or none.
        """
        last = self.chunks[-1]
        state = files.restore_tree(last, "state", _tree.without_keys(state))
        like = _tree.without_keys(memory)
        if files.count_arrays(last, "rule") == sum(leaf.size > 0 for leaf in spec.stored(like)):
            with contextlib.suppress(ValueError):  # of other shapes
                memory = files.restore_tree(last, "rule", like)
        return state, memory

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _prepare(path: pathlib.Path, manifest: Manifest) -> None:
    """Check that a directory holds this run, or write its manifest; remove unfinished chunks.

    Any other files in it stay.
    """
    names = [entry.name for entry in path.iterdir()]
    if "run.json" in names:
        if found := find_difference(path, manifest):
            raise ValueError(
                f"{path} holds another run ({found}): give another directory, or go on from where "
                f"that run stands with fit(loss, jaxfit.load({str(path)!r}).state, …) in another."
            )
    elif "sweep.json" in names:
        raise ValueError(f"{path} holds a sweep, and not a run: give another directory.")
    elif "end.json" in names or any(map(CHUNK.fullmatch, names)):
        raise ValueError(
            f"{path} holds an end.json or chunks, but no run.json that says which run they are of: "
            f"put back a copy of it, or give another directory."
        )
    else:
        write_manifest(path, manifest)
    for name in filter(_UNFINISHED.fullmatch, names):
        shutil.rmtree(path / name)
