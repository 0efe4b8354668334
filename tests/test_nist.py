"""Problems that nobody here wrote: the reference regressions of NIST, where their files are."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit

FILE = pathlib.Path(__file__).parents[2] / "shared" / "nist" / "nist.py"
pytestmark = [
    pytest.mark.skipif(not FILE.exists(), reason="the NIST files are not here"),
    # Their loader leaves its files to the garbage collector to close.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def nist():
    spec = importlib.util.spec_from_file_location("nist", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Norris", "NoInt1", "NoInt2"])
def test_linear_regressions(nist, name):
    problem = nist.load(name)
    with jax.enable_x64(True):
        x, y = nist.design(problem, jnp), jnp.asarray(problem["y"])
        scale = jnp.linalg.norm(x, axis=0)
        loss = lambda b, batch: jnp.sum((batch[0] @ (b / scale) - batch[1]) ** 2)
        run = jaxfit.train(loss, jnp.zeros(x.shape[1]), optax.lbfgs(), 60, data=(x, y))
        assert nist.lre(run.state.params / scale, problem["certified"]).min() > 6
        np.testing.assert_allclose(
            loss(run.state.params, (x, y)), problem["residual_sum_of_squares"], rtol=1e-8
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Misra1a", "Chwirut2", "Lanczos3", "DanWood", "Misra1b"])
def test_nonlinear_regressions_from_the_nearer_start(nist, name):
    problem = nist.load(name)
    with jax.enable_x64(True):
        residuals = nist.rss(problem, jnp)
        start = jnp.asarray(problem["start2"])
        # In units of the start, so that all parameters are of the order of one.
        loss = lambda b: residuals(b * start)
        run = jaxfit.train(
            loss, jnp.ones_like(start), optax.lbfgs(memory_size=20), 400, record=lambda s: s.loss
        )
        found = run.state.params * start
        np.testing.assert_allclose(residuals(found), problem["residual_sum_of_squares"], rtol=1e-9)
        assert nist.lre(found, problem["certified"]).min() > 7
