"""The noise of gradients agrees with closed forms on linear regression."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis
from tests.common import loss

A, N = jnp.array([0.5, -1.0]), 96


def regression():
    x = jax.random.normal(jax.random.key(0), (N, 2))
    return x, x @ jnp.array([1.0, 2.0]) + 0.3 * jax.random.normal(jax.random.key(1), (N,))


def test_it_is_the_definition_on_linear_regression():
    x, y = (np.asarray(one, np.float64) for one in regression())
    grads = 2 * x * (x @ np.asarray(A, np.float64) - y)[:, None]
    trace = np.trace(np.cov(grads.T))
    grad_sq = np.sum(grads.mean(0) ** 2) - trace / N
    for chunk_size in (None, 1, 7, 200):
        found = analysis.gradient_noise(loss, A, data=regression(), chunk_size=chunk_size)
        np.testing.assert_allclose(found.trace, trace, rtol=1e-5)
        np.testing.assert_allclose(found.grad_sq, grad_sq, rtol=1e-5)
        np.testing.assert_allclose(found.scale, trace / grad_sq, rtol=1e-5)
        np.testing.assert_allclose(found.snr, grad_sq / trace, rtol=1e-5)


def test_it_has_no_bias():
    """Batches of normal x have the moments of all of them in the mean.

    With residual r = (a - b)·x - noise, tr Σ + |G|² = E 4 r² |x|² and G = 2 (a - b).
    """
    away, sigma, size = A - jnp.array([1.0, 2.0]), 0.3, 4

    def one(key):
        keys = jax.random.split(key)
        x = jax.random.normal(keys[0], (size, 2))
        y = x @ jnp.array([1.0, 2.0]) + sigma * jax.random.normal(keys[1], (size,))
        return analysis.gradient_noise(loss, A, data=(x, y), chunk_size=size)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 20_000))
    grad_sq = 4 * jnp.sum(away**2)
    trace = 4 * (4 * jnp.sum(away**2) + 2 * sigma**2) - grad_sq  # E r² |x|², in two dimensions
    for values, expected in ((found.grad_sq, grad_sq), (found.trace, trace)):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error < 0.05 * expected


def test_two_batch_sizes_give_the_same():
    data = regression()
    exact = analysis.gradient_noise(loss, A, data=data)
    batches = lambda size: jax.vmap(
        lambda key: jax.tree.map(lambda leaf: jax.random.choice(key, leaf, (size,)), data)
    )
    squares = []
    for size in (4, 16):
        keys = jax.random.split(jax.random.key(size), 20_000)
        grads = jax.vmap(lambda batch: jax.grad(loss)(A, batch))(batches(size)(keys))
        squares.append(jnp.mean(jnp.sum(grads**2, axis=1)))
    trace = (squares[0] - squares[1]) / (1 / 4 - 1 / 16)
    # Drawn with replacement from the data, of which n - 1 in n parts of the variance is.
    np.testing.assert_allclose(trace, exact.trace * (N - 1) / N, rtol=0.05)


def test_shuffled_minibatches_vary_less():
    """Their variance is tr Σ/B (1 - B/n)."""
    data, size = regression(), 24
    batch = jaxfit.minibatches(data, size, jax.random.key(0))
    grads = jax.jit(jax.vmap(lambda step: jax.grad(loss)(A, batch(step))))(jnp.arange(8000))
    spread = jnp.mean(jnp.sum((grads - jax.grad(loss)(A, data)) ** 2, axis=1))
    exact = analysis.gradient_noise(loss, A, data=data)
    np.testing.assert_allclose(spread, exact.trace / size * (1 - size / N), rtol=0.05)


def test_as_a_recorder_on_each_step_s_own_batch():
    data = jaxfit.minibatches(regression(), 16, jax.random.key(0))
    record = lambda s: analysis.gradient_noise(loss, s.params, data=s.batch).trace
    run = jax.jit(lambda: jaxfit.train(loss, A, optax.sgd(0.01), 5, data=data, record=record))()
    np.testing.assert_allclose(
        run.trajectory[0], analysis.gradient_noise(loss, A, data=data(0)).trace, rtol=1e-5
    )


def test_where_there_is_no_gradient_the_ratio_is_zero_not_the_scale():
    found = analysis.gradient_noise(
        lambda a, x: jnp.mean(a * x), 1.0, data=jnp.array([1.0, -1.0, 1.0, -1.0])
    )
    np.testing.assert_allclose(found.trace, 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.grad_sq, -1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.snr, -1 / 4, rtol=1e-6)


def test_a_loss_that_is_not_a_mean_is_refused_or_nan():
    total = lambda a, batch: N * loss(a, batch)
    with pytest.raises(ValueError, match=r"the loss is .* on all examples and .* in the mean"):
        analysis.gradient_noise(lambda a, batch: jnp.sum(batch[0] @ a), A, data=regression())
    normalised = lambda a, batch: jnp.mean(((batch[0] - batch[0].mean(0)) @ a - batch[1]) ** 2)
    with pytest.raises(ValueError, match="such as batch normalisation"):
        analysis.gradient_noise(normalised, A, data=regression())
    inside = jax.jit(lambda a: analysis.gradient_noise(normalised, a, data=regression()))(A)
    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(inside))
    found = analysis.gradient_noise(total, A, data=regression())  # a constant does no harm
    np.testing.assert_allclose(
        found.scale, analysis.gradient_noise(loss, A, data=regression()).scale, rtol=1e-5
    )


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="data holds one example, but noise is the difference"):
        analysis.gradient_noise(loss, A, data=(jnp.ones((1, 2)), jnp.ones(1)))
    with pytest.raises(ValueError, match="chunk_size is 0, but must be at least 1"):
        analysis.gradient_noise(loss, A, data=regression(), chunk_size=0)
