"""The examples in docstrings compile in half of the time without most of XLA's optimizations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _less_optimized():
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
