"""Analyses are compared to closed forms, so that XLA may save itself most of its optimizations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def less_optimized():
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
