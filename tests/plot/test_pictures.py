"""Ready-made pictures hold the numbers that they are given, and say what they cannot show."""

import types

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import plot
from jaxfit.plot._common import thinned
from jaxfit.plot.curves import smoothed
from jaxfit.plot.dashboard import summary
from jaxfit.sweep import Sweep
from tests.common import guess, loss

NAN = np.nan
Result = types.SimpleNamespace


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def written(ax):
    """What is written on the axes, after drawing them, which must work."""
    ax.figure.canvas.draw()
    return [text.get_text() for text in ax.texts]


def with_losses(losses):
    losses = np.asarray(losses)
    steps = np.broadcast_to(np.arange(losses.shape[-1]), losses.shape)
    return jaxfit.Run(steps, {"loss": losses}, None, None)


def sweep_of(values, **axes):
    return Sweep({name: axis if isinstance(axis, tuple) else np.asarray(axis)
                  for name, axis in axes.items()}, np.asarray(values))  # fmt: skip


def test_a_million_rows_are_thinned_without_losing_extremes_or_gaps():
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[123_456], values[654_321], values[777_777] = 99.0, -99.0, NAN
    places = thinned(values)
    assert len(places) < 5000 and places[0] == 0 and places[-1] == 999_999
    assert {123_456, 654_321, 777_777} <= set(places.tolist())
    assert (np.diff(places) > 0).all()
    (drawn,) = plot.loss(with_losses(values)).lines
    assert np.nanmax(drawn.get_ydata()) == 99 and np.nanmin(drawn.get_ydata()) == -99
    assert np.isnan(drawn.get_ydata()).sum() == 1


def test_few_rows_are_all_drawn_and_only_nan_is_no_extreme():
    assert thinned(np.zeros(10)).tolist() == list(range(10))
    assert len(thinned(np.full(100_000, NAN))) > 0


def test_what_is_not_finite_is_said():
    assert written(plot.loss(with_losses([1.0, NAN, np.inf, 2.0]))) == ["2 of 4 not finite"]
    assert written(plot.loss(with_losses([1.0, 2.0]))) == []


def test_the_smoothed_loss_is_the_corrected_moving_average():
    losses = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    weights = 0.9 ** np.arange(5)
    expected = [np.average(losses[: k + 1][::-1], weights=weights[: k + 1]) for k in range(5)]
    np.testing.assert_allclose(smoothed(losses, 0.9), expected)
    raw, mean = plot.loss(with_losses(losses), smooth=0.9).lines
    np.testing.assert_allclose(mean.get_ydata(), expected)
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    assert raw.get_alpha() < 1
    with pytest.raises(ValueError, match="smooth is 1, but the weight of the past"):
        plot.loss(with_losses(losses), smooth=1)


def test_a_schedule_stands_below_over_the_same_steps():
    ax = plot.loss(with_losses(np.ones(4)), rate=lambda step: 0.1 * step)
    _, below = ax.figure.axes
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0, 0.1, 0.2, 0.3])
    ax.figure.canvas.draw()
    assert below.get_position().y1 < ax.get_position().y0 + 0.01
    assert below.get_xlim() == ax.get_xlim() and below.get_ylabel() == "rate"
    with pytest.raises(ValueError, match=r"rate has the shape \[3\], but there are 4 rows"):
        plot.loss(with_losses(np.ones(4)), rate=np.ones(3))


def test_seeds_are_a_band_around_the_median_with_every_run_in_it():
    losses = np.random.default_rng(0).uniform(1, 2, (9, 20))
    losses[3, 5:] = NAN
    ax = plot.loss(with_losses(losses), over=True, label="sgd")
    *singles, middle = ax.lines
    assert len(singles) == 9
    np.testing.assert_allclose(middle.get_ydata(), np.nanmedian(losses, axis=0))
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices
    for row in range(20):
        heights = edges[edges[:, 0] == row, 1]
        np.testing.assert_allclose(
            [heights.min(), heights.max()], np.nanquantile(losses[:, row], (0.1, 0.9))
        )
    assert legend(ax) == ["sgd: median and 80 % of 9"]
    assert written(ax) == ["15 of 180 not finite"]


def test_a_sweep_has_a_curve_for_each_of_its_other_axes():
    values = np.random.default_rng(0).uniform(1, 2, (2, 5, 3, 7))  # optimizer, seed, lr, rows
    table = sweep_of(values, optimizer=("sgd", "adam"), seed=np.arange(5), lr=[0.1, 0.2, 0.3])
    ax = plot.loss(table, over="seed")
    assert [text.split(":")[0] for text in legend(ax)] == [
        f"{name}, {rate}" for name in ("sgd", "adam") for rate in (0.1, 0.2, 0.3)
    ]
    middle = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    np.testing.assert_allclose(middle[4].get_ydata(), np.median(values[1, :, 1], axis=0))
    with pytest.raises(ValueError, match="was given the axis 'seeds', but the sweep has"):
        plot.loss(table, over="seeds")


