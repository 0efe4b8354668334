"""An animation draws the line of every row, and is saved in the format its path names."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
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


def rosenbrock(a):
    return (1 - a[0]) ** 2 + 20 * (a[1] - a[0] ** 2) ** 2


def test_a_long_run_is_thinned_to_its_frames_with_both_ends(line):
    run = jaxfit.train(loss, guess, optax.sgd(0.1), 40, data=line)
    made = plot.animate_fit(run, linear, line, most=5)
    assert made.labels == ["step 0", "step 10", "step 20", "step 29", "step 39"]
    with pytest.raises(ValueError, match="most is 0"):
        plot.animate_fit(run, linear, line, most=0)


def test_a_path_grows_beside_its_loss():
    run = jaxfit.train(rosenbrock, jnp.array([-1.0, 1.0]), optax.sgd(1e-3), 50)
    made = plot.animate_path(run, rosenbrock, most=11)
    way, head, grown, dot, title = made._func(5)
    points, losses = run.trajectory["params"], run.trajectory["loss"]
    row = int(made.labels[5].split()[1])
    assert 20 < row < 30
    np.testing.assert_allclose(way.get_xydata(), points[: row + 1])
    np.testing.assert_allclose(head.get_xydata(), points[row : row + 1])
    np.testing.assert_allclose(grown.get_ydata(), losses[: row + 1])
    assert dot.get_xydata().tolist() == [[row, losses[row]]]
    assert title.get_text().startswith(f"step {row:4d}   loss ")


def test_a_path_that_diverges_ends_where_it_is_finite():
    run = jaxfit.train(rosenbrock, jnp.array([-1.0, 1.0]), optax.sgd(1.0), 20)
    made = plot.animate_path(run, rosenbrock)
    assert 1 <= len(made.labels) < 20
    made._func(len(made.labels) - 1)


def test_a_race_has_a_head_and_a_trail_for_each_optimizer():
    start, optimizers = jnp.array([-1.0, 1.0]), {"sgd": optax.sgd(1e-3), "adam": optax.adam(0.1)}
    run = lambda optimizer: jaxfit.train(rosenbrock, start, optimizer, 30).trajectory
    table = jaxfit.sweep(run, {"optimizer": optimizers})
    made = plot.animate_race(table, rosenbrock, trail=4)
    *artists, title = made._func(20)
    for k in range(2):
        way = table.values["params"][k]
        np.testing.assert_allclose(artists[k].get_xydata(), way[16:21], rtol=1e-6)
        np.testing.assert_allclose(artists[2 + k].get_xydata(), way[20:21], rtol=1e-6)
    assert title.get_text() == "step   20"
    names = [text.get_text() for text in made._fig.axes[0].get_legend().get_texts()]
    assert names == ["sgd", "adam"]
    runs = jax.vmap(lambda lr: jaxfit.train(rosenbrock, start, optax.sgd(lr), 5))
    assert len(plot.animate_race(runs(jnp.array([1e-3, 2e-3, 9.0])), rosenbrock).labels) == 5
    with pytest.raises(ValueError, match="given one of 2: give a sweep"):
        plot.animate_race(jaxfit.train(rosenbrock, start, optax.sgd(1e-3), 3), rosenbrock)


def test_boundaries_and_tiles_move_with_the_parameters():
    data = jnp.array([[-1.0, 0.0], [1.0, 2.0]]), jnp.array([0, 1])
    params = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    run = jaxfit.Run(np.arange(3), {"params": params}, None, None)
    model = lambda w, x: x @ w
    image, title = plot.animate_boundary(run, model, data)._func(1)
    assert (image.get_array()[:, :60] == 1).all() and (image.get_array()[:, 60:] == 0).all()
    assert title.get_text() == "step    1"
    made = plot.animate_tiles(run, lambda w: w[:, None], (1, 2))
    image, _ = made._func(2)
    np.testing.assert_array_equal(image.get_array().filled(0), [[0, 1]])
    assert image.norm.vmax == -image.norm.vmin == 1


def test_a_spectrum_moves_in_one_window():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Spectrum:
        nodes: jax.Array

        def density(self, x, width):
            return np.exp(-(((x - np.mean(self.nodes)) / width) ** 2))

    stacked = Spectrum(jnp.array([[[0.0, 1.0]], [[2.0, 5.0]]]))
    made = plot.animate_spectrum([0, 10], stacked, threshold=2.0)
    line, title = made._func(1)
    assert line.get_xdata()[line.get_ydata().argmax()] == pytest.approx(3.5, abs=0.05)
    assert line.get_xdata()[0] < 0 and title.get_text() == "step   10"
