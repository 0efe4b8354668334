"""Zarr stores (format 3): labelled arrays in chunks, each chunk a file with a checksum.

What the format means is written here; TensorStore reads and writes the chunks.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_NUMBERS = {"bool", "float16", "float32", "float64", "complex64", "complex128"}
_NUMBERS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class Variable(NamedTuple):
    """An array of a store."""

    name: str
    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    chunk: tuple[int, ...]


def import_tensorstore() -> Any:
    """Return the module ``tensorstore``; it is optional, and comes with Orbax."""
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError(
            'checkpoints need tensorstore: pip install "jaxfit-train[checkpoint]".'
        ) from error
    return tensorstore


def stored_dtype(dtype: Any) -> Any:
    """Return the dtype by which one is stored: itself, or a wider one that all programs know."""
    if np.dtype(dtype).name in _NUMBERS:
        return np.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32)  # bfloat16 and its like
    return np.dtype(np.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else np.uint8)


def write_group(path: pathlib.Path, variables: Sequence[Variable]) -> None:
    """Write what describes a store and its arrays, where it is not written yet."""
    arrays = {one.name: _array_metadata(one) for one in variables}
    for name, metadata in arrays.items():
        _write(path / name / "zarr.json", metadata)
    # All in one place, so that readers need not list files.
    inline = {"kind": "inline", "must_understand": False, "metadata": arrays}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    _write(path / "zarr.json", {**group, "consolidated_metadata": inline})


def _array_metadata(variable: Variable) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    dtype, fill = variable.dtype, _fill_value(variable.dtype)
    if variable.dtype is str:
        dtype, fill, codecs = "string", "", [{"name": "vlen-utf8"}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(variable.shape),
        "data_type": dtype if dtype == "string" else stored_dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(variable.chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": list(variable.dimensions),
        "attributes": {},
        "storage_transformers": [],
    }


def _fill_value(dtype: Any) -> Any:
    """Return what stands where nothing is written yet: NaN, or 0 or False if there is none."""
    if dtype is str:
        return ""
    kind = stored_dtype(dtype).kind
    return {"f": "NaN", "c": ["NaN", "NaN"], "b": False}.get(kind, 0)


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    if not path.is_file() or path.read_text() != text:
        write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)


def write_coordinate(path: pathlib.Path, name: str, values: np.ndarray) -> None:
    """Write a coordinate ``[items]`` of numbers or text, whose description is written already."""
    if values.dtype.kind == "U":
        texts = [text.encode() for text in values.tolist()]
        parts = [len(text).to_bytes(4, "little") + text for text in texts]
        content = len(texts).to_bytes(4, "little") + b"".join(parts)
        write_bytes(path / name / "c" / "0", content)
    else:
        open_array(path, name)[...] = values.astype(stored_dtype(values.dtype))


def open_array(path: pathlib.Path, name: str) -> Any:
    """Open an array of a store with TensorStore."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path / name)},
        "store_data_equal_to_fill_value": True,
    }
    return import_tensorstore().open(spec, open=True).result()


def chunk_path(path: pathlib.Path, variable: Variable, begin: Sequence[int]) -> pathlib.Path:
    """Return the file of the chunk that begins at an index of the leading axes."""
    places = [start // length for start, length in zip(begin, variable.chunk, strict=False)]
    places += [0] * (len(variable.chunk) - len(places))
    return path.joinpath(variable.name, "c", *map(str, places))


def nbytes(variables: Sequence[Variable]) -> int:
    """Return the bytes of the arrays of a store, whole chunks all."""
    total = 0
    for one in variables:
        if one.dtype is not str:
            chunks = [-(-n // k) for n, k in zip(one.shape, one.chunk, strict=True)]
            total += math.prod(chunks) * math.prod(one.chunk) * stored_dtype(one.dtype).itemsize
    return total