@pytest.fixture
def final():
    """Final losses of two optimizers at four rates, from three seeds."""
    values = np.arange(24.0).reshape(2, 4, 3) + 1
    values[0, 3] = NAN
    values[1, 3, 0] = np.inf
    return sweep_of(values, optimizer=("sgd", "adam"), lr=[0.01, 0.1, 1.0, 10.0], seed=[0, 1, 2])


def test_rates_show_median_range_and_what_diverged(final):
    ax = plot.rates(final, over="seed", defaults={"sgd": 0.1})
    curves = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(curves["sgd"].get_ydata(), [2, 5, 8, NAN])
    np.testing.assert_array_equal(curves["adam"].get_ydata(), [14, 17, 20, 23.5])
    assert legend(ax) == ["sgd", "adam", "diverged", "default rate"]
    crosses = [line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [(line.get_xdata()[0], round(line.get_alpha(), 2)) for line in crosses] == [
        (10.0, 1.0), (10.0, 0.33),
    ]  # fmt: skip
    (ring,) = [line for line in ax.lines if line.get_markersize() == 10]
    assert ring.get_xydata().tolist() == [[0.1, 5.0]]
    written(ax)


def test_a_heat_map_has_medians_and_marks_the_best_and_what_diverged(final):
    ax = plot.heatmap(final, "lr", "optimizer")
    (image,) = ax.images
    shown = image.get_array().filled(NAN)
    np.testing.assert_array_equal(shown, [[2, 5, 8, NAN], [14, 17, 20, 23.5]])
    lost, best = ax.lines
    assert lost.get_xydata().tolist() == [[3, 0], [3, 1]]
    assert best.get_xydata().tolist() == [[0, 0]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["sgd", "adam"]
    written(ax)


def test_scores_that_are_not_one_number_per_run_are_refused(final):
    with pytest.raises(ValueError, match=r"plot.rates draws one real number per run.*\(2, 4\)"):
        plot.rates(final, by=lambda values: values[..., 0])
    with pytest.raises(ValueError, match="draws two axes of a sweep"):
        plot.heatmap(sweep_of([1.0, 2.0], lr=[0.1, 0.2]))


def test_a_range_test_marks_its_suggestions_on_the_smoothed_curve():
    rates = np.geomspace(1e-3, 1, 50)
    ax = plot.range_test(rates, np.full(50, 2.0), {"steep": 0.02, "none": NAN}, smooth=0.9)
    assert legend(ax) == ["of a batch", "smoothed", "steep: 0.02"]
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), [[0.02, 2.0]])
    found = Result(valley=0.1, losses=np.ones(3))
    assert legend(plot.range_test(rates, rates, found))[-1] == "valley: 0.1"


def test_eigenvalues_stand_beside_their_threshold_with_their_bounds():
    found = Result(eigenvalues=np.array([[3.0, 1.0], [5.0, NAN]]), residuals=np.full((2, 2), 0.5))
    ax = plot.eigenvalues([0, 10], found, [4.0, 2.0])
    assert legend(ax) == ["largest", "2nd", "threshold"]
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [4, 2])
    assert len(ax.collections) == 2 and written(ax) == ["1 of 4 not finite"]
    assert legend(plot.eigenvalues([0, 1], [1.0, 2.0], 3.0)) == ["largest", "threshold, 3"]


class Density:
    nodes = np.array([[0.0, 2.0]])

    def density(self, x, width):
        return np.exp(-((x - 1.0) ** 2) / width)


def test_a_spectrum_is_its_density():
    ax = plot.spectrum(Density(), width=0.1)
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), Density().density(line.get_xdata(), 0.1))
    assert line.get_xdata()[[0, -1]].tolist() == pytest.approx([-0.4, 2.4])


def test_noise_divides_averages_and_not_single_steps():
    found = Result(grad_sq=np.array([1.0, -0.5, 1.0]), trace=np.array([8.0, 4.0, 6.0]))
    ax = plot.noise([0, 1, 2], found, 16)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [8.0, NAN, 6.0])
    assert legend(ax)[-1] == "batch size"
    long = Result(grad_sq=np.tile([3.0, -1.0], 200), trace=np.ones(400))
    assert plot.noise(np.arange(400), long).lines[0].get_ydata()[-1] == pytest.approx(1, rel=0.1)


