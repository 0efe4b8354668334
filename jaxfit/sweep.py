"""Many runs as one labelled program: the product of axes, in tiles, on every device."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence

import jax

from jaxfit import _check, _tree
from jaxfit._disk.paths import checked_path
from jaxfit._disk.sweep_manifest import read_sweep
from jaxfit._drive import bars, host, tiles
from jaxfit._drive.axes import parse
from jaxfit._drive.sweep_sinks import InMemory, SweepSink, open_directory
from jaxfit._drive.table import Sweep
from jaxfit._drive.variant import carried_by, restore, result_of, variants_of
from jaxfit._types import PyTree

__all__ = ["Sweep", "sweep"]


def sweep(
    fn: Callable[..., PyTree],
    axes: Mapping[str, PyTree],
    *,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> Sweep:
    """Run a function for every combination of labelled values, compiled, on every device.

    Each device computes one tile of ``batch_size`` runs at a time, under ``jax.vmap``, and a CPU
    one on each core, while the results of the tiles before are stored in host memory: all results
    together may be larger than the memory of a device.

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

      batch_size: how many runs are computed at once on a device. By default up to 256 on a CPU,
        as far as what they carry from step to step fits into its caches, and 16384 elsewhere, but
        fewer if their results would take more than an eighth of the device's memory, or if a
        device or core would be left without a tile. The last tile is filled up with copies of the
        last run, which are cut off.
      devices: the devices to use, of all processes; ``jax.devices()`` by default. If they belong
        to several processes (``jax.distributed``), each process makes the same call and gets the
        whole result.
      progress: whether to show a bar with runs per second.
      checkpoint_dir: a directory, new or with this sweep. Results are committed to it in the
        background, a block of one tile or more at a time, so that the process can be killed at any
        moment: the same call goes on from there, with the same bits, also on other numbers of
        devices. What is damaged is made again; to find it, all that is there is read once. A
        finished sweep is returned without computing anything. Results may be larger than the host's
        memory: ``values`` are read from disk when they are indexed. Needs the extra ``checkpoint``.

    Returns:
      A `Sweep`. Its values have the same structure, shapes and dtypes for all combinations.

      Each member of a sweep equals the run alone: up to rounding, and on the CPU bit for bit with
      ``batch_size=1``. Neither the other runs, NaN or not, nor the number of devices changes any of
      its bits.

      Programs are kept as ``jax.jit`` keeps them: another call with the same function object, the
      same Python objects and the same shapes compiles nothing, and ``jax.clear_caches`` frees what
      they hold. Ctrl-C raises KeyboardInterrupt at once, unless XLA is compiling, and nothing more
      is started. XLA cannot stop what has been started, at most two tiles on each device or core:
      it finishes, and its result is discarded; Python waits for it before it exits.

      With a ``checkpoint_dir``, ``xarray.open_zarr(f"{checkpoint_dir}/values.zarr")`` reads the
      values with their names and coordinates in any other program, also while the sweep is running.
      Its variable ``done``, bool ``[*axes]``, says which runs are there; what is not is NaN, or 0
      for integers. PRNG keys are stored as their numbers, and bfloat16 as float32.

      A sweep of N runs, each with a result of b bytes and a time alone of t seconds, takes N·b
      bytes of memory on each host, four tiles of results on each device or core, and N·t/(s·D)
      seconds on D devices or cores, where s is the speedup from batching. A million runs that
      return a loss (4 bytes) take 4 MB; those that return 1000 losses each take 4 GB on every host,
      and 12 GB with two parameters beside each loss. All devices of all hosts share the tiles, so
      that a sweep on H hosts takes 1/H of the time. Every host holds the whole result, unless there
      is a ``checkpoint_dir``, which all must see: each process writes what it computes, and if one
      dies, the others finish their share and raise an error. Started again, they do what is
      missing.

    Raises:
      TypeError, ValueError: before anything is compiled, if an axis is not one of these kinds, if
        the function does not take the axes, if it returns different shapes for different Python
        objects (return less: optimizers have states of different shapes, but their losses have the
        same), if the result would not fit into the host's memory or onto the disk, or if
        ``checkpoint_dir`` holds another sweep, with the difference.
      RuntimeError: if another sweep is writing to ``checkpoint_dir``, or a process has died.
      OSError: if results could not be written; those before them are committed.

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

    path = None if checkpoint_dir is None else checked_path(checkpoint_dir)
    inside = [axis for axis in parsed if axis.inside]
    number = math.prod(map(len, inside))  # runs of one variant
    result = result_of(variants, inside)
    like, size = jax.tree.leaves(result), _tree.nbytes(result)
    kept = None if path is None else read_sweep(path)
    if batch_size is None and kept is not None:
        batch_size = kept["batch_size"]
    if batch_size is None:
        carried = carried_by(variants, inside)
        batch_size = tiles.default_batch_size(devices, number, size, carried)

    with contextlib.ExitStack() as stack:
        if path is None:
            _check_memory(len(variants) * number, size)
            sink: SweepSink = InMemory(parsed, like)
        else:
            sink = stack.enter_context(
                open_directory(path, parsed, variants, result, batch_size, devices)
            )
            own = [device for device in devices if device.process_index == jax.process_index()]
            devices = own or devices  # a process without devices has no tiles either
        wanted = sink.wanted(batch_size)
        total = len(variants) * number
        left = total if wanted is None else min(total, sum(map(len, wanted)) * batch_size)
        with bars.bar(progress and "always", "runs", total, total - left) as bar:
            for part in tiles.compute(variants, inside, batch_size, devices, wanted):
                sink.add(*part)
                bar.update(len(part.runs))
            sink.finish()
        values = sink.values(like)
    return Sweep({axis.name: axis.kept for axis in parsed}, restore(result, values))


def _check_memory(runs: int, size: int) -> None:
    """Check that the results of all runs, each of some bytes, fit into the host's memory."""
    available = host.memory()
    if available is not None and runs * size > available:
        raise ValueError(
            f"the result would take {runs * size / 1e9:,.1f} GB ({runs:,} runs of {size:,} bytes), "
            f"but the host has {available / 1e9:,.1f} GB: return the losses alone, or the end of "
            f"the run, or record fewer rows with record_every."
        )
