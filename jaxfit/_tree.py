"""Pytrees: which leaves are trained, and how the others ride along."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit._types import Params, PyTree


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array or a number, which JAX can carry through a loop."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"  # objects, text, dates
    return isinstance(leaf, jax.Array | bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a PRNG key of the new style, or an array of them."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_trainable(leaf: Any) -> bool:
    """Return whether a leaf has a gradient: a floating or complex array or number."""
    return is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def as_arrays(params: Params) -> Params:
    """Turn the trainable leaves into JAX arrays of a definite dtype; leave the others alone."""

    def convert(leaf: Any) -> Any:
        if not is_trainable(leaf):
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.weak_type:
            return leaf
        # Without an explicit dtype, a Python float would become an array of a weak type.
        return jnp.asarray(leaf, dtype=jnp.result_type(leaf))

    return jax.tree.map(convert, params)


def partition(params: Params) -> tuple[PyTree, PyTree]:
    """Split parameters into the leaves that are trained and the others, with None in the gaps."""
    trained = jax.tree.map(lambda leaf: leaf if is_trainable(leaf) else None, params)
    others = jax.tree.map(lambda leaf: None if is_trainable(leaf) else leaf, params)
    return trained, others


def combine(trained: PyTree, others: PyTree) -> Params:
    """Undo `partition`."""
    return jax.tree.map(
        lambda one, other: other if one is None else one,
        trained,
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
    """Make static every leaf but arrays and numbers, so that a loop can carry the tree."""
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) else StaticLeaf(leaf), tree)


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
