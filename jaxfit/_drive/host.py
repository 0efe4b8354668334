"""The host: waiting for devices, gathering from other processes, memory."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def wait(tree: Any) -> None:
    """Wait for arrays; unlike XLA's own waiting, Ctrl-C interrupts it."""
    leaves = jax.tree.leaves(tree)
    pause = 1e-5
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(pause)
        pause = min(2 * pause, 5e-3)


def replicated(tree: Any) -> Any:
    """Gather arrays that processes have parts of, so that every process has all of them."""

    def gather(leaf: jax.Array) -> jax.Array:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        gathered: jax.Array = jax.jit(lambda leaf: leaf, out_shardings=everywhere)(leaf)
        return gathered

    return jax.tree.map(gather, tree)


def memory() -> int | None:
    """Return the bytes of the host's physical memory; None if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
