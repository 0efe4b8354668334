"""Where the results of a sweep go: to the host's memory, or to a directory."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxfit import _tree
from jaxfit._disk.blocks import Blocks
from jaxfit._disk.sweep_manifest import fingerprint
from jaxfit._disk.sweeps import SweepDirectory
from jaxfit._disk.zarr import Variable
from jaxfit._drive.axes import Axis, arrange
from jaxfit._drive.dataset import named
from jaxfit._drive.variant import Variant, trace
from jaxfit._types import PyTree

# A variant has about this many blocks, if it has more runs than this and a tile: few enough that a
# directory opens quickly, and enough that little is lost with one.
_BLOCKS = 256
_LARGEST = 2**26  # bytes of a block, if it has more than one run


class SweepSink(Protocol):
    """What stores results."""

    def wanted(self, batch_size: int) -> list[list[int]] | None:
        """Return which tiles to compute of every variant; None for all."""

    def add(self, variant: int, runs: range, arrays: Sequence[np.ndarray]) -> None:
        """Store the results of some runs."""

    def finish(self) -> None:
        """Wait until all are stored."""

    def values(self, like: Sequence[jax.ShapeDtypeStruct]) -> Sequence[Any]:
        """Return the arrays ``[*axes, …]``, from those of one run."""


class InMemory:
    """All results, in memory."""

    def __init__(self, axes: Sequence[Axis], like: Sequence[jax.ShapeDtypeStruct]) -> None:
        self._axes = axes
        self._number = math.prod(len(axis) for axis in axes if axis.inside)
        total = math.prod(map(len, axes))
        self._arrays = [np.empty((total, *leaf.shape), leaf.dtype) for leaf in like]

    def wanted(self, batch_size: int) -> None:
        return None

    def add(self, variant: int, runs: range, arrays: Sequence[np.ndarray]) -> None:
        first = variant * self._number
        for whole, part in zip(self._arrays, arrays, strict=True):
            whole[first + runs.start : first + runs.stop] = part

    def finish(self) -> None:
        pass

    def values(self, like: Sequence[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
        return [arrange(self._axes, array) for array in self._arrays]


def open_directory(
    path: pathlib.Path,
    axes: Sequence[Axis],
    variants: Sequence[Variant],
    result: PyTree,
    batch_size: int,
    devices: Sequence[jax.Device],
) -> SweepDirectory:
    """Open the directory of a sweep.

    Args:
      path: where it is.
      axes: all axes.
      variants: all variants.
      result: what one run returns, packed.
      batch_size: how many runs a tile has.
      devices: the devices that compute, of all processes.
    """
    inside = [axis for axis in axes if axis.inside]
    number, size = math.prod(map(len, inside)), _tree.nbytes(result)
    most = max(batch_size, math.ceil(number / _BLOCKS))
    most = max(1, min(most, _LARGEST // max(size, 1)))
    blocks = Blocks.of([*map(len, axes)], [axis.inside for axis in axes], most)
    like, structure = jax.tree.leaves(result), jax.tree.structure(result)
    shapes = [(*blocks.lengths, *leaf.shape) for leaf in like]
    # Views of one number, which have a shape and take no memory.
    views = [
        np.broadcast_to(np.zeros((), leaf.dtype), shape)
        for leaf, shape in zip(like, shapes, strict=True)
    ]
    coordinates, arrays = named(axes, _tree.unpack(jax.tree.unflatten(structure, views)))
    variables = [
        Variable(name, tuple(dimensions), view.shape, view.dtype, _chunk(blocks, view.shape))
        for name, (dimensions, view) in arrays.items()
    ]
    _check_names([*coordinates, *arrays])
    done = "done"
    while done in coordinates or done in arrays:
        done += "_"
    dimensions = tuple(axis.name for axis in axes)
    variables.append(Variable(done, dimensions, blocks.lengths, np.dtype(bool), blocks.chunk))
    kept = [(axis.name, axis.items if axis.inside else list(axis.labels)) for axis in axes]
    manifest = fingerprint(kept, result, batch_size, blocks, trace(variants, inside))
    owners = [device.process_index for device in devices]
    return SweepDirectory(path, manifest, blocks, variables, coordinates, owners)


def _chunk(blocks: Blocks, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a chunk of an array ``[*axes, …]``."""
    return (*blocks.chunk, *(max(1, length) for length in shape[len(blocks.chunk) :]))


def _check_names(names: Sequence[str]) -> None:
    """Check that names can be those of folders."""
    if bad := [name for name in names if "/" in name or name.startswith((".", "__"))]:
        raise ValueError(
            f"{bad[0]!r} names an array, and with checkpoint_dir its folder, so it must not begin "
            f"with a dot or two underscores, nor hold a slash: choose another name."
        )
