"""The study on the edge of stability: its sharpness is that of dense Hessians along plain loops."""

import functools
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import edge_of_stability as study
from tests.common import assert_pictures, assert_refuses


@pytest.fixture
def small(monkeypatch):
    """A perceptron of 310 numbers on a few digits."""
    monkeypatch.setattr(study, "WIDTHS", (64, 4, 10))
    monkeypatch.setattr(study, "IMAGES", 20)


@jax.jit
def derivatives(params, data):
    """The loss, the gradient [P] and the Hessian [P, P], whole."""
    at, tree_of = jax.flatten_util.ravel_pytree(params)
    height = lambda vector: study.loss(tree_of(vector), data)
    return *jax.value_and_grad(height)(at), jax.hessian(height)(at)


def dense(name, rate, momentum, params, data, steps):
    """Losses and sharpness at every tenth step, by a loop in NumPy and whole Hessians."""
    at, tree_of = jax.flatten_util.ravel_pytree(params)
    at, mean, square, found = np.asarray(at), 0.0, 0.0, []
    for step in range(steps):
        value, grad, hessian = derivatives(tree_of(at), data)
        if step % 10 == 0 and step:
            divisor = np.sqrt(square / (1 - 0.999**step)) + 1e-8 if name == "adam" else 1.0
            scale = np.broadcast_to(divisor**-0.5, at.shape)
            matrix = scale[:, None] * hessian * scale
            found.append((value, np.linalg.eigvalsh(matrix)[-1]))
        grad = np.asarray(grad)
        if name == "adam":
            mean = momentum * mean + (1 - momentum) * grad
            square = 0.999 * square + 0.001 * grad**2
            divisor = np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8
            at = at - rate * mean / (1 - momentum ** (step + 1)) / divisor
        else:
            mean = momentum * mean + grad
            at = at - rate * mean
    return np.array(found).T


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate", "momentum"),
    [("momentum", 0.5, 0.0), ("momentum", 0.2, 0.9), ("adam", 0.01, 0.9)],
)
def test_the_sharpness_is_that_of_a_dense_hessian_along_a_plain_loop(small, name, rate, momentum):
    params, data = study.problem(20, 0.2, jax.random.key(1))
    found = study.watch(name, rate, momentum, params, data, 40)
    losses, sharpness = dense(name, rate, momentum, params, data, 40)
    np.testing.assert_allclose(found.loss, losses, rtol=1e-3)
    np.testing.assert_allclose(found.sharpness, sharpness, rtol=5e-3)
    assert found.sharpness.shape == (3,) and (found.bound < 0.1 * found.sharpness).all()


def test_some_labels_are_drawn_anew_and_the_images_are_centred():
    params, (x, y) = study.problem(300, 0.0, jax.random.key(0))
    _, (same, noisy) = study.problem(300, 0.5, jax.random.key(0))
    np.testing.assert_array_equal(x, same)
    np.testing.assert_allclose(jnp.mean(x, axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(jnp.sum(y, axis=1), 1)
    changed = np.mean(np.argmax(y, 1) != np.argmax(noisy, 1))
    assert 0.35 < changed < 0.55  # a tenth of a half are drawn as they were
    np.testing.assert_allclose(jnp.std(params[1]["w"]), 0.5 * (2 / 32) ** 0.5, rtol=0.1)


def test_the_study_prints_the_edges_and_writes_its_pictures(small, command, tmp_path):
    printed = command(study, "--steps", 40)
    number = r" +([+-]?[\d.e+-]+|never)%?"
    rows = re.findall(rf"(?m)^  (gradient descent|momentum 0\.9|Adam) {number * 7}$", printed)
    assert [name for name, *_ in rows] == [name for name in study.KINDS for _ in range(3)]
    rates, edges, _, _, last, off, _ = zip(*(row[1:] for row in rows), strict=True)
    factors = np.repeat([2.0, 3.8, 38.0], 3)
    np.testing.assert_allclose(np.array(edges, float) * np.array(rates, float), factors, rtol=1e-3)
    part = np.array(last, float) / np.array(edges, float)
    np.testing.assert_allclose(part - 1, np.array(off, float) / 100, atol=1.1e-3)
    assert_pictures(tmp_path / "out", {"sharpness", "losses"}, printed)


REFUSED = {
    "few steps": (("--steps", 39), "--steps is 39, but must be from 40 to 10000"),
    "noise": (("--noise", 1.5), "--noise is 1.5, but must be from 0 to 1"),
    "out": (("--out", __file__), ".*test_edge_of_stability.py cannot be written: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(command, capsys, arguments, sentence):
    run = functools.partial(command, study)
    assert_refuses(capsys, f"edge_of_stability: {sentence}", run, *arguments)
