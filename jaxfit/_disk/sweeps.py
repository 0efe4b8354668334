"""The directory that a sweep is written to: blocks of runs, each committed as a whole.

A directory holds ``sweep.json``, which says what the sweep is, and a Zarr store ``values.zarr``. A
block of runs is a chunk, a file, of each of its arrays. Each chunk ends in its checksum. The array
``done`` of the store says which runs are there: its chunk is written after all others of a block,
so that a process that is killed leaves whole blocks, and unfinished ones that do not count.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxfit._disk import files, zarr
from jaxfit._disk.blocks import Blocks
from jaxfit._disk.processes import lock, raise_in_all_processes
from jaxfit._disk.rows import DiskValues
from jaxfit._disk.sweep_manifest import SweepManifest, prepare
from jaxfit._disk.zarr import Variable

_PENDING = 2  # blocks that wait to be written


class SweepDirectory:
    """A directory open for writing; no other sweep can write to it until it is closed.

    Several processes share the blocks, and each writes its own.

    Attributes:
      missing: which blocks this process is to make, bool [variants, blocks].
    """

    def __init__(
        self,
        path: pathlib.Path,
        manifest: SweepManifest,
        blocks: Blocks,
        variables: Sequence[Variable],
        coordinates: dict[str, tuple[str, np.ndarray]],
        owners: Sequence[int],
    ) -> None:
        """Open the directory of a sweep, or make a new one.

        Args:
          path: where it is, from ``paths.checked_path``.
          manifest: what it must hold if it is not new, from ``sweep_manifest.fingerprint``.
          blocks: the blocks.
          variables: the arrays ``[*axes, …]`` that the runs return, and ``done`` as the last.
          coordinates: by the names of their variables, an axis and labels ``[items]`` on it.
          owners: the process of every device that computes.
        """
        zarr.import_tensorstore()
        self._store, self._blocks = path / "values.zarr", blocks
        *self._variables, self._done = variables
        self._lock: IO[str] | None = None
        self._bounds, self._buffers = blocks.bounds, dict[tuple[int, int], _Buffer]()
        variants = math.prod(
            n for n, one in zip(blocks.lengths, blocks.inside, strict=True) if not one
        )
        self.missing = np.ones((variants, len(self._bounds) - 1), bool)
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "jaxfit-sweep")
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        try:
            with raise_in_all_processes():
                if jax.process_index() == 0:
                    self._lock = lock(path, "sweep")
                    prepare(path, manifest)
                    self._write_descriptions(coordinates)
                    self._open_arrays()
                    self._find_missing()
                    self._check_room()
            if jax.process_count() > 1:
                self._open_arrays()
                self.missing = np.array(multihost_utils.broadcast_one_to_all(self.missing))
                self._take_share(sorted(owners))
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> SweepDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def wanted(self, batch_size: int) -> list[list[int]]:
        """Return which tiles are to be computed of every variant."""
        tiles = []
        for missing in self.missing:
            begin, end = self._bounds[:-1][missing], self._bounds[1:][missing]
            spans = zip(begin // batch_size, -(-end // batch_size), strict=True)
            tiles.append(sorted({tile for first, last in spans for tile in range(first, last)}))
        return tiles

    def add(self, variant: int, runs: range, arrays: Sequence[np.ndarray]) -> None:
        """Add the results of runs; write every block that is whole in the background.

        Raises:
          OSError: if a block before it could not be written.
        """
        first = int(np.searchsorted(self._bounds, runs.start, side="right")) - 1
        for block in range(first, len(self._bounds) - 1):
            begin, end = int(self._bounds[block]), int(self._bounds[block + 1])
            if begin >= runs.stop:
                break
            if not self.missing[variant, block]:
                continue
            buffer = self._buffers.get((variant, block)) or _Buffer.of(end - begin, arrays)
            self._buffers[variant, block] = buffer
            low, high = max(begin, runs.start), min(end, runs.stop)
            for whole, part in zip(buffer.arrays, arrays, strict=True):
                whole[low - begin : high - begin] = part[low - runs.start : high - runs.start]
            buffer.left -= high - low
            if not buffer.left:
                self._commit(self._buffers.pop((variant, block)).arrays, variant, begin)

    def finish(self) -> None:
        """Wait until all is committed, in all processes.

        Raises:
          OSError: if a block could not be written.
        """
        with raise_in_all_processes():
            while self._pending:
                self._wait()

    def values(self, like: Sequence[jax.ShapeDtypeStruct]) -> list[DiskValues]:
        """Return the arrays ``[*axes, …]``, which are read when they are indexed.

        Args:
          like: those of one run.
        """
        found = []
        for leaf, one in zip(like, self._variables, strict=True):
            whole = jax.ShapeDtypeStruct(one.shape, leaf.dtype)
            found.append(DiskValues(functools.partial(_read, self._store, one.name, whole), whole))
        return found

    def _write_descriptions(self, coordinates: dict[str, tuple[str, np.ndarray]]) -> None:
        """Write what the store consists of, where it is not written yet."""
        described = [
            Variable(name, (dimension,), labels.shape, _dtype(labels), labels.shape)
            for name, (dimension, labels) in coordinates.items()
        ]
        zarr.write_group(self._store, [*described, *filter(_size, self._variables), self._done])
        for name, (_, labels) in coordinates.items():
            if not (self._store / name / "c" / "0").is_file():
                zarr.write_coordinate(self._store, name, labels)

    def _open_arrays(self) -> None:
        stored = filter(_size, self._variables)
        self._arrays = {one.name: zarr.open_array(self._store, one.name) for one in stored}
        self._marks = zarr.open_array(self._store, self._done.name)

    def _take_share(self, owners: Sequence[int]) -> None:
        """Leave to other processes what their devices are to compute of what is missing."""
        places = np.flatnonzero(self.missing)
        owner = np.asarray(owners)[np.arange(len(places)) * len(owners) // max(1, len(places))]
        self.missing.flat[places[owner != jax.process_index()]] = False

    def _find_missing(self) -> None:
        """Find the blocks that are not committed: read all, and remove what is damaged."""
        arrays = [self._done, *filter(_size, self._variables)]
        for variant, block in np.ndindex(*self.missing.shape):
            box = self._blocks.box(variant, int(self._bounds[block]))
            begin = [part.start for part in box]
            chunks = [zarr.chunk_path(self._store, one, begin) for one in arrays]
            is_whole = all(chunk.is_file() for chunk in chunks) and self._is_whole(box)
            self.missing[variant, block] = not is_whole
            for chunk in [] if is_whole else chunks:  # the mark first
                chunk.unlink(missing_ok=True)

    def _is_whole(self, box: tuple[slice, ...]) -> bool:
        try:
            reads = [array[box].read() for array in self._arrays.values()]
            return bool(self._marks[box].read().result().all() and all(map(_finished, reads)))
        except Exception:  # whatever TensorStore says of chunks that are cut off or changed
            return False

    def _check_room(self) -> None:
        needed = zarr.nbytes(self._variables) * self.missing.mean()
        free = shutil.disk_usage(self._store).free
        if needed > free:
            raise ValueError(
                f"the result would take {needed / 1e9:,.1f} GB more, but the disk of {self._store} "
                f"has {free / 1e9:,.1f} GB free: make room, give another checkpoint_dir, or return "
                f"less."
            )

    def _commit(self, arrays: list[np.ndarray], variant: int, begin: int) -> None:
        """Write a block in the background, once there are not too many before it."""
        if len(self._pending) >= _PENDING:
            self._wait()
        box = self._blocks.box(variant, begin)
        self._pending.append(self._writer.submit(self._write, arrays, box))

    def _write(self, arrays: list[np.ndarray], box: tuple[slice, ...]) -> None:
        lengths = [part.stop - part.start for part in box]
        writes = []
        for one, array in zip(self._variables, arrays, strict=True):
            if _size(one):
                shaped = array.reshape(*lengths, *array.shape[1:])
                stored = shaped.astype(zarr.stored_dtype(one.dtype), copy=False)
                writes.append(self._arrays[one.name][box].write(stored))
        for write in writes:
            write.result()
        self._marks[box].write(True).result()

    def _wait(self) -> None:
        """Wait until the first of the blocks that are being written is committed."""
        try:
            self._pending.popleft().result()
        except Exception as error:
            raise OSError(
                f"results could not be written to {self._store} ({files.first_line(error)}); what "
                f"was written before is committed: make room, and call sweep again to go on."
            ) from error

    def _close(self) -> None:
        self._writer.shutdown()
        if self._lock is not None:
            self._lock.close()


@dataclasses.dataclass
class _Buffer:
    """The results of a block, as far as they are there."""

    arrays: list[np.ndarray]  # [runs, …]
    left: int  # how many runs are not

    @classmethod
    def of(cls, runs: int, arrays: Sequence[np.ndarray]) -> _Buffer:
        return cls([np.empty((runs, *one.shape[1:]), one.dtype) for one in arrays], runs)


def _read(
    store: pathlib.Path, name: str, whole: jax.ShapeDtypeStruct, box: tuple[slice, ...]
) -> np.ndarray:
    """Read a box of an array, given by slices of its leading axes."""
    if not math.prod(whole.shape):
        return np.empty(whole.shape, whole.dtype)[box]
    try:
        array: np.ndarray = zarr.open_array(store, name)[box].read().result()
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{store / name} is damaged ({files.first_line(error)}): call sweep again, which makes "
            f"again what is damaged."
        ) from error
    return array.astype(whole.dtype, copy=False)


def _size(variable: Variable) -> int:
    return math.prod(variable.shape)


def _dtype(labels: np.ndarray) -> Any:
    return str if labels.dtype.kind == "U" else labels.dtype


def _finished(read: Any) -> bool:
    """Wait for a read, which fails if the checksum differs."""
    read.result()
    return True