def test_a_line_shows_its_barrier():
    at = np.linspace(0, 1, 5)
    found = Result(at=at, loss=np.array([0.0, 1.0, 3.0, 2.0, 2.0]), barrier=2.0)
    ax = plot.line(found, label="fork")
    _, chord, barrier = ax.lines
    assert legend(ax) == ["fork: barrier 2"]
    assert chord.get_ydata().tolist() == [0, 2]
    assert barrier.get_xydata().tolist() == [[0.5, 1.0], [0.5, 3.0]]


def test_a_plane_says_how_much_it_explains_and_how_far_the_path_is_off():
    pca = Result(
        coordinates=np.arange(12.0).reshape(4, 3), ratio=[0.6, 0.3], off_plane=np.arange(4.0)
    )
    x = np.linspace(0, 9, 20)
    ax = plot.plane(pca, Result(x=x, y=x, loss=np.add.outer(x**2, x)))
    assert ax.get_ylabel() == "second component, 30 % of the variance"
    marks = ax.collections[-1]
    np.testing.assert_array_equal(marks.get_offsets(), pca.coordinates[:, :2])
    np.testing.assert_array_equal(marks.get_array(), pca.off_plane)
    assert written(ax) and len(plot.plane(pca).collections) == 1


def test_profiles_and_intervals_show_every_contender():
    found = Result(
        iqm=np.array([2.0, 1.0, 9.0]),
        interval=np.array([[1.0, 4.0], [0.9, 1.5], [8.0, 9.5]]),
        diverged=np.array([[[False, True]], [[False, False]], [[True, True]]]),
        profile=lambda ratios: np.stack([ratios > 1, ratios > 0, ratios > 3]),
        axes=(("optimizer", ("a", "b", "c")), ("lr", (0.1,)), ("seed", (0, 1))),
    )
    ax = plot.profiles(found, [1, 2, 4])
    assert legend(ax) == ["a", "b", "c"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]
    ax = plot.intervals(found)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["b", "a (50 % diverged)", "c (100 % diverged)"]
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[..., 0], [[0.9, 1.5], [1.0, 4.0], [8.0, 9.5]])


@pytest.fixture(scope="module")
def network():
    """A run of a small classifier of two features, its model and its data."""
    x = jax.random.normal(jax.random.key(0), (40, 2))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 1)
    start = jaxfit.models.mlp_init(jax.random.key(1), (2, 4, 3))
    objective = jaxfit.losses.objective(jaxfit.models.mlp, jaxfit.losses.cross_entropy)
    keep = lambda step: {"loss": step.loss, "params": step.params, "grads": step.grads}
    run = jaxfit.train(objective, start, optax.adam(0.1), 12, data=(x, y), record=keep)
    return run, jaxfit.models.mlp, (x, y)


