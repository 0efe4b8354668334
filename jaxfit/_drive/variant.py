"""The programs of a sweep: one run, and a tile of runs on every device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxfit import _check, _tree
from jaxfit._disk.rows import DiskValues
from jaxfit._drive.axes import Axis
from jaxfit._guard import equations
from jaxfit._tree import StaticLeaf
from jaxfit._types import PyTree


@dataclasses.dataclass(frozen=True)
class Variant:
    """A function and the Python objects it is compiled for, as a static argument of ``jax.jit``.

    Two are equal if what is compiled for one serves the other, whatever labels the objects have.

    Attributes:
      fn: the function that is swept.
      objects: the Python objects it is called with in all runs, with their names.
      labels: the labels of these objects by name, for messages.
    """

    fn: StaticLeaf
    objects: tuple[tuple[str, StaticLeaf], ...]
    labels: dict[str, str] = dataclasses.field(compare=False)


def variants_of(fn: Any, axes: Sequence[Axis], before: Sequence[str] = ()) -> list[Variant]:
    """Check that a function takes the axes, and return a variant for each choice of objects.

    Args:
      fn: the function.
      axes: all axes.
      before: the names of its positional arguments, which come before the keywords.
    """
    names = [axis.name for axis in axes]
    if not callable(fn):
        raise TypeError(f"fn is {_check.show(fn)}, but must be a function of {', '.join(names)}.")
    with contextlib.suppress(ValueError):  # some builtins have no signature
        signature = inspect.signature(fn)
        try:
            signature.bind(*before, **dict.fromkeys(names))
        except TypeError as error:
            first = f"{', '.join(before)} and " if before else ""
            raise TypeError(
                f"fn takes {signature}, but is called with {first}one keyword for each axis, "
                f"{', '.join(names)} ({error}): name the axes as its arguments."
            ) from None
    choices = itertools.product(
        *(
            [(axis.name, label, item) for label, item in zip(axis.labels, axis.items, strict=True)]
            for axis in axes
            if not axis.inside
        )
    )
    return [
        Variant(
            StaticLeaf(fn),
            tuple((name, StaticLeaf(item)) for name, _, item in choice),
            {name: label for name, label, _ in choice},
        )
        for choice in choices
    ]


def result_of(variants: Sequence[Variant], axes: Sequence[Axis]) -> PyTree:
    """Check that all runs return the same shapes and objects, none traced; return what one returns.

    Args:
      variants: all variants of the function.
      axes: the axes inside a program.

    Returns:
      The result of a run, packed, with ``jax.ShapeDtypeStruct`` in place of arrays.
    """
    items = {axis.name: jax.tree.map(lambda leaf: leaf[0], axis.items) for axis in axes}
    results = [_member.eval_shape(variant, items) for variant in variants]
    for variant in variants:
        closed_over = jax.make_jaxpr(functools.partial(_member, variant))(items).consts
        _check.concrete("what fn closes over", closed_over, "sweep")
    traced = results
    if _objects(results[0]):  # if fn makes them, they differ when it is traced again
        traced = [*results, jax.eval_shape(functools.partial(_run, variants[0]), items)]
    _check_objects(traced)
    _check_arrays(variants, results)
    return results[0]


def trace(variants: Sequence[Variant], axes: Sequence[Axis]) -> list[jax.stages.Traced]:
    """Return the program of one run of each variant, for a fingerprint."""
    items = {axis.name: jax.tree.map(lambda leaf: leaf[0], axis.items) for axis in axes}
    return [_member.trace(variant, items) for variant in variants]


def carried_by(variants: Sequence[Variant], axes: Sequence[Axis]) -> int:
    """Return the bytes that a run carries from step to step, in the largest loop of all variants.

    Args:
      variants: all variants.
      axes: the axes inside a program.
    """
    most = 0
    for traced in trace(variants, axes):
        for equation in equations(traced.jaxpr.jaxpr):
            if equation.primitive.name in ("scan", "while"):
                carry = equation.outvars[: equation.params.get("num_carry")]
                most = max(most, sum(one.aval.size * one.aval.dtype.itemsize for one in carry))
    return most


def restore(result: PyTree, arrays: Sequence[np.ndarray | DiskValues]) -> PyTree:
    """Return what the runs of a sweep returned, from the result of one and the arrays of all.

    Args:
      result: what `result_of` returned.
      arrays: its arrays in their order, with any leading axes.
    """
    packed = jax.tree.unflatten(jax.tree.structure(result), arrays)

    def with_keys(node: Any) -> Any:
        on_disk = isinstance(node, _tree.Keys) and isinstance(node.data, DiskValues)
        return node.data.as_keys(node.kind) if on_disk else node

    packed = jax.tree.map(with_keys, packed, is_leaf=lambda node: isinstance(node, _tree.Keys))
    return _tree.unpack(_tree.with_keys(packed))


def _run(variant: Variant, items: dict[str, PyTree]) -> PyTree:
    """Run a function once, with the items of the axes by name; return its result, packed."""
    objects = {name: item.value for name, item in variant.objects}
    result = variant.fn.value(**objects, **_tree.with_keys(items))
    return _tree.without_keys(_tree.pack(result))


# Not inlined: with inline=True, jax 0.10 rounds derivatives of runs differently on many devices.
_member = jax.jit(_run, static_argnums=0)


# XLA runs its pass spmd-cleanup only on programs for several devices. It merges what is computed
# twice, and XLA then divides where it would have multiplied by a reciprocal: Adam would be rounded
# differently on two devices than on one.
@functools.partial(
    jax.jit,
    static_argnums=(0, 1, 2),
    compiler_options={"xla_disable_hlo_passes": "spmd-cleanup"},
)
def run_tiles(
    variant: Variant, batch_size: int, mesh: Mesh, items: dict[str, PyTree]
) -> list[jax.Array]:
    """Run one tile on every device.

    Args:
      variant: what to run.
      batch_size: how many runs a tile has.
      mesh: the devices, with the axis ``"runs"``.
      items: for each axis inside a program its items, a pytree of arrays
        ``[devices * batch_size, …]``.

    Returns:
      The arrays of the packed results, ``[devices * batch_size, …]``.
    """

    def tile(items: dict[str, PyTree]) -> list[jax.Array]:
        if batch_size > 1:
            run = functools.partial(_member, variant)
            return jax.tree.leaves(jax.vmap(run, axis_size=batch_size)(items))
        # A batch of one is rounded differently from a run alone.
        alone = _member(variant, jax.tree.map(lambda leaf: leaf[0], items))
        return [leaf[None] for leaf in jax.tree.leaves(alone)]

    split = PartitionSpec("runs")
    # Nothing is communicated. Loops in fn carry values that are the same on all devices beside
    # values that are not, which check_vma refuses.
    return jax.shard_map(tile, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(items)


def _objects(result: PyTree) -> dict[str, Any]:
    """Return the leaves of a packed result that are Python objects, by their paths."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(_tree.unpack(result))
        if not isinstance(leaf, jax.ShapeDtypeStruct)
    }


