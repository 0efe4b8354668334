"""What a pytree is made of, as JSON: to build it again, and to tell how two differ."""

from __future__ import annotations

import collections
import sys
import zlib
from typing import Any

import jax
import numpy as np

from jaxfit import _check, _tree
from jaxfit.run import State


def is_stored(leaf: Any) -> bool:
    """Whether a leaf is an array, or stands for one; keys are to be their numbers."""
    numbers = isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic)
    return isinstance(leaf, jax.ShapeDtypeStruct) or (_tree.is_array(leaf) and not numbers)


def stored(tree: Any) -> list[Any]:
    """The leaves that are arrays."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_stored(leaf)]


def filled(tree: Any, arrays: Any) -> Any:
    """A tree with others in the place of its arrays."""
    arrays = iter(arrays)
    return jax.tree.map(lambda leaf: next(arrays) if is_stored(leaf) else leaf, tree)


def encode(tree: Any) -> Any:
    """A tree without keys as JSON: its containers, and of its arrays the dtypes and shapes."""
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    if tree is None:
        return None
    if isinstance(tree, _tree.Keys):
        return {"keys": str(tree.kind), "of": encode(tree.data)}
    if len(children) == 1 and not children[0][0]:
        return _encode_leaf(tree)
    parts = [encode(child) for _, child in children]
    names = [_plain(path[0]) for path, _ in children]
    if isinstance(tree, State):
        return {"state": parts}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        name = f"{type(tree).__module__}:{type(tree).__qualname__}"
        return {"namedtuple": name, "fields": list(tree._fields), "of": parts}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: parts}
    kind = "dict" if type(tree) is dict else "node"
    return {kind: [list(pair) for pair in zip(names, parts, strict=True)]}


def _encode_leaf(leaf: Any) -> Any:
    if is_stored(leaf):
        return {"array": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)}
    if isinstance(leaf, bool | int | float | str):
        return {"value": leaf}
    return {"name": _check.show(leaf)}


def _plain(key: Any) -> Any:
    """What JAX calls a child of a node, without its brackets."""
    for attribute in "key", "idx", "name":
        if hasattr(key, attribute):
            name = getattr(key, attribute)
            return name if isinstance(name, int | str) else str(name)
    return str(key)


def decode(spec: Any) -> Any:
    """Undo `encode`, as far as that runs nobody's code; arrays come as ShapeDtypeStruct."""
    if spec is None:
        return None
    match next(iter(spec)):
        case "keys":
            return _tree.Keys(decode(spec["of"]), spec["keys"])
        case "array":
            return jax.ShapeDtypeStruct(spec["shape"], np.dtype(spec["array"]))
        case "value" | "name" as kind:
            return spec[kind]
        case "state":
            return State(*map(decode, spec["state"]))
        case "list":
            return [decode(part) for part in spec["list"]]
        case "tuple":
            return tuple(decode(part) for part in spec["tuple"])
        case "dict":
            return {name: decode(part) for name, part in spec["dict"]}
        case "node":  # whose order JAX keeps
            return collections.OrderedDict((name, decode(part)) for name, part in spec["node"])
    # Of classes, only named tuples that are imported already: making one runs no code of theirs.
    module, _, name = spec["namedtuple"].partition(":")
    made: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    alike = isinstance(made, type) and issubclass(made, tuple)
    if not alike or list(getattr(made, "_fields", [])) != spec["fields"]:
        made = collections.namedtuple("Decoded", list(spec["fields"]), rename=True)  # type: ignore
        made.__name__ = name.rpartition(".")[2]
    return tuple.__new__(made, [decode(part) for part in spec["of"]])


def checksum(leaf: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


def describe(tree: Any) -> dict[str, list[Any]]:
    """For every leaf of a tree without keys what it is, and a checksum of what is in it."""
    described = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        text, value = _check.show(leaf), None
        if is_stored(leaf):
            text = _check.shapes(leaf)
            if not isinstance(leaf, jax.ShapeDtypeStruct) and is_here(leaf):
                value = checksum(np.asarray(leaf))
        described[jax.tree_util.keystr(path)] = [text, value]
    return described


def is_here(leaf: Any) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
