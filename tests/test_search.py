"""Points are drawn as asked, and the best are found over seeds, with their values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxfit
from jaxfit.search import choice, log_uniform, samples, uniform
from jaxfit.sweep import Sweep, sweep
from tests.common import assert_same_bits

KEY = jax.random.key(3)
SPACE = {"lr": log_uniform(1e-4, 1.0), "more": (uniform(-1, 3), choice(16, 32, 64))}
METHODS = ["sobol", "halton", "random"]


@pytest.mark.parametrize("method", METHODS)
def test_points_have_the_distributions_that_were_asked_for(method):
    points = samples(KEY, 512, SPACE, method)
    lr, (flat, width) = points["lr"], points["more"]
    assert (lr.shape, lr.dtype, width.dtype) == ((512,), np.float32, np.int32)
    within = lambda values, low, high: ((values >= low) & (values <= high)).all()
    assert within(lr, 1e-4, 1) and within(flat, -1, 3)
    allowed = {"sobol": 0.004, "halton": 0.01, "random": 0.08}[method]  # random: p = 0.003
    for values in np.log(np.asarray(lr, float)) / np.log(1e-4), (np.asarray(flat, float) + 1) / 4:
        assert scipy.stats.kstest(values, "uniform").statistic < allowed
    assert set(np.unique(width)) == {16, 32, 64}
    assert max(abs(np.mean(width == one) - 1 / 3) for one in (16, 32, 64)) < 0.06


@pytest.mark.parametrize("method", METHODS)
def test_the_key_decides_the_points_and_fewer_are_the_first(method):
    points = samples(KEY, 40, SPACE, method)
    assert_same_bits(samples(KEY, 40, SPACE, method), points)
    assert_same_bits(samples(KEY, 13, SPACE, method), jax.tree.map(lambda leaf: leaf[:13], points))
    assert_same_bits(samples(jax.random.key_data(KEY), 40, SPACE, method), points)
    assert (samples(jax.random.key(4), 40, SPACE, method)["lr"] != points["lr"]).all()


def test_sobol_puts_one_point_into_every_cell():
    points = samples(KEY, 64, {"a": uniform(0, 8), "b": uniform(0, 8)})
    cells = {(int(a), int(b)) for a, b in zip(points["a"], points["b"], strict=True)}
    assert len(cells) == 64


def test_a_distribution_may_be_any_quantile_function():
    normal = samples(KEY, 256, scipy.stats.norm(5, 2).ppf)
    assert abs(normal.mean() - 5) < 0.05 and abs(normal.std() - 2) < 0.05


def test_points_are_a_zipped_axis_with_their_values_as_coordinates():
    points = samples(KEY, 8, {"lr": log_uniform(1e-3, 1.0), "width": choice(2, 3)})
    fn = lambda point, seed: point["lr"] * point["width"] + seed
    result = sweep(fn, {"point": points, "seed": jnp.arange(3)})
    data = result.to_xarray()
    np.testing.assert_array_equal(data["point.lr"], points["lr"])
    np.testing.assert_array_equal(data["point.width"], points["width"])
    best = result.best()
    i = int(np.argmin(points["lr"] * points["width"]))
    assert best == {"point": {"lr": points["lr"][i], "width": points["width"][i]}, "seed": 0}
    assert result.sel(best).values == fn(**best) == result.values.min()


BAD = {
    "no distribution": (lambda: samples(KEY, 4, {}), "space is empty, but needs a distribution"),
    "a number": (lambda: samples(KEY, 4, {"lr": 0.1}), "space holds 0.1, but its leaves must be"),
    "none": (lambda: samples(KEY, 0, SPACE), "n is 0, but must be at least 1"),
    "a method": (lambda: samples(KEY, 4, SPACE, "grid"), "method is 'grid', but must be \"sobol\""),
    "too few values": (
        lambda: samples(KEY, 4, {"lr": lambda u: 1.0}),
        r"the distribution <lambda> returned .*\[\], but is called with an array \[4\]",
    ),
    "bounds": (lambda: uniform(1, 1), "uniform was given 1 and 1, but takes two numbers, the low"),
    "zero": (lambda: log_uniform(0, 1), "log_uniform was given 0 and 1, but takes two positive nu"),
    "names": (lambda: choice("sgd", "adam"), "choice was given .'sgd', 'adam'., but takes numbers"),
    "no choice": (lambda: choice(), "choice was given .., but takes numbers"),
    "traced": (
        lambda: jax.jit(lambda key: samples(key, 4, SPACE))(KEY),
        "key is traced, but samples is driven from Python",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_space_is_refused_in_a_sentence(call, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        call()
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")


# The best

LUCKY = np.array([[5.0, 5.0, 5.0], [1.0, 9.0, 9.0], [6.0, np.nan, 3.0], [4.0, 5.0, 7.0]])
SEEDS = {"lr": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "seed": np.arange(3)}


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        (np.mean, [0.1, 0.4, 0.2]),  # the third has a NaN
        (np.median, [0.1, 0.4, 0.2]),
        (np.nanmean, [0.3, 0.1, 0.4, 0.2]),
        (np.max, [0.1, 0.4, 0.2]),
        (np.min, [0.2, 0.4, 0.1]),
        (lambda scores, axis: scores.take(-1, axis[0]), [0.3, 0.1, 0.4, 0.2]),
    ],
)
def test_scores_are_averaged_over_axes_first(average, expected):
    table = Sweep(SEEDS, {"loss": LUCKY})
    found = table.top(9, "loss", over="seed", average=average)
    assert found == [{"lr": np.float32(one)} for one in expected]
    assert table.best("loss", over=["seed"], average=average) == found[0]
    assert table.sel(found[0]).values["loss"].shape == (3,)


def test_the_top_are_in_order_without_nan():
    table = Sweep(SEEDS, LUCKY)
    three = table.top(3)
    assert [table.sel(one).values.item() for one in three] == [1, 3, 4]
    assert len(table.top(100)) == 11
    assert table.top(1, over=("lr", "seed"), average=np.nanmean) == [{}]


def test_the_best_of_keys_and_vectors_are_what_the_function_is_given():
    axes = {
        "key": jax.random.split(KEY, 4),
        "start": jnp.arange(6.0).reshape(3, 2),
        "optimizer": {"sgd": optax.sgd, "adam": optax.adam},
    }

    def fn(key, start, optimizer):
        return jax.random.uniform(key) + start.sum() + (optimizer is optax.sgd)

    table = sweep(fn, axes, batch_size=1)
    best = table.best()
    assert best["optimizer"] == "adam" and best["start"].tolist() == [0, 1]
    assert table.sel(best).values == table.values.min()
    assert table.sel({**best, "optimizer": "adam"}).values == fn(**best | {"optimizer": optax.adam})
    assert table.sel(key=2, start=1, optimizer="sgd").values == table.values[2, 1, 0]  # positions
    for wrong in {"start": [0, 1]}, {"start": np.array([0.0, 2.0])}, {"key": KEY}, {"start": "a"}:
        with pytest.raises(KeyError, match="has no label"):
            table.sel(**wrong)


def test_averages_over_what_is_not_there_are_refused():
    table = Sweep(SEEDS, LUCKY)
    with pytest.raises(ValueError, match="over names 'key', but the axes are lr, seed: name some"):
        table.best(over="key")
    with pytest.raises(ValueError, match=r"average returned an array \[\], but the axes that are"):
        table.best(over="seed", average=lambda scores, axis: scores.sum())
    with pytest.raises(ValueError, match="all runs score NaN, so none is best"):
        table.best(over="lr", average=lambda scores, axis: np.full(3, np.nan))
    assert jaxfit.search.samples is samples
