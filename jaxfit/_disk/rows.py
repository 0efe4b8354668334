"""Arrays whose rows stay on disk until they are indexed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Attributes of np.ndarray that concern its memory, or write to it; `DiskRows` has all others.
_IN_MEMORY = {"base", "byteswap", "ctypes", "data", "device", "fill", "flags", "flat", "partition"}
_IN_MEMORY |= {"put", "resize", "setfield", "setflags", "sort", "strides", "to_device", "view"}


class DiskRows(np.lib.mixins.NDArrayOperatorsMixin):
    """The rows of one recorded array ``[rows, …]``, read from disk when they are indexed.

    The first index, that of the row, decides which chunks are read; the result is a NumPy array, or
    an array of JAX's for PRNG keys. Arithmetic, the methods of arrays, NumPy's functions,
    ``np.asarray`` and ``jnp.asarray`` read all rows. JAX's transformations and most of its
    functions accept only JAX's and NumPy's arrays: give them what ``np.asarray`` returns.
    """

    def __init__(
        self,
        parts: Sequence[Callable[[], np.ndarray]],
        ends: Sequence[int],
        row: jax.ShapeDtypeStruct,
        key_kind: Any = None,
    ) -> None:
        """Join the arrays that some functions read.

        Args:
          parts: functions that each read the rows of one chunk, an array ``[rows, …]``.
          ends: for every part, the row after its last.
          row: the shape and dtype of one row as it is stored.
          key_kind: if the rows are PRNG keys, their implementation (``jax.random.key_impl``).
        """
        self._parts, self._ends, self._row, self._kind = parts, np.asarray(ends), row, key_kind
        self._last = -1, np.empty(0)  # the part that was read last: its number and its rows

    @property
    def shape(self) -> tuple[int, ...]:
        row = self._row.shape if self._kind is None else self._row.shape[:-1]
        return (int(self._ends[-1]) if len(self._ends) else 0, *row)

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
        return int(self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        # JAX quotes this when it refuses the object as an argument, so it says what to do.
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
        if method == "at" or any(isinstance(one, DiskRows) for one in keywords.get("out", ())):
            raise TypeError(
                f"np.{ufunc.__name__} was to write to rows on disk, which are only read: "
                f"give it np.asarray of them."
            )
        whole = [np.asarray(one) if isinstance(one, DiskRows) else one for one in inputs]
        return getattr(ufunc, method)(*whole, **keywords)

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index or (...,)) if isinstance(index, tuple) else (index,)
        if isinstance(first, jax.core.Tracer):
            raise TypeError(
                "rows on disk were indexed by a traced number: read them with np.asarray first, "
                "or index them outside jax.jit."
            )
        if isinstance(first, slice):
            return self._read(np.arange(*first.indices(len(self))))[(slice(None), *rest)]
        if np.ndim(first) == 0 and np.asarray(first).dtype.kind in "iu":
            number = int(first)
            if not -len(self) <= number < len(self):
                raise IndexError(f"index {number} is out of bounds for {len(self)} rows")
            return self._read(np.array([number % len(self)]))[(0, *rest)]
        if np.ndim(first) == 1 and not rest:
            # An empty list selects nothing, but the array that NumPy makes of it has floats.
            chosen = first if isinstance(first, list) else np.asarray(first)
            return self._read(np.arange(len(self))[chosen])
        return self[:][index]  # all other ways to index that NumPy has

    def _read(self, rows: np.ndarray) -> Any:
        """Read some rows: NumPy's array ``[rows, …]``, or JAX's of keys."""
        within = np.searchsorted(self._ends, rows, side="right")
        needed = np.unique(within).tolist()
        if needed:  # checks the shape of the rows on disk before memory for all is allocated
            self._read_part(needed[0])
        out = np.empty((len(rows), *self._row.shape), self._row.dtype)
        for part in needed:
            begin = self._ends[part - 1] if part else 0
            out[within == part] = self._read_part(part)[rows[within == part] - begin]
        if self._kind is None:
            return out
        return jax.random.wrap_key_data(jnp.asarray(out), impl=self._kind)

    def _read_part(self, number: int) -> np.ndarray:
        last, array = self._last  # as locals: another thread can read another part meanwhile
        if last != number:
            array = self._parts[number]()
            self._last = number, array
        return array


# Rows cannot be written to, so `rows += 1` computes a new array, as `rows = rows + 1` does.
for _name in dir(DiskRows):
    if _name.startswith("__i") and hasattr(DiskRows, f"__{_name[3:]}"):  # __iadd__ and __add__, …
        setattr(DiskRows, _name, getattr(DiskRows, f"__{_name[3:]}"))
