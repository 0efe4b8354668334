"""The study on forks measures what it says, and its controls are the run itself."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from experiments import _command, forks
from experiments.forks import distance, go_on, same_bits, state_at
from jaxfit import analysis
from jaxfit.models import mlp_init
from tests.common import assert_pictures, assert_refuses, assert_same_bits

key = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
    return _command.split_digits(key)


@pytest.fixture
def study(command, monkeypatch):
    """The study in short."""
    monkeypatch.setattr(forks, "SEEDS", 2)
    return functools.partial(command, forks, "--steps", 100)


@pytest.mark.slow
def test_the_control_is_the_run_bit_for_bit_and_another_order_is_not(images):
    batches, other = (jaxfit.minibatches(images[0], 64, jax.random.key(i)) for i in (1, 2))
    start = jaxfit.init(mlp_init(key, forks.WIDTHS), optax.sgd(0.25))
    run = go_on(start, batches, 0.25, None, 200, 1)

    @jax.jit
    def replay(run, batches, rate):
        return jaxfit.replay(forks.loss, run, optax.sgd(rate), 117, 117, data=batches)

    later = replay(run, batches, 0.25).state
    assert_same_bits(state_at(run, batches, 0.25, 117), later)
    for first, end in ((17, later), (100, run.state)):
        state = state_at(run, batches, 0.25, first)
        again = go_on(state, batches, 0.25, None, 100, 1).state
        assert_same_bits(again, end)
        assert same_bits(again, end) and not same_bits(again, state)
        assert not same_bits(again, go_on(state, other, 0.25, None, 100, 1).state)


def test_the_loss_of_a_convex_problem_has_no_barrier_and_that_of_a_perceptron_does(images):
    (x, y), _ = images
    line = jax.jit(lambda a, b, batch: analysis.line(forks.loss, a, b, data=batch))
    drawn = [mlp_init(jax.random.key(i), (64, 10)) for i in (1, 2)]
    found = line(*drawn, (x, y))
    heights = np.asarray(found.loss)
    np.testing.assert_allclose(heights[[0, -1]], [forks.loss(one, (x, y)) for one in drawn], 1e-5)
    rounding = 1e-6 * heights.max()
    assert 0 <= found.barrier <= rounding
    assert np.min(heights - np.linspace(heights[0], heights[-1], len(heights))) < -1e-2
    assert 0 <= line(drawn[0], drawn[0], (x, y)).barrier <= rounding

    # Two units know 0 from 1, and with all signs turned they do too; halfway they are silent.
    x, y = x[y < 2], y[y < 2]
    weight = jnp.mean(x[y == 1], 0) - jnp.mean(x[y == 0], 0)
    first = {"w": jnp.stack([weight, -weight], 1), "b": jnp.zeros(2)}
    last = {"w": jnp.array([[-5.0, 5.0], [5.0, -5.0]]), "b": jnp.zeros(2)}
    turned = jax.tree.map(jnp.negative, first), jax.tree.map(jnp.negative, last)
    found = line([first, last], list(turned), (x, y))
    np.testing.assert_allclose(found.loss[12], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found.barrier, np.log(2) - found.loss[0], rtol=1e-5)
    assert found.barrier > 0.5


def test_distance_has_its_closed_form():
    one, other = {"w": jnp.array([1.0, 2.0]), "b": 0.0}, {"w": jnp.array([1.0, 5.0]), "b": 4.0}
    assert distance(one, other) == 5.0 and distance(one, one) == 0.0


def test_a_comparison_is_with_the_run_and_what_diverged_is_infinitely_far(images):
    start, end, forked = (mlp_init(jax.random.key(i), (64, 10)) for i in range(3))
    loss, right, way, height, heights = forks.compare(start, end, forked, images)
    losses = [forks.loss(params, images[0]) for params in (end, forked)]
    np.testing.assert_allclose(loss, losses[1] - losses[0], atol=1e-4)
    x, y = images[1]
    rights = [np.mean(np.argmax(x @ one["w"], 1) == y) for (one,) in (end, forked)]
    np.testing.assert_allclose(right, rights[1] - rights[0], atol=1e-6)
    np.testing.assert_allclose(way, distance(end, forked) / distance(start, end), rtol=1e-6)
    straight = np.linspace(heights[0], heights[-1], len(heights))
    np.testing.assert_allclose(height, np.max(heights - straight), atol=1e-5)
    lost = jax.tree.map(lambda leaf: leaf + jnp.nan, forked)
    loss, _, way, height, _ = forks.compare(start, end, lost, images)
    assert np.isposinf([loss, way, height]).all()


@pytest.mark.slow
def test_the_study_prints_all_forks_and_writes_its_pictures(study, tmp_path):
    printed = study()
    number = r" +([+-]?[\d.]+)%?"
    rows = re.findall(rf"(?m)^ +(\d+) +(\d+)  (\w[\w. ]*?){number * 5}$", printed)
    steps = [0, 1, 5, 20, 50, 100]
    assert [(int(row[0]), row[2]) for row in rows] == [
        (step, kind) for step in steps for kind in forks.KINDS
    ]
    assert all(int(last) == int(first) + 100 for first, last, *_ in rows)
    ways, heights, largest = np.array([row[5:] for row in rows], float).T
    assert (ways > 0).all() and (heights <= largest).all() and (heights >= 0).all()
    assert "Unchanged, 12 of 12 forks end where the run was, bit for bit." in printed

    assert_pictures(tmp_path / "out", {"forks", "lines", "curves"}, printed)


REFUSED = {
    "few steps": (("--steps", 99), "--steps is 99, but must be from 100 to 10000"),
    "seed": (("--seed", 2**31), "--seed is 2147483648, but must be less than"),
    "out": (("--out", __file__), ".*test_forks.py cannot be written: File exists"),
    "no scikit-learn": ((), r"scikit-learn is not installed.*: run pip install -e \"\.\[test\]\""),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(study, monkeypatch, capsys, arguments, sentence):
    if "scikit" in sentence:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refuses(capsys, f"forks: {sentence}", study, *arguments)
