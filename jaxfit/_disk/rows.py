"""Arrays that stay on disk until they are indexed."""

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


class DiskArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array to NumPy, of which no more is read than is asked for: `DiskRows` or `DiskValues`.

    Arithmetic, the methods of arrays, NumPy's functions, ``np.asarray`` and ``jnp.asarray`` read
    all of it. JAX's transformations and most of its functions accept only JAX's and NumPy's arrays:
    give them what ``np.asarray`` returns.
    """

    _row: jax.ShapeDtypeStruct  # of what is stored: one row, or all
    _kind: Any  # the implementation of PRNG keys; None for numbers

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

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
        kind = type(self).__name__.removeprefix("Disk")
        return f"{kind} of {self.dtype}{list(self.shape)} on disk (read by np.asarray)"

    def __contains__(self, value: Any) -> bool:
        return value in self[...]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _IN_MEMORY or not hasattr(np.ndarray, name):
            raise AttributeError(f"arrays on disk have no {name!r}: np.asarray reads them.")
        return getattr(self[...], name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("what is on disk is read into a new array: leave copy=False out.")
        return np.asarray(self[...], dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method == "at" or any(isinstance(one, DiskArray) for one in keywords.get("out", ())):
            raise TypeError(
                f"np.{ufunc.__name__} was to write to an array on disk, which is only read: "
                f"give it np.asarray of it."
            )
        whole = [np.asarray(one) if isinstance(one, DiskArray) else one for one in inputs]
        return getattr(ufunc, method)(*whole, **keywords)


class DiskRows(DiskArray):
    """The rows of one recorded array ``[rows, …]``, read from disk when they are indexed.

    The first index, that of the row, decides which chunks are read; the result is a NumPy array, or
    an array of JAX's for PRNG keys.
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

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index or (...,)) if isinstance(index, tuple) else (index,)
        _refuse_traced(first)
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


class DiskValues(DiskArray):
    """An array ``[*axes, …]`` of a sweep, read from disk when it is indexed.

    The smallest box that holds what is asked for is read; the result is a NumPy array, or an array
    of JAX's for PRNG keys.
    """

    def __init__(
        self,
        read: Callable[[tuple[slice, ...]], np.ndarray],
        stored: jax.ShapeDtypeStruct,
        key_kind: Any = None,
    ) -> None:
        """Wrap what a function reads.

        Args:
          read: a function that reads a box, given by slices of its leading axes.
          stored: the shape and dtype of the whole array.
          key_kind: as in `DiskRows`.
        """
        self._read, self._row, self._kind = read, stored, key_kind

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._row.shape
        return shape if self._kind is None else shape[:-1]

    def as_keys(self, kind: Any) -> DiskValues:
        """Return the PRNG keys whose numbers these are."""
        return DiskValues(self._read, self._row, kind)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        for part in parts:
            _refuse_traced(part)
        box, within = _box(parts, self.shape)
        array = self._read(box)
        if self._kind is not None:
            keys = jax.random.wrap_key_data(jnp.asarray(array), impl=self._kind)
            return keys[within]
        return array[within]


def _refuse_traced(index: Any) -> None:
    if isinstance(index, jax.core.Tracer):
        raise TypeError(
            "an array on disk was indexed by a traced number: read it with np.asarray first, or "
            "index it outside jax.jit."
        )


def _box(
    index: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Return the smallest box that holds what an index selects, and the index within it."""
    whole = tuple(slice(0, length) for length in shape)
    dots = [i for i, part in enumerate(index) if part is Ellipsis]
    if len(dots) == 1:
        at, missing = dots[0], len(shape) - len(index) + 1
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    simple = all(isinstance(part, slice) or _is_whole(part) for part in index)
    if not simple or len(index) > len(shape):
        return whole, index  # NumPy's other ways, or its error
    box, within = list(whole), list[Any](index)
    for axis, (part, length) in enumerate(zip(index, shape, strict=False)):
        if not isinstance(part, slice):
            number = int(part)
            if not -length <= number < length:
                raise IndexError(f"index {number} is out of bounds for {length} items")
            box[axis], within[axis] = slice(number % length, number % length + 1), 0
        elif chosen := range(*part.indices(length)):
            box[axis] = slice(min(chosen), max(chosen) + 1)
            within[axis] = slice(None, None, chosen.step)
        else:
            box[axis], within[axis] = slice(0, 0), slice(None)
    return tuple(box), tuple(within)


def _is_whole(part: Any) -> bool:
    return not isinstance(part, bool | np.bool_) and (
        isinstance(part, int | np.integer)
        or (isinstance(part, np.ndarray | jax.Array) and part.ndim == 0 and part.dtype.kind in "iu")
    )


# What is on disk cannot be written to: `rows += 1` computes an array, as `rows = rows + 1` does.
for _name in dir(DiskArray):
    if _name.startswith("__i") and hasattr(DiskArray, f"__{_name[3:]}"):  # __iadd__ and __add__, …
        setattr(DiskArray, _name, getattr(DiskArray, f"__{_name[3:]}"))
