"""The study on minibatch SGD: its theory is exact, and its runs agree with it."""

import dataclasses
import functools
import itertools
import re

import jax
import numpy as np
import pytest

from experiments import _minibatch_sgd, minibatch_sgd
from experiments._minibatch_sgd import additive, compare, lesson, shuffled, stationary, sweep
from tests.common import assert_pictures, assert_refuses

key = jax.random.key(0)


@pytest.fixture
def study(command):
    return functools.partial(command, minibatch_sgd)


@pytest.mark.parametrize("make", [lesson, additive])
@pytest.mark.parametrize("size", [1, 2])
def test_a_step_on_every_possible_batch_leaves_the_exact_covariance_as_it_is(make, size):
    problem, lr = make(key), 0.1
    exact, _ = stationary(problem, lr, size)
    batches = np.array(list(itertools.product(range(100), repeat=size)))
    h, b = problem.h[batches].mean(axis=1), problem.b[batches].mean(axis=1)
    shrink = np.eye(len(exact)) - lr * h
    gradients = h @ problem.best - b
    noise = lr**2 * gradients.T @ gradients / len(batches)
    after = np.mean(shrink @ exact @ shrink, axis=0) + noise
    np.testing.assert_allclose(after, exact, rtol=1e-10)


@pytest.mark.parametrize("lr", [1e-3, 0.1, 0.39])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_additive_noise_leaves_the_variance_of_the_closed_form(lr, size):
    problem, h = additive(key), _minibatch_sgd.CURVATURE
    c = np.var(np.asarray(problem.data, np.float64))
    exact, small = stationary(problem, lr, size)
    np.testing.assert_allclose(exact, [[lr * c / (h * (2 - lr * h) * size)]], rtol=1e-10)
    np.testing.assert_allclose(small, [[lr * c / (2 * h * size)]], rtol=1e-10)


def test_the_exact_covariance_of_the_line_goes_to_the_limit_of_small_rates():
    for lr in (1e-2, 1e-4, 1e-6):
        exact, small = stationary(lesson(key), lr, 1)
        np.testing.assert_allclose(exact, small, rtol=10 * lr, atol=10 * lr * small.max())


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_shuffled_epochs_leave_the_mean_over_all_permutations(size):
    z = np.random.default_rng(0).normal(size=(6, 1))
    problem = dataclasses.replace(additive(key), h=np.full((6, 1, 1), 5.0), b=z)
    lr, shrink = 0.1, 0.5
    orders = z[np.array(list(itertools.permutations(range(6)))), 0] - z.mean()
    noise = lr * orders.reshape(len(orders), 6 // size, size).mean(axis=2)
    error, variances = np.zeros(len(orders)), []
    for one in noise.T:
        error = shrink * error + one
        variances.append(np.mean(error**2))
    factors = shrink ** (2 * np.arange(1, len(variances) + 1))
    start = variances[-1] / (1 - factors[-1])
    np.testing.assert_allclose(
        shuffled(problem, lr, size), np.mean(variances + factors * start), rtol=1e-10, atol=1e-30
    )


def test_the_full_batch_is_gradient_descent_and_does_not_wander(monkeypatch):
    monkeypatch.setattr(_minibatch_sgd, "SIZES", (100,))
    problem = lesson(key)
    runs = sweep(problem, 0.1, 300, key)
    x, y = (np.asarray(array, np.float64) for array in problem.data)
    a, path = np.array(problem.start), []
    for _ in range(300):
        path.append(a)
        a = a - 0.1 * 2 / 100 * x.T @ (x @ a - y)
    params = runs[100, False].trajectory["params"]
    np.testing.assert_allclose(params, np.broadcast_to(path, params.shape), atol=1e-5)
    drawn, full = compare(problem, 0.1, runs, 200)
    assert full.measured < 1e-10 < drawn.measured / 1e4 and np.isnan(full.exact)


@pytest.mark.slow
def test_the_study_finds_the_variance_of_theory_and_draws_it(study, tmp_path, monkeypatch):
    # Half of the batch sizes, to save the time that compiling takes.
    monkeypatch.setattr(_minibatch_sgd, "SIZES", (1, 20))
    printed = study("--steps", 1500)
    number = r" +([\d.]+e[+-]\d+|–)"
    pattern = (
        rf"(?m)^  (the line|additive noise) +(with|without) +(\d+){number * 3} +(\S+){number}$"
    )
    rows = re.findall(pattern, printed)
    kinds = itertools.product(["the line", "additive noise"], ["with", "without"], ["1", "20"])
    assert [row[:3] for row in rows] == list(kinds)
    for problem, drawn, _, *numbers, inside, small in rows:
        measured, margin, exact = (float(one.replace("–", "nan")) for one in numbers)
        if (problem, drawn) == ("the line", "without"):
            assert inside == small == "–"
            continue
        assert inside == "yes" and abs(measured - exact) <= 1.05 * margin + 1e-3 * exact
        assert margin < 0.03 * exact
        if drawn == "with":  # and the limit of small rates is told from the exact value
            assert abs(measured - float(small)) > margin
    assert "6 of 6 are inside" in printed

    assert_pictures(tmp_path / "out", {"paths", "loss", "variance"}, printed)


REFUSED = {
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1"),
    "too many steps": (("--steps", 10**6), "--steps is 1000000, but must be from 1 to 10000"),
    "too few steps": (("--steps", 150), "--steps is 150, but .* take more steps, or a larger rate"),
    "rate too small": (("--lr", 1e-320), "--steps is 2000, but .* forgotten after inf steps"),
    "rate zero": (("--lr", 0), "--lr is 0, but must be more than 0"),
    "rate nan": (("--lr", "nan"), "--lr is nan, but must be more than 0"),
    "rate too large": (("--lr", 0.4), "--lr is 0.4, but .* is stable below 0.4 only: choose"),
    "seed": (("--seed", 2**31), "--seed is 2147483648, but must be less than"),
    "out": (("--out", __file__), "test_minibatch_sgd.py cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(study, capsys, arguments, sentence):
    assert_refuses(capsys, f"minibatch_sgd: .*{sentence}", study, *arguments)
