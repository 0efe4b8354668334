"""Check arguments. Each error says in one sentence what was given, what is expected, what to do.

Checks that only one file needs are in that file.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _tree


def count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number from the least to the largest of int32."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} is {show(value)}, but must be a whole number known when the loop is "
            f"compiled: give a Python int."
        ) from None
    if not least <= number < 2**31:
        raise ValueError(f"{name} is {number}, but must be at least {least} and below 2**31.")
    return number


def lengths(num_steps: Any, record_every: Any) -> tuple[int, int]:
    """Return the number of steps, which may be 0, and of steps to a row, as ints."""
    return count("num_steps", num_steps, 0), count("record_every", record_every)


def period(name: str, value: Any, record_every: int) -> int | None:
    """Return a number of steps that is a whole number of rows, as an int; None stays None."""
    if value is None:
        return None
    number = count(name, value)
    if number % record_every:
        raise ValueError(
            f"{name} is {number} and record_every {record_every}, but each begins with a row: "
            f"make {name} a multiple of record_every."
        )
    return number


def evaluation(evaluate: Any, evaluate_every: int | None, keyframe_every: int | None) -> None:
    """Check what is evaluated and how often, beside the keyframes."""
    if evaluate is not None:
        function("evaluate", evaluate, "state")
    if (evaluate is None) != (evaluate_every is None):
        given, missing = "evaluate", "evaluate_every=100"
        if evaluate is None:
            given, missing = "evaluate_every", "evaluate=lambda state: …"
        raise ValueError(f"{given} was given alone: give {missing} with it, or leave it out.")
    if keyframe_every and evaluate_every:
        small, large = sorted((keyframe_every, evaluate_every))
        if large % small:
            raise ValueError(
                f"keyframe_every is {keyframe_every} and evaluate_every {evaluate_every}, but one "
                f"loop is inside the other: make one of them a multiple of the other."
            )


def examples(name: str, arrays: Any, alternative: str = "") -> tuple[Any, int]:
    """Return a tree of arrays that share a leading axis as JAX's, and the length of that axis."""
    for leaf in jax.tree.leaves(arrays):
        if not _tree.is_array(leaf) or (_tree.is_key(leaf) and not leaf.ndim):
            raise TypeError(
                f"{name} holds {show(leaf)}, but its leaves must be arrays: convert them with "
                f"jnp.asarray, or give a key to minibatches, or use it in a function of the step."
            )
    number = leading_axis(name, arrays, "example", alternative)
    return jax.tree.map(jnp.asarray, arrays), number


def leading_axis(name: str, arrays: Any, item: str, alternative: str) -> int:
    """Return the length of the leading axis that the arrays of a tree share, at least one item."""
    given = [np.shape(leaf) for leaf in jax.tree.leaves(arrays)]
    lengths = {shape[:1] for shape in given}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{name} holds arrays of shape {' and '.join(map(str, given)) or 'none'}, but they "
            f"must share one leading axis, of one {item} or more: give arrays "
            f"[{item}s, …]{alternative}."
        )
    number: int = lengths.pop()[0]
    return number


def function(name: str, value: Any, *arguments: str) -> None:
    """Check that a value is a function that takes some positional arguments."""
    if not callable(value):
        raise TypeError(f"{name} is {show(value)}, but must be a function.")
    if not takes(value, len(arguments)):
        raise TypeError(
            f"{name} {show(value)} takes other arguments, but it is called as "
            f"{name}({', '.join(arguments)}): change its signature."
        )


def kind(name: str, value: Any, expected: type, example: str) -> None:
    """Check the type of a value."""
    if not isinstance(value, expected):
        raise TypeError(
            f"{name} is a {type(value).__name__}, but must be a {expected.__name__}: "
            f"give {example}."
        )


def concrete(name: str, value: Any, driver: str) -> None:
    """Check that nothing is traced in what a function that compiles for itself is given, or makes.

    Inside ``jax.jit``, whatever JAX makes is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        given = f"{name} is traced"
    elif isinstance(jnp.zeros(()), jax.core.Tracer):
        given = f"{driver} was called by a function that is traced"
    else:
        return
    raise TypeError(
        f"{given}, but {driver} is driven from Python and compiles for itself: call it outside of "
        f"jit, vmap and grad, and train inside."
    )


def is_carried(leaf: Any) -> bool:
    """Return whether JAX can carry a leaf through a loop: no text, float0 or too large an int."""
    try:
        return _tree.is_array(leaf) and jax.typeof(leaf).dtype != jax.dtypes.float0
    except (OverflowError, TypeError):
        return False


def difference(expected: Any, given: Any) -> str | None:
    """Say where two trees of arrays first differ in structure, shape or dtype; None if nowhere."""
    structure: Callable[[Any], Any] = jax.tree.structure
    if structure(expected) != structure(given):
        return f"{shapes(given)} in place of {shapes(expected)}"
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(given), strict=True
    ):
        if short(one) != short(other):
            name = jax.tree_util.keystr(path)
            return f"{short(other)} in place of {short(one)} at leaf {name!r}"
    return None


def takes(function: Callable[..., Any], number: int) -> bool:
    """Return whether a function takes a number of positional arguments; True if unknown."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def short(leaf: Any) -> str:
    """Write the dtype and shape of an array or number, such as float32[3, 2]."""
    try:
        dtype: Any = jnp.result_type(leaf)
    except TypeError:  # which JAX does not have
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
    return f"{dtype}{list(np.shape(leaf))}"


def shapes(tree: Any) -> str:
    """Write a tree in one line, with float32[3, 2] in place of arrays, shortened."""
    shown = jax.tree.map(lambda leaf: _Text(short(leaf)) if hasattr(leaf, "dtype") else leaf, tree)
    text = " ".join(str(shown).split())
    return text if len(text) < 200 else text[:197] + "…"


def reason(error: Exception) -> str:
    """Return the first line of an error, for use in a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


class _Text(str):
    """Text that is printed without quotes inside tuples and dicts."""

    __repr__ = str.__str__


def show(value: Any) -> str:
    """Write a value: a function by its name, anything else as Python prints it."""
    named = getattr(value, "update", value) if isinstance(value, tuple) else value
    return (getattr(named, "__name__", None) or " ".join(repr(value).split()))[:80]
