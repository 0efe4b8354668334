"""Many runs as one labelled program: the product of axes, in tiles, on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from tqdm.auto import tqdm

from jaxfit import _check, _tree
from jaxfit._drive import host, tiles
from jaxfit._drive.axes import arrange, parse
from jaxfit._drive.table import Sweep
from jaxfit._drive.variant import restore, result_of, variants_of
from jaxfit._types import PyTree

__all__ = ["Sweep", "sweep"]


def sweep(
    fn: Callable[..., PyTree],
    axes: Mapping[str, PyTree],
    *,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Sweep:
    """Run a function for every combination of labelled values, compiled, on every device.

    Each device computes one tile of ``batch_size`` runs at a time, under ``jax.vmap``, while the
    results of the tile before it are stored in host memory: all results together may be larger
    than the memory of a device.

    Args:
      fn: a function that is called with one keyword for each axis and returns a pytree: a `Run`,
        a part of it, a number. Pure and traceable, as for ``jax.jit``. Leaves that are not arrays
        or numbers, such as functions, must be the same objects for all runs.
      axes: what to vary, by name; the product of all axes is run.

        - An array ``[items, …]``, PRNG keys included, or a pytree of arrays that share their
          leading axis (a zipped axis) varies inside one compiled program: the function is traced
          for one item and computed for all.
        - A dict of Python objects (optimizers, losses, models, widths), labelled by its keys,
          which are strings, or a list of them, labelled by the ``str`` of its items, varies
          outside: each combination is compiled as its own program, and the function is given the
          objects.

      batch_size: how many runs are computed at once on a device. By default up to 256 on a CPU
        and 16384 elsewhere, but fewer if their results would take more than an eighth of the
        device's memory, or if a device would be left without a tile. The last tile is filled up
        with copies of the last run, which are cut off.
      devices: the devices to use, of all processes; ``jax.devices()`` by default. If they belong
        to several processes (``jax.distributed``), each process makes the same call and gets the
        whole result. To split a CPU into several devices, set ``jax_num_cpu_devices``.
      progress: whether to show a bar with runs per second.

    Returns:
      A `Sweep`. Its values have the same structure, shapes and dtypes for all combinations.

      Each member of a sweep equals the run alone: up to rounding, and on the CPU bit for bit with
      ``batch_size=1``. Neither the other runs, NaN or not, nor the number of devices changes any of
      its bits.

      Programs are kept as ``jax.jit`` keeps them: another call with the same function object, the
      same Python objects and the same shapes compiles nothing, and ``jax.clear_caches`` frees what
      they hold. Ctrl-C raises KeyboardInterrupt at once, unless XLA is compiling, and nothing more
      is started. XLA cannot stop what has been started, at most two tiles on each device: it
      finishes, and its result is discarded; Python waits for it before it exits.

      A sweep of N runs, each with a result of b bytes and a time alone of t seconds, takes N·b
      bytes of memory on each host, four tiles of results on each device, and N·t/(s·D) seconds on
      D devices, where s is the speedup from batching. A million runs that return a loss (4 bytes)
      take 4 MB; those that return 1000 losses each take 4 GB on every host, and 12 GB with two
      parameters beside each loss. All devices of all hosts share the tiles, so that a sweep on H
      hosts takes 1/H of the time. As every host holds the whole result, results too large for one
      host must be swept in parts: each host sweeps its own part of an axis, with
      ``devices=jax.local_devices()``.

    Raises:
      TypeError, ValueError: before anything is compiled, if an axis is not one of these kinds, if
        the function does not take the axes, if it returns different shapes for different Python
        objects (return less: optimizers have states of different shapes, but their losses have the
        same), or if the result would not fit into the host's memory.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> def losses(optimizer, lr):
    ...     run = jaxfit.train(lambda a: jnp.sum(a**2), jnp.ones(2), optimizer(lr), 50)
    ...     return run.trajectory["loss"]
    >>> optimizers = {"sgd": optax.sgd, "adam": optax.adam}
    >>> rates = jnp.logspace(-3, 0, 16)
    >>> result = jaxfit.sweep(losses, {"optimizer": optimizers, "lr": rates})
    >>> result
    Sweep({optimizer: 2 (sgd, adam), lr: 16 (0.001 … 1)}, float32[2, 16, 50])
    >>> result.best(by=lambda loss: loss[..., -1])
    {'optimizer': 'sgd', 'lr': np.float32(0.39810735)}
    """
    parsed = parse(axes)
    variants = variants_of(fn, parsed)
    if batch_size is not None:
        batch_size = _check.count("batch_size", batch_size)
    devices = jax.devices() if devices is None else tiles.check_devices(devices)

    inside = [axis for axis in parsed if axis.inside]
    number = math.prod(map(len, inside))  # runs of one variant
    result = result_of(variants, inside)
    size = _tree.nbytes(result)
    _check_memory(len(variants) * number, size)
    if batch_size is None:
        batch_size = tiles.default_batch_size(devices, number, size)

    values = [
        np.empty((len(variants) * number, *array.shape), array.dtype)
        for array in jax.tree.leaves(result)
    ]
    hidden = not progress or jax.process_index() != 0
    with tqdm(total=len(variants) * number, unit=" runs", disable=hidden) as bar:
        for part in tiles.compute(variants, inside, batch_size, devices):
            first = part.variant * number + part.runs.start
            for value, new in zip(values, part.arrays, strict=True):
                value[first : first + len(new)] = new
            bar.update(len(part.runs))

    return Sweep(
        {axis.name: axis.kept for axis in parsed},
        restore(result, [arrange(parsed, value) for value in values]),
    )


def _check_memory(runs: int, size: int) -> None:
    """Check that the results of all runs, each of some bytes, fit into the host's memory."""
    available = host.memory()
    if available is not None and runs * size > available:
        raise ValueError(
            f"the result would take {runs * size / 1e9:,.1f} GB ({runs:,} runs of {size:,} bytes), "
            f"but the host has {available / 1e9:,.1f} GB: return the losses alone, or the end of "
            f"the run, or record fewer rows with record_every."
        )
