"""A run on disk: chunks that are committed whole, and the run that they make.

A directory holds ``run.json``, which says what the run is, and a folder for every chunk, named by
its steps: ``0000000100-0000000200`` has the rows of steps 100 to 199, the `State` after them, and
the memory of the rule that watched them. The first, ``0000000000-0000000000``, has the state that
the run started from. Orbax writes a folder beside its place and renames it when all is in it, so
that a process that is killed leaves whole chunks and nothing that counts besides. Every array has
a checksum. Nothing in a directory is ever executed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend import core

from jaxfit import _check, _spec, _tree
from jaxfit._rows import Rows
from jaxfit.run import Run, State

__all__ = ["load"]

_CHUNK = re.compile("[0-9]{10}-[0-9]{10}")
_UNFINISHED = re.compile(_CHUNK.pattern + re.escape(".orbax-checkpoint-tmp") + ".*")
# What orbax does in the background of a save goes by the number of the save that began last in the
# process: each has to have begun before another does.
_saving = threading.Lock()


def load(checkpoint_dir: str | os.PathLike[str]) -> Run:
    """Read the run that ``jaxfit.fit(…, checkpoint_dir=…)`` left, finished or not.

    Args:
      checkpoint_dir: the directory.

    Returns:
      A `Run`. The leaves of its trajectory are read from disk when they are indexed, row first, or
      whole by ``np.asarray``. The end of every chunk is a keyframe, so that `replay` and `at` work
      on it, outside of ``jax.jit`` or with the run closed over.

      Dicts, lists, tuples and named tuples are what they were. Nodes of other types, such as
      Equinox modules, come as dicts of what they hold, and functions as their names, for nothing
      in the directory is executed: `fit`, called again with the arguments of a finished run,
      returns it at once with all types as they were.

    Raises:
      ImportError: without the extra ``checkpoint``.
      FileNotFoundError: if there is no run.
      ValueError: if a file is damaged, here or when its rows are read; the sentence names the
        folder to remove, so that the run ends before it.

    >>> import tempfile, jax.numpy as jnp, optax, jaxfit
    >>> loss, adam = lambda a: jnp.sum((a - 1.0) ** 4), optax.adam(0.1)
    >>> folder = tempfile.mkdtemp()
    >>> run = jaxfit.fit(loss, jnp.zeros(3), adam, 1000, checkpoint_dir=folder, chunk_size=100)
    >>> loaded = jaxfit.load(folder)
    >>> loaded.trajectory["params"]
    Rows of float32[1000, 3] on disk (read by np.asarray)
    >>> part = jaxfit.replay(loss, loaded, adam, 437, 441, record=lambda s: (s.loss, s.grads))
    >>> (part.trajectory[0] == loaded.trajectory["loss"][437:441]).all()
    Array(True, dtype=bool)
    """
    path = _check.directory(checkpoint_dir)
    if not (path / "run.json").is_file():
        raise FileNotFoundError(f"{path} holds no run: give the checkpoint_dir of a fit.")
    about, state, row = _read_json(path / "run.json", _decoded)
    chunks = _committed(path, about["first"])
    if not chunks:
        raise FileNotFoundError(
            f"the run in {path} ended before its first chunk was committed: call fit again."
        )
    last = _read(chunks[-1], "state", _spec.stored(state))
    end = _tree.with_keys(_spec.filled(state, map(jnp.asarray, last)))
    return _run(path, about, chunks, end, state, row)


class Chunk(NamedTuple):
    """Name a folder that was committed."""

    path: pathlib.Path
    start: int  # its first step
    stop: int  # the step after its last


class Directory:
    """Where `fit` writes a run; nobody else can until it is closed.

    Attributes:
      chunks: those that are committed, and at the end the one that is being written.
    """

    def __init__(self, path: pathlib.Path, about: dict[str, Any], row: Any):
        orbax = _orbax()
        self.path, self._about, self._row, self._failed = path, about, row, False
        self._lock: Any = None
        try:
            with raise_in_all_processes():
                if jax.process_index() == 0:
                    self._lock = _locked(path)
                    _begin(path, about)
            self.chunks = _committed(path, about["first"])
        except BaseException:
            self._unlock()
            raise
        self._writer = orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler())

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: Any) -> None:
        """Wait for what is being written, and let others in."""
        try:
            if not self._failed:
                self.wait()
        finally:
            with contextlib.suppress(Exception):  # which has been raised by then
                self._writer.close()
            self._unlock()

    def begin(self, state: Any, rule: Any, stop: int) -> tuple[Any, Any]:
        """Return where the run stands: the State and the rule's memory, given as at its start."""
        if not self.chunks:
            self.commit(self._about["first"], self._about["first"], state, rule, [])
            return state, rule
        end = self.chunks[-1].stop
        if end > stop:
            raise ValueError(
                f"{self.path} holds the steps up to {end} of this run, but it is to end at {stop}: "
                f"give more steps, or read it with jaxfit.load."
            )
        if end < stop and (end - self._about["first"]) % self._about["record_every"]:
            self._drop_last()  # it ended amid the steps of a row, which are made again with more
        return self._last(state, rule)

    def commit(self, start: int, stop: int, state: Any, rule: Any, rows: list[Any]) -> None:
        """Write a chunk in the background, when the one before it is written.

        Args:
          start: its first step.
          stop: the step after its last.
          state: the State after it.
          rule: the memory of the rule after it, a pytree of arrays.
          rows: the arrays [rows, …] of its rows; none if it has no steps.
        """
        self.wait()
        items = {"state": _spec.stored(_tree.without_keys(state)), "rule": jax.tree.leaves(rule)}
        tree = {
            item: {
                str(n): np.asarray(leaf) if _spec.is_here(leaf) else leaf
                for n, leaf in enumerate(leaves)
                if leaf.size
            }
            for item, leaves in {**items, "rows": rows}.items()
        }
        sums = {
            f"{item}/{n}": _spec.checksum(leaf)
            for item, leaves in tree.items()
            for n, leaf in leaves.items()
            if isinstance(leaf, np.ndarray)  # of others, a process has a part
        }
        path = self.path / f"{start:010d}-{stop:010d}"
        self.chunks.append(Chunk(path, start, stop))
        with self._errors(), _saving:
            save = _orbax().args.PyTreeSave({item: part for item, part in tree.items() if part})
            self._writer.save(path, save, custom_metadata=_sealed(sums))

    def wait(self) -> None:
        """Wait until all is committed."""
        with self._errors():
            self._writer.wait_until_finished()

    def kept(self, made: int) -> str | None:
        """Say what is safe of the steps before that one; None if the error says so itself."""
        if self._failed:
            return None
        try:
            self.wait()
        except OSError as error:
            return str(error)
        return f"the steps before step {made} are committed in {self.path}."

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say which chunk could not be written, and what is safe."""
        try:
            yield
        except Exception as error:
            self._failed = True
            lost = self.chunks.pop()
            reason = _reason(error)
            kept = f"the steps before {self.chunks[-1].stop} are" if self.chunks else "nothing is"
            raise OSError(
                f"the chunk {lost.path} could not be written ({reason}), and "
                f"{kept} committed: make room, and call fit again to go on."
            ) from error

    def _drop_last(self) -> None:
        """Take the last chunk away, to make it again with more steps."""
        with raise_in_all_processes():
            if jax.process_index() == 0:
                path = self.chunks[-1].path
                shutil.rmtree(path.rename(f"{path}.orbax-checkpoint-tmp-dropped"))
        self.chunks.pop()

    def _last(self, state: Any, rule: Any) -> tuple[Any, Any]:
        """Return the State and the rule's memory after the last chunk.

        What is not a JAX array in the given State, which is of the same kind, is taken from there,
        as is the given memory if another rule, or none, was watching.
        """
        like = _tree.without_keys(state)
        arrays = _read(self.chunks[-1], "state", _spec.stored(like), place=True)
        state = _tree.with_keys(_spec.filled(like, arrays))
        given, structure = jax.tree.flatten(rule)
        kept = _sums(self.chunks[-1])
        if sum(name.startswith("rule/") for name in kept) == len(given):
            with contextlib.suppress(ValueError):
                read = _read(self.chunks[-1], "rule", given, place=True)
                rule = jax.tree.unflatten(structure, read)
        return state, rule

    def run(self, state: Any, stop_reason: str | None) -> Run:
        """Return the run so far, of whose rows nothing is in memory.

        Args:
          state: the State after it.
          stop_reason: why it ended early, if it did.
        """
        self.wait()
        with raise_in_all_processes():
            if jax.process_index() == 0:
                _write_json(
                    self.path / "end.json",
                    {"step": self.chunks[-1].stop, "stop_reason": stop_reason},
                )
        like = _tree.without_keys(state)
        return _run(self.path, self._about, self.chunks, state, like, self._row)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


def identity(state: Any, row: Any, batch: Any, record_every: int, traced: Any) -> dict[str, Any]:
    """Return what makes a run another; what a directory is compared by.

    Args:
      state: the State it starts from.
      row: a tree like one row, without keys.
      batch: the first.
      record_every: of `fit`.
      traced: its step, as ``jax.jit(…).trace`` gives it.
    """
    state, batch = _tree.without_keys(state), _tree.without_keys(batch)
    # Functions print with the addresses where they happen to be.
    program = re.sub("0x[0-9a-f]+", "", str(traced.jaxpr))
    constants = _spec.describe(_tree.without_keys(list(_constants(traced.jaxpr, set()))))
    return {
        "format": 1,
        "jax": jax.__version__,
        "first": int(state.step),
        "record_every": record_every,
        "state": _spec.encode(state),
        "row": _spec.encode(row),
        "leaves": {
            "params": _spec.describe(state.params),
            "the optimizer's state": _spec.describe(state.opt_state),
            "a row": _spec.describe(row),
            "the first batch": _spec.describe(batch),
        },
        # In their order; how often one is there depends on what JAX had traced before.
        "program": [zlib.crc32(program.encode()), *dict.fromkeys(map(tuple, constants.values()))],
    }


def _constants(program: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the arrays that a program has closed over, and those of the programs in it."""
    if id(program) in seen:
        return
    seen.add(id(program))
    for leaf in getattr(program, "consts", ()):
        yield leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    for equation in getattr(program, "jaxpr", program).eqns:
        for inner in jax.tree.leaves(equation.params):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                yield from _constants(inner, seen)


