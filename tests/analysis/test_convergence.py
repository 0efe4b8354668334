"""Rates of convergence agree with theory, and suggested learning rates with fastai's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis
from jaxfit.analysis._range_test import minimum, slide, smoothed, steep, stop, valley

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


rates = np.geomspace(1e-7, 10, 40)


def test_the_four_rules_find_what_is_known_of_made_up_curves():
    # Twelve steps down, with a spike between them, end at place 15: 15 - 12 + 12 / 3 + 12 / 6.
    down = [0.1, 0.2, 0.3, *range(12, 6, -1), 20, *range(6, 0, -1), 2, 3, 4]
    assert valley(rates, np.array(down)) == rates[9]
    assert valley(rates, np.arange(40.0)) == rates[0]

    kinked = lambda place: -np.maximum(np.arange(40.0) - place, 0)
    assert slide(rates, kinked(30)) == rates[15]  # the first whose interval reaches the kink
    assert slide(rates, kinked(20)) == rates[24]  # the last interval has one slope
    assert slide(rates, np.arange(40.0) ** 2) == rates[0]  # no interval has

    assert minimum(rates, (np.arange(40) - 12.0) ** 2) == rates[12] / 10
    crowded = np.array([1, 10, 100, 200, 2000])
    assert steep(crowded, np.array([9.0, 8.0, 6.0, 5.0, 2.8])) == 100
    assert steep(rates, np.tanh(7.4 - np.arange(40))) == rates[7]


def test_losses_are_smoothed_as_by_a_debiased_average_and_stop_at_4_times_the_best():
    losses, mean = np.random.default_rng(0).random(100), 0.0
    for step, loss in enumerate(losses):
        mean = 0.98 * mean + 0.02 * loss
        np.testing.assert_allclose(smoothed(losses)[step], mean / (1 - 0.98 ** (step + 1)))
    assert stop(np.array([3.0, 1.0, 4.0, 4.01, 0.5, 9.0])) == 3
    assert stop(np.array([9.0, 1.0, 3.9, 0.9, 3.7, 9.0])) == 4
    assert stop(np.array([3.0, 1.0, np.nan, 2.0])) == stop(np.array([3.0, 1.0, np.inf, 2.0])) == 2
    assert stop(np.array([3.0, 1.0, 2.0])) == 2

    # What comes after the stop changes nothing, and neither do the five rows up to it.
    curve = 2 + np.tanh((60 - np.arange(100)) / 5)
    curve[80:] = 1e3
    rows = slice(10, stop(smoothed(curve)) - 4)
    found = analysis.suggest_rates(RATES, curve)
    assert found.minimum == RATES[rows][-1] / 10
    curve[90:] = np.nan
    assert analysis.suggest_rates(RATES, curve) == found


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
