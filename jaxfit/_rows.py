"""Arrays whose rows stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Rows(np.lib.mixins.NDArrayOperatorsMixin):
    """The rows of one recorded array ``[rows, …]``, read from disk when they are asked for.

    What it is indexed by, the row first, decides which chunks are read; the result is a NumPy array
    (of PRNG keys, one of JAX's). ``np.asarray``, ``jnp.asarray`` and arithmetic read all rows.
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
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows of {self.dtype}{list(self.shape)}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        whole = [np.asarray(one) if isinstance(one, Rows) else one for one in inputs]
        return getattr(ufunc, method)(*whole, **keywords)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, jax.core.Tracer):
            raise TypeError(
                "rows on disk were indexed by a traced number: read them with np.asarray before, "
                "or index them outside of jax.jit."
            )
        first, *rest = index if isinstance(index, tuple) else (index,)
        rows = np.arange(len(self))
        if isinstance(first, slice):
            return self._read(rows[first])[(slice(None), *rest)]
        if np.ndim(first) == 0 and hasattr(first, "__index__") and not isinstance(first, bool):
            return self._read(rows[[first.__index__()]])[(0, *rest)]
        if np.ndim(first) == 1 and not rest:
            return self._read(rows[np.asarray(first)])
        return self[:][index]  # whatever else NumPy has

    def _read(self, rows: np.ndarray) -> Any:
        out = np.empty((len(rows), *self._row.shape), self._row.dtype)
        within = np.searchsorted(self._ends, rows, side="right")
        for part in np.unique(within).tolist():
            if self._last[0] != part:
                self._last = part, self._parts[part]()
            begin = self._ends[part - 1] if part else 0
            out[within == part] = self._last[1][rows[within == part] - begin]
        return (
            out
            if self._kind is None
            else jax.random.wrap_key_data(jnp.asarray(out), impl=self._kind)
        )
