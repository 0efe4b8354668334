"""Rates of convergence agree with theory, and suggested learning rates with fastai's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis

CURVATURES = jnp.array([1.0, 10.0])


def losses(loss, params, optimizer, steps, **options):
    record = lambda step: step.loss
    return jax.jit(
        lambda: jaxfit.train(loss, params, optimizer, steps, record=record, **options)
    )().trajectory


def bowl(a):
    return jnp.sum(CURVATURES * a**2) / 2 + 5


def test_gradient_descent_converges_geometrically():
    found = analysis.convergence(losses(bowl, jnp.ones(2), optax.sgd(2 / 11), 16))
    np.testing.assert_allclose(found.factor, 0.6694215, rtol=1e-3)
    np.testing.assert_allclose(found.limit, 5, rtol=1e-5)
    assert found.is_geometric and found.errors[0] < 1e-4 < found.errors[1]


def test_heavy_ball_rings_around_its_factor():
    values = jnp.linspace(0.0, 1.0, 20) * 0.99 + 0.01
    loss = lambda a: jnp.sum(values * a**2) / 2
    ball = optax.sgd(0.033058 * 100, 0.669421)
    found = analysis.convergence(losses(loss, jnp.ones(20), ball, 60))
    np.testing.assert_allclose(found.factor, 0.669421, atol=0.08)


@pytest.mark.parametrize("degree", [4, 6])
def test_flat_minima_are_approached_by_a_power_of_the_step(degree):
    fall = losses(lambda x: x**degree / degree, 1.0, optax.sgd(0.3), 4000, record_every=4)
    found = analysis.convergence(fall, window=900)
    np.testing.assert_allclose(found.power, degree / (degree - 2), rtol=0.05)
    assert not found.is_geometric
    np.testing.assert_allclose(found.limit, 0, atol=1e-5)


def test_noise_is_averaged_over():
    noise = 1e-3 * jax.random.normal(jax.random.key(0), (400,))
    found = analysis.convergence(2 + 0.99 ** jnp.arange(400) + noise, window=390)
    np.testing.assert_allclose(found.factor, 0.99, atol=3e-4)
    np.testing.assert_allclose(found.limit, 2, atol=2e-3)


def test_under_vmap_and_without_change():
    falls = 1 + jnp.array([0.5, 0.9])[:, None] ** jnp.arange(20)
    found = jax.jit(jax.vmap(lambda fall: analysis.convergence(fall, window=18)))(falls)
    np.testing.assert_allclose(found.factor, [0.5, 0.9], rtol=1e-3)
    for flat in (jnp.ones(20), jnp.full(20, jnp.nan)):
        still = analysis.convergence(flat)
        assert all(np.isnan(x) for x in (still.factor, still.power, still.limit))


def test_bad_losses_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"losses are float32\[2, 3\], but must be floating"):
        analysis.convergence(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="window is 3 of 10 losses, but a law with a limit takes"):
        analysis.convergence(jnp.ones(10), window=3)
    with pytest.raises(ValueError, match="window is 4 of 3 losses"):
        analysis.convergence(jnp.ones(3))


# Range tests.

RATES = np.geomspace(1e-7, 10, 100)


def test_the_four_suggestions_of_a_smooth_test():
    curve = np.log1p(1 / (1 + 300 * RATES)) + RATES**2
    found = analysis.suggest_rates(RATES, curve)
    smooth = np.array(
        [np.average(curve[: i + 1], weights=0.98 ** np.arange(i, -1, -1)) for i in range(100)]
    )
    end = np.flatnonzero(smooth > 4 * np.minimum.accumulate(smooth))
    stop = (end[0] if len(end) else 99) + 1 - 5
    rates, smooth = RATES[10:stop], smooth[10:stop]
    assert found.minimum == pytest.approx(rates[smooth.argmin()] / 10)
    slopes = np.diff(smooth) / np.diff(np.log(rates))
    assert found.steep == pytest.approx(rates[slopes.argmin()])
    # It falls all the way to the minimum, so the valley is a fraction of that way.
    length = smooth.argmin() + 1
    assert found.valley == pytest.approx(rates[length // 3 + length // 6 - 1])
    assert found.slide in rates


def test_an_early_spike_and_nan_at_the_end_mislead_none():
    curve = np.log1p(1 / (1 + 300 * RATES)) + RATES**2
    plain = analysis.suggest_rates(RATES, curve)
    curve[-3:] = np.nan
    assert analysis.suggest_rates(RATES, curve) == plain
    spiked = curve.copy()
    spiked[2] *= 1.5
    found = analysis.suggest_rates(RATES, spiked)
    assert found.minimum == pytest.approx(plain.minimum, rel=0.5)


def test_bad_range_tests_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"rates have shape \[100\] and losses \[3\], but must"):
        analysis.suggest_rates(RATES, np.ones(3))
    with pytest.raises(ValueError, match="increasing rate"):
        analysis.suggest_rates(RATES[::-1], RATES)
    with pytest.raises(ValueError, match="the losses leave 0 steps between"):
        analysis.suggest_rates(RATES, np.full(100, np.nan))
