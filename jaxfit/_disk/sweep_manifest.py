"""The manifest ``sweep.json``: what a sweep is, and how another differs from it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, TypedDict

import jax

from jaxfit._disk import files
from jaxfit._disk.blocks import Blocks
from jaxfit._disk.manifest import Leaves, describe, describe_programs, leaf_difference
from jaxfit._types import PyTree
from jaxfit._version import __version__

FORMAT = 1  # of a directory; another number for what this version could not read


class SweepManifest(TypedDict):
    """What identifies a sweep, as JSON."""

    format: int
    jax: str
    jaxfit: str
    axes: list[list[Any]]  # the name of each, and its labels or the `Leaves` of its arrays
    result: Leaves  # of one run
    batch_size: int
    chunk: list[int]  # the items of a block on every axis
    program: list[Any]  # from `describe_programs`


def fingerprint(
    axes: Sequence[tuple[str, Sequence[str] | PyTree]],
    result: PyTree,
    batch_size: int,
    blocks: Blocks,
    traced: Sequence[jax.stages.Traced],
) -> SweepManifest:
    """Return what identifies a sweep, which the one in a directory is compared with.

    Args:
      axes: the name of every axis, and the labels of Python objects or a tree of arrays.
      result: what one run returns, with ShapeDtypeStructs for arrays and without keys.
      batch_size: how many runs are computed at once, on which their last bits depend.
      blocks: the blocks.
      traced: the programs of one run, as ``jax.jit(…).trace`` returns them.
    """
    return {
        "format": FORMAT,
        "jax": jax.__version__,
        "jaxfit": __version__,
        "axes": [
            [name, items if isinstance(items, list) else describe(items)] for name, items in axes
        ],
        "result": describe(result),
        "batch_size": batch_size,
        "chunk": list(blocks.chunk),
        "program": describe_programs(traced),
    }


def read_sweep(path: pathlib.Path) -> SweepManifest | None:
    """Read the manifest of a directory; None if it has none.

    Raises:
      ValueError: if it is damaged, or in another format.
    """
    file = path / "sweep.json"
    if not file.is_file():
        return None
    manifest: SweepManifest = files.read_json(file)
    with files.raise_as_damage(file):
        number, writer = manifest["format"], manifest["jaxfit"]
    if number != FORMAT:
        raise ValueError(
            f"{path} holds a sweep in format {number}, but jaxfit {__version__} reads format "
            f"{FORMAT}: use jaxfit {writer}, which wrote it, or give another directory."
        )
    return manifest


def prepare(path: pathlib.Path, manifest: SweepManifest) -> None:
    """Check that a directory holds a sweep, or write its manifest."""
    kept = read_sweep(path)
    if kept is not None:
        with files.raise_as_damage(path / "sweep.json"):
            found = _difference(kept, manifest)
        if found:
            raise ValueError(
                f"{path} holds another sweep ({found}): give another directory, or make the sweep "
                f"that is there."
            )
    elif (path / "run.json").exists():
        raise ValueError(f"{path} holds a run, and not a sweep: give another directory.")
    elif (path / "values.zarr").exists():
        raise ValueError(
            f"{path} holds a values.zarr, but no sweep.json that says which sweep it is of: put "
            f"back a copy of it, or give another directory."
        )
    else:
        files.write_json(path / "sweep.json", manifest)


def _difference(kept: SweepManifest, given: SweepManifest) -> str | None:
    """Say in a few words how two sweeps differ; None if they do not."""
    names, others = ([name for name, _ in one["axes"]] for one in (kept, given))
    if names != others:
        return f"its axes are {', '.join(names)} there and {', '.join(others)} here"
    for (name, there), (_, here) in zip(kept["axes"], given["axes"], strict=True):
        if found := _axis_difference(f"axis {name!r}", there, here):
            return found
    if found := leaf_difference("the result of a run", kept["result"], given["result"]):
        return found
    if kept["batch_size"] != given["batch_size"]:
        return f"batch_size is {kept['batch_size']} there and {given['batch_size']} here"
    # Another JAX can print the same program differently, and another jaxfit can write it so.
    same_writer = (kept["jax"], kept["jaxfit"]) == (given["jax"], given["jaxfit"])
    if same_writer and kept["program"] != given["program"]:
        return "the same axes and shapes, but fn computes differently"
    return None


def _axis_difference(name: str, there: Any, here: Any) -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        return leaf_difference(name, there, here)
    if there == here:
        return None
    shown = [f"({', '.join(one)})" if isinstance(one, list) else "arrays" for one in (there, here)]
    return f"{name} is {shown[0]} there and {shown[1]} here"
