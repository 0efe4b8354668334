"""An animation draws the line of every row, and is saved in the format its path names."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import plot
from jaxfit.models import linear
from tests.common import guess, loss


@pytest.fixture(scope="module")
def run(line):
    return jaxfit.train(loss, guess, optax.sgd(0.1), 40, data=line, record_every=10)


@pytest.fixture
def animation(run, line):
    ax = plt.subplots(figsize=(3, 2), layout="constrained")[1]
    made = plot.animate_fit(run, linear, line, interval=50, ax=ax)
    made._init_draw()  # one that never draws warns when it is deleted
    return made


@pytest.mark.parametrize("row", [0, 2, 3])
def test_a_frame_shows_the_line_of_its_row(run, animation, row):
    drawn, title = animation._func(row)
    slope, intercept = np.asarray(run.trajectory["params"][row])
    expected = slope * drawn.get_xdata() + intercept
    np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-4, atol=1e-5)
    assert title.get_text() == f"step {10 * row:4d}   loss {run.trajectory['loss'][row]:.4f}"


def test_the_axes_hold_the_points_and_every_line(line, run, animation):
    (ax,) = animation._fig.axes
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], line[1])
    low, high = ax.get_ylim()
    ends = np.asarray(run.trajectory["params"]) @ np.array([[-1.0, 1.0], [1.0, 1.0]]).T
    assert low < min(ends.min(), line[1].min()) and high > max(ends.max(), line[1].max())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "fit"]


def test_an_animation_without_axes_makes_them(run, line):
    made = plot.animate_fit(run, linear, line)
    made._init_draw()
    assert plt.get_fignums() == [made._fig.number]


def test_a_run_without_losses_is_refused(line):
    keep = lambda step: {"params": step.params}
    run = jaxfit.train(loss, guess, optax.sgd(0.1), 2, data=line, record=keep)
    with pytest.raises(ValueError, match=r"^plot.animate_fit draws 'loss', but .*\['params'\]"):
        plot.animate_fit(run, linear, line)
    assert not plt.get_fignums()


def test_it_plays_in_a_notebook_and_names_its_steps(animation):
    cell = animation._repr_html_()
    assert animation.labels == ["step 0", "step 10", "step 20", "step 30"]
    assert "jaxfit-player" in cell and not plt.get_fignums()


def test_mp4_without_the_extra_says_how_to_install_it(animation, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r'run pip install "jaxfit-train\[video\]", or save'):
        plot.save(animation, tmp_path / "fit.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fit.avi", "fit"])
def test_other_endings_are_refused(animation, tmp_path, name):
    with pytest.raises(ValueError, match=r"but an animation is saved as \.html, \.gif"):
        plot.save(animation, tmp_path / name)
    assert not list(tmp_path.iterdir())