def _begin(path: pathlib.Path, about: Any) -> None:
    """Make the directory that of a run, unless it is, and remove what was not committed.

    What others have put there stays.
    """
    names = [entry.name for entry in path.iterdir()]
    if "run.json" in names:
        compared = functools.partial(_difference, given=json.loads(json.dumps(about)))
        if found := _read_json(path / "run.json", compared):
            raise ValueError(
                f"{path} holds another run ({found}): give another directory, or go on from where "
                f"that run stands with fit(loss, jaxfit.load({str(path)!r}).state, …) in another."
            )
    elif "end.json" in names or any(map(_CHUNK.fullmatch, names)):
        raise ValueError(
            f"{path} holds an end.json or chunks, but no run.json that says of which run they are: "
            f"put back a copy of it, or give another directory."
        )
    else:
        _write_json(path / "run.json", about)
    for name in filter(_UNFINISHED.fullmatch, names):
        shutil.rmtree(path / name)


def _decoded(about: Any) -> tuple[Any, Any, Any]:
    """Check what run.json says; return it with trees like the State and like a row."""
    if about["format"] != 1:
        raise ValueError(f"its format is {about['format']}")
    for name, least in ("first", 0), ("record_every", 1):
        if type(about[name]) is not int or not least <= about[name] < 2**31:
            raise ValueError(f"{name} is {about[name]}")
    state, row = _spec.decode(about["state"]), _spec.decode(about["row"])
    if not isinstance(state, State) or state.step != jax.ShapeDtypeStruct((), np.int32):
        raise ValueError("its state has no step")
    return about, state, row


