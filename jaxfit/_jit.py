"""``jax.jit`` for functions of pytrees that hold more than arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxfit import _tree


@dataclasses.dataclass(frozen=True)
class Jitted:
    """A compiled function; see `jit`."""

    _compiled: Any

    def __call__(self, *args: Any) -> Any:
        return _tree.unpack(self._compiled(_tree.hold(args)))

    def trace(self, *args: Any) -> Any:
        """Trace the function, as ``jax.jit(…).trace``; ShapeDtypeStructs may stand for arrays."""
        return self._compiled.trace(_tree.hold(args))

    def cache_size(self) -> int:
        """Return how many programs are kept."""
        return int(self._compiled._cache_size())


def jit(fn: Callable[..., Any]) -> Jitted:
    """Compile a function of any pytrees, as ``equinox.filter_jit`` does.

    JAX's arrays are traced. All other leaves, of arguments and of results, are static: two calls
    share a program if these leaves are equal, or the same object where they cannot be hashed.

    Args:
      fn: a pure function of positional arguments.
    """

    @functools.wraps(fn)
    def of_packed(args: Any) -> Any:
        return _tree.hold(fn(*_tree.unpack(args)))

    return Jitted(jax.jit(of_packed))
