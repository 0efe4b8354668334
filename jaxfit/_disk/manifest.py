"""The manifest ``run.json``: a fingerprint of the run, which says how another differs from it."""

from __future__ import annotations

import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NotRequired, TypeAlias, TypedDict

import jax
import numpy as np

from jaxfit import _check, _tree
from jaxfit._disk import files, spec
from jaxfit._types import Batch, PyTree, Row
from jaxfit._version import __version__
from jaxfit.run import State

FORMAT = 2  # of a directory; another number for what this version could not read

Leaves: TypeAlias = dict[str, list[Any]]
"""For the path of every leaf: a description, and a checksum or None."""


class Manifest(TypedDict):
    """What identifies a run, as JSON."""

    format: int
    jax: str
    jaxfit: NotRequired[str]  # absent from the oldest directories
    first: int  # step
    record_every: int
    evaluate_every: int | None  # None if there are no evaluations
    state: Any  # a `spec`
    row: Any  # likewise
    evaluation: Any  # likewise; None if there are none
    leaves: dict[str, Leaves]
    program: list[Any]  # the checksum of a step's jaxpr, then descriptions of its constants


def fingerprint(
    state: State,
    row: Row,
    evaluation: PyTree,
    batch: Batch,
    record_every: int,
    evaluate_every: int | None,
    traced: Sequence[jax.stages.Traced],
) -> Manifest:
    """Return the run's fingerprint, which a resumed run is compared with.

    Args:
      state: the State that the run starts from.
      row: a tree like one row, with ShapeDtypeStructs for arrays and without keys.
      evaluation: likewise a tree like one evaluation; None if there are none.
      batch: the first batch.
      record_every: as in `fit`.
      evaluate_every: likewise.
      traced: the programs of a row and of an evaluation, as ``jax.jit(…).trace`` returns them.
    """
    state, batch = _tree.without_keys(state), _tree.without_keys(batch)
    return {
        "format": FORMAT,
        "jax": jax.__version__,
        "jaxfit": __version__,
        "first": int(state.step),
        "record_every": record_every,
        "evaluate_every": evaluate_every,
        "state": spec.encode(state),
        "row": spec.encode(row),
        "evaluation": spec.encode(evaluation),
        "leaves": {
            "params": describe(state.params),
            "the optimizer's state": describe(state.opt_state),
            "carry": describe(state.carry),
            "a row": describe(row),
            "an evaluation": describe(evaluation),
            "the first batch": describe(batch),
        },
        "program": describe_programs(traced),
    }


def describe_programs(traced: Sequence[jax.stages.Traced]) -> list[Any]:
    """Return the checksum of the jaxprs of programs, then descriptions of their constants."""
    text = "".join(str(one.jaxpr) for one in traced)
    program = re.sub("0x[0-9a-f]+", "", text)  # functions print with addresses
    seen: set[int] = set()
    found = [constant for one in traced for constant in _constants(one.jaxpr, seen)]
    constants = describe(_tree.without_keys(found))
    # In order, but each once: how often one appears depends on what JAX had traced before.
    distinct = dict.fromkeys(map(tuple, constants.values()))
    return [zlib.crc32(program.encode()), *map(list, distinct)]