def _difference(kept: Any, given: Any) -> str | None:
    """Say how a run differs from the one that is kept, in a few words."""
    for name, leaves in given["leaves"].items():
        there = kept["leaves"][name]
        if extra := [key for key in there if key not in leaves]:
            return f"{name} has the leaf {extra[0] or 'itself'} there, and not here"
        for key, (text, value) in leaves.items():
            if key not in there:
                return f"{name} has the leaf {key or 'itself'} here, and not there"
            if there[key][0] != text:
                return f"{name}{key} is {there[key][0]} there and {text} here"
            if None not in (value, there[key][1]) and value != there[key][1]:
                other = {"the first batch": ": other data, or another seed"}.get(name, "")
                return f"{name}{key} has other values{other}"
    for name in "first", "record_every":
        if kept[name] != given[name]:
            shown = {"first": "the first step"}.get(name, name)
            return f"{shown} is {kept[name]} there and {given[name]} here"
    # Another JAX can write the same program in another way.
    if kept["jax"] == given["jax"] and kept["program"] != given["program"]:
        return "the same shapes, but the loss, optimizer, data or record computes differently"
    return None


def _run(
    path: pathlib.Path, about: Any, chunks: list[Chunk], end: Any, state: Any, row: Any
) -> Run:
    """Join chunks to a run; ``state`` and ``row`` are trees without keys, to be filled."""
    first, every = about["first"], about["record_every"]
    with_rows = [chunk for chunk in chunks if chunk.stop > chunk.start]
    ends = [-((first - chunk.stop) // every) for chunk in with_rows]

    def parts(tree, item, chunks, ends):
        """Put Rows in the place of arrays; those of keys give keys."""
        numbers = itertools.count()

        def rows(leaf, kind=None):
            like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            number = next(numbers)
            counts = np.diff(ends, prepend=0).tolist()
            readers = [
                functools.partial(_read_one, chunk, item, number, like, count)
                for chunk, count in zip(chunks, counts, strict=True)
            ]
            return Rows(readers, ends, like, kind)

        def fill(leaf):
            if isinstance(leaf, _tree.Keys):
                return rows(leaf.data, leaf.kind)
            return rows(leaf) if _spec.is_stored(leaf) else leaf

        return jax.tree.map(fill, tree, is_leaf=lambda node: isinstance(node, _tree.Keys))

    frames = parts(state, "state", chunks, range(1, len(chunks) + 1))
    steps = np.array([chunk.stop for chunk in chunks], np.int32)
    frames = State(cast(Any, steps), frames.params, frames.opt_state)
    number = ends[-1] if ends else 0
    every_row = jnp.asarray(first + every * np.arange(number, dtype=np.int32))
    stop_reason = None
    if (path / "end.json").exists():
        step, said = _read_json(path / "end.json", _ending)
        stop_reason = said if step == chunks[-1].stop else None
    return Run(every_row, parts(row, "rows", with_rows, ends), frames, end, None, stop_reason)


def _ending(end: Any) -> tuple[Any, str | None]:
    """Check what end.json says: the step at which a run ended, and why."""
    if not isinstance(end["stop_reason"], str | None):
        raise ValueError(f"stop_reason is {end['stop_reason']}")
    return end["step"], end["stop_reason"]


def _committed(path: pathlib.Path, first: int) -> list[Chunk]:
    """List the chunks in a directory, one after the other."""
    names = sorted(entry.name for entry in path.iterdir() if _CHUNK.fullmatch(entry.name))
    chunks = [Chunk(path / name, *map(int, name.split("-"))) for name in names]
    expected = first
    for chunk in chunks:
        if not expected == chunk.start <= chunk.stop:
            raise ValueError(
                f"{path} has the steps up to {expected}, and then {chunk.path.name}: put back what "
                f"is missing, or remove that folder and all after it, and the run ends there."
            )
        expected = chunk.stop
    return chunks


def _read_one(chunk: Chunk, item: str, number: int, row: Any, count: int) -> np.ndarray:
    """Read one array of a chunk: of its rows, or of its state as a row."""
    if item == "state":
        return _read(chunk, item, {number: row})[0][None]
    like = jax.ShapeDtypeStruct((count, *row.shape), row.dtype)
    return _read(chunk, item, {number: like})[0]


def _read(chunk: Chunk, item: str, like: Any, place: bool = False) -> list[Any]:
    """Read arrays of a chunk and check them: those of a dict of numbers, or all of a list.

    With ``place`` they become JAX's, wherever those that they are like are.
    """
    likes = like if isinstance(like, dict) else dict(enumerate(like))
    wanted = {str(n): leaf for n, leaf in likes.items() if leaf.size}
    try:
        sums = _sums(chunk)
        orbax, read = _orbax(), {}
        for n, leaf in wanted.items():
            # One by one: where one of several is damaged, the others' threads print their errors.
            how = orbax.RestoreArgs(restore_type=np.ndarray)
            if place and isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                how = orbax.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
            asked = orbax.args.PyTreeRestore(
                {item: {n: 0}}, restore_args={item: {n: how}}, partial_restore=True
            )
            tree = orbax.PyTreeCheckpointHandler().restore(chunk.path, args=asked)
            read[n] = tree[item][n]
            if (read[n].shape, read[n].dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(f"{item} {n} is {_check.shapes(read[n])}")
            known = sums.get(f"{item}/{n}")
            if known is not None and _spec.checksum(np.asarray(read[n])) != known:
                raise ValueError(f"the checksum of {item} {n} differs")
            if (item, n) == ("state", "0") and np.asarray(read[n]) != chunk.stop:
                raise ValueError(f"it has the state after step {read[n]}")
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"the chunk {chunk.path} is damaged ({_reason(error)}): put back a copy, or "
            f"remove it and all after it, and the run ends at step {chunk.start}."
        ) from error
    empty = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    arrays = [read[str(n)] if leaf.size else empty(leaf) for n, leaf in likes.items()]
    if not place:
        return arrays
    return [_placed(one, leaf) for one, leaf in zip(arrays, likes.values(), strict=True)]


def _placed(array: Any, like: Any) -> Any:
    """Put an array where another is; what is not JAX's is constant, and stays the other."""
    if not isinstance(like, jax.Array):
        return like
    if isinstance(array, jax.Array) or not like.committed:
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)


def _reason(error: Exception) -> str:
    """Take the first line of an error, without TensorStore's specifications; or the end of it."""
    lines = [] if isinstance(error, KeyError) else str(error).splitlines()
    text = next(filter(None, lines), repr(error))
    text = text.partition(" [tensorstore_spec")[0].rstrip(".")
    return text if len(text) < 200 else f"…{text[-200:]}"


def _sums(chunk: Chunk) -> dict[str, int]:
    """Read the checksums of a chunk's arrays."""
    text = (chunk.path / "_CHECKPOINT_METADATA").read_text()
    return _unsealed(json.loads(text)["custom_metadata"])


def _sealed(value: Any) -> dict[str, Any]:
    """Give JSON a checksum."""
    return {"crc32": zlib.crc32(json.dumps(value, sort_keys=True).encode()), "value": value}


def _unsealed(sealed: Any) -> Any:
    if _sealed(sealed["value"]) != sealed:
        raise ValueError("its checksum differs")
    return sealed["value"]


def _write_json(path: pathlib.Path, value: Any) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(_sealed(value), indent=1))
    beside.replace(path)


def _read_json(path: pathlib.Path, decode: Callable[[Any], Any]) -> Any:
    """Read a file and decode it; whatever goes wrong with that is the file's fault."""
    text = path.read_bytes()
    try:
        return decode(_unsealed(json.loads(text)))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({_reason(error)}): put back a copy.") from error


def _locked(path: pathlib.Path) -> Any:
    """Keep others out of a directory while the file that is returned is open."""
    import fcntl  # of systems that orbax runs on

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a")
    except OSError as error:
        raise type(error)(
            f"{path} cannot be written ({error.strerror}): give another checkpoint_dir; what is "
            f"there is read with jaxfit.load."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise RuntimeError(
            f"{path} is being written by another fit: wait for it, or give another directory."
        ) from None
    return lock


@contextlib.contextmanager
def raise_in_all_processes() -> Iterator[None]:
    """Let all of several processes fail in what one of them fails in."""
    error: BaseException | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.int32(error is not None))
        if error is None and np.any(failed):
            error = RuntimeError("another process could not use checkpoint_dir, and says why.")
    if error is not None:
        raise error


def _orbax() -> Any:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            'checkpoints need orbax-checkpoint: pip install "jaxfit-train[checkpoint]".'
        ) from error
    return orbax
