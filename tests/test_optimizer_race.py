"""The race is run as it says, its numbers are those of plain runs, and its statistics are right."""

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
from experiments._optimizer_race import capped, interval, race, sensitivity, tied, tuned
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


def test_the_sensitivity_has_its_closed_form_and_what_diverged_counts_as_its_start():
    finals = np.array([[0.5, 1.0], [np.nan, 3.0], [7.0, np.inf], [1.5, 2.0]])
    curves = np.stack([np.broadcast_to([2.0, 4.0], (4, 2)), finals], axis=-1)
    losses = capped(curves)[..., -1]
    np.testing.assert_array_equal(losses, [[0.5, 1.0], [2.0, 3.0], [2.0, 4.0], [1.5, 2.0]])
    np.testing.assert_allclose(sensitivity(losses), [1.5 - 0.5, 2.5 - 1.0])
    np.testing.assert_array_equal(sensitivity(losses[2:3]), 0)


def test_no_seed_has_a_say_in_its_own_rate():
    # At the first rate the seed in the middle does badly, and only its own rate may ignore it.
    final = np.array([[0.0, 5.0, 1.0], [2.0, 2.0, 2.0], [9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(tuned(final), [1, 0, 1])


def test_the_interval_of_a_median_is_that_of_the_binomial_distribution():
    # A resample's median of 11 is at most the k-th value where six or more are: by B(11, k / 11),
    # in 0.4 % of resamples for k = 2 and in 4.9 % for k = 3.
    values = np.random.default_rng(1).lognormal(size=(100, 11))
    low, high = interval(values)
    ordered = np.sort(values, axis=1)
    np.testing.assert_array_equal([low, high], [ordered[:, 2], ordered[:, 8]])
    assert 0.85 < np.mean((low < 1) & (high > 1)) < 1  # 0.935 by B(11, 1 / 2)


def test_what_is_worse_by_less_than_its_noise_is_tied_with_the_best():
    noise = 10.0 ** np.arange(8)  # that all share, far above their differences
    mixed = np.array([3.0, -1.0, 2.0, -2.0, 1.0, -1.0, 4.0, -3.0])
    values = np.stack([noise + 0.1, noise, noise + mixed + 0.5, 2 * noise])
    np.testing.assert_array_equal(tied(values), [False, True, True, False])


def test_a_run_of_the_race_is_a_plain_run_on_minibatches():
    problem = _optimizer_race.logistic(jax.random.key(0))._replace(steps=60)
    keys = jax.random.split(jax.random.key(1), 2)
    table = race(problem, {"adam": optax.adam}, np.array([1e-3, 0.1]), keys)
    start, order = jax.random.split(keys[1])
    data = jaxfit.minibatches(problem.data, 32, order)
    params = problem.init(start)
    run = jaxfit.train(problem.loss, params, optax.adam(0.1), 60, data=data)
    losses = jax.vmap(lambda params: problem.loss(params, problem.data))(run.trajectory["params"])
    end = problem.loss(run.state.params, problem.data)
    curve = table.sel(optimizer="adam", lr=0.1, key=1).values
    np.testing.assert_allclose(curve, [*losses[::2], end], rtol=1e-3, atol=1e-5)
    assert curve[0] > 10 * curve[-1] > 0

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
    curves = np.empty((3, 3, 21))
    for seed, key in enumerate(jax.random.split(rest, 3)):
        for place, rate in enumerate([1e-5, 1e-2, 10.0]):
            a = np.asarray(problem.init(jax.random.split(key)[0]), np.float64)
            for step in range(21):
                curves[place, seed, step] = np.sum((roots @ a) ** 2) / 2
                a = a - rate * roots.T @ (roots @ a)
    final = np.minimum(curves[..., 0], curves[..., -1])
    least, middle = np.median(np.mean(final, axis=0) - final[1]), np.median(final[1])
    cell = re.escape(f"{middle:.2e} [{final[1].min():.1e}, {final[1].max():.1e}]")
    end = " +" + re.escape(f"{least:.2e}") + " +33%$"
    assert re.search(rf"(?m)^. sgd +0\.01  {cell} +– +0\.01  {cell}{end}", printed)
    assert re.search(rf"(?m)^. mine:sgd +0\.01  {cell} +– +–  {end}", printed)
    assert "\n= adam " in printed and "\n  sgd " in printed
    assert re.search(r"(?m)^adam +=1 +1\.0$", printed)
    assert re.search(r"(?m)^sgd +[23] +[23]\.0$", printed)
    assert ": 45 runs of 20 steps in " in printed  # 3 optimizers, 3 + 2 rates, 3 seeds

    assert_pictures(tmp_path / "out", {"quadratic_rates", "quadratic_curves"}, printed)


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


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(study, capsys, arguments, sentence):
    assert_refuses(capsys, f"optimizer_race: {sentence}", study, *arguments)
