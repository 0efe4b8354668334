"""The study on gradient noise: its closed forms, its clock, its law, and what it prints."""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfit
from experiments import _gradient_noise, gradient_noise
from experiments._gradient_noise import (
    Closed,
    closed_form,
    compare,
    first_below,
    fit,
    mean_scales,
    of_all,
    saved,
    steps_in_theory,
    times,
    tune,
    zeros,
)
from tests.common import assert_pictures, assert_refuses

key = jax.random.key(0)


@pytest.fixture
def small(monkeypatch):
    """Softmax regression of two classes on 40 examples, for few batch sizes and rates."""
    monkeypatch.setattr(_gradient_noise, "CLASSES", 2)
    monkeypatch.setattr(_gradient_noise, "SIZES", (4, 40))
    monkeypatch.setattr(_gradient_noise, "RATES", np.array([0.5, 2.0]))
    x = jax.random.normal(key, (40, 3))
    return x, (x[:, 0] > 0).astype(jnp.int32)


def test_the_closed_form_is_the_mean_over_many_examples():
    rng = np.random.default_rng(0)
    away = rng.normal(size=(2, 4))
    expected = closed_form(away)
    x, error = rng.normal(size=(400_000, 4)), rng.normal(size=400_000)
    for i, one in enumerate(away):
        grads = 2 * x * (x @ one - _gradient_noise.NOISE * error)[:, None]
        np.testing.assert_allclose(np.sum(grads.mean(0) ** 2), expected.grad_sq[i], rtol=0.02)
        np.testing.assert_allclose(np.trace(np.cov(grads.T)), expected.trace[i], rtol=0.02)
    np.testing.assert_allclose(expected.scale, expected.trace / expected.grad_sq)


def test_an_interval_holds_the_ratio_of_the_means_and_not_one_far_off(monkeypatch):
    monkeypatch.setattr(_gradient_noise, "LOOKED_AT", (7,))
    rng = np.random.default_rng(1)
    found = types.SimpleNamespace(
        grad_sq=2 + rng.normal(size=(1, 400)), trace=10 + rng.normal(size=(1, 400))
    )
    square, trace, scale = compare(found, Closed([2.0], [10.0], [5.0]))
    assert (square.step, square.name, scale.name) == (7, "grad_sq", "scale")
    assert square.inside and trace.inside and scale.inside
    # The error of a ratio q = a / b of independent means is √(s_a² + q² s_b²) / b.
    np.testing.assert_allclose(scale.margin / trace.margin, np.sqrt(1 + 5**2) / 2, rtol=0.1)
    assert 2.5 * 0.04 < square.margin < 4 * 0.06
    assert not compare(found, Closed([2.0], [10.0], [7.0]))[2].inside


