"""What the functions that drive runs from Python share."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """Python objects as one static argument of ``jax.jit``.

    Two are equal if they would compile to the same: whatever can be hashed is compared as it says,
    and everything else by identity.
    """

    things: tuple[Any, ...]

    def _key(self) -> tuple[Any, ...]:
        return tuple((type(one), one if _is_hashable(one) else id(one)) for one in self.things)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def wait(tree: Any) -> None:
    """Wait for arrays; unlike XLA's own waiting, this is interrupted by Ctrl-C."""
    leaves = jax.tree.leaves(tree)
    pause = 1e-5
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(pause)
        pause = min(2 * pause, 5e-3)


def replicated(tree: Any) -> Any:
    """Give every process all of the arrays of which it has a part."""

    def gather(leaf):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return jax.jit(lambda leaf: leaf, out_shardings=everywhere)(leaf)

    return jax.tree.map(gather, tree)


def memory() -> int | None:
    """Bytes of the host's physical memory, where the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
