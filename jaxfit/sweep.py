"""Many runs as one labelled program: the product of axes, in tiles, on every device."""

from __future__ import annotations

import cmath
import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

from jaxfit import _check, _host, _tree
from jaxfit._host import Static
from jaxfit.run import Run

__all__ = ["Sweep", "sweep"]

# Runs of a tile at most: more of them do not run faster, and leave the caches of a CPU.
_TILE = {"cpu": 256}
_TILE_ELSEWHERE = 16384


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep:
    """The results of many runs, with the labels of their axes.

    Attributes:
      axes: by name, in the order of the leading axes of ``values``, the labels: the array or the
        pytree of arrays that was given, or a tuple of strings for an axis of Python objects.
      values: what the function returned for each point of the product, as NumPy arrays in host
        memory: every array has one leading axis for each of ``axes``.
    """

    axes: dict[str, Any]
    values: Any

    def sel(
        self,
        labels: Mapping[str, Any] | None = None,
        /,
        *,
        method: str | None = None,
        **more: Any,
    ) -> Sweep:
        """Select one label of some axes, and drop these axes.

        The items of an axis that are not single numbers or names (PRNG keys, vectors, zipped
        trees) are selected by their positions 0, 1, ….

        Args:
          labels: the label by the name of its axis, for names that are no keywords.
          method: ``"nearest"`` takes, of an axis of numbers, the one nearest to the label, and
            never NaN; by default the label must be there. A floating axis is searched for the
            label in the precision of the axis, any other for the very number.
          **more: the label by the name of its axis.

        Returns:
          A `Sweep` of the remaining axes.

        Raises:
          KeyError: if there is no such axis or label.
          ValueError: if ``method`` is something else.

        >>> import jax.numpy as jnp, jaxfit
        >>> table = jaxfit.sweep(lambda a, b: a * b, {"a": jnp.arange(3), "b": jnp.arange(4.0)})
        >>> table.sel(a=2)
        Sweep({b: 4 (0 … 3)}, float32[4])
        >>> table.sel(a=2, b=2.9, method="nearest").values
        np.float32(6.0)
        """
        wanted = {**(labels or {}), **more}
        if unknown := [name for name in wanted if name not in self.axes]:
            raise KeyError(f"there is no axis {unknown[0]!r}: the axes are {', '.join(self.axes)}.")
        if method not in (None, "nearest"):
            raise ValueError(f'method is {method!r}, but must be None or "nearest".')
        index = tuple(
            _position(name, axis, wanted[name], method) if name in wanted else slice(None)
            for name, axis in self.axes.items()
        )
        axes = {name: axis for name, axis in self.axes.items() if name not in wanted}
        return Sweep(
            axes,
            jax.tree.map(lambda leaf: leaf[index] if _tree.is_array(leaf) else leaf, self.values),
        )

    def best(self, by: str | Callable[[Any], Any] | None = None) -> dict[str, Any]:
        """Find the run with the lowest score; ``sweep.sel(sweep.best(…))`` is its result.

        Args:
          by: what to minimise: a function from ``values`` to one number per run, an array of
            ``[*axes]``; or the key of such an array in ``values``; or None if ``values`` is one.
            Runs whose score is NaN are passed over.

        Returns:
          A label for every axis, as `sel` takes it.

        Raises:
          ValueError: if there is not one real number per run, or if all are NaN.

        >>> import jax.numpy as jnp, optax, jaxfit
        >>> def final(lr):
        ...     loss = lambda a: 0.5 * jnp.sum(a**2)
        ...     return loss(jaxfit.train(loss, jnp.ones(2), optax.sgd(lr), 10).state.params)
        >>> jaxfit.sweep(final, {"lr": jnp.array([0.1, 1.1, 3.0])}).best()
        {'lr': np.float32(1.1)}
        """
        scores = by(self.values) if callable(by) else self.values if by is None else self.values[by]
        labels = {name: _labels(axis) for name, axis in self.axes.items()}
        _check.scores(scores, tuple(map(len, labels.values())))
        if jnp.issubdtype(scores.dtype, jnp.floating):  # NumPy does not pass over bfloat16's NaNs
            scores = scores.astype(np.promote_types(scores.dtype, np.float32))
        best = np.unravel_index(np.nanargmin(scores), np.shape(scores))
        return {name: labels[name][i] for name, i in zip(labels, best, strict=True)}

    def to_xarray(self) -> Any:
        """Make an ``xarray.Dataset``, for NetCDF, Zarr, plots and pandas; the axes are dimensions.

        Each array of ``values`` is a variable, named by its path (``loss``, ``params.w``); a lone
        array is called ``value``. Rows of a `Run`, or of what ``jaxfit.record.whole`` keeps, have
        the dimension ``step``, with the steps as its coordinate if all runs have the same, or else
        ``row``. A zipped axis has a coordinate for every array in it, such as ``axis.lr``.

        Names are given in this order: to axes, to the dimension of rows, to coordinates of zipped
        axes, to variables and to further dimensions. One that is taken gets an underscore at its
        end: with an axis called ``loss``, a loss is the variable ``loss_``.

        Raises:
          ImportError: if xarray is missing, which the extra ``analysis`` brings.

        >>> import jax.numpy as jnp, jaxfit
        >>> table = jaxfit.sweep(lambda a: {"square": a * a}, {"a": jnp.arange(3.0)})
        >>> table.to_xarray().square.sel(a=2).item()
        4.0
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError(
                'to_xarray needs xarray: run pip install "jaxfit-train[analysis]".'
            ) from error
        dimensions = list(self.axes)
        taken = set(dimensions)

        def free(name: str) -> str:
            while name in taken:
                name += "_"
            taken.add(name)
            return name

        steps, rows = _rows(self.values, len(dimensions))
        coordinates: dict[str, Any] = {
            name: np.asarray(_labels(axis)) for name, axis in self.axes.items()
        }
        row = free("row" if steps is None else "step") if rows else ""
        if steps is not None:
            coordinates[row] = steps
        for name, axis in self.axes.items():
            for path, leaf in _arrays(axis) if not _is_names(axis) else []:
                if path and np.ndim(leaf) == 1:
                    coordinates[free(f"{name}.{_name(path)}")] = name, leaf
        named = [
            (free(_name(path) or "value"), leaf)
            for path, leaf in _arrays(self.values)
            if steps is None or _name(path) != "step"  # which is a coordinate
        ]
        variables: dict[str, Any] = {}
        for name, leaf in named:
            further = [f"{name}_dim_{i}" for i in range(np.ndim(leaf) - len(dimensions))]
            first = [row] if any(leaf is one for one in rows) else []
            variables[name] = [*dimensions, *first, *map(free, further[len(first) :])], leaf
        return xarray.Dataset(variables, coordinates)

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}: {_summary(axis)}" for name, axis in self.axes.items())
        return f"Sweep({{{axes}}}, {_check.shapes(self.values)})"


def sweep(
    fn: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Sweep:
    """Run a function for every combination of labelled values, compiled, on every device.

    Runs go through in tiles of ``batch_size`` under ``jax.vmap``, one tile at a time on each
    device, and results come back to host memory tile by tile: they may be larger than the memory
    of a device. One tile is computed while the one before it is stored.

    Args:
      fn: a function that is called with one keyword for each axis and returns a pytree: a `Run`,
        a part of it, a number. Pure and traceable, as for ``jax.jit``. Leaves that are not arrays
        or numbers, such as functions, must be the same objects for all runs.
      axes: what to vary, by name; the product of all axes is run.

        - An array ``[n, …]``, PRNG keys included, or a pytree of arrays with one leading axis (a
          zipped axis) varies inside one compiled program: the function gets its n items.
        - A dict of Python objects (optimizers, losses, models, widths) varies outside, one program
          for each combination, with the keys, which are strings, as labels; a list does as well,
          labelled by the ``str`` of its items. Of these, the function gets the objects.

      batch_size: how many runs are computed at once on a device. By default up to 256 on a CPU
        and 16384 elsewhere, and fewer where their results would not fit into the device's memory
        with ease, or where all devices would not have one. The last tile is filled up with copies
        of the last run, which are cut off.
      devices: the devices to use, of all processes; ``jax.devices()`` by default. Where they
        belong to several processes (``jax.distributed``), each of these makes the same call, and
        each gets the whole result. For devices of its own, a CPU needs ``jax_num_cpu_devices``.
      progress: whether to show a bar, with runs per second.

    Returns:
      A `Sweep`. Its values have the same structure, shapes and dtypes for all combinations.

      A member is the run alone: to rounding, and bit for bit with ``batch_size=1`` (on the CPU).
      What becomes of the others, NaN or not, changes none of its bits, and neither does the number
      of devices.

      Programs are kept as ``jax.jit`` keeps them: another call with the same function object, the
      same Python objects and the same shapes compiles nothing; ``jax.clear_caches`` frees what
      they hold. Ctrl-C raises KeyboardInterrupt at once, unless XLA is compiling, and starts
      nothing more; what has been started, at most two tiles on each device, XLA cannot stop: it
      runs out unheard, and Python waits for it before it exits.

      A sweep of N runs, each with a result of b bytes and a time alone of t seconds, takes N·b
      bytes of the memory of each host, four tiles of results of each device's, and N·t/(s·D)
      seconds on D devices, where s is what batching gains. A million runs that return a loss (4
      bytes) are 4 MB; those that return all of 1000 losses are 4 GB on every host, and with two
      parameters beside them 12 GB. On several hosts all devices share in the tiles, so that a
      sweep on H hosts takes 1/H of the time; as every host holds the whole result, results that
      are too large for one are swept in parts, each over its own part of an axis with
      ``devices=jax.local_devices()``.

    Raises:
      TypeError, ValueError: before anything is compiled, if an axis is no axis, or the function
        does not take the axes, or it returns other shapes for one Python object than for another
        (return less: optimizers have states of different shapes, their losses have the same), or
        if the result would not fit into the host's memory.

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
    _check.sweep(fn, axes)
    if batch_size is not None:
        batch_size = _check.count("batch_size", batch_size)
    devices = jax.devices() if devices is None else _check.devices(devices)

    outside = {name: _named(axis) for name, axis in axes.items() if _check.is_outside(axis)}
    inside = {name: _on_host(axis) for name, axis in axes.items() if name not in outside}
    lengths = {name: len(jax.tree.leaves(axis)[0]) for name, axis in inside.items()}
    number = math.prod(lengths.values())  # runs of one program

    combinations = [
        dict(zip(outside, labels, strict=True)) for labels in itertools.product(*outside.values())
    ]
    programs = [
        Static((fn, *outside, *(outside[name][label] for name, label in combination.items())))
        for combination in combinations
    ]
    first = jax.tree.map(lambda leaf: leaf[0], inside)
    shapes = [_member.eval_shape(program, first) for program in programs]
    again = lambda: jax.eval_shape(functools.partial(_run, programs[0]), first)
    _check.results(combinations, shapes, again)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[0]))
    _check.memory(len(programs) * number, size, _host.memory())
    if batch_size is None:
        batch_size = _batch_size(devices, number, size)

    mesh = Mesh(np.array(devices), "runs")
    stride = batch_size * len(devices)
    values, structure = jax.tree.flatten(shapes[0])
    values = [np.empty((len(programs), number, *leaf.shape), leaf.dtype) for leaf in values]
    started: collections.deque[tuple[int, int, Any]] = collections.deque()
    hidden = not progress or jax.process_index() != 0
    with tqdm(total=len(programs) * number, unit=" runs", disable=hidden) as bar:

        def noted(row: int, start: int) -> contextlib.AbstractContextManager:
            return _noted(fn, combinations[row], range(number)[start : start + stride], number)

        def store() -> None:
            row, start, tiles = started.popleft()
            with noted(row, start):
                for offset, tile in _arrived(tiles):
                    runs = range(number)[start + offset :][: len(tile[0])]
                    for whole, part in zip(values, tile, strict=True):
                        whole[row, runs.start : runs.stop] = part[: len(runs)]
                    bar.update(len(runs))

        for row, program in enumerate(programs):
            for start in range(0, number, stride):
                members = _members(inside, lengths, range(start, start + stride), mesh)
                with noted(row, start):
                    started.append((row, start, _tiles(program, batch_size, mesh, members)))
                if len(started) > 1:
                    store()
        while started:
            store()

    made = [*outside, *inside]
    shape = *map(len, outside.values()), *lengths.values()
    order = [made.index(name) for name in axes]
    values = [
        whole.reshape(*shape, *whole.shape[2:]).transpose(
            *order, *range(len(order), whole.ndim + len(order) - 2)
        )
        for whole in values
    ]
    return Sweep(
        {
            name: tuple(outside[name]) if name in outside else _tree.with_keys(inside[name])
            for name in axes
        },
        _tree.unpack(_tree.with_keys(jax.tree.unflatten(structure, values))),
    )


