"""Batches that come from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxfit import _check, _tree

__all__ = ["HostBatches", "host_batches"]


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatches:
    """Batches by a Python function of the step, as `host_batches` returns them.

    Called with a step, it returns its batch, like any other function that is given as data.

    Attributes:
      fn: ``fn(step) -> batch``.
      like: the first batch, as NumPy arrays without keys.
    """

    fn: Callable[[int], Any]
    like: Any

    def __repr__(self) -> str:
        batch = jax.eval_shape(_tree.with_keys, self.like)
        return f"HostBatches({_check.show(self.fn)}: {_check.shapes(batch)})"

    def __call__(self, step: jax.Array | int) -> Any:
        if not isinstance(step, jax.core.Tracer):
            return _tree.with_keys(self.read(int(step)))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.like)
        read = lambda step: self.read(int(step))
        return _tree.with_keys(jax.pure_callback(read, shapes, step, vmap_method="sequential"))

    def read(self, step: int) -> Any:
        """Return the batch of a step as NumPy arrays, without keys."""
        return like_first(step, self.like, _called(self.fn, step))


def host_batches(fn: Callable[[int], Any]) -> HostBatches:
    """Make a Python function of the step into data, such as one that reads a memory-mapped file.

    `fit` calls it ahead of the device, on a thread, for the steps of the next chunk. `train`,
    `replay` and `at` take it too, and call it step by step from within the compiled loop, where it
    must not use JAX itself. As the batch is a function of the step, runs are resumed and
    replayed exactly.

    Args:
      fn: ``fn(step) -> batch``, the step a Python int, the batch a pytree of arrays of the same
        shapes and dtypes at every step. It is called once here, for step 0. Its batch must depend
        on the step alone, and not on earlier calls.

    Returns:
      A function of the step, for ``data``.

    Raises:
      TypeError: if ``fn`` is not a function of one argument, or a batch holds a leaf that is not
        an array.
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
    if not callable(fn) or not _check.takes(fn, 1):
        raise TypeError(
            f"host_batches was given {_check.show(fn)}, but needs a function of one argument, the "
            f"step."
        )
    return HostBatches(fn, _called(fn, 0))


def is_stream(data: Any) -> bool:
    """Return whether data is read on the host: `HostBatches`, or an iterable but no pytree."""
    if isinstance(data, HostBatches | Iterator):  # JAX warns of iterators in pytrees
        return True
    plain = callable(data) or _tree.is_array(data) or isinstance(data, str | bytes)
    return isinstance(data, Iterable) and not plain and jax.tree_util.all_leaves([data])


def like_first(step: int, first: Any, batch: Any) -> Any:
    """Return the batch of a step, which must have the shapes and dtypes of the first."""
    if found := _check.difference(first, batch):
        raise ValueError(
            f"the batch of step {step} is not like the first ({found}), but one program takes all "
            f"of them: give batches of one shape, and drop what is left at the end of an epoch."
        )
    return batch


def _called(fn: Callable[[int], Any], step: int) -> Any:
    """Call a function of the step; a StopIteration that it raised would end the run silently."""
    try:
        return on_host(fn(step))
    except StopIteration as error:
        raise RuntimeError(
            f"the function given to host_batches raised StopIteration for step {step}, but must "
            f"have a batch for every step: train for fewer steps, or give fit the iterator itself."
        ) from error


def on_host(batch: Any) -> Any:
    """Return a batch as NumPy arrays of the dtypes that JAX would give them, without keys."""

    def convert(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if not _tree.is_array(leaf):
            raise TypeError(
                f"a batch holds {_check.show(leaf.tolist())}, but its leaves must be arrays of "
                f"numbers: convert them, or leave them out."
            )
        return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(convert, _tree.without_keys(batch))