def _check_objects(results: Sequence[PyTree]) -> None:
    """Check that the Python objects in all results are the same."""
    first, *others = map(_objects, results)
    for other in others:
        for path in first | other:
            one, two = first.get(path), other.get(path)
            method = callable(one) and one == two  # which is another object at each look-up
            if one is not two and not method:
                at = f" at leaf {path!r}" if path else ""
                raise TypeError(
                    f"fn returned {_check.show(other.get(path, one))}{at}, but the leaves of a "
                    f"result must be arrays, numbers, or Python objects that are the same for all "
                    f"runs: leave it out, or make it once, outside of fn."
                )


def _check_arrays(variants: Sequence[Variant], results: Sequence[PyTree]) -> None:
    """Check that there is an array in the results, and that their shapes are the same."""
    array = lambda leaf: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else None
    results = [_tree.unpack(result) for result in results]
    first, *others = [jax.tree.map(array, result) for result in results]
    for variant, other in zip(variants[1:], others, strict=True):
        if found := _check.difference(first, other):
            raise ValueError(
                f"fn returns one shape for {variants[0].labels} and another for {variant.labels} "
                f"({found}), but the runs of a sweep are put in one array: return less, such as "
                f"the losses alone, or sweep them one by one."
            )
    if not jax.tree.leaves(first):
        raise ValueError(
            f"fn returned {_check.shapes(results[0])}, but a sweep needs at least one array: "
            f"return what to keep."
        )
