"""The artists on the axes hold the numbers of the run."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet

import jaxfit
from jaxfit import plot
from jaxfit.models import linear, polynomial
from tests.common import guess, loss

RATES = (0.01, 0.1, 0.5)


def bowl(a):
    return a[0] ** 2 + 3.0 * a[1] ** 2


@pytest.fixture(scope="module")
def run(line):
    return jaxfit.train(loss, guess, optax.sgd(0.1), 20, data=line)


@pytest.fixture(scope="module")
def runs(line):
    train = lambda lr: jaxfit.train(loss, guess, optax.sgd(lr), 20, data=line)
    return jax.vmap(train)(jnp.array(RATES))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize(
    "draw",
    [
        lambda run, line, ax: plot.fit(linear, guess, line, ax=ax),
        lambda run, line, ax: plot.loss(run, ax=ax),
        lambda run, line, ax: plot.path(run, loss, line, ax=ax),
    ],
    ids=["fit", "loss", "path"],
)
def test_a_plot_is_drawn_on_the_axes_given_or_on_new_ones(run, line, draw):
    given = plt.subplots()[1]
    assert draw(run, line, given) is given
    new = draw(run, line, None)
    assert isinstance(new, Axes) and new.figure is not given.figure and new.lines
    assert len(plt.get_fignums()) == 2


def test_a_fit_shows_the_points_and_the_line_of_the_model(line):
    x, y = line
    ax = plot.fit(linear, guess, line, label="guess")
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.stack([x[:, 0], y], 1))
    (drawn,) = ax.lines
    np.testing.assert_allclose(drawn.get_xdata()[[0, -1]], [x[:, 0].min(), x[:, 0].max()])
    np.testing.assert_allclose(drawn.get_ydata(), 1.0 - drawn.get_xdata(), rtol=1e-4, atol=1e-6)
    assert legend(ax) == ["data", "guess"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


def test_a_fit_over_plain_numbers_shows_the_curve_of_the_model():
    x, a = jnp.array([3.0, -1.0, 0.5]), jnp.array([1.0, -2.0, 0.5])
    (drawn,) = plot.fit(polynomial, a, (x, x**2)).lines
    expected = np.polyval(a[::-1], drawn.get_xdata())
    np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-4, atol=1e-5)


def test_a_fit_without_parameters_shows_the_points_alone(line):
    ax = plot.fit(linear, None, line)
    assert len(ax.collections) == 1 and not ax.lines and ax.get_legend() is None


def test_a_fit_over_two_variables_is_refused():
    x = jnp.array([[0.0, 1.0], [1.0, 3.0]])
    with pytest.raises(ValueError, match=r"x of shape \(2, 2\) has a second column that varies"):
        plot.fit(linear, guess, (x, jnp.ones(2)))


def test_a_loss_curve_is_the_recorded_loss_on_a_logarithmic_scale(run):
    ax = plot.loss(run, label="sgd", linestyle="--")
    (drawn,) = ax.lines
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(20))
    np.testing.assert_array_equal(drawn.get_ydata(), run.trajectory["loss"])
    assert drawn.get_linestyle() == "--" and legend(ax) == ["sgd"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "loss", "log")
    assert plot.loss(run).get_legend() is None


def test_a_sparse_loss_curve_stands_at_its_steps(line):
    sparse = jaxfit.train(loss, guess, optax.sgd(0.1), 20, data=line, record_every=6)
    np.testing.assert_array_equal(plot.loss(sparse).lines[0].get_xdata(), [0, 6, 12, 18])


def test_many_runs_give_a_line_each_with_its_own_label_and_colour(runs):
    ax = plot.loss(runs, label=RATES)
    assert legend(ax) == ["0.01", "0.1", "0.5"]
    assert len({str(drawn.get_color()) for drawn in ax.lines}) == 3
    for drawn, values in zip(ax.lines, runs.trajectory["loss"], strict=True):
        np.testing.assert_array_equal(drawn.get_ydata(), values)
        np.testing.assert_array_equal(drawn.get_xdata(), np.arange(20))
    assert {drawn.get_color() for drawn in plot.loss(runs, color="red").lines} == {"red"}


def with_losses(*losses):
    """Make a run that recorded these losses, or as many as there are lists of them."""
    values = np.array(losses)
    steps = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    return jaxfit.Run(steps, {"loss": values}, None, None)


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([3.0, 2.0, 1.0], "log"),
        ([3.0, NAN, 1.0], "log"),
        ([1.0, INF, 3.0], "log"),
        ([3.0, 0.001, 0.0], "symlog"),
        ([3.0, -INF, 0.0], "symlog"),
        ([3.0, 0.0, -1.0], "linear"),
        ([-1.0, NAN, -3.0], "linear"),
        ([0.0, 0.0, 0.0], "linear"),
        ([NAN, INF, -INF], "linear"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_losses_of_any_sign_are_seen_and_those_that_are_not_finite_are_gaps(losses, scale, dtype):
    losses = np.array(losses).astype(dtype)
    ax = plot.loss(with_losses(losses))
    assert ax.get_yscale() == scale
    finite = np.isfinite(losses)
    (drawn,) = ax.lines
    np.testing.assert_array_equal(np.isnan(drawn.get_ydata()), ~finite)
    np.testing.assert_array_equal(drawn.get_ydata()[finite], losses[finite].astype(float))
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    assert all(bottom <= loss <= top for loss in losses[finite].astype(float))
    # Each has a place of its own on the canvas.
    heights = ax.transData.transform(drawn.get_xydata())[finite, 1]
    assert np.isfinite(heights).all() and len(set(heights)) == len(set(losses[finite].tolist()))


def test_the_scale_suits_all_the_losses_on_the_axes_and_nothing_else():
    ax = plot.loss(with_losses([3.0, 2.0], [1.0, -1.0]))
    assert ax.get_yscale() == "linear" and plot.loss(with_losses([3.0, 2.0]), ax=ax) is ax
    assert ax.get_yscale() == "linear"
    ax = plot.loss(with_losses([3.0, 2.0]))
    ax.axvline(1)  # from 0 to 1, but of the height of the axes
    assert plot.loss(with_losses([3.0, 2.0]), ax=ax).get_yscale() == "log"
    assert plot.loss(with_losses([3.0, -2.0]), ax=ax).get_yscale() == "linear"


@pytest.mark.parametrize("labels", [["a", "b"], "a"])
def test_labels_that_are_not_one_for_each_run_are_refused(runs, labels):
    with pytest.raises(ValueError, match=f"{len(labels)} labels for 3 runs: give one for each"):
        plot.loss(runs, label=labels)


def test_a_path_goes_through_the_trajectory_to_the_end(run, line):
    ax = plot.path(run, loss, line, names=("slope", "intercept"), label="rate 0.1")
    points = np.concatenate([run.trajectory["params"], run.state.params[None]])
    way, start, end = ax.lines
    np.testing.assert_array_equal(way.get_xydata(), points)
    np.testing.assert_array_equal(start.get_xydata(), points[:1])
    np.testing.assert_array_equal(end.get_xydata(), points[-1:])
    assert legend(ax) == ["rate 0.1", "start", "end"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("slope", "intercept")


def test_contours_are_those_of_the_loss():
    run = jaxfit.train(bowl, jnp.array([1.0, 1.0]), optax.sgd(0.1), 10)
    (contours,) = (one for one in plot.path(run, bowl).collections if isinstance(one, ContourSet))
    crossed = 0
    for level, outline in zip(contours.levels, contours.get_paths(), strict=True):
        np.testing.assert_allclose(bowl(outline.vertices.T), level, rtol=1e-2, atol=1e-2)
        crossed += len(outline.vertices) > 0
    assert crossed > 10


def test_only_trained_leaves_are_on_a_path():
    objective = lambda p: (p["a"] - p["k"]) ** 2 + p["b"] ** 2
    run = jaxfit.train(objective, {"a": 0.0, "b": 1.0, "k": 2}, optax.sgd(0.1), 5)
    way = plot.path(run, objective).lines[0]
    np.testing.assert_array_equal(way.get_xdata()[:-1], run.trajectory["params"]["a"])
    np.testing.assert_array_equal(way.get_ydata()[:-1], run.trajectory["params"]["b"])


def test_a_path_of_three_parameters_is_refused():
    run = jaxfit.train(lambda p: jnp.sum(p**2), jnp.ones(3), optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match="draws two real parameters, but the run has 3"):
        plot.path(run, lambda p: jnp.sum(p**2))


@pytest.mark.parametrize(
    ("keep", "held"), [(lambda s: {"step": s.step}, r"\['step'\]"), (lambda s: s.step, "Array")]
)
def test_what_was_not_recorded_cannot_be_drawn(line, keep, held):
    run = jaxfit.train(bowl, guess, optax.sgd(0.1), 2, record=keep)
    with pytest.raises(ValueError, match=rf"^plot.loss draws 'loss', but .*{held}"):
        plot.loss(run)
    with pytest.raises(ValueError, match=rf"^plot.path draws 'params', but .*{held}"):
        plot.path(run, bowl)
    with pytest.raises(ValueError, match=rf"^plot.animate_fit draws 'params', but .*{held}"):
        plot.animate_fit(run, linear, line)


def test_a_run_that_diverged_is_drawn_as_far_as_it_is_finite():
    bowl = lambda a: a[0] ** 2 + 3.0 * a[1] ** 2
    run = jaxfit.train(bowl, jnp.ones(2), optax.sgd(10.0), 60)
    ax = plot.path(run, bowl)
    assert 1 < len(ax.lines[0].get_xdata()) < 61
    assert np.isfinite(ax.lines[0].get_xydata()).all()


def test_integers_are_drawn_as_a_line_and_not_as_stairs():
    ax = plot.fit(polynomial, jnp.array([0.0, 1.0]), (np.arange(4), np.arange(4.0)))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.linspace(0, 3, 200), rtol=1e-6)


def test_many_runs_are_refused_where_one_is_drawn():
    run = lambda lr: jaxfit.train(lambda a: jnp.sum(a**2), jnp.ones(2), optax.sgd(lr), 3)
    with pytest.raises(ValueError, match="pick one"):
        plot.path(jax.vmap(run)(jnp.array([0.1, 0.2])), lambda a: jnp.sum(a**2))


def test_rates_as_labels_have_three_digits():
    run = lambda lr: jaxfit.train(lambda a: jnp.sum(a**2), jnp.ones(2), optax.sgd(lr), 3)
    rates = jnp.array([0.01, 0.084])
    ax = plot.loss(jax.vmap(run)(rates), label=rates)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0.01", "0.084"]
