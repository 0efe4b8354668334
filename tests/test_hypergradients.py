"""The hypergradients are right, learning by them gains, and the study draws what it found."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from experiments import _hypergradients, hypergradients
from experiments._hypergradients import (
    corrupt,
    final_loss,
    fit,
    inner,
    learn,
    learn_weights,
    loss,
    softmax,
)
from jaxfit.models import mlp_init
from tests.common import assert_pictures, assert_refuses

key = jax.random.key(0)


@pytest.fixture
def study(command):
    return functools.partial(command, hypergradients)


@pytest.fixture
def digits(monkeypatch):
    """A few images that are like no digits, in float64, and small runs."""
    monkeypatch.setattr(_hypergradients, "SIZES", (64, 8, 10))
    monkeypatch.setattr(_hypergradients, "BATCH_SIZE", 16)
    monkeypatch.setattr(_hypergradients, "CLEANING_STEPS", 12)
    with jax.enable_x64(True):
        x, y = jax.random.split(key)
        centres, y = jax.random.normal(x, (10, 64)), jnp.arange(90) % 10
        yield centres[y] / 4 + jax.random.normal(key, (90, 64)) / 4, y


def slope(function, values, index, width=1e-5):
    """The central finite difference along one of the values."""
    high, low = (function(values.at[index].add(by)) for by in (width, -width))
    return float(high - low) / (2 * width)


@pytest.mark.slow
def test_hypergradients_of_a_schedule_are_those_of_finite_differences_and_lower_the_loss(digits):
    keys = jax.random.split(key, 2)
    rows = learn(keys, digits, 12, 8).trajectory
    point, grads = (jax.tree.map(lambda leaf: leaf[5], rows[name]) for name in ("params", "grads"))
    after = jax.jit(lambda part: final_loss(point | part, keys, digits))
    for step in (0, 6, 11):
        measured = slope(lambda one: after({"log_rates": one}), point["log_rates"], step)
        assert grads["log_rates"][step] == pytest.approx(measured, rel=1e-6, abs=0)
    measured = slope(lambda one: after({"logit_momentum": one}), point["logit_momentum"], ())
    assert grads["logit_momentum"] == pytest.approx(measured, rel=1e-6, abs=0)
    assert (jnp.diff(rows["loss"]) < 0).all() and rows["loss"][-1] < 0.9 * rows["loss"][0]


def test_the_first_rate_has_the_slope_of_two_gradients(digits):
    # θ_1 = θ_0 - η g_0, so dL(θ_1) / dη = -⟨g_1, g_0⟩, whatever the momentum.
    def after(rate):
        return loss(inner((rate[None], jnp.asarray(0.7)), key, digits).state.params, digits)

    @jax.jit
    def theory(rate):
        begin, order = jax.random.split(key)
        start = mlp_init(begin, _hypergradients.SIZES)
        first = jax.grad(loss)(start, jaxfit.minibatches(digits, 16, order)(0))
        end = jax.tree.map(lambda p, g: p - rate * g, start, first)
        return -optax.tree.vdot(jax.grad(loss)(end, digits), first)

    rate = jnp.asarray(0.3)
    found = jax.jit(jax.grad(after))(rate)
    assert found == pytest.approx(float(theory(rate)), rel=1e-12, abs=0)


def test_hypergradients_of_weights_are_those_of_finite_differences_and_lower_the_loss(digits):
    train, _, validation, test = corrupt(digits, key)
    learn = jax.jit(learn_weights, static_argnums=3)
    rows = learn(train, validation, test, 8).trajectory
    after = jax.jit(lambda z: softmax(fit(*train, jax.nn.sigmoid(z)).state.params, validation))
    for example in (0, 20, 49):
        measured = slope(after, rows["params"][5], example, 1e-4)
        assert rows["grads"][5, example] == pytest.approx(measured, rel=1e-6, abs=0)
    assert (jnp.diff(rows["loss"]) < 0).all()


def test_two_fifths_of_the_labels_are_wrong_and_no_others(digits):
    (x, y), wrong, validation, test = corrupt(digits, key)
    truth = {image.tobytes(): label for image, label in zip(*map(np.asarray, digits), strict=True)}
    labels = np.array([truth[image.tobytes()] for image in np.asarray(x)])
    np.testing.assert_array_equal(labels != y, wrong)
    assert (len(y), wrong.sum(), len(validation[1]), len(test[1])) == (50, 20, 10, 30)
    for images, labels in (validation, test):
        assert labels.tolist() == [truth[image.tobytes()] for image in np.asarray(images)]


@pytest.mark.slow
def test_the_study_finds_wrong_labels_and_draws_it(study, tmp_path, monkeypatch):
    monkeypatch.setattr(_hypergradients, "RATES", np.array([0.2, 0.8]))
    monkeypatch.setattr(_hypergradients, "MOMENTA", (0.0, 0.9))
    monkeypatch.setattr(hypergradients, "DRAWS", 2)
    monkeypatch.setattr(_hypergradients, "CLEANING_STEPS", 36)
    printed = study("--steps", 10, "--outer-steps", 10)
    names = ["learned", "constant, no momentum", "constant", "linear decay"]
    table = re.findall(r"(?m)^  (.{21}) ([\d.]+) +([\d.]+) +([\d.]+) \| +([\d.]+) ", printed)
    assert [row[0].strip() for row in table] == names
    assert [float(row[2]) for row in table[1:]] == [0.0, 0.9, 0.9]
    wrong, right = map(float, re.findall(r" ([\d.]+) ± [\d.]+ % of the \w+ labels", printed))
    assert wrong > 80 and right < 20
    accuracy = {
        name.strip(): float(part)
        for name, part in re.findall(r"(?m)^  (.{21}) +([\d.]+) ± [\d.]+ %$", printed)
    }
    assert len(accuracy) == 5
    assert accuracy["noisy labels"] < accuracy["noisy, stopped early"]
    assert accuracy["noisy, stopped early"] < accuracy["learned weights"]
    assert accuracy["validation alone"] < accuracy["right labels only"]

    assert_pictures(tmp_path / "out", {"schedule", "cleaning"}, printed)


REFUSED = {
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1 to 10000"),
    "no outer steps": (("--outer-steps", 0), "--outer-steps is 0, but must be from 1 to 10000"),
    "seed": (("--seed", 2**31), "--seed is 2147483648, but must be less than"),
    "out": (("--out", __file__), "test_hypergradients.py cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(study, capsys, arguments, sentence):
    assert_refuses(capsys, f"hypergradients: .*{sentence}", study, *arguments)


def test_without_scikit_learn_the_study_says_what_to_install(study, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit) as refused:
        study()
    assert refused.value.code == 2
    assert 'run pip install -e ".[test]" from a checkout.\n' in capsys.readouterr().err
