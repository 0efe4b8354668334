"""The host: waiting for devices, gathering from other processes, memory, cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def wait(tree: Any) -> None:
    """Wait for arrays; unlike XLA's own waiting, Ctrl-C interrupts it."""
    leaves = jax.tree.leaves(tree)
    wait_until(lambda: all(leaf.is_ready() for leaf in leaves))


def wait_until(is_done: Callable[[], bool]) -> None:
    """Wait for something; unlike waiting for a lock, Ctrl-C always interrupts it."""
    pause = 1e-5
    while not is_done():
        time.sleep(pause)
        pause = min(2 * pause, 5e-3)


def replicated(tree: Any) -> Any:
    """Return a tree with arrays of which every process has all, where processes have parts."""

    def gather(leaf: jax.Array) -> jax.Array:
        is_array = isinstance(leaf, jax.Array)
        if not is_array or leaf.is_fully_addressable or leaf.is_fully_replicated:
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


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
