"""What a pytree is made of, as JSON: to build it again, and to tell how two differ."""

from __future__ import annotations

import collections
import functools
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _tree
from jaxfit.run import State


def is_stored(leaf: Any) -> bool:
    """Tell whether a leaf is an array, or stands for one; keys are to be their numbers."""
    numbers = isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic)
    return isinstance(leaf, jax.ShapeDtypeStruct) or (_tree.is_array(leaf) and not numbers)


def stored(tree: Any) -> list[Any]:
    """List the leaves that are arrays."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_stored(leaf)]


def filled(tree: Any, arrays: Any) -> Any:
    """Put others in the place of a tree's arrays."""
    arrays = iter(arrays)
    return jax.tree.map(lambda leaf: next(arrays) if is_stored(leaf) else leaf, tree)


def encode(tree: Any) -> Any:
    """Turn a tree without keys into JSON: its containers, and of arrays the dtypes and shapes."""
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
    if isinstance(tree, tuple) and len(getattr(tree, "_fields", ())) == len(parts):
        name = f"{type(tree).__module__}:{type(tree).__qualname__}"
        return {"namedtuple": name, "fields": list(tree._fields), "of": parts}  # type: ignore
    names = [_name(path[0]) for path, _ in children]
    encoded = [_encode_name(name) for name in names]
    # Names that come back as text would sort in another order.
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
    """Return what JAX calls a child of a node, without its brackets."""
    for attribute in "key", "idx", "name":
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def _encode_name(name: Any) -> Any:
    """Keep what JSON tells from all else, and give the rest its type, or make it text."""
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


def decode(spec: Any) -> Any:
    """Undo `encode`, as far as that runs nobody's code; arrays come as ShapeDtypeStruct.

    Raises:
      Exception: of one kind or another, if ``spec`` is not what `encode` gives.
    """
    match spec:
        case None:
            return None
        case {"array": str(name), "shape": list(shape)}:
            dtype = np.dtype(name)
            if not jnp.issubdtype(dtype, np.number) and dtype.kind != "b":
                raise ValueError(f"{name[:50]!r} is no dtype of numbers")
            view = np.broadcast_to(np.zeros((), dtype), shape)  # takes any shape that there can be
            return jax.ShapeDtypeStruct(view.shape, dtype)
        case {"keys": str(kind), "of": of}:
            data = decode(of)
            jax.eval_shape(functools.partial(jax.random.wrap_key_data, impl=kind), data)
            return _tree.Keys(data, kind)
        case {"value": bool() | int() | float() | str() as value}:
            return value
        case {"name": str(name)}:
            return name
        case {"state": [step, params, opt_state]}:
            return State(*[decode(part) for part in (step, params, opt_state)])
        case {"list": list(parts)}:
            return [decode(part) for part in parts]
        case {"tuple": list(parts)}:
            return tuple([decode(part) for part in parts])
        case {"dict": list(pairs)}:
            return _decode_pairs(pairs, dict)
        case {"node": list(pairs)}:  # whose order JAX keeps
            return _decode_pairs(pairs, collections.OrderedDict)
        case {"namedtuple": str(name), "fields": list(fields), "of": list(parts)}:
            return _decode_fields(name, fields, [decode(part) for part in parts])
    raise ValueError(f"{_check.show(spec)} is no part of a tree")


def _decode_pairs(pairs: list[Any], kind: type) -> Any:
    made = kind([(_decode_name(name), decode(part)) for name, part in pairs])
    jax.tree.leaves(made)  # of a dict only if its keys can be sorted
    if len(made) < len(pairs):
        raise ValueError("a dict has a key twice")
    return made


def _decode_fields(path: str, fields: list[str], parts: list[Any]) -> Any:
    """Make a named tuple of a class that is imported, if it has these fields, or of a new one."""
    if len(fields) != len(parts):
        raise ValueError("a named tuple has other fields than values")
    module, _, name = path.partition(":")
    made: Any = vars(sys.modules[module]).get(name) if module in sys.modules else None
    alike = isinstance(made, type) and issubclass(made, tuple)
    if not alike or list(getattr(made, "_fields", [])) != fields:
        made = collections.namedtuple("Decoded", fields, rename=True)  # type: ignore
        made.__name__ = name.rpartition(".")[2]
    return tuple.__new__(made, parts)  # which runs no code of the class


def checksum(leaf: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


def describe(tree: Any) -> dict[str, list[Any]]:
    """Say of every leaf of a tree without keys what it is, with a checksum of what is in it."""
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
    """Tell whether this process has all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
