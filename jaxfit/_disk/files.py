"""Files whose damage is detected: JSON sealed with a checksum, and the arrays of chunks."""

from __future__ import annotations

import contextlib
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._disk import spec
from jaxfit._types import PyTree


class StoredChunk(NamedTuple):
    """A chunk on disk."""

    path: pathlib.Path  # its folder
    start: int  # its first step
    stop: int  # the step after its last


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def is_here(array: Any) -> bool:
    """Return whether this process holds all of an array."""
    return (
        not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated
    )


def first_line(error: Exception) -> str:
    """Return an error's first line, or the end of a long one, without TensorStore's details."""
    lines = [] if isinstance(error, KeyError) else str(error).splitlines()
    text = next(filter(None, lines), repr(error))
    text = text.partition(" [tensorstore_spec")[0].rstrip(".")
    return text if len(text) < 200 else f"…{text[-200:]}"


def import_orbax() -> Any:
    """Return the module ``orbax.checkpoint``; it is optional, and slow to import."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            'checkpoints need orbax-checkpoint: pip install "jaxfit-train[checkpoint]".'
        ) from error
    return orbax


# JSON


def _seal(value: Any) -> dict[str, Any]:
    """Put a checksum beside a JSON value."""
    return {"crc32": zlib.crc32(json.dumps(value, sort_keys=True).encode()), "value": value}


def _unseal(sealed: Any) -> Any:
    if _seal(sealed["value"]) != sealed:
        raise ValueError("its checksum differs")
    return sealed["value"]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a sealed file, whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(_seal(value), indent=1))
    beside.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """Return the value in a sealed file.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged.
    """
    text = path.read_bytes()
    with raise_as_damage(path):
        return _unseal(json.loads(text))


@contextlib.contextmanager
def raise_as_damage(path: pathlib.Path) -> Iterator[None]:
    """Raise any error in here as one about a damaged file, whose content is being read."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): put back a copy.") from error


# Arrays


def lay_out(items: dict[str, list[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of a chunk as Orbax saves them, and their sealed checksums.

    Args:
      items: for each of ``"state"``, ``"rule"``, ``"rows"`` and ``"evaluation"``, a list of
        arrays. Empty arrays are left out, because TensorStore cannot store them.
    """
    tree: dict[str, Any] = {}
    sums = {}
    for item, arrays in items.items():
        for number, array in enumerate(arrays):
            if not array.size:
                continue
            if is_here(array):  # this process has only a part of any other
                array = np.asarray(array)
                sums[f"{item}/{number}"] = checksum(array)
            tree.setdefault(item, {})[str(number)] = array
    return tree, _seal(sums)


def read_array(
    chunk: StoredChunk, item: str, number: int, like: jax.ShapeDtypeStruct
) -> np.ndarray:
    """Read one array of a chunk, and check it.

    Args:
      chunk: where it is.
      item: ``"rows"``, ``"state"`` or ``"evaluation"``.
      number: its place among the arrays of the item.
      like: its shape and dtype.

    Raises:
      ImportError: without orbax.
      ValueError: if it is damaged; the message says how to go on without the chunk.
    """
    with _raise_as_damaged_chunk(chunk):
        array: np.ndarray = _read(chunk, _read_checksums(chunk), item, number, like)
        return array


def restore_tree(chunk: StoredChunk, item: str, like: PyTree) -> PyTree:
    """Read a tree of a chunk, and check all its arrays.

    Args:
      chunk: where it is.
      item: ``"state"`` or ``"rule"``.
      like: a tree like it, without keys. Where it has a JAX array, the array read is put on the
        same devices, and where it has a ShapeDtypeStruct, on the default device. NumPy arrays are
        the same in all steps, so the given ones are kept, as are leaves that are not arrays.

    Returns:
      The tree, with keys.

    Raises:
      ImportError, ValueError: as `read_array` does.
    """
    likes = spec.stored(like)
    with _raise_as_damaged_chunk(chunk):
        sums = _read_checksums(chunk)
        # One at a time: if one of several is damaged, the threads of the others print errors.
        arrays = [_read(chunk, sums, item, n, leaf) for n, leaf in enumerate(likes)]
    return _tree.with_keys(spec.fill(like, map(_place, arrays, likes)))


def _read(chunk: StoredChunk, sums: dict[str, int], item: str, number: int, like: Any) -> Any:
    """Read an array as NumPy's, or with its sharding if processes share it, and check it."""
    if not like.size:
        return np.zeros(like.shape, like.dtype)
    orbax, name = import_orbax(), str(number)
    how = orbax.RestoreArgs(restore_type=np.ndarray)
    if isinstance(like, jax.Array) and not like.is_fully_addressable:
        how = orbax.ArrayRestoreArgs(sharding=like.sharding, global_shape=like.shape)
    asked = orbax.args.PyTreeRestore(
        {item: {name: 0}}, restore_args={item: {name: how}}, partial_restore=True
    )
    array = orbax.PyTreeCheckpointHandler().restore(chunk.path, args=asked)[item][name]
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{item} {number} is {_check.shapes(array)}")
    known = sums.get(f"{item}/{number}")
    if known is not None and checksum(np.asarray(array)) != known:
        raise ValueError(f"the checksum of {item} {number} differs")
    if (item, number) == ("state", 0) and np.asarray(array) != chunk.stop:
        raise ValueError(f"it has the state after step {array}")
    return array


def _place(array: Any, like: Any) -> Any:
    """Put an array where another is; see `restore_tree`."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return jnp.asarray(array)
    if not isinstance(like, jax.Array):
        return like
    if isinstance(array, jax.Array) or not like.committed:
        return jnp.asarray(array)
    return jax.device_put(array, like.sharding)


def count_arrays(chunk: StoredChunk, item: str) -> int:
    """Return how many arrays a chunk has of an item, not counting empty ones."""
    with _raise_as_damaged_chunk(chunk):
        return sum(name.startswith(f"{item}/") for name in _read_checksums(chunk))


def _read_checksums(chunk: StoredChunk) -> dict[str, int]:
    text = (chunk.path / "_CHECKPOINT_METADATA").read_text()
    sums: dict[str, int] = _unseal(json.loads(text)["custom_metadata"])
    return sums


@contextlib.contextmanager
def _raise_as_damaged_chunk(chunk: StoredChunk) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"the chunk {chunk.path} is damaged ({first_line(error)}): put back a copy, or "
            f"remove it and all after it, and the run ends at step {chunk.start}."
        ) from error