def test_bands_are_quantiles_of_each_leaf(network):
    run, _, _ = network
    axes = plot.bands(run, "grads")
    assert len(axes) == len(jax.tree.leaves(run.trajectory["grads"]))
    values = np.asarray(run.trajectory["grads"][0]["w"]).reshape(12, -1)
    ax = plot.bands(run, "grads", leaf="0.w", ax=plt.subplots()[1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(values, axis=1), rtol=1e-6)
    edges = ax.collections[0].get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(values.max())
    assert legend(ax) == ["all", "90 %", "50 %", "median"]
    with pytest.raises(ValueError, match=r"grads has no leaf 'w': it has '0\.b', '0\.w'"):
        plot.bands(run, "grads", leaf="w")


def test_a_confusion_matrix_counts_in_per_cent_of_what_it_is():
    logits = np.eye(3)[[0, 1, 1, 2, 2]]
    ax = plot.confusion(logits, [0, 0, 1, 2, 2], names=["cat", "dog", "bird"])
    np.testing.assert_array_equal(ax.images[0].get_array(), [[50, 50, 0], [0, 100, 0], [0, 0, 100]])
    assert ax.get_title() == "80.0 % of 5 right"
    assert written(ax) == ["50", "50", "100", "100"]


def test_a_boundary_is_where_the_model_changes_its_mind():
    data = jnp.array([[-1.0, 0.0], [1.0, 2.0]]), jnp.array([0, 1])
    ax = plot.boundary(lambda w, x: x @ w, jnp.array([1.0, 0.0]), data)
    classes = ax.images[0].get_array()
    assert (classes[:, :60] == 0).all() and (classes[:, 60:] == 1).all()
    assert tuple(ax.images[0].get_extent()) == pytest.approx((-1.2, 1.2, -0.2, 2.2))
    with pytest.raises(ValueError, match=r"two features, but x has the shape \[3, 1\]"):
        plot.boundary(lambda w, x: x, None, (np.ones((3, 1)), np.ones(3)))


def test_tiles_have_every_weight_once_on_a_symmetric_scale():
    weights = np.random.default_rng(0).normal(size=(6, 5))
    (image,) = plot.tiles(weights, (2, 3)).images
    picture = image.get_array().filled(NAN)
    np.testing.assert_allclose(picture[:2, :3], weights[:, 0].reshape(2, 3))
    assert np.sort(picture[~np.isnan(picture)]).tolist() == np.sort(weights.ravel()).tolist()
    assert np.isnan(picture[2]).all() and -image.norm.vmin == image.norm.vmax > 0
    with pytest.raises(ValueError, match="a tile of 2×2 has 4 cells, but there are 6 inputs"):
        plot.tiles(weights, (2, 2))


def test_a_dashboard_has_what_was_recorded(network):
    run, _, _ = network
    axes = plot.dashboard(run, rate=0.1 * np.ones(12), sharpness=([0, 5], [1.0, NAN]), threshold=2)
    names = [ax.get_ylabel() for ax in axes]
    assert names == ["loss", "gradient", "distance", "rate", "sharpness"]
    grads = [np.asarray(leaf).reshape(12, -1) for leaf in jax.tree.leaves(run.trajectory["grads"])]
    norms = np.linalg.norm(np.concatenate(grads, axis=1), axis=1)
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), norms, rtol=1e-5)
    assert axes[2].lines[0].get_ydata()[0] == 0 and legend(axes[4]) == ["threshold"]
    assert written(axes[4]) == ["1 of 2 not finite"]
    with pytest.raises(ValueError, match="given 1 axes for 3 pictures"):
        plot.dashboard(run, axes=axes[:1])
    nothing = jaxfit.Run(np.arange(2), {"x": np.ones(2)}, None, None)
    with pytest.raises(ValueError, match=r"holds \['x'\]: record=jaxfit.record.metrics"):
        plot.dashboard(nothing)


def test_a_summary_says_how_low_the_loss_came_and_where():
    state = jaxfit.State(np.int32(4), (), ())
    run = jaxfit.Run(np.arange(4), {"loss": np.array([3.0, 1.0, NAN, 2.0])}, None, state)
    *_, last = summary(run).splitlines()
    assert last.split() == ["loss", "3", "2", "1", "1", "1"]


def test_the_command_prints_a_run_on_disk_and_draws_it(tmp_path, monkeypatch, capsys, line):
    pytest.importorskip("orbax.checkpoint")
    from jaxfit.__main__ import main

    folder, picture = tmp_path / "run", tmp_path / "run.png"
    options = {"checkpoint_dir": folder, "progress": False, "chunk_size": 10}
    jaxfit.fit(loss, guess, optax.sgd(0.1), 20, data=line, **options)
    monkeypatch.setattr("sys.argv", ["jaxfit", str(folder), "--plot", str(picture)])
    main()
    said = capsys.readouterr().out
    assert "20 steps, 20 rows" in said and "distance" in said and picture.stat().st_size > 5000
    monkeypatch.setattr("sys.argv", ["jaxfit", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "holds no run" in capsys.readouterr().err


def test_the_command_says_what_is_done_of_a_sweep_and_which_run_is_the_lowest(
    tmp_path, monkeypatch, capsys
):
    from jaxfit.__main__ import main

    fn = lambda act, lr: {"final": jnp.log(act(lr) - 0.1), "curve": jnp.arange(3)}
    axes = {"act": {"sin": jnp.sin, "cos": jnp.cos}, "lr": jnp.array([0.1, 0.2])}
    jaxfit.sweep(fn, axes, checkpoint_dir=tmp_path)
    monkeypatch.setattr("sys.argv", ["jaxfit", str(tmp_path)])
    main()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "4 of 4 runs: act [2], lr [2]"
    assert second == "final: 1 not finite, lowest -2.316 at act=sin, lr=0.2"
    jaxfit.sweep(lambda lr: {"done": lr}, {"lr": jnp.ones(3)}, checkpoint_dir=tmp_path / "named")
    monkeypatch.setattr("sys.argv", ["jaxfit", str(tmp_path / "named")])
    main()
    assert capsys.readouterr().out.splitlines() == [
        "3 of 3 runs: lr [3]",
        "done: 0 not finite, lowest 1 at lr=1.0",
    ]
    monkeypatch.setattr("sys.argv", ["jaxfit", str(tmp_path), "--plot", "sweep.png"])
    with pytest.raises(SystemExit):
        main()
    assert "holds a sweep, but --plot draws a run: leave it out." in capsys.readouterr().err
