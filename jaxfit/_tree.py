"""Pytrees: which leaves are trained, and how the others ride along."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._types import PyTree
from jaxfit.run import Run, State, Step


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array or a number, which JAX can carry through a loop."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"  # objects, text, dates
    return isinstance(leaf, jax.Array | bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a PRNG key of the new style, or an array of them."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_number(leaf: Any) -> bool:
    """Return whether a leaf is a number of Python's."""
    return isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic)


def is_trainable(leaf: Any) -> bool:
    """Return whether a leaf has a gradient: a floating or complex array or number."""
    return is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def is_proper_array(leaf: Any) -> bool:
    """Return whether a leaf is an array, and not a number of Python's."""
    return is_array(leaf) and not is_number(leaf)


def is_trained(leaf: Any) -> bool:
    """Return whether a leaf of parameters that went through `as_arrays` is trained."""
    return is_proper_array(leaf) and is_trainable(leaf)


# Nodes in which a number of Python's is a value. In any other node, such as an Equinox module, it
# is a setting, which is not trained and not stacked.
_CONTAINERS = dict, list, tuple, collections.OrderedDict, collections.defaultdict, Run, State, Step


def map_values(
    fn: Callable[[Any], Any], tree: PyTree, on_setting: Callable[[Any], Any] = lambda leaf: leaf
) -> PyTree:
    """Map the leaves of a tree by a function, and the settings in it by another."""
    children, structure = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
    if not children:
        return tree  # an empty container, or None
    if jax.tree_util.treedef_is_leaf(structure):
        return fn(tree)
    if type(tree) in _CONTAINERS or hasattr(tree, "_fields"):
        mapped = [map_values(fn, child, on_setting) for child in children]
        return jax.tree.unflatten(structure, mapped)
    return jax.tree.map(lambda leaf: on_setting(leaf) if is_number(leaf) else fn(leaf), tree)


def as_arrays(tree: PyTree, which: Callable[[Any], bool] = is_trainable) -> PyTree:
    """Turn values into JAX arrays of a definite dtype, by default those that can be trained."""

    def convert(leaf: Any) -> Any:
        if not which(leaf) or (isinstance(leaf, jax.Array) and not jax.typeof(leaf).weak_type):
            return leaf
        # Without an explicit dtype, a Python float would become an array of a weak type.
        return jnp.asarray(leaf, dtype=jnp.result_type(leaf))

    return map_values(convert, tree)


def partition(tree: PyTree, which: Callable[[Any], bool] = is_trained) -> tuple[PyTree, PyTree]:
    """Split a tree into some leaves and the others, with None in the gaps.

    By default, these are the leaves of parameters that are trained.
    """
    chosen = jax.tree.map(lambda leaf: leaf if which(leaf) else None, tree)
    others = jax.tree.map(lambda leaf: None if which(leaf) else leaf, tree)
    return chosen, others


def combine(chosen: PyTree, others: PyTree) -> PyTree:
    """Undo `partition`."""
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        chosen,
        others,
        is_leaf=lambda leaf: leaf is None,
    )


@jax.tree_util.register_pytree_node_class
class StaticLeaf:
    """A leaf that JAX does not trace, moved into the structure of its tree.

    Two are equal if a program that was compiled for one serves the other: if their values are equal
    or, where values cannot be hashed, the same object.
    """

    def __init__(self, value: Any):
        self.value = value

    def tree_flatten(self) -> tuple[tuple[()], StaticLeaf]:
        return (), self

    @classmethod
    def tree_unflatten(cls, static: StaticLeaf, _: tuple[()]) -> StaticLeaf:
        return static

    def _key(self) -> tuple[Any, ...]:
        try:
            hash(self.value)
        except TypeError:
            return (id(self.value),)
        # As text, 0.0 and -0.0 differ.
        text = str(self.value) if isinstance(self.value, float) else ""
        return type(self.value), self.value, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticLeaf) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return repr(self.value)


def pack(tree: PyTree) -> PyTree:
    """Make static every leaf but arrays and values, so that a loop can carry the tree."""
    return map_values(lambda leaf: leaf if is_array(leaf) else StaticLeaf(leaf), tree, StaticLeaf)


def hold(tree: PyTree) -> PyTree:
    """Make static every leaf but JAX arrays, so that Python numbers stay Python numbers."""
    traced = jax.Array | jax.ShapeDtypeStruct
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, traced) else StaticLeaf(leaf), tree)


def arrays(tree: PyTree) -> list[Any]:
    """List the leaves that are JAX arrays, or stand for them."""
    return jax.tree.leaves(hold(tree))


def nbytes(tree: PyTree) -> int:
    """Return the bytes of the arrays of a tree, or of what stands for them."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays(tree))


def unpack(tree: PyTree) -> PyTree:
    """Undo `pack` and `hold`."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, StaticLeaf) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, StaticLeaf),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The data of PRNG keys, which can be NumPy arrays, as the keys themselves cannot.

    Attributes:
      data: uint32 [keys, …, words].
      kind: their implementation, as ``jax.random.key_impl`` gives it, or its name.
    """

    data: Any
    kind: Any = dataclasses.field(metadata={"static": True})


def without_keys(tree: PyTree) -> PyTree:
    """Replace PRNG keys of the new style by their data."""
    return jax.tree.map(
        lambda leaf: (
            Keys(jax.random.key_data(leaf), jax.random.key_impl(leaf)) if is_key(leaf) else leaf
        ),
        tree,
    )


def with_keys(tree: PyTree) -> PyTree:
    """Undo `without_keys`."""
    return jax.tree.map(
        lambda leaf: (
            jax.random.wrap_key_data(leaf.data, impl=leaf.kind) if isinstance(leaf, Keys) else leaf
        ),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Keys),
    )
