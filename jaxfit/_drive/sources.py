"""Where a run's batches come from: arrays, a function of the step, or Python, read ahead."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _tree
from jaxfit._drive.pace import Pace
from jaxfit._jit import jit
from jaxfit._problem import as_data
from jaxfit._types import Batch, Data
from jaxfit.stream import HostBatches, is_stream, like_first, on_host


class Read(NamedTuple):
    """Data for some steps."""

    data: Data  # as `train` takes it
    number: int  # of steps
    is_over: bool = False  # whether there is no data for later steps
    error: Exception | None = None  # that ended it


class Source(Protocol):
    """Data for the steps of a run."""

    @property
    def batch_bytes(self) -> int:
        """Bytes that are read for a step."""

    def like(self, steps: int) -> Data:
        """Return data for some steps, as shapes where it is still to be read."""

    def first(self, step: jax.Array) -> Batch:
        """Return the first batch, or its shapes if it cannot be read again."""

    def read(self, start: int, remaining: int, pace: Pace) -> Read:
        """Return the data of the next steps, as many of the remaining as the pace says."""

    def warn_if_resumed(self, step: int) -> None:
        """Warn if a run resumed at a step sees other batches than it would have seen."""

    def close(self) -> None:
        """End what runs in the background."""


def open_source(data: Any) -> Source:
    """Return the source that serves some data."""
    return ReadAhead(data) if is_stream(data) else Given(as_data(data))


@dataclasses.dataclass(frozen=True)
class Given:
    """Data that JAX can use directly: arrays, or a function of the step."""

    data: Data
    batch_bytes: int = 0

    def like(self, steps: int) -> Data:
        return self.data

    def first(self, step: jax.Array) -> Batch:
        if not callable(self.data):
            return self.data
        return jit(lambda data, step: data(step))(self.data, step)

    def read(self, start: int, remaining: int, pace: Pace) -> Read:
        return Read(self.data, pace.steps(start, remaining))

    def warn_if_resumed(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """Batches that were read, as a function of the step."""

    start: Any
    batches: Any  # [steps, …], without keys

    def __call__(self, step: jax.Array) -> Batch:
        pick = lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.start, keepdims=False)
        return _tree.with_keys(jax.tree.map(pick, self.batches))


class ReadAhead:
    """Batches from Python, which a thread reads for a chunk while the last one is computed."""

    def __init__(self, data: HostBatches | Iterable[Any]):
        self._data = data
        if isinstance(data, HostBatches):
            self._like = self._first = data.like
        else:
            self._iterator = iter(data)
            self._like = self._pending = on_host(_first_of(self._iterator))
            shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            self._first = jax.tree.map(shape, self._like)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "jaxfit-stream")
        self._reading: concurrent.futures.Future[Read] | None = None

    @property
    def batch_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._like))

    def warn_if_resumed(self, step: int) -> None:
        if not isinstance(self._data, HostBatches):
            warnings.warn(
                f"data is an iterable, which has no batch for a given step: step {step} sees the "
                f"first batch that it gives; with jaxfit.host_batches, a run is resumed exactly.",
                stacklevel=3,
            )

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def like(self, steps: int) -> Data:
        shape = lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype)
        start = jax.ShapeDtypeStruct((), np.int32)
        return Stacked(start, jax.tree.map(shape, self._like))

    def first(self, step: jax.Array) -> Batch:
        return self._first

    def read(self, start: int, remaining: int, pace: Pace) -> Read:
        def submit(start: int, remaining: int) -> concurrent.futures.Future[Read]:
            return self._thread.submit(self._read, start, pace.steps(start, remaining), pace.room)

        read = (self._reading or submit(start, remaining)).result()
        start, remaining = start + read.number, remaining - read.number
        self._reading = submit(start, remaining) if remaining and not read.is_over else None
        return read

    def _read(self, start: int, number: int, room: int) -> Read:
        """Read batches into arrays [room, …]."""
        stacked = jax.tree.map(lambda leaf: np.zeros((room, *leaf.shape), leaf.dtype), self._like)
        error, made = None, 0
        try:
            while made < number:
                batch = self._next(start + made)
                for rows, leaf in zip(*map(jax.tree.leaves, (stacked, batch)), strict=True):
                    rows[made] = leaf
                made += 1
        except StopIteration:
            pass
        except Exception as raised:
            raised.add_note(f"fit: raised by data, for step {start + made}.")
            error = raised
        data = Stacked(jnp.asarray(np.int32(start)), jax.tree.map(jnp.asarray, stacked))
        return Read(data, made, made < number, error)

    def _next(self, step: int) -> Batch:
        if isinstance(self._data, HostBatches):
            return self._data.read(step)
        if self._pending is not None:  # read for its shapes
            batch, self._pending = self._pending, None
            return batch
        try:
            batch = next(self._iterator)
        except StopIteration:
            again = iter(self._data)
            if again is self._iterator:  # a generator, at its end
                raise
            self._iterator = again  # a loader's, at the beginning of its next epoch
            batch = next(again)
        return like_first(step, self._like, on_host(batch))


def _first_of(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            "data is an iterable without a batch: give one that has a batch for every step."
        ) from None
