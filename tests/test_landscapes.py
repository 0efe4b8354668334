"""The study on landscapes: its planes, walks and lines beside what they must be."""

import functools
import re

import jax
import numpy as np
import pytest

import jaxfit
from experiments import _command, landscapes
from jaxfit import analysis
from jaxfit.losses import accuracy
from jaxfit.models import mlp, mlp_init
from tests.common import assert_pictures, assert_refuses, assert_same_bits

key = jax.random.key(0)


@pytest.fixture
def small(monkeypatch):
    """Small perceptrons, and few places on planes."""
    monkeypatch.setattr(landscapes, "WIDTHS", (64, 8, 8, 10))
    monkeypatch.setattr(landscapes, "PLACES", 5)
    monkeypatch.setattr(landscapes, "ROWS", 20)
    monkeypatch.setattr(landscapes, "FORKED", (0, 1))


@pytest.mark.slow
def test_a_path_is_that_of_the_run_from_its_start_to_its_end(small):
    train, _ = _command.split_digits(key)
    batches, start = jaxfit.minibatches(train, 16, key), landscapes.begin(key)
    run = landscapes.go_on(start, batches, landscapes.RATE, None, 40, 2)
    path = landscapes.path_of(run, batches, 10)
    row = lambda number: jax.tree.map(lambda leaf: leaf[number], path)
    assert_same_bits(row(0), start.params)
    assert_same_bits(row(-1), run.state.params)
    again = landscapes.go_on(start, batches, landscapes.RATE, None, 20, 2).state
    assert_same_bits(row(2), again.params)
    assert landscapes.walk_like(path, key).shape == (5, 682)


def test_a_rescaled_perceptron_predicts_the_same():
    params, x = mlp_init(key, (5, 7, 6, 3)), jax.random.normal(key, (9, 5))
    other = landscapes.rescaled(params)
    np.testing.assert_allclose(mlp(params, x), mlp(other, x), atol=1e-5)
    np.testing.assert_allclose(other[0]["w"], 10 * params[0]["w"])


@pytest.mark.slow
def test_what_is_said_of_ends_and_barriers_is_so(small, capsys):
    images = _command.split_digits(key)
    params = mlp_init(key, landscapes.WIDTHS)
    landscapes.study_minima({"small": params}, images)
    printed = capsys.readouterr().out
    said = re.search(r"small +([\d.]+) +([\d.]+)% +([\d.]+) +(\S+) +(\S+)\n", printed)
    expected = [
        landscapes.loss(params, images[0]),
        100 * accuracy(mlp(params, images[1][0]), images[1][1]),
        np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(params))),
        analysis.curvature(landscapes.loss, params, data=images[0]).eigenvalues[0],
        np.mean(analysis.plane(landscapes.loss, params, data=images[0], num=5).loss),
    ]
    np.testing.assert_allclose(np.array(said.groups(), float), expected, rtol=1e-2)

    lines = landscapes.study_barriers(images[0], 20, key)
    assert list(lines) == ["another start", "the same start", "fork at step 20"]
    # The first two start at the end of one run.
    assert_same_bits(lines["another start"].loss[0], lines["the same start"].loss[0])
    assert lines["fork at step 20"].loss[0] < lines["the same start"].loss[0]
    assert lines["another start"].barrier > lines["fork at step 20"].barrier


@pytest.mark.slow
def test_the_study_prints_its_numbers_and_writes_its_pictures(small, command, tmp_path):
    printed = command(landscapes, "--steps", 40)
    number = r" +([\d.]+) \+ *([\d.]+)"
    rows = re.findall(rf"(?m)^  (mean|last) {number * 3}$", printed)
    assert [name for name, *_ in rows] == ["mean", "last"]
    run, walk, theory = np.array([row[1:] for row in rows], float).reshape(2, 3, 2).swapaxes(0, 1)
    np.testing.assert_allclose(theory, [[60.8, 15.2], [81.1, 9.0]])
    np.testing.assert_allclose(walk, theory, atol=6)
    assert ((run > 0) & (run < 100)).all()
    assert float(re.search(r"off by at most (\S+)\n", printed)[1]) < 1e-3
    assert_pictures(tmp_path / "out", {"path", "minima", "barriers"}, printed)


REFUSED = {
    "few steps": (("--steps", 99), "--steps is 99, but must be from 100 to 10000"),
    "out": (("--out", __file__), ".*test_landscapes.py cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(command, capsys, arguments, sentence):
    run = functools.partial(command, landscapes)
    assert_refuses(capsys, f"landscapes: {sentence}", run, *arguments)
