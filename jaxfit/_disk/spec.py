"""Pytrees as JSON: their structure, with dtypes and shapes in place of arrays.

Trees here hold no PRNG keys, but the numbers of keys that ``_tree.without_keys`` gives.
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit._types import PyTree
from jaxfit.run import State


def is_stored(leaf: Any) -> bool:
    """Return whether a leaf is stored as an array, or stands for one; Python's numbers are not."""
    return isinstance(leaf, jax.ShapeDtypeStruct) or _tree.is_proper_array(leaf)


def stored(tree: PyTree) -> list[Any]:
    """Return the leaves that are stored as arrays."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_stored(leaf)]


def fill(tree: PyTree, arrays: Iterable[Any]) -> PyTree:
    """Put arrays in place of the `stored` leaves of a tree."""
    arrays = iter(arrays)
    return jax.tree.map(lambda leaf: next(arrays) if is_stored(leaf) else leaf, tree)


def encode(tree: PyTree) -> Any:
    """Turn a tree into JSON: its containers, and the dtypes and shapes of its arrays."""
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    if tree is None:
        return None
    if isinstance(tree, _tree.Keys):
        return {"keys": str(tree.kind), "of": encode(tree.data)}
    if len(children) == 1 and not children[0][0]:
        return _encode_leaf(tree)
    parts = [encode(child) for _, child in children]
    if isinstance(tree, State):
        return {"state": parts}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: parts}
    fields = getattr(tree, "_fields", ())
    if isinstance(tree, tuple) and len(fields) == len(parts):
        name = f"{type(tree).__module__}:{type(tree).__qualname__}"
        return {"namedtuple": name, "fields": list(fields), "of": parts}
    names = [_name(path[0]) for path, _ in children]
    encoded = [_encode_name(name) for name in names]
    # A dict whose names come back as text would be sorted differently, so it becomes a node.
    kind = "dict" if type(tree) is dict and [*map(_decode_name, encoded)] == names else "node"
    if len(set(map(repr, encoded))) < len(encoded):
        encoded = list(range(len(encoded)))
    return {kind: [list(pair) for pair in zip(encoded, parts, strict=True)]}


def _encode_leaf(leaf: Any) -> Any:
    if is_stored(leaf):
        return {"array": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)}
    if isinstance(leaf, bool | int | float | str):
        return {"value": leaf}
    return {"name": _check.show(leaf)}


def _name(key: Any) -> Any:
    """Return JAX's name for a child of a node, without brackets."""
    for attribute in "key", "idx", "name":
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _encode_name(name: Any) -> Any:
    """Keep a name whose type JSON has; write down the type of bytes and tuples; else use text."""
    name = name.item() if isinstance(name, np.generic) else name
    if name is None or isinstance(name, bool | int | float | str):
        return name
    if isinstance(name, bytes):
        return {"bytes": name.hex()}
    if isinstance(name, tuple):
        return {"tuple": [_encode_name(part) for part in name]}
    return str(name)


def _decode_name(name: Any) -> Any:
    match name:
        case None | bool() | int() | float() | str():
            return name
        case {"bytes": str(digits)}:
            return bytes.fromhex(digits)
        case {"tuple": list(parts)}:
            return tuple([_decode_name(part) for part in parts])
    raise ValueError(f"{_check.show(name)} is no key of a dict")


def decode(spec: Any, known: Sequence[tuple[Any, PyTree]] = ()) -> PyTree:
    """Undo `encode` as far as possible without running code that the JSON names.

    Args:
      spec: what `encode` returned.
      known: descriptions by `encode`, each with the tree that is to come back in its place.

    Returns:
      A tree with ShapeDtypeStructs in place of arrays. Nodes of types other than Python's
      containers come back as ordered dicts, and functions as their names.

    Raises:
      Exception: of any type, if ``spec`` did not come from `encode`.
    """
    inner = functools.partial(decode, known=known)
    for description, tree in known:
        if spec == description:
            return tree
    match spec:
        case None:
            return None
        case {"array": str(name), "shape": list(shape)}:
            return _decode_array(name, shape)
        case {"keys": str(kind), "of": of}:
            data = decode(of)
            jax.eval_shape(functools.partial(jax.random.wrap_key_data, impl=kind), data)
            return _tree.Keys(data, kind)
        case {"value": bool() | int() | float() | str() as value}:
            return value
        case {"name": str(name)}:
            return name
        case {"state": [_, _, _, _] as parts}:
            return State(*map(inner, parts))
        case {"list": list(parts)}:
            return [*map(inner, parts)]
        case {"tuple": list(parts)}:
            return tuple(map(inner, parts))
        case {"dict": list(pairs)}:
            return _pairs([(name, inner(part)) for name, part in pairs], dict)
        case {"node": list(pairs)}:  # an ordered dict, because JAX keeps its order
            return _pairs([(name, inner(part)) for name, part in pairs], collections.OrderedDict)
        case {"namedtuple": str(name), "fields": list(fields), "of": list(parts)}:
            return _fields(name, fields, [*map(inner, parts)])
    raise ValueError(f"{_check.show(spec)} is no part of a tree")


def _decode_array(name: str, shape: list[Any]) -> jax.ShapeDtypeStruct:
    dtype = np.dtype(name)
    if not jnp.issubdtype(dtype, np.number) and dtype.kind != "b":
        raise ValueError(f"{name[:50]!r} is no dtype of numbers")
    view = np.broadcast_to(np.zeros((), dtype), shape)  # fails for shapes that no array can have
    return jax.ShapeDtypeStruct(view.shape, dtype)


def _pairs(pairs: list[tuple[Any, PyTree]], kind: type) -> PyTree:
    made = kind([(_decode_name(name), part) for name, part in pairs])
    jax.tree.leaves(made)  # fails if the keys of a dict cannot be sorted
    if len(made) < len(pairs):
        raise ValueError("a dict has a key twice")
    return made


def _fields(path: str, fields: list[str], parts: list[Any]) -> PyTree:
    """Make a named tuple of its class if that is imported with these fields, else of a new one."""
    if len(fields) != len(parts):
        raise ValueError("a named tuple has other fields than values")
    module, _, name = path.partition(":")
    kind: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    is_tuple = isinstance(kind, type) and issubclass(kind, tuple)
    if not is_tuple or list(getattr(kind, "_fields", [])) != fields:
        new = collections.namedtuple("Decoded", fields, rename=True)  # type: ignore[misc]
        new.__name__ = name.rpartition(".")[2]
        kind = new
    return tuple.__new__(kind, parts)  # unlike kind(*parts), runs no code of the class