def _run(program: Static, values: dict[str, Any]) -> Any:
    """Run a function once; the names of Python objects and these objects come after it."""
    fn, *rest = program.things
    names, things = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    result = fn(**dict(zip(names, things, strict=True)), **_tree.with_keys(values))
    return _tree.without_keys(_tree.pack(result))


# Called; with inline=True, jax 0.10 rounds derivatives of runs differently on many devices.
_member = jax.jit(_run, static_argnums=0)


# With this step for programs of many devices alone, Adam rounds differently on two than on one:
# what it finds twice it merges, and then XLA divides where it would have taken a reciprocal.
@functools.partial(
    jax.jit,
    static_argnums=(0, 1, 2),
    compiler_options={"xla_disable_hlo_passes": "spmd-cleanup"},
)
def _tiles(program: Static, batch_size: int, mesh: Mesh, members: dict[str, Any]) -> Any:
    """Run one tile on every device: all arrays are [devices * batch_size, …]."""

    def tile(members):
        if batch_size > 1:
            return jax.vmap(functools.partial(_member, program), axis_size=batch_size)(members)
        # A batch of one is rounded differently than a run alone.
        alone = _member(program, jax.tree.map(lambda leaf: leaf[0], members))
        return jax.tree.map(lambda leaf: leaf[None], alone)

    split = PartitionSpec("runs")
    # Nothing is communicated, and loops in fn carry what is the same on all devices beside what
    # is not, which the check of varying axes does not take.
    return jax.shard_map(tile, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(members)


@contextlib.contextmanager
def _noted(fn: Any, combination: dict[str, str], runs: range, number: int) -> Iterator[None]:
    """Note on an error of the runtime where in a sweep it was raised."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        program = f" with {combination}" if combination else ""
        error.add_note(
            f"This ended jaxfit.sweep among runs {runs[0]} to {runs[-1]} of {number}{program}, "
            f"where a callback in fn, or the device, raised it: call {_check.show(fn)} by itself "
            f"to find the reason."
        )
        raise


def _named(axis: Any) -> dict[str, Any]:
    """Return the Python objects of an axis by their labels."""
    pairs = axis.items() if isinstance(axis, Mapping) else ((item, item) for item in axis)
    return {str(label): item for label, item in pairs}


def _on_host(axis: Any) -> Any:
    """Return the arrays of an axis in the dtypes that JAX gives them, as NumPy's."""
    return jax.tree.map(np.asarray, _tree.without_keys(jax.tree.map(jnp.asarray, axis)))


def _batch_size(devices: Sequence[jax.Device], number: int, size: int) -> int:
    """Return how many runs a tile has if the caller leaves it open; size is the bytes of one."""
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or (_host.memory() or 2**32) // jax.local_device_count()
    # XLA writes a loop's rows first and then those of the tile, while another tile waits.
    largest = min(_TILE.get(devices[0].platform, _TILE_ELSEWHERE), memory // (8 * max(size, 1)))
    tiles = math.ceil(number / (max(largest, 1) * len(devices)))
    return math.ceil(number / (tiles * len(devices)))


def _members(
    axes: dict[str, Any], lengths: dict[str, int], runs: range, mesh: Mesh
) -> dict[str, Any]:
    """Return the values of some runs, on the devices; the last run stands in for those after it."""
    place = np.minimum(np.asarray(runs), math.prod(lengths.values()) - 1)
    sharding = NamedSharding(mesh, PartitionSpec("runs"))
    members = {}
    for name, length in reversed(lengths.items()):
        place, item = np.divmod(place, length)
        rows = jax.tree.map(lambda leaf, item=item: leaf[item], axes[name])
        members[name] = jax.tree.map(
            lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), rows
        )
    return members


def _arrived(tiles: Any) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Wait for tiles; yield those this process can read, each with the place of its first run."""
    _host.wait(tiles)
    leaves = jax.tree.leaves(tiles)
    if leaves[0].is_fully_addressable:
        for shards in zip(*(leaf.addressable_shards for leaf in leaves), strict=True):
            yield shards[0].index[0].start or 0, [np.asarray(shard.data) for shard in shards]
    else:
        yield 0, multihost_utils.process_allgather(leaves, tiled=True)


def _is_names(axis: Any) -> bool:
    """Return whether these are the labels of Python objects."""
    return isinstance(axis, tuple) and all(isinstance(label, str) for label in axis)


def _labels(axis: Any) -> Any:
    """Return the labels of an axis one by one: names, numbers, or else positions."""
    if _is_names(axis):
        return axis
    if isinstance(axis, np.ndarray) and axis.ndim == 1:
        return axis
    return np.arange(len(jax.tree.leaves(axis)[0]))


def _position(name: str, axis: Any, label: Any, method: str | None) -> int:
    """Return where a label stands on its axis."""
    labels = _labels(axis)
    if _is_names(axis):
        found = [i for i, one in enumerate(labels) if one == str(label)]
    elif (number := _number(label)) is None:
        found = []
    else:
        found = _places(labels, number, method)
    if not found:
        near = "near " if method and not _is_names(axis) else ""
        raise KeyError(f"axis {name!r} has no label {near}{label!r}: it has {_summary(axis)}.")
    return found[0]


def _number(label: Any) -> Any:
    """Return a label as one of Python's numbers, and None for anything else."""
    if not _tree.is_array(label) or _tree.is_key(label) or np.ndim(label):
        return None
    return np.asarray(label).item() if hasattr(label, "dtype") else label


def _places(labels: np.ndarray, number: Any, method: str | None) -> list[int]:
    """Return where a number stands on an axis, or, by the method, the number nearest to it."""
    numbers, wanted = labels.tolist(), _in_precision(number, labels.dtype)
    is_nan = wanted != wanted
    if method and is_nan:
        return []
    if method and wanted not in numbers:
        wanted = _nearest(numbers, number)
    return [i for i, one in enumerate(numbers) if one == wanted or (is_nan and one != one)]


def _nearest(numbers: list[Any], wanted: Any) -> Any:
    """Return the finite number nearest to another one, and None if there is none."""
    near = [one for one in numbers if cmath.isfinite(one)]
    if near and not any(isinstance(one, complex) for one in (near[0], wanted)):
        # Only its neighbours: from far away, all numbers are at one distance in floating point.
        wanted = min(max(wanted, min(near)), max(near))
        sides = max(one for one in near if one <= wanted), min(one for one in near if one >= wanted)
        near = [one for one in near if one in sides]
    return min(near, key=lambda one: abs(one - wanted), default=None)


def _in_precision(number: Any, dtype: Any) -> Any:
    """Return a number as a floating axis of this dtype holds it, if it does; others as they are."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return number
    with contextlib.suppress(OverflowError, TypeError), np.errstate(over="ignore"):
        rounded = dtype.type(number).item()
        return rounded if cmath.isfinite(rounded) else number
    return number


def _summary(axis: Any) -> str:
    """Say how long an axis is, and its labels if they are short."""
    labels = _labels(axis)
    if not _is_names(axis) and labels is not axis:
        return f"{len(labels)} {_check.shapes(axis)}"
    shown = [f"{one:.4g}" if isinstance(one, np.inexact) else str(one) for one in labels]
    if len(shown) > 3 and not _is_names(axis):
        shown = [f"{shown[0]} … {shown[-1]}"]
    return f"{len(labels)} ({', '.join(shown)})"


def _arrays(tree: Any) -> list[tuple[Any, np.ndarray]]:
    """Return the arrays of a tree with their paths, keys as the numbers they are."""
    return [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.without_keys(tree))
        if _tree.is_array(leaf)
    ]


def _name(path: Any) -> str:
    """Write the path of an array in a tree, as in params.w."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _rows(values: Any, axes: int) -> tuple[np.ndarray | None, list[Any]]:
    """Return the steps that rows stand at, if all runs have the same, and the arrays of rows."""
    steps: Any
    recorded: Any
    if isinstance(values, Run):
        steps, recorded = values.steps, (values.steps, values.trajectory)
    elif isinstance(values, Mapping) and np.ndim(values.get("step", 0)) == axes + 1:
        steps, recorded = values["step"], values
    else:
        return None, []
    length = np.shape(steps)[axes]
    steps = np.reshape(steps, (-1, length))
    rows = [leaf for _, leaf in _arrays(recorded) if np.shape(leaf)[axes : axes + 1] == (length,)]
    return steps[0] if (steps == steps[0]).all() else None, rows
