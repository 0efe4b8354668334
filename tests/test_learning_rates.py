"""The study on learning rates: its rules on known curves, its sweeps beside loops and theory."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from experiments import _learning_rates, learning_rates
from experiments._learning_rates import bracket
from jaxfit.models import mlp_init
from tests.common import assert_pictures, assert_refuses

key = jax.random.key(0)


@pytest.fixture
def softmax(monkeypatch):
    """A small problem in place of the digits: softmax regression on noise."""
    monkeypatch.setattr(_learning_rates, "WIDTHS", (5, 3))
    monkeypatch.setattr(_learning_rates, "BATCH_SIZE", 4)
    monkeypatch.setattr(_learning_rates, "OPTIMIZERS", {"SGD": optax.sgd})
    return jax.random.normal(key, (20, 5)), jnp.arange(20) % 3


def by_hand(train, key, schedule):
    """The losses of batches, and the parameters at the end, of softmax regression in NumPy."""
    start, order = jax.random.split(key)
    (layer,) = mlp_init(start, (5, 3))
    w, b = (np.asarray(layer[name], np.float64) for name in "wb")
    batches = jax.vmap(jaxfit.minibatches(train, 4, order))(jnp.arange(len(schedule)))
    losses = []
    for rate, x, y in zip(schedule, *map(np.asarray, batches), strict=True):
        odds = np.exp(x @ w + b)
        p = odds / odds.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(4), y]).mean())
        error = (p - np.eye(3)[y]) / 4
        w, b = w - rate * x.T @ error, b - rate * error.sum(axis=0)
    return losses, [{"w": w, "b": b}]


def test_a_range_test_is_a_loop_by_hand_whose_rate_grows_geometrically(softmax):
    tested = _learning_rates.TESTED
    np.testing.assert_allclose(tested, 1e-7 * 1e8 ** (np.arange(100) / 99))
    keys = jax.random.split(key, 2)
    ((found, other),) = _learning_rates.range_tests(softmax, keys)
    np.testing.assert_allclose(found, by_hand(softmax, keys[0], tested)[0], rtol=1e-3)
    np.testing.assert_allclose(other, by_hand(softmax, keys[1], tested)[0], rtol=1e-3)


def test_the_sweep_trains_at_every_rate_and_what_diverges_ends_at_infinity(softmax):
    keys = jax.random.split(key, 2)
    found = _learning_rates.finals(softmax, keys, np.array([0.01, 0.3, 1e38]), 10)
    assert found.shape == (1, 2, 3) and np.isposinf(found[..., 2]).all()
    for seed, place, rate in (0, 1, 0.3), (1, 0, 0.01):
        _, params = by_hand(softmax, keys[seed], [rate] * 10)
        loss = _learning_rates.classification(params, softmax)
        np.testing.assert_allclose(found[0, seed, place], loss, rtol=1e-4)
    assert _learning_rates.nearest(np.array([1.0, 10.0]), np.array([3.0, 4.0])).tolist() == [0, 1]


@pytest.mark.parametrize("eigenvalues", [[8.0], [0.5, 9.0, 9.0], np.geomspace(0.01, 20, 6)])
def test_the_edge_of_stability_lies_between_neighbours(eigenvalues):
    eigenvalues, tested = np.asarray(eigenvalues), _learning_rates.STABLE
    found = _learning_rates.contractions(eigenvalues, key)
    for momentum, row in zip(_learning_rates.MOMENTA, found, strict=True):
        last, first = bracket(row < 1, tested)
        assert last < 2 * (1 + momentum) / eigenvalues.max() < first < 1.03 * last
        assert (row[tested >= first] > 1).all()
    slowest = np.abs(1 - np.outer(tested, eigenvalues)).max(axis=1)
    measured = (slowest > 0.75) & (slowest < 1.3)  # in between are neither zeros nor infinities
    assert measured.any()
    np.testing.assert_allclose(found[0][measured], slowest[measured], rtol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_sweep_of_the_lesson_is_its_theory(seed):
    lesson = _learning_rates.lesson(jax.random.key(seed))
    assert lesson.losses.dtype == np.float64 and lesson.losses.shape == (2, 256)
    np.testing.assert_allclose(lesson.losses, lesson.least + lesson.theory, rtol=1e-11)
    x, y = (np.asarray(part, np.float64) for part in jaxfit.data.line(key))
    best, hessian = np.linalg.lstsq(x, y)[0], 2 * x.T @ x / len(y)
    above = np.mean(y**2) - np.mean((x @ best - y) ** 2)  # where no step was made, from zero
    np.testing.assert_allclose(_learning_rates.excess(hessian, best, np.ones(1), 0), above)


@pytest.mark.slow
def test_the_study_prints_its_numbers_and_writes_its_pictures(command, tmp_path, monkeypatch):
    monkeypatch.setattr(_learning_rates, "WIDTHS", (64, 10))  # which compiles sooner
    printed = command(learning_rates, "--steps", 60, "--rates", 9, "--seeds", 2)
    number = r" +([\d.e+-]+)"
    rule = rf"(?m)^  (valley|slide|minimum|steep){number}{number} …{number}{number}{number}$"
    rows = re.findall(rule, printed)
    assert [name for name, *_ in rows] == 2 * list(_learning_rates.RULES)
    rate, least, most, worth, worst = np.array([row[1:] for row in rows], float).T
    assert (least <= 1.1 * rate).all() and (rate <= 1.1 * most).all()
    assert (worth >= 1).all() and (worth <= worst).all()
    best = re.findall(rf"(SGD|Adam): best at rate{number}, .* up to{number} every", printed)
    assert [name for name, *_ in best] == ["SGD", "Adam"]
    assert "theory lies between two neighbours at 39 of 39 momenta" in printed
    pattern = rf"converges at{number}, edge in theory{number}, diverges at{number}\n"
    last, edge, first = map(float, re.search(pattern, printed).groups())
    assert 0.9 < last < edge < first < 1.1
    assert float(re.search(rf"deviation .* theory{number}\n", printed)[1]) < 1e-11

    assert_pictures(tmp_path / "out", {"digits", "theory"}, printed)


REFUSED = {
    "few steps": (("--steps", 9), "--steps is 9, but must be from 10 to 10000"),
    "one rate": (("--rates", 1), "--rates is 1, but must be from 2 to 1000"),
    "no seeds": (("--seeds", 0), "--seeds is 0, but must be from 1 to 100"),
    "out": (("--out", __file__), ".*test_learning_rates.py cannot be written: File exists"),
    "no scikit-learn": ((), r"scikit-learn is not installed.*: run pip install -e \"\.\[test\]\""),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(command, monkeypatch, capsys, arguments, sentence):
    if "scikit" in sentence:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refuses(capsys, f"learning_rates: {sentence}", command, learning_rates, *arguments)
