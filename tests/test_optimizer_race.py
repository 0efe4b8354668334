"""The race is run as it says, and its numbers are those of plain runs."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

import jaxfit
from experiments import _optimizer_race, optimizer_race
from experiments._optimizer_race import FLOOR, race
from tests.common import assert_pictures, assert_refuses

SMALL = {name: optimizer_race.OPTIMIZERS[name] for name in ("sgd", "adam")}
MINE = """
import jax, optax
factor = 2
def sgd(lr):
    return lambda grads, params: jax.tree.map(lambda g: -lr * g, grads)
def broken(lr):
    raise RuntimeError("the engine stalls.\\nbadly")
"""


@pytest.fixture
def study(command, monkeypatch, tmp_path):
    """The study with two optimizers, and a module of the user's within reach."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(optimizer_race, "OPTIMIZERS", SMALL)
    options = "--problem", "quadratic", "--steps", 20, "--rates", 3, "--seeds", 3
    return functools.partial(command, optimizer_race, *options)


def test_a_run_of_the_race_is_a_plain_run_on_minibatches():
    problem = _optimizer_race.logistic(jax.random.key(0))._replace(steps=60)
    keys = jax.random.split(jax.random.key(1), 2)
    table = race(problem, {"adam": optax.adam}, np.array([1e-3, 0.1]), keys)
    start, order = jax.random.split(keys[1])
    data = jaxfit.minibatches(problem.data, 32, order)
    params = problem.init(start)
    run = jaxfit.train(problem.loss, params, optax.adam(0.1), 60, data=data)
    ends = problem.loss(params, problem.data), problem.loss(run.state.params, problem.data)
    found = table.sel(optimizer="adam", lr=0.1, seed=1).values
    np.testing.assert_allclose(found, ends, rtol=1e-3, atol=1e-5)
    assert found[0] > 10 * found[-1] > FLOOR

    # The loss is that above the optimum, which scikit-learn finds too.
    x, y = map(np.asarray, problem.data)
    best = LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-8).fit(x[:, :-1], y)
    found = jnp.append(best.coef_, best.intercept_)
    assert abs(problem.loss(found, problem.data)) < 1e-6


def test_the_command_prints_what_a_numpy_loop_finds_and_writes_its_pictures(study, tmp_path):
    printed = study("--optimizer", "mine:sgd")
    draw, rest = jax.random.split(jax.random.key(0))
    problem = _optimizer_race.quadratic(draw)
    roots = np.asarray(problem.data, np.float64)
    eigenvalues = np.linalg.svd(roots, compute_uv=False) ** 2
    np.testing.assert_allclose([eigenvalues[0], eigenvalues[-1]], [1, 1e-3], rtol=1e-3)
    first, final = np.empty(3), np.empty((3, 3))
    for seed, key in enumerate(jax.random.split(rest, 3)):
        for place, rate in enumerate([1e-5, 1e-2, 10.0]):
            a = np.asarray(problem.init(jax.random.split(key)[0]), np.float64)
            first[seed] = np.sum((roots @ a) ** 2) / 2
            for _ in range(20):
                a = a - rate * roots.T @ (roots @ a)
            final[place, seed] = min(first[seed], np.sum((roots @ a) ** 2) / 2)
    middle, tuning = np.mean(final[1]), np.median(np.mean(final, axis=0) - final[1])
    limits = f"{middle:.3e} [{final[1].min():.2e}, {final[1].max():.2e}]"
    for name in "sgd", "mine:sgd":
        assert re.search(
            rf"(?m)^. {name} +0.01  {re.escape(limits)} .* {re.escape(f'{tuning:.2e}')} +33%$",
            printed,
        )
    assert "\n= adam " in printed and "\n  sgd " in printed
    assert re.search(r"(?m)^adam +=1 +1\.0$", printed)
    assert re.search(r"(?m)^sgd +[23] +[23]\.0$", printed)
    assert ": 27 runs of 20 steps in " in printed  # 3 optimizers, 3 rates, 3 seeds

    assert_pictures(tmp_path / "out", {"quadratic_rates", "quadratic_comparison"}, printed)


REFUSED = {
    "problem": (("--problem", "maze"), "--problem is maze, but must be one of quadratic, .*digits"),
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1 to"),
    "no rates": (("--rates", 0), "--rates is 0, but must be from 1 to"),
    "one seed": (("--seeds", 1), "--seeds is 1, but must be from 2 to"),
    "no module": (("--optimizer", "yours:sgd"), "--optimizer yours:sgd .*No module named 'yours'"),
    "no name": (("--optimizer", "mine"), "--optimizer mine .*module 'mine' has no attribute ''"),
    "no attribute": (("--optimizer", "mine:adam"), ".*module 'mine' has no attribute 'adam'"),
    "no function": (("--optimizer", "mine:factor"), ".*'int' object is not callable"),
    "no factory": (("--optimizer", "jax.numpy:square"), ".*optimizer is .*but must be an optax"),
    "it raises": (("--optimizer", "mine:broken"), ".*: the engine stalls"),
}


@pytest.mark.parametrize("name", ["adafactor", "muon", "lbfgs"])
def test_optimizers_of_other_kinds_take_part(name):
    problem = _optimizer_race.rosenbrock(jax.random.key(0))._replace(steps=60)
    factories = {name: optimizer_race.OPTIMIZERS[name][0]}
    table = race(problem, factories, np.array([0.03]), jax.random.split(jax.random.key(1), 2))
    start, end = np.moveaxis(table.values, -1, 0)
    assert (end < start / 2).all()


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(study, capsys, arguments, sentence):
    assert_refuses(capsys, f"optimizer_race: {sentence}", study, *arguments)