def test_the_noise_of_all_examples_is_their_variance_over_their_mean(small):
    w, (x, y) = np.random.default_rng(0).normal(size=(3, 2)), map(np.asarray, small)
    params = [{"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(2)}]
    found = of_all(jax.jit(_gradient_noise.noise_of)(small, params), 40)
    odds = np.exp(x @ w)
    error = odds / odds.sum(axis=1, keepdims=True) - np.eye(2)[y]
    flat = np.concatenate([(x[:, :, None] * error[:, None]).reshape(40, -1), error], axis=1)
    np.testing.assert_allclose(found.grad_sq, np.sum(flat.mean(0) ** 2), rtol=1e-4)
    np.testing.assert_allclose(found.trace, np.sum(flat.var(0)), rtol=1e-4)
    np.testing.assert_allclose(found.scale, found.trace / found.grad_sq)


def test_the_clock_stops_between_the_rows_about_the_target():
    losses = jnp.array([2.0, 0.6, 0.15, 0.6, 0.1])
    np.testing.assert_allclose(first_below(losses, 10), 15, rtol=1e-5)  # 0.3 is halfway, in ratio
    np.testing.assert_allclose(first_below(jnp.array([0.6, 0.3]), 1), 1, rtol=1e-6)
    assert np.isposinf(first_below(jnp.array([2.0, jnp.nan, jnp.inf, 0.31]), 1))


def test_the_sweep_clocks_a_run_by_itself(small, monkeypatch):
    monkeypatch.setattr(_gradient_noise, "SIZES", (40,))
    found = times(small, jax.random.split(key, 2), 30)  # with a row for every step
    assert found.shape == (1, 2, 2)
    batches = jaxfit.minibatches(small, 40, jax.random.split(key, 2)[1], replace=True)
    params = zeros(small)
    step, before = 0, np.inf
    value_and_grad = jax.jit(jax.value_and_grad(_gradient_noise.classification))
    batch = jax.jit(batches)
    while (now := float(value_and_grad(params, small)[0])) > _gradient_noise.TARGET:
        slope, before = value_and_grad(params, batch(step))[1], now
        params = jax.tree.map(lambda p, g: p - 2.0 * g, params, slope)
        step += 1
    part = np.log(before / _gradient_noise.TARGET) / np.log(before / now)
    np.testing.assert_allclose(found[0, 1, 1], step - 1 + part, rtol=1e-3)


def test_the_mean_scale_is_that_of_the_steps_before_the_target(small):
    rates = jnp.array([0.5, 2.0])
    found = mean_scales(small, rates, 30)
    losses, noise = _gradient_noise.scales(small, rates, 30)
    scale = of_all(noise, 40).scale
    for i in range(2):
        last = int(np.argmax(losses[i] <= _gradient_noise.TARGET))
        assert 0 < last < 30
        np.testing.assert_allclose(found[i], np.mean(scale[i, :last]), rtol=1e-5)
    start = of_all(jax.jit(_gradient_noise.noise_of)(small, zeros(small)), 40)
    np.testing.assert_allclose(scale[:, 0], start.scale, rtol=1e-4)


def test_the_law_is_found_again_and_twice_the_batch_saves_a_quarter_at_its_batch():
    sizes = np.array(_gradient_noise.SIZES)
    least, batch = fit(steps_in_theory(sizes, 12.0, 50.0))
    np.testing.assert_allclose([least, batch], [12, 50], rtol=0.01)
    np.testing.assert_allclose(saved(50, 50.0), 0.25)
    np.testing.assert_allclose(saved(np.array([1e-6, 1e9]), 50.0), [0.5, 0], atol=1e-6)


def test_every_batch_size_has_its_best_rate(monkeypatch):
    monkeypatch.setattr(_gradient_noise, "RATES", np.array([1.0, 2.0, 4.0]))
    law = steps_in_theory(np.array(_gradient_noise.SIZES), 10.0, 30.0)
    slow = np.stack([2 * law, law, np.full(len(law), np.inf)], axis=1)
    slow[4:] = slow[4:, [2, 0, 1]]
    found = tune(np.repeat(slow[..., None], 5, axis=2))
    assert found.rates.tolist() == [2.0] * 4 + [4.0] * 3
    np.testing.assert_allclose(found.taken, np.repeat(law[:, None], 5, axis=1))
    np.testing.assert_allclose([found.batch, *found.interval], 30, rtol=0.01)
    slow[2] = np.inf
    with pytest.raises(ValueError, match=r"--steps allows too few .* batches of 16: take more"):
        tune(slow[..., None])


@pytest.mark.slow
def test_the_study_prints_what_it_finds_and_draws_it(command, tmp_path, monkeypatch):
    for name, value in (("SIZES", (4, 32)), ("RATES", np.array([4.0])), ("STEPS", 40)):
        monkeypatch.setattr(_gradient_noise, name, value)
    monkeypatch.setattr(_gradient_noise, "LOOKED_AT", (0, 40))
    monkeypatch.setattr(gradient_noise, "DIGITS", 200)
    printed = command(gradient_noise, "--seeds", 2, "--steps", 40)
    number = r" +([\d.e+-]+)"
    rows = re.findall(rf"(?m)^ +(\d+)  (\|G\|²|tr Σ|B) *{number * 3} +(yes|NO)$", printed)
    assert [(int(row[0]), row[1]) for row in rows] == [
        (step, name) for step in (0, 40) for name in gradient_noise.NAMES.values()
    ]
    exact = closed_form(np.full((1, 20), 5 / 20**0.5))
    for row, expected in zip(rows[:3], exact, strict=True):
        measured, margin, printed_exact = map(float, row[2:5])
        np.testing.assert_allclose(printed_exact, expected[0], rtol=1e-3)
        assert abs(measured - expected[0]) <= 1.1 * margin < 0.2 * expected[0]
    assert "6 of 6 are inside" in printed
    runs = re.findall(rf"(?m)^ +(\d+) … +(\d+){number * 3}$", printed)
    assert [(int(first), int(last)) for first, last, *_ in runs] == [
        (8 * i, 8 * i + 8) for i in range(5)
    ]
    table = re.findall(rf"(?m)^ +(4|32) +4{number * 3} +(-?\d+%|–) +\d+% +\d+%$", printed)
    taken = np.array([row[1] for row in table], float)
    assert len(table) == 2 and table[-1][-1] == "–" and taken[0] > taken[1]
    low, high = map(float, re.search(r"95 % from (\d+) to (\d+)", printed).groups())
    assert low <= float(re.search(r"fitted: (\d+),", printed)[1]) <= high
    assert re.search(r"at rate  4: +\d+, [\d.]+ of what was fitted", printed)

    assert_pictures(tmp_path / "out", {"noise", "batches"}, printed)


REFUSED = {
    "no seeds": (("--seeds", 0), "--seeds is 0, but must be from 1 to 100"),
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1 to 1000"),
    "out": (("--out", __file__), ".*test_gradient_noise.py cannot be written: File exists"),
    "no scikit-learn": ((), r"scikit-learn is not installed.*: run pip install -e \"\.\[test\]\""),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(command, monkeypatch, capsys, arguments, sentence):
    if "scikit" in sentence:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refuses(capsys, f"gradient_noise: {sentence}", command, gradient_noise, *arguments)
