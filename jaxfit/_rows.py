"""Arrays whose rows stay on disk until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What of an array is about its memory, or writes to it; all else rows have, too.
_IN_MEMORY = {"base", "byteswap", "ctypes", "data", "device", "fill", "flags", "flat", "partition"}
_IN_MEMORY |= {"put", "resize", "setfield", "setflags", "sort", "strides", "to_device", "view"}


class Rows(np.lib.mixins.NDArrayOperatorsMixin):
    """The rows of one recorded array ``[rows, …]``, read from disk when they are asked for.

    What it is indexed by, the row first, decides which chunks are read; the result is a NumPy array
    (of PRNG keys, one of JAX's). Arithmetic, the methods of arrays, NumPy's functions,
    ``np.asarray`` and ``jnp.asarray`` read all rows. JAX's transformations and most of its
    functions take no arrays but its own and NumPy's: give them what ``np.asarray`` reads.
    """

    def __init__(
        self,
        parts: Sequence[Callable[[], np.ndarray]],
        ends: Sequence[int],
        row: jax.ShapeDtypeStruct,
        key_kind: Any = None,
    ):
        """Join what functions read; ``ends`` is the row after each of them."""
        self._parts, self._ends, self._row, self._kind = parts, np.asarray(ends), row, key_kind
        self._last: tuple[int, Any] = -1, None  # the part that was read last

    @property
    def shape(self) -> tuple[int, ...]:
        one = self._row.shape if self._kind is None else self._row.shape[:-1]
        return (int(self._ends[-1]) if len(self._ends) else 0, *one)

    @property
    def dtype(self) -> Any:
        if self._kind is None:
            return self._row.dtype
        return jax.random.key(0, impl=self._kind).dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        # JAX puts this in its sentence on arguments that are none.
        return f"Rows of {self.dtype}{list(self.shape)} on disk (read by np.asarray)"

    def __contains__(self, value: Any) -> bool:
        return value in self[:]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _IN_MEMORY or not hasattr(np.ndarray, name):
            raise AttributeError(f"rows on disk have no attribute {name!r}: np.asarray reads them.")
        return getattr(self[:], name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows on disk are read into a new array: leave copy=False out.")
        return np.asarray(self[:], dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method == "at" or any(isinstance(one, Rows) for one in keywords.get("out", ())):
            raise TypeError(
                f"np.{ufunc.__name__} was to write to rows on disk, which are only read: "
                f"give it np.asarray of them."
            )
        whole = [np.asarray(one) if isinstance(one, Rows) else one for one in inputs]
        return getattr(ufunc, method)(*whole, **keywords)

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index or (...,)) if isinstance(index, tuple) else (index,)
        if isinstance(first, jax.core.Tracer):
            raise TypeError(
                "rows on disk were indexed by a traced number: read them with np.asarray before, "
                "or index them outside of jax.jit."
            )
        if isinstance(first, slice):
            return self._read(np.arange(*first.indices(len(self))))[(slice(None), *rest)]
        if np.ndim(first) == 0 and np.asarray(first).dtype.kind in "iu":
            number = int(first)
            if not -len(self) <= number < len(self):
                raise IndexError(f"index {number} is out of bounds for {len(self)} rows")
            return self._read(np.array([number % len(self)]))[(0, *rest)]
        if np.ndim(first) == 1 and not rest:
            chosen = first if isinstance(first, list) else np.asarray(first)  # NumPy knows of []
            return self._read(np.arange(len(self))[chosen])
        return self[:][index]  # whatever else NumPy has

    def _read(self, rows: np.ndarray) -> Any:
        within = np.searchsorted(self._ends, rows, side="right")
        needed = np.unique(within).tolist()
        for part in needed[:1]:
            self._part(part)  # and see that rows are of this shape before there is room for all
        out = np.empty((len(rows), *self._row.shape), self._row.dtype)
        for part in needed:
            begin = self._ends[part - 1] if part else 0
            out[within == part] = self._part(part)[rows[within == part] - begin]
        return (
            out
            if self._kind is None
            else jax.random.wrap_key_data(jnp.asarray(out), impl=self._kind)
        )

    def _part(self, number: int) -> np.ndarray:
        last = self._last  # other threads can read another meanwhile
        if last[0] != number:
            last = self._last = number, self._parts[number]()
        return last[1]


for _name in dir(Rows):
    if _name.startswith("__i") and hasattr(Rows, f"__{_name[3:]}"):  # __iadd__, … after __add__, …
        setattr(Rows, _name, getattr(Rows, f"__{_name[3:]}"))  # for rows are not written to
