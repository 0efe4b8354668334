"""The tiles of a sweep: how many runs they have, and their way onto the devices and back."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxfit import _check
from jaxfit._drive import host
from jaxfit._drive.axes import Axis
from jaxfit._drive.variant import Variant, run_tiles
from jaxfit._types import PyTree

# The most runs of a tile by default: larger tiles are no faster.
_LARGEST = {"cpu": 256}
_LARGEST_ELSEWHERE = 16384
# The most bytes that the runs of a tile carry from step to step, so that they stay in the caches of
# a CPU: with perceptrons of 16 to 256 hidden units, twice as many cost a tenth to a third of time.
_CACHED = 2**22


class Started(NamedTuple):
    """A tile on every device, whose results may not be ready yet."""

    variant: int  # its position among all
    tiles: list[int]  # which of this variant
    arrays: Callable[[], list[jax.Array]]  # waits for them: [devices * batch_size, …], packed


class Results(NamedTuple):
    """The results of some runs in host memory."""

    variant: int
    runs: range
    arrays: list[np.ndarray]  # [runs, …], packed


def check_devices(devices: Any) -> list[jax.Device]:
    """Check that there is one device or more, each of them once, and return them as a list."""
    listed = list(devices) if isinstance(devices, Iterable) else []
    if not listed or not all(isinstance(one, jax.Device) for one in listed):
        raise TypeError(
            f"devices is {_check.show(devices)}, but must be one device or more in a list: "
            f"give some of jax.devices()."
        )
    if repeated := [one for one in listed if listed.count(one) > 1]:
        raise ValueError(
            f"devices has {repeated[0]} more than once, but each device takes a part of the runs: "
            f"give each once."
        )
    return listed


def lanes_of(devices: Sequence[jax.Device]) -> int:
    """Return how many tiles every device computes at once.

    XLA uses the cores of a CPU device for one large operation, and little of a run is one. But it
    computes at once what different threads ask a CPU device for.
    """
    is_shared = any(device.process_index != jax.process_index() for device in devices)
    if devices[0].platform != "cpu" or is_shared:
        return 1
    return max(1, host.cores() // len(devices))


def default_batch_size(devices: Sequence[jax.Device], number: int, size: int, carried: int) -> int:
    """Choose how many runs a tile has.

    Args:
      devices: the devices, which are alike.
      number: how many runs a variant has.
      size: the bytes of a run's result.
      carried: the bytes that a run carries from step to step.
    """
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (host.memory() or 2**32) // jax.local_device_count()
    memory //= lanes_of(devices)
    # Results are on the device more than once: as the rows of a loop, in the tile that they are
    # copied to, and in the tile before it, which waits to be stored.
    fitting = memory // (8 * max(size, 1))
    at_once = len(devices) * lanes_of(devices)
    largest = min(_LARGEST.get(devices[0].platform, _LARGEST_ELSEWHERE), fitting)
    if devices[0].platform == "cpu":
        largest = min(largest, _CACHED // max(carried, 1))
    largest = max(largest, 1)
    tiles = math.ceil(number / (largest * at_once))
    return math.ceil(number / (tiles * at_once))


def compute(
    variants: Sequence[Variant],
    axes: Sequence[Axis],
    batch_size: int,
    devices: Sequence[jax.Device],
    wanted: Sequence[Sequence[int]] | None = None,
) -> Iterator[Results]:
    """Run all variants of a function at all points of the axes inside a program.

    Each device computes one tile while the results of the tile before it are consumed. Tile t has
    the runs from t·batch_size, whatever else is computed, so that its bits are always the same.

    Args:
      variants: all variants.
      axes: the axes inside a program.
      batch_size: how many runs a tile has.
      devices: the devices, of all processes.
      wanted: for every variant, which tiles to compute; None for all.

    Yields:
      The results of the runs of each tile, variant by variant, as soon as they are computed.
    """
    mesh = Mesh(np.array(devices), "runs")
    number, lanes = math.prod(map(len, axes)), lanes_of(devices)
    started: collections.deque[Started] = collections.deque()
    with _threads(lanes) as submit:
        for index, variant in enumerate(variants):
            every = range(math.ceil(number / batch_size)) if wanted is None else wanted[index]
            program: Callable[[], Any] | None = None
            for first in range(0, len(every), len(devices)):
                chosen = list(every[first : first + len(devices)])
                filled = chosen + chosen[-1:] * (len(devices) - len(chosen))
                runs = [np.arange(tile * batch_size, (tile + 1) * batch_size) for tile in filled]
                items = _items(axes, np.concatenate(runs), mesh)
                with _noted(variant, chosen, batch_size, number):
                    if program is None:  # traced here, where the caller's configuration holds
                        program = submit(run_tiles.lower(variant, batch_size, mesh, items).compile)
                    arrays = submit(_call, program, items)
                started.append(Started(index, chosen, arrays))
                if len(started) >= 2 * lanes:
                    yield from _finished(started.popleft(), variants, batch_size, number)
        while started:
            yield from _finished(started.popleft(), variants, batch_size, number)


def _call(program: Callable[[], Any], items: dict[str, PyTree]) -> list[jax.Array]:
    arrays: list[jax.Array] = program()(items)
    return arrays


@contextlib.contextmanager
def _threads(number: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Give a function that starts a call in one of some threads, and returns how to wait for it.

    With one, calls are made at once, in the caller's thread: XLA computes them in the background,
    and processes that share a program must start it in the same order.
    """
    if number == 1:
        yield _at_once
        return
    pool = concurrent.futures.ThreadPoolExecutor(number, "jaxfit-tiles")

    def submit(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        # A thread waits, so that no other is idle while it has two.
        future = pool.submit(lambda: jax.block_until_ready(fn(*args)))

        def result() -> Any:
            host.wait_until(future.done)
            return future.result()

        return result

    try:
        yield submit
    finally:  # also where nobody waits for what is left, after Ctrl-C
        pool.shutdown(wait=False, cancel_futures=True)


def _at_once(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    result = fn(*args)
    return lambda: result


def _items(axes: Sequence[Axis], runs: np.ndarray, mesh: Mesh) -> dict[str, PyTree]:
    """Return the items of runs by axis, on the devices; numbers past the last run repeat it."""
    position = np.minimum(runs, math.prod(map(len, axes)) - 1)
    sharding = NamedSharding(mesh, PartitionSpec("runs"))
    items = {}
    for axis in reversed(axes):
        position, chosen = np.divmod(position, len(axis))
        rows = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], axis.items)
        items[axis.name] = jax.tree.map(
            lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), rows
        )
    return items


