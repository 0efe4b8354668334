"""The study on double descent: its theory is exact, its draws agree, and training goes there."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _double_descent, double_descent
from experiments._double_descent import PROBLEMS, Draws, data, draw, risks, solve, theory, trained
from tests.common import assert_pictures, assert_refuses

key = jax.random.key(0)


@pytest.fixture
def small(monkeypatch):
    """Fewer examples and features, which fewer programs solve."""
    monkeypatch.setattr(_double_descent, "EXAMPLES", 12)
    monkeypatch.setattr(_double_descent, "ALL", 30)
    monkeypatch.setattr(_double_descent, "FEATURES", (4, 12, 24))
    monkeypatch.setattr(_double_descent, "TRAINED", (4, 24))


def test_theory_has_the_numbers_of_the_isotropic_problem():
    found = [theory(PROBLEMS[0], p) for p in (50, 90, 110, 200, 400)]
    np.testing.assert_allclose(found, [1.0204, 10.0, 11.202, 1.5101, 1.0844], rtol=1e-4)
    assert all(math.isinf(theory(one, p)) for one in PROBLEMS for p in (99, 100, 101))
    assert not any(math.isinf(theory(one, p)) for one in PROBLEMS for p in (98, 102))


def test_theory_is_the_mean_over_draws_of_the_risk_given_the_features(small):
    """Given x, the mean over errors is known: of the bias and of the variance."""
    rng = np.random.default_rng(0)
    for problem in PROBLEMS:
        for p in (3, 25):
            x = rng.normal(size=(2000, 12, p))
            seen, variance = problem.seen(p), problem.unseen(p) + problem.noise**2
            inverse = np.linalg.pinv(x)
            bias = seen - (inverse @ (x @ seen)[..., None])[..., 0]
            drawn = problem.unseen(p) + np.sum(bias**2, axis=1)
            drawn += variance * np.sum(inverse**2, axis=(1, 2))
            error = np.std(drawn) / math.sqrt(len(drawn))
            expected = theory(problem, p)
            assert abs(np.mean(drawn) - expected) < 4 * error < 0.05 * expected


def test_what_a_model_does_not_see_is_left_of_the_truth():
    for problem in PROBLEMS:
        for p in (1, 40, 400):
            seen = problem.seen(p)
            assert seen.shape == (p,)
            np.testing.assert_allclose(np.sum(seen**2) + problem.unseen(p), 1)
    np.testing.assert_allclose(PROBLEMS[1].seen(400)[:3] / PROBLEMS[1].seen(1), [1, 1 / 2, 1 / 3])


def test_a_problem_is_its_features_times_its_coefficients_with_the_unseen_as_noise(small):
    one = Draws(*(leaf[0] for leaf in draw(key, 1)))
    with jax.enable_x64(True):
        for which, problem in enumerate(PROBLEMS):
            x, y, seen, unseen = data(one, 4, which)
            np.testing.assert_allclose(seen, problem.seen(4))
            np.testing.assert_allclose(unseen, problem.unseen(4), atol=1e-15)
            noise = (y - x @ seen) / one.error
            np.testing.assert_allclose(noise, math.sqrt(problem.unseen(4) + problem.noise**2))


def test_the_sweep_is_a_loop_over_pseudoinverses(small):
    drawn = draw(key, 3)
    found = risks(drawn)
    assert found.shape == (3, 2, 3) and found.dtype == np.float64
    for i, p in enumerate(_double_descent.FEATURES):
        for j, problem in enumerate(PROBLEMS):
            for k in range(3):
                x, seen = np.asarray(drawn.x[k, :, :p]), problem.seen(p)
                spread = math.sqrt(problem.unseen(p) + problem.noise**2)
                y = x @ seen + spread * np.asarray(drawn.error[k])
                away = np.linalg.pinv(x) @ y - seen
                np.testing.assert_allclose(found[i, j, k], away @ away + problem.unseen(p), 1e-6)
    rows = _double_descent.compare(found)
    first = found[0, 0]
    np.testing.assert_allclose(rows[0].measured, first.mean())
    np.testing.assert_allclose(rows[0].error, math.sqrt(np.var(first, ddof=1) / 3))
    assert rows[3].problem == PROBLEMS[1].name and rows[0].margin > 5 * rows[0].error


def test_both_methods_go_to_the_minimum_norm_solution_and_few_steps_do_not(small, monkeypatch):
    monkeypatch.setattr(_double_descent, "TRAINED", (24,))
    drawn = draw(key, 2)
    found = trained(drawn, 400)
    assert found.distance.shape == found.risk.shape == (1, 2, 2)
    assert (found.distance < 1e-6).all()
    monkeypatch.setattr(_double_descent, "FEATURES", (24,))
    np.testing.assert_allclose(found.risk[0], risks(drawn)[0, [0, 0]], rtol=1e-5)
    x, seen = np.asarray(drawn.x[0, :, :24]), PROBLEMS[0].seen(24)
    y, a, before = x @ seen + np.asarray(drawn.error[0]), np.zeros(24), np.zeros(24)
    least, most = np.sqrt(np.linalg.eigvalsh(2 / 12 * x @ x.T)[[0, -1]])
    rate, beta = (2 / (least + most)) ** 2, ((most - least) / (most + least)) ** 2
    for _ in range(3):
        a, before = a - rate * 2 / 12 * x.T @ (x @ a - y) + beta * (a - before), a
    short, best = trained(drawn, 3).distance, np.linalg.pinv(x) @ y
    assert (short > 1e-3).all()
    away = np.linalg.norm(a - best) / np.linalg.norm(best)
    np.testing.assert_allclose(short[0, 1, 0], away, rtol=1e-6)
    x, y = jnp.eye(2, 3), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(solve(x, y), [1, 2, 0], atol=1e-6)


@pytest.mark.slow
def test_the_study_prints_its_numbers_and_draws_them(small, command, tmp_path):
    printed = command(double_descent, "--draws", 40, "--steps", 100)
    number = r" +([\d.]+)"
    pattern = rf"(?m)^  (p of p features|first p of 400) +(\d+){number * 4} +(yes|NO){number}$"
    rows = re.findall(pattern, printed)
    assert [int(row[1]) for row in rows] == [4, 24, 4, 24]
    for (name, p, *numbers, inside, _), problem in zip(
        rows, [one for one in PROBLEMS for _ in range(2)], strict=True
    ):
        measured, error, margin, expected = map(float, numbers)
        assert name == problem.name and 0 < error < margin < expected
        np.testing.assert_allclose(expected, theory(problem, int(p)), atol=1e-4)
        assert inside == "yes" and abs(measured - expected) <= margin + 1e-4
    assert len(re.findall(r"(?m) +12 +inf +– +[\d.]+$", printed)) == 2
    assert "4 of 4 are inside" in printed
    runs = re.findall(
        r"(?m)^ +(\d+)  (gradient descent|heavy ball) +(\S+) +(\S+) +\S+ +\S+$", printed
    )
    assert [(int(p), method) for p, method, *_ in runs] == [
        (p, method) for p in (4, 24) for method in _double_descent.METHODS
    ]
    assert all(float(median) <= float(largest) for *_, median, largest in runs)
    assert all(float(largest) < 1e-3 for _, method, _, largest in runs if method == "heavy ball")

    assert_pictures(tmp_path / "out", {"risk"}, printed)


REFUSED = {
    "one draw": (("--draws", 1), "--draws is 1, but must be from 2 to 1000"),
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1 to 10000"),
    "out": (("--out", __file__), ".*test_double_descent.py cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(command, capsys, arguments, sentence):
    assert_refuses(capsys, f"double_descent: {sentence}", command, double_descent, *arguments)
