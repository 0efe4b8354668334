"""Spectra and traces agree with closed forms, and say how far they may be off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit import analysis
from jaxfit.analysis.spectrum import mean_and_sem
from tests.analysis.problems import diagonal, quadratic, softmax_regression


def test_quadrature_is_exact_for_low_moments():
    with jax.enable_x64(True):
        values = jnp.linspace(0.1, 1, 12)
        start = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (12,))
        loss = lambda a: jnp.sum(values * a**2) / 2
        found = analysis.spectrum(loss, jnp.ones(12), num_matvecs=5, num_probes=1)
        part = start**2 / jnp.sum(start**2)
        errors = [
            float(abs(jnp.sum(found.weights * found.nodes**p) - jnp.sum(part * values**p)))
            for p in range(11)
        ]
    assert max(errors[:10]) < 1e-12 < 1e-9 < errors[10]


def test_the_law_of_marchenko_and_pastur():
    n, d = 800, 400
    x = jax.random.normal(jax.random.key(0), (n, d))
    loss = lambda a, x: jnp.sum((x @ a) ** 2) / (2 * n)
    found = jax.jit(lambda: analysis.spectrum(loss, jnp.ones(d), data=x, num_probes=32))()
    moments = [float(jnp.sum(found.weights * found.nodes**p)) for p in range(4)]
    np.testing.assert_allclose(moments, [1, 1, 1.5, 2.75], rtol=0.1)
    assert abs(found.mean - 1) < 3 * found.sem < 0.1
    low, high = (1 - 0.5**0.5) ** 2, (1 + 0.5**0.5) ** 2
    np.testing.assert_allclose([low, high], [0.085786, 2.914214], rtol=1e-5)
    grid = np.linspace(low, high, 4001)
    height = np.sqrt((high - grid) * (grid - low)) / (np.pi * grid)
    law = np.cumsum(height) * (grid[1] - grid[0])
    order = np.argsort(np.ravel(found.nodes))
    ours = np.cumsum(np.ravel(found.weights)[order])
    there = np.interp(np.ravel(found.nodes)[order], grid, law)
    # Each probe knows a distribution to within half the weight of one of its 40 nodes.
    middle = ours - np.ravel(found.weights)[order] / 2
    assert np.abs(middle - there).max() < 0.04
    x = jnp.linspace(-2, 6, 4001)
    np.testing.assert_allclose(jnp.sum(found.density(x, 0.1)) * (x[1] - x[0]), 1, rtol=1e-3)


def test_an_exhausted_space_leaves_no_nan():
    found = analysis.spectrum(diagonal, jnp.ones(6), num_matvecs=6, num_probes=4)
    np.testing.assert_allclose(jnp.sum(found.weights), 1, rtol=1e-5)
    seen = np.ravel(found.nodes)[np.ravel(found.weights) > 1e-3]
    assert np.abs(seen - np.round(seen)).max() < 1e-4
    nothing = analysis.spectrum(lambda a: jnp.sum(a), jnp.ones(3))
    assert float(nothing.mean) == 0 and float(nothing.sem) == 0


def test_a_single_probe_has_no_standard_error():
    assert np.isnan(analysis.spectrum(diagonal, jnp.ones(6), num_probes=1).sem)
    assert np.isnan(analysis.trace(diagonal, jnp.ones(6), num_probes=1).sem)


def test_the_standard_error_of_two_probes_is_half_their_difference():
    mean, sem = mean_and_sem(jnp.array([1.0, 4.0]))
    assert (float(mean), float(sem)) == (2.5, 1.5)


def test_the_trace_of_the_digits_whole_and_by_leaf():
    loss, params, data = softmax_regression()
    hessian = lambda key: jax.jit(
        lambda: analysis.trace(loss, params, data=data, num_probes=200, key=key, by_leaf=True)
    )()
    found = hessian(jax.random.key(0))
    assert abs(sum(found.mean.values()) - 14.4127791) < 4 * sum(found.sem.values())
    assert abs(found.mean["b"] - 0.9) < 4 * found.sem["b"]  # Σ p (1 − p), at p = 1/10
    # The Hessian is the Kronecker product of A = mean (x, 1)(x, 1)ᵀ and 0.1 - 0.01.
    x = np.column_stack([data[0], np.ones(len(data[0]))])
    np.testing.assert_allclose(found.frobenius, 0.3 * np.linalg.norm(x.T @ x / len(x)), rtol=0.1)
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found.diagonal))
    np.testing.assert_allclose(total, sum(found.mean.values()), rtol=1e-4)


def test_one_probe_is_exact_for_a_diagonal_matrix():
    found = analysis.trace(lambda a: diagonal(a), jnp.ones(6), num_probes=1)
    assert float(found.mean) == 12
    np.testing.assert_array_equal(found.diagonal, [1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(found.frobenius, 28**0.5)


def test_the_variance_of_probes_is_hutchinsons():
    loss, matrix = quadratic(jnp.array([1.0, 2.0, 4.0, 8.0]), jax.random.key(2))
    found = jax.jit(lambda: analysis.trace(loss, jnp.ones(4), num_probes=4000))()
    variance = 2 * (jnp.sum(matrix**2) - jnp.sum(jnp.diagonal(matrix) ** 2))
    np.testing.assert_allclose(found.sem**2 * 4000, variance, rtol=0.1)
    assert abs(found.mean - 15) < 4 * found.sem
    np.testing.assert_allclose(found.diagonal, jnp.diagonal(matrix), atol=0.3)


def test_complex_parameters_count_twice():
    found = analysis.trace(lambda z: jnp.sum(jnp.abs(z) ** 2), jnp.array([1j, 2.0]), num_probes=1)
    assert float(found.mean) == 8


def test_more_products_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="num_matvecs is 7, but must be from 1"):
        analysis.spectrum(diagonal, jnp.ones(6), num_matvecs=7)
    with pytest.raises(ValueError, match="num_probes is 0, but must be at least 1"):
        analysis.trace(diagonal, jnp.ones(6), num_probes=0)
