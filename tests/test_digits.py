"""The study of digits reaches what it promises, and its convolution is a convolution."""

import functools
import re
import sys

import equinox as eqx
import jax
import numpy as np
import pytest
import threadpoolctl
from PIL import Image
from sklearn.linear_model import LogisticRegression

from experiments import _command, _digits, digits
from jaxfit import plot
from tests.common import assert_pictures, assert_refuses


@pytest.fixture(scope="module")
def images():
    return _command.split_digits(jax.random.key(0))


@pytest.fixture
def study(command):
    return functools.partial(command, digits, "--no-animation")


@pytest.mark.slow
def test_the_study_keeps_its_promises_and_writes_its_pictures(study, tmp_path):
    printed = study()
    assert printed.startswith("1438 images to train on, 359 to test on\n")
    (ours, right), (least, theirs) = re.findall(r"(0\.\d{13}) +(0\.\d{4})\n", printed)
    assert float(ours) == pytest.approx(float(least), rel=1e-6, abs=0)
    assert right == theirs
    ((difference, steps),) = re.findall(r"difference (\S+), within 1e-06 after (\d+) st", printed)
    assert abs(float(difference)) < 1e-6 and 10 < int(steps) < 200

    table = re.findall(r"(?m)^(\w+) +(\d+) +(\d+) +\S+ \+ \S+ +(\S+) +(\S+)$", printed)
    assert [row[:3] for row in table] == [
        ("softmax", "650", "200"),
        ("MLP", str(64 * 128 + 128 + 128 * 10 + 10), "1150"),
        ("CNN", str(9 * 8 + 8 + 72 * 16 + 16 + 256 * 10 + 10), "1150"),
    ]
    losses, accuracies = np.array([row[3:] for row in table], float).T
    assert (accuracies[1:] >= 0.97).all() and accuracies[0] == float(right)
    assert (losses[1:] < 0.05).all() and losses[1:].max() < losses[0] < float(ours)

    assert_pictures(tmp_path / "out", {"curves", "confusion"}, printed)


@pytest.mark.slow
def test_softmax_regression_reaches_the_optimum_that_scikit_learn_finds(images):
    (x, y), _ = ([np.asarray(array) for array in part] for part in images)
    x = x.astype(np.float64)
    with threadpoolctl.threadpool_limits(1):
        best = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000).fit(x, y)  # by its own L-BFGS

    def objective(w, b):
        z = x @ w + b
        z -= z.max(axis=1, keepdims=True)
        likelihood = z[np.arange(len(y)), y] - np.log(np.exp(z).sum(axis=1))
        return -likelihood.mean() + (w**2).sum() / (2 * 1.0 * len(y))

    fit = _digits.fit_softmax(images)
    (found,) = fit.run.state.params
    least = objective(best.coef_.T, best.intercept_)
    assert found["w"].dtype == np.float64
    assert objective(found["w"], found["b"]) == pytest.approx(least, rel=1e-6, abs=0)
    assert fit.loss == pytest.approx(least, rel=1e-6, abs=0)
    assert _digits.scikit_optimum(images)[0] == pytest.approx(least, rel=1e-8, abs=0)
    # A quarter of the steps is not enough: the comparison can tell.
    assert fit.run.trajectory["loss"][50] > least * (1 + 1e-4)


@pytest.mark.slow
def test_the_cnn_is_made_of_equinox_convolutions(images):
    layers = _digits.cnn_init(jax.random.key(1))
    x = images[1][0][:20]

    def convolution(layer, channels):
        out = layer.bias.shape[0]
        conv = eqx.nn.Conv2d(channels, out, 3, padding=1, key=jax.random.key(0))
        kernel = layer.weight.reshape(out, 3, 3, channels).transpose(0, 3, 1, 2)
        new = (kernel, layer.bias.reshape(out, 1, 1))
        return eqx.tree_at(lambda conv: (conv.weight, conv.bias), conv, new)

    net = eqx.nn.Sequential(
        [
            convolution(layers[0], 1),
            eqx.nn.Lambda(jax.nn.relu),
            convolution(layers[1], 8),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(lambda x: x.transpose(1, 2, 0).ravel()),
            layers[2],
        ]
    )
    expected = jax.jit(jax.vmap(net))(x.reshape(-1, 1, 8, 8))
    np.testing.assert_allclose(jax.jit(_digits.cnn)(layers, x), expected, atol=1e-5)


@pytest.mark.slow
def test_accuracies_and_the_animation_show_the_recorded_rows(images, tmp_path):
    fit = _digits.fit_network("MLP", images, 12, jax.random.key(0))
    assert fit.steps.tolist() == [0, 5, 10, 12]
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], fit.run.trajectory["params"]) for i in range(3)]
    x, y = (np.asarray(array) for array in images[1])
    params = [*rows, fit.run.state.params]
    for row, accuracy, (first, last) in zip(fit.predicted, fit.accuracies, params, strict=True):
        hidden = np.maximum(x @ first["w"] + first["b"], 0)
        predicted = np.argmax(hidden @ last["w"] + last["b"], axis=1)
        assert accuracy == pytest.approx(np.mean(predicted == y), abs=2 / len(y))
        assert np.mean(row == predicted) > 1 - 2 / len(y)
    assert fit.accuracies[-1] > 0.3 > fit.accuracies[0]

    animation = digits.animate_weights(fit)
    with Image.open(plot.save(animation, tmp_path / "weights.gif")) as gif:
        assert gif.n_frames == 3
    # The last frame, which is what is drawn now, has 32 of the last row's 128 units.
    axes = animation._fig.axes[0]
    assert re.search(r"step +10 ", axes.get_title(loc="left"))
    shown = axes.images[0].get_array()
    units = {tuple(unit) for unit in rows[-1][0]["w"].T}
    corners = [(i, j) for i in range(0, 36, 9) for j in range(0, 72, 9)]
    drawn = {tuple(np.asarray(shown[i : i + 8, j : j + 8], np.float32).ravel()) for i, j in corners}
    assert len(drawn) == 32 and drawn < units


REFUSED = {
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1 to"),
    "seed": (("--seed", 2**31), "--seed is 2147483648, but must be less than"),
    "out": (("--out", "file"), "file cannot be written: File exists"),
    "no scikit-learn": ((), r"scikit-learn is not installed.*: run pip install -e \"\.\[test\]\""),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(
    study, tmp_path, monkeypatch, capsys, arguments, sentence
):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    if "scikit" in sentence:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert_refuses(capsys, f"digits: {sentence}", study, *arguments)


def test_without_equinox_there_is_no_cnn(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match=r"Equinox is not .*: run pip install -e \"\.\[test\]\""):
        _digits.cnn_init(jax.random.key(0))
