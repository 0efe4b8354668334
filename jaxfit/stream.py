"""Batches that come from Python: read ahead of the device, on a thread of their own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check, _tree

__all__ = ["HostBatches", "host_batches"]


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatches:
    """What `host_batches` returns: a function of the step, like any other that is given as data."""

    fn: Callable[[int], Any]
    like: Any  # the first batch, as NumPy's arrays

    def __call__(self, step: jax.Array | int) -> Any:
        if not isinstance(step, jax.core.Tracer):
            return _tree.with_keys(self.read(int(step)))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.like)
        read = lambda step: self.read(int(step))
        return _tree.with_keys(jax.pure_callback(read, shapes, step, vmap_method="sequential"))

    def read(self, step: int) -> Any:
        """The batch of a step, as NumPy's arrays without keys."""
        return _check.batch(step, self.like, _called(self.fn, step))


def host_batches(fn: Callable[[int], Any]) -> HostBatches:
    """Make a Python function of the step into data, such as one that reads a memory-mapped file.

    `fit` calls it ahead of the device, on a thread, for the steps of the next chunk. `train`,
    `replay` and `at` take it too, and call it step by step from within the compiled loop, where it
    must not use JAX itself. As the batch is a function of the step, runs are resumed and
    replayed exactly.

    Args:
      fn: ``fn(step) -> batch``, the step a Python int, the batch a pytree of arrays of the same
        shapes and dtypes at every step. Called once for step 0 here. It must return the same when
        it is called again, and not depend on what was called before.

    Returns:
      A function of the step, for ``data``.

    Raises:
      TypeError: if ``fn`` is no function of one argument, or a batch has a leaf that is no array.
      RuntimeError: if ``fn`` raises StopIteration, here or at a later step.

    >>> import jax.numpy as jnp, numpy as np, optax, jaxfit
    >>> numbers = np.arange(1000.0, dtype=np.float32)  # or np.memmap("numbers.bin", np.float32)
    >>> def batch(step):
    ...     return numbers[np.random.default_rng([0, step]).integers(0, 1000, 32)]
    >>> loss = lambda a, batch: jnp.mean((batch - a) ** 2)
    >>> run = jaxfit.fit(loss, 0.0, optax.sgd(0.1), 100, data=jaxfit.host_batches(batch))
    >>> bool(abs(run.state.params - 500) < 100)
    True
    """
    _check.batches(fn)
    return HostBatches(fn, _called(fn, 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ahead:
    """Batches that were read ahead, as a function of the step."""

    first: Any
    batches: Any  # [steps, …], without keys

    def __call__(self, step: jax.Array) -> Any:
        pick = lambda leaf: lax.dynamic_index_in_dim(leaf, step - self.first, keepdims=False)
        return _tree.with_keys(jax.tree.map(pick, self.batches))


class Read(NamedTuple):
    """What was read ahead."""

    data: Ahead
    number: int  # of steps
    over: bool  # whether there are no more
    error: Exception | None  # that it was over with


class Stream:
    """A thread that reads the batches of a chunk while the device computes the one before it.

    Attributes:
      like: the first batch, as NumPy's arrays without keys.
      size: bytes of a batch.
      exact: whether a batch is that of a step, and not whatever comes next.
      first: what is known of the first batch; of an iterable, the shapes alone.
    """

    def __init__(self, data: HostBatches | Iterable[Any]):
        self._data, self.exact = data, isinstance(data, HostBatches)
        if isinstance(data, HostBatches):
            self.first = self.like = data.like
        else:
            self._iterator = iter(data)
            self._given = self.like = _host_batch(_check.first_batch(self._iterator))
            shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            self.first = jax.tree.map(shape, self.like)
        self.size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.like))
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "jaxfit-stream")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def shapes(self, steps: int) -> Any:
        """Data like those of so many steps."""
        shape = lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype)
        return Ahead(np.int32(0), jax.tree.map(shape, self.like))

    def read(self, start: int, number: int, room: int) -> concurrent.futures.Future[Read]:
        """Begin to read the batches of so many steps into arrays [room, …]."""
        return self._thread.submit(self._read, start, number, room)

    def _read(self, start: int, number: int, room: int) -> Read:
        stacked = jax.tree.map(lambda leaf: np.zeros((room, *leaf.shape), leaf.dtype), self.like)
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
        # Several processes take what is NumPy's for the same on all of them.
        place = jnp.asarray if jax.process_count() == 1 else np.asarray
        ahead = Ahead(np.int32(start), jax.tree.map(place, stacked))
        return Read(ahead, made, made < number, error)

    def _next(self, step: int) -> Any:
        if isinstance(self._data, HostBatches):
            return self._data.read(step)
        if self._given is not None:  # which was read for its shapes
            batch, self._given = self._given, None
            return batch
        try:
            batch = next(self._iterator)
        except StopIteration:
            again = iter(self._data)
            if again is self._iterator:  # a generator, which is at its end
                raise
            self._iterator = again  # a loader's, which begins its next epoch
            batch = next(again)
        return _check.batch(step, self.like, _host_batch(batch))


def is_stream(data: Any) -> bool:
    """Whether data is read on the host: a function of ours, or an iterable that is no pytree."""
    if isinstance(data, HostBatches | Iterator):  # JAX warns of iterators in pytrees
        return True
    plain = callable(data) or _tree.is_array(data) or isinstance(data, str | bytes)
    return isinstance(data, Iterable) and not plain and jax.tree_util.all_leaves([data])


def _called(fn: Callable[[int], Any], step: int) -> Any:
    """Call a function of the step, whose StopIteration would end the run without a word."""
    try:
        return _host_batch(fn(step))
    except StopIteration as error:
        raise RuntimeError(
            f"the function given to host_batches raised StopIteration for step {step}, but must "
            f"have a batch for every step: train for fewer steps, or give fit the iterator itself."
        ) from error


def _host_batch(batch: Any) -> Any:
    """A batch as NumPy's arrays of the dtypes that JAX would give them, without keys."""

    def convert(leaf):
        leaf = np.asarray(leaf)
        _check.batch_leaf(leaf)
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(convert, _tree.without_keys(batch))
