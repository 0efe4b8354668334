"""Which leaves of a pytree are trained, and how the others ride along."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a number: what JAX can carry through a loop."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUMm"  # objects, text, dates
    return isinstance(leaf, jax.Array | bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is one of JAX's new PRNG keys, or an array of them."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_trainable(leaf: Any) -> bool:
    """Whether a leaf is a floating or complex array or number: what has a gradient."""
    return is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def as_arrays(params: Any) -> Any:
    """Turn the trainable leaves into JAX arrays of a definite dtype; leave the others alone."""

    def convert(leaf):
        if not is_trainable(leaf):
            return leaf
        if isinstance(leaf, jax.Array) and not leaf.weak_type:
            return leaf
        # The explicit dtype is what makes a Python float's array strong: 0.5 is float32 [].
        return jnp.asarray(leaf, dtype=jnp.result_type(leaf))

    return jax.tree.map(convert, params)


def partition(params: Any) -> tuple[Any, Any]:
    """Split a tree into the leaves that are trained and the others, with None in the gaps."""
    trained = jax.tree.map(lambda leaf: leaf if is_trainable(leaf) else None, params)
    others = jax.tree.map(lambda leaf: None if is_trainable(leaf) else leaf, params)
    return trained, others


def combine(trained: Any, others: Any) -> Any:
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
    or, where they cannot be hashed, the same object.
    """

    def __init__(self, value: Any):
        self.value = value

    def tree_flatten(self):
        return (), self

    @classmethod
    def tree_unflatten(cls, self, _):
        return self

    def _key(self) -> tuple[Any, ...]:
        try:
            hash(self.value)
        except TypeError:
            return (id(self.value),)
        sign = str(self.value) if isinstance(self.value, float) else ""  # of zero
        return type(self.value), self.value, sign

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticLeaf) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return repr(self.value)


def pack(tree: Any) -> Any:
    """Make static what is neither array nor number, so that a loop can carry the tree."""
    return jax.tree.map(lambda leaf: leaf if is_array(leaf) else StaticLeaf(leaf), tree)


def hold(tree: Any) -> Any:
    """Make static all but JAX's arrays: Python's numbers stay what they are."""
    traced = jax.Array | jax.ShapeDtypeStruct
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, traced) else StaticLeaf(leaf), tree)


def unpack(tree: Any) -> Any:
    """Undo `pack` and `hold`."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, StaticLeaf) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, StaticLeaf),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The numbers of PRNG keys, which unlike the keys themselves can be NumPy arrays."""

    data: Any
    kind: Any = dataclasses.field(metadata={"static": True})


def without_keys(tree: Any) -> Any:
    """Put the numbers of PRNG keys in their place."""
    return jax.tree.map(
        lambda leaf: (
            Keys(jax.random.key_data(leaf), jax.random.key_impl(leaf)) if is_key(leaf) else leaf
        ),
        tree,
    )


def with_keys(tree: Any) -> Any:
    """Undo `without_keys`."""
    return jax.tree.map(
        lambda leaf: (
            jax.random.wrap_key_data(leaf.data, impl=leaf.kind) if isinstance(leaf, Keys) else leaf
        ),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Keys),
    )