def _finished(
    started: Started, variants: Sequence[Variant], batch_size: int, number: int
) -> Iterator[Results]:
    """Wait for a tile on every device, and yield the results that this process can read."""
    index, chosen, result = started
    with _noted(variants[index], chosen, batch_size, number):
        arrays = result()
        host.wait(arrays)
        for offset, part in _read(arrays):
            for place in range(0, len(part[0]), batch_size):
                which = (offset + place) // batch_size
                if which < len(chosen):  # devices without a tile of their own compute the last too
                    begin = chosen[which] * batch_size
                    runs = range(begin, min(begin + batch_size, number))
                    yield Results(index, runs, [one[place : place + len(runs)] for one in part])


def _read(arrays: list[jax.Array]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield tiles of results, each with the position of its first run.

    If all devices belong to this process, there is a tile for each of them; if not, one for all.
    """
    if arrays[0].is_fully_addressable:
        for shards in zip(*(array.addressable_shards for array in arrays), strict=True):
            yield shards[0].index[0].start or 0, [np.asarray(shard.data) for shard in shards]
    else:
        yield 0, multihost_utils.process_allgather(arrays, tiled=True)


@contextlib.contextmanager
def _noted(variant: Variant, chosen: Sequence[int], batch_size: int, number: int) -> Iterator[None]:
    """Note on an error of the runtime where in a sweep it was raised."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        choice = f" with {variant.labels}" if variant.labels else ""
        error.add_note(
            f"This ended jaxfit.sweep among runs {chosen[0] * batch_size} to "
            f"{min((chosen[-1] + 1) * batch_size, number) - 1} of {number}{choice}, "
            f"where a callback in fn, or the device, raised it: call "
            f"{_check.show(variant.fn.value)} by itself to find the reason."
        )
        raise
