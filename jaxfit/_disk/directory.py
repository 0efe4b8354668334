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
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterator
from typing import IO, Any

import jax

from jaxfit import _check, _tree
from jaxfit._disk import files, spec
from jaxfit._disk.assemble import assemble, write_end
from jaxfit._disk.files import StoredChunk
from jaxfit._disk.manifest import Manifest, find_difference, write_manifest
from jaxfit._disk.processes import lock, raise_in_all_processes
from jaxfit._types import PyTree, Row
from jaxfit.run import Run, State

_CHUNK = re.compile("[0-9]{10}-[0-9]{10}")
_TEMPORARY = ".orbax-checkpoint-tmp"
_UNFINISHED = re.compile(_CHUNK.pattern + re.escape(_TEMPORARY) + ".*")
# Orbax's background threads identify their save by a number that is global to the process, that of
# the latest save: a save must have begun before another one begins.
_saving = threading.Lock()


def checked_path(checkpoint_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Return the absolute path of a directory, which need not exist yet.

    Raises:
      TypeError, ValueError: if it cannot be that of a directory.
    """
    if not isinstance(checkpoint_dir, str | os.PathLike):
        raise TypeError(
            f"checkpoint_dir is {_check.show(checkpoint_dir)}, but must be the path of a directory."
        )
    if checkpoint_dir == "":
        raise ValueError(
            'checkpoint_dir is "", but must be the path of a directory: give "." for this one.'
        )
    try:
        path = pathlib.Path(checkpoint_dir).expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            f"checkpoint_dir is {_check.show(checkpoint_dir)}, but there is no such home "
            f"directory: give another."
        ) from None
    if path.exists() and not path.is_dir():
        raise ValueError(f"checkpoint_dir is {path}, which is a file: give a directory.")
    return path


def list_chunks(path: pathlib.Path, first: int) -> list[StoredChunk]:
    """Return the committed chunks of a directory, whose run began at a step.

    Raises:
      ValueError: if they do not follow one another.
    """
    names = sorted(entry.name for entry in path.iterdir() if _CHUNK.fullmatch(entry.name))
    chunks = [StoredChunk(path / name, *map(int, name.split("-"))) for name in names]
    expected = first
    for chunk in chunks:
        if not expected == chunk.start <= chunk.stop:
            raise ValueError(
                f"{path} has the steps up to {expected}, and then {chunk.path.name}: put back what "
                f"is missing, or remove that folder and all after it, and the run ends there."
            )
        expected = chunk.stop
    return chunks


class Directory:
    """A directory open for writing; no other `fit` can write to it until it is closed.

    Attributes:
      path: where it is.
      chunks: the committed chunks, and after them the one that is being written, if any.
    """

    def __init__(self, path: pathlib.Path, manifest: Manifest, row: Row) -> None:
        """Open the directory of a run, or make a new one.

        Args:
          path: where it is, from `checked_path`.
          manifest: the run's `fingerprint`.
          row: a tree like one row, with ShapeDtypeStructs for arrays and without keys.

        Raises:
          ImportError: without orbax.
          OSError: if it cannot be written.
          RuntimeError: if another `fit` is writing to it.
          ValueError: if it holds another run, or is damaged.
        """
        orbax = files.import_orbax()
        self.path, self._manifest, self._row, self._failed = path, manifest, row, False
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

    def begin(self, state: State, memory: PyTree, stop: int) -> tuple[State, PyTree]:
        """Return where the run stands: its State, and the memory of the rule that watches it.

        Args:
          state: the State that the run starts from.
          memory: the rule's memory at the start, a pytree of JAX arrays.
          stop: the step at which the run is to end.

        Raises:
          ValueError: if the directory has more steps, or its last chunk is damaged.
        """
        first, every = self._manifest["first"], self._manifest["record_every"]
        if not self.chunks:
            self.commit(first, first, state, memory, [])
            return state, memory
        end = self.chunks[-1].stop
        if end > stop:
            raise ValueError(
                f"{self.path} holds the steps up to {end} of this run, but it is to end at {stop}: "
                f"give more steps, or read it with jaxfit.load."
            )
        if end < stop and (end - first) % every:
            self._drop_last()  # it ended in the middle of a row, which is made again as a whole
        return self._restore_last(state, memory)

    def commit(self, start: int, stop: int, state: State, memory: PyTree, rows: list[Any]) -> None:
        """Write a chunk in the background, once the chunk before it is written.

        Args:
          start: its first step.
          stop: the step after its last.
          state: the State after it.
          memory: the rule's memory after it, a pytree of JAX arrays.
          rows: the arrays ``[rows, …]`` of its rows; empty if it has no steps.

        Raises:
          OSError: if the chunk before it could not be written, or this one could not be begun.
        """
        self.wait()
        items = {
            "state": spec.stored(_tree.without_keys(state)),
            "rule": spec.stored(_tree.without_keys(memory)),
            "rows": rows,
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
        return assemble(self.path, self._manifest, self.chunks, state, like, self._row)

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
    elif "end.json" in names or any(map(_CHUNK.fullmatch, names)):
        raise ValueError(
            f"{path} holds an end.json or chunks, but no run.json that says which run they are of: "
            f"put back a copy of it, or give another directory."
        )
    else:
        write_manifest(path, manifest)
    for name in filter(_UNFINISHED.fullmatch, names):
        shutil.rmtree(path / name)
