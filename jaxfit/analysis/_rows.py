"""What the rows of a run hold of a State: its parameters, where the recorder kept them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._types import PyTree
from jaxfit.run import Run, State, Step
from jaxfit.sweep import Sweep


class AbsentError(Exception):
    """A function has asked for a part of a step that is not there."""


@jax.tree_util.register_pytree_node_class
class Absent(np.lib.mixins.NDArrayOperatorsMixin):
    """What stands in a `Step` for a part that is not there; any use of it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise AbsentError(self._name)

    @classmethod
    def tree_unflatten(cls, *_: Any) -> NoReturn:
        """Do what never happens, because none can be flattened."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__jax_array__":  # asked for by Python itself
            raise AttributeError(name)
        self._raise()

    __array_ufunc__ = __array__ = __bool__ = __float__ = __getitem__ = __iter__ = __len__ = _raise
    tree_flatten = _raise


def step_of(known: Mapping[str, Any]) -> Step:
    """Return a `Step` of the parts that are known."""
    names = [field.name for field in dataclasses.fields(Step)]
    return Step(**{name: known.get(name, Absent(name)) for name in names})


def recorded(run: Run) -> dict[str, PyTree] | None:
    """Return the parts of a State that the rows of a run hold, stacked; None without parameters.

    Rows can be parameters, a `State`, or a dict with the parameters under ``"params"``.
    """
    rows = run.trajectory
    if isinstance(rows, State):
        names = "params", "opt_state", "carry"
        return {name: getattr(rows, name) for name in names}
    params = rows.get("params") if isinstance(rows, dict) and "params" in rows else rows
    if not _are_stacked(params, run.state.params):
        return None
    # A run without a carry is without one at every step.
    return {"params": params} | ({} if carry_of(run) is not None else {"carry": None})


def carry_of(run: Run) -> Any:
    """Return the last carry of a run; None without one."""
    return run.state.carry


def _are_stacked(rows: PyTree, one: PyTree) -> bool:
    """Return whether rows are trees like one, with a leading axis."""
    structure: Callable[[Any], Any] = jax.tree.structure
    if structure(rows) != structure(one):
        return False
    pairs = zip(jax.tree.leaves(rows), jax.tree.leaves(one), strict=True)
    return all(
        np.shape(many)[1:] == np.shape(single) and np.ndim(many) == np.ndim(single) + 1
        for many, single in pairs
        if _tree.is_array(single)
    )


def on_host(tree: PyTree) -> bool:
    """Return whether some arrays of a tree are on the host or on disk, not JAX's."""
    return any(hasattr(x, "dtype") and not isinstance(x, jax.Array) for x in jax.tree.leaves(tree))


def pick(tree: PyTree, index: Any) -> PyTree:
    """Pick one or some of stacked trees, as arrays of JAX's; the leaves without axes stay."""
    take = lambda leaf: jnp.asarray(leaf[index]) if getattr(leaf, "ndim", 0) else leaf
    return jax.tree.map(take, tree)


def like_one(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of one of stacked trees, packed."""

    def like(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return _tree.StaticLeaf(leaf)
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

    return jax.tree.map(like, tree)


def check_run(run: Any) -> Run:
    """Return a run, or the runs that are the values of a sweep."""
    run = run.values if isinstance(run, Sweep) else run
    _check.kind("run", run, Run, "what train returned, or a sweep whose values are runs")
    return run  # type: ignore[no-any-return]