def _constants(program: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the arrays that a jaxpr closes over, and those of the jaxprs in it."""
    if id(program) in seen:
        return
    seen.add(id(program))
    for leaf in getattr(program, "consts", ()):
        yield leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    for equation in program.eqns:
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner, "eqns"):  # a jaxpr, closed or not
                yield from _constants(inner, seen)


def describe(tree: PyTree) -> Leaves:
    """Describe every leaf of a tree without keys; arrays that are here get a checksum."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        text, value = _check.show(leaf), None
        if spec.is_stored(leaf):
            text = _check.shapes(leaf)
            if not isinstance(leaf, jax.ShapeDtypeStruct) and files.is_here(leaf):
                value = files.checksum(np.asarray(leaf))
        described[jax.tree_util.keystr(path)] = [text, value]
    return described


def write_manifest(directory: pathlib.Path, manifest: Manifest) -> None:
    """Write a directory's manifest."""
    files.write_json(directory / "run.json", manifest)


def read_manifest(
    directory: pathlib.Path, known: Sequence[tuple[Any, PyTree]] = ()
) -> tuple[Manifest, State, Row, PyTree]:
    """Read a directory's manifest, and decode what a run is read from disk with.

    Args:
      directory: where it is.
      known: trees that come back in place of their descriptions, as in ``spec.decode``.

    Returns:
      The manifest, and trees like the run's State, one of its rows and one of its evaluations,
      with ShapeDtypeStructs for arrays and without keys.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged, or in another format.
    """
    manifest: Any = _read(directory)
    with files.raise_as_damage(directory / "run.json"):
        for name, least in ("first", 0), ("record_every", 1), ("evaluate_every", 1):
            is_number = type(manifest[name]) is int and least <= manifest[name] < 2**31
            if not is_number and (name, manifest[name]) != ("evaluate_every", None):
                raise ValueError(f"{name} is {manifest[name]}")
        state, row, evaluation = (
            spec.decode(manifest[name], known) for name in ("state", "row", "evaluation")
        )
        if not isinstance(state, State) or state.step != jax.ShapeDtypeStruct((), np.int32):
            raise ValueError("its state has no step")
    return manifest, state, row, evaluation


def _read(directory: pathlib.Path) -> Manifest:
    """Read a directory's manifest, and check its format but not its content."""
    manifest: Manifest = files.read_json(directory / "run.json")
    with files.raise_as_damage(directory / "run.json"):
        number, writer = manifest["format"], manifest.get("jaxfit")
        if type(number) is not int:
            raise ValueError(f"its format is {number}")
    if number != FORMAT:
        wrote = f"jaxfit {writer}, which wrote it" if writer else "the jaxfit that wrote it"
        raise ValueError(
            f"{directory} holds a run in format {number}, but jaxfit {__version__} reads format "
            f"{FORMAT}: use {wrote}, or give another directory."
        )
    return manifest


def find_difference(directory: pathlib.Path, given: Manifest) -> str | None:
    """Say in a few words how a run differs from that of a directory; None if it does not.

    Raises:
      OSError, ValueError: as `read_manifest` does.
    """
    kept = _read(directory)
    with files.raise_as_damage(directory / "run.json"):
        return _difference(kept, given)


def _difference(kept: Manifest, given: Manifest) -> str | None:
    for name, leaves in given["leaves"].items():
        if found := leaf_difference(name, kept["leaves"][name], leaves):
            return found
    if kept["first"] != given["first"]:
        return f"the first step is {kept['first']} there and {given['first']} here"
    for every in ("record_every", "evaluate_every"):
        if kept[every] != given[every]:
            return f"{every} is {kept[every]} there and {given[every]} here"
    # Another JAX can print the same program differently, and another jaxfit can write the loop
    # around the same loss differently.
    same_writer = kept["jax"] == given["jax"] and kept.get("jaxfit") == given["jaxfit"]
    if same_writer and kept["program"] != given["program"]:
        parts = "data or record" if given["evaluate_every"] is None else "data, record or evaluate"
        return f"the same shapes, but the loss, optimizer, {parts} computes differently"
    return None


def leaf_difference(name: str, kept: Leaves, given: Leaves) -> str | None:
    """Say how the leaves of one tree differ, if they do."""
    if extra := [key for key in kept if key not in given]:
        return f"{name} has the leaf {extra[0] or 'itself'} there, and not here"
    for key, (text, value) in given.items():
        if key not in kept:
            return f"{name} has the leaf {key or 'itself'} here, and not there"
        if kept[key][0] != text:
            return f"{name}{key} is {kept[key][0]} there and {text} here"
        if None not in (value, kept[key][1]) and value != kept[key][1]:
            other = ": other data, or another seed" if name == "the first batch" else ""
            return f"{name}{key} has other values{other}"
    return None
