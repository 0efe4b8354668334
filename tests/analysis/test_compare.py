"""Comparisons agree with numbers worked out by hand, and tune no seed on itself."""

import jax
import numpy as np
import pytest
from scipy import stats

import jaxfit
from jaxfit import analysis


def swept(values, **axes):
    """A sweep of given values."""
    return jaxfit.Sweep(axes, np.asarray(values))


def table(scores):
    """Scores [items, seeds] as a sweep."""
    names = tuple("abcdefgh"[: len(scores)])
    return swept(scores, optimizer=names, seed=np.arange(len(scores[0])))


def compare(sweep, **options):
    return analysis.compare(sweep, over="optimizer", **options)


def test_the_probability_of_improvement():
    found = compare(table([[1.0, 2, 3, 4], [2.0, 3, 4, 5]]))
    assert found.improvement[0, 1] == 23 / 32
    assert found.improvement[1, 0] == 9 / 32
    np.testing.assert_array_equal(np.diagonal(found.improvement), [0.5, 0.5])


def test_the_interquartile_mean():
    found = compare(table([np.arange(1.0, 9), np.array([1, 1, 3, 4, 5, 6, 70, 80.0])]))
    np.testing.assert_array_equal(found.iqm, [4.5, 4.5])


def test_performance_profiles():
    found = compare(table([[1, 2, np.inf], [2, 1, 3], [4, np.inf, 3]]))
    ratios = np.linspace(1, 4, 300_001)
    heights = found.profile(ratios).mean(axis=1)  # the integral over [1, 4], over 3
    np.testing.assert_allclose(heights, [5 / 9, 8 / 9, 1 / 3], atol=1e-5)
    np.testing.assert_array_equal(found.failed.sum(axis=1), [1, 0, 1])
    assert found.score[0, 2] == 4  # in the place of a run that diverged, the worst that did not


def test_no_seed_is_tuned_on_itself():
    # Rate 1 has the lower median over all seeds, but not over those other than 1, or than 2.
    scores = np.array([[[1.0, 1, 1], [2, 0, 0]]])
    axes = {"optimizer": ("a",), "lr": np.array([0.1, 1]), "seed": np.arange(3)}
    found = compare(swept(scores, **axes), tune="lr")
    np.testing.assert_array_equal(found.chosen, [[1, 0, 0]])
    np.testing.assert_array_equal(found.score, [[2, 1, 1]])
    np.testing.assert_allclose(found.sensitivity, [[0.5, 0.5, 0.5]])


def test_the_order_of_axes_and_several_tuned_ones_make_no_difference():
    values = np.random.default_rng(0).normal(size=(4, 2, 5, 3))
    axes = {
        "lr": np.arange(4.0),
        "optimizer": ("a", "b"),
        "seed": np.arange(5),
        "decay": np.arange(3.0),
    }
    found = compare(swept(values, **axes), tune=("lr", "decay"))
    moved = values.transpose(1, 0, 3, 2)
    axes = {name: axes[name] for name in ("optimizer", "lr", "decay", "seed")}
    again = compare(swept(moved, **axes), tune=["lr", "decay"])
    np.testing.assert_array_equal(found.score, again.score)
    for item in range(2):
        for seed in range(5):
            others = np.delete(moved[item].reshape(12, 5), seed, 1)
            assert found.chosen[item, seed] == np.median(others, axis=1).argmin()


def test_intervals_are_paired_over_seeds():
    noise = np.random.default_rng(0).normal(size=24)
    # Seeds differ far more than items, but every seed says the same of these.
    found = compare(table([10 * noise, 10 * noise + 0.5]))
    assert found.best == "a" and found.tied == ["a"]
    np.testing.assert_allclose(found.difference[1], [0.5, 0.5])
    low, high = found.interval[0]
    assert high - low > 2 and low < found.iqm[0] < high
    reference = stats.bootstrap(
        (10 * noise,),
        lambda a, axis: stats.trim_mean(a, 0.25, axis=axis),
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    )
    np.testing.assert_allclose(found.interval[0], reference.confidence_interval, atol=0.8)
    unpaired = compare(table([noise, np.roll(noise, 1) + 0.1]))
    assert unpaired.tied == ["a", "b"]


def test_the_key_draws_the_resamples():
    sweep = table(np.random.default_rng(0).normal(size=(2, 9)))
    one, same = compare(sweep), compare(sweep, key=jax.random.key(0))
    np.testing.assert_array_equal(one.interval, same.interval)
    assert (one.interval != compare(sweep, key=jax.random.key(1)).interval).any()


CURVES = np.array(
    [
        [[[5.0, 1, 2], [5, 3, 1]], [[5, np.nan, np.nan], [5, 9, 7]]],
        [[[5.0, 4, 3], [5, 4, 4]], [[5, 4, 2], [5, 4, 5]]],
    ]
)  # [optimizer, lr, seed, rows]
NAMED = {"optimizer": ("sgd", "adam"), "lr": np.array([0.1, 10]), "seed": np.arange(2)}


def test_runs_that_diverged_count_as_their_start_and_are_named():
    found = compare(swept(CURVES, **NAMED), tune="lr")
    np.testing.assert_array_equal(found.score, [[2, 1], [3, 5]])
    np.testing.assert_allclose(found.sensitivity, [[1.5, 2], [0.5, 0.5]])
    assert found.diverged_runs == [
        {"optimizer": "sgd", "lr": 10.0, "seed": 0},
        {"optimizer": "sgd", "lr": 10.0, "seed": 1},
        {"optimizer": "adam", "lr": 10.0, "seed": 1},
    ]


def test_the_value_is_a_key_or_a_function():
    sweep = swept(CURVES, **NAMED)
    nested = jaxfit.Sweep(sweep.axes, {"loss": CURVES, "other": CURVES[..., 0]})
    expected = compare(sweep, tune="lr").iqm
    np.testing.assert_array_equal(compare(nested, value="loss", tune="lr").iqm, expected)
    least = compare(nested, value=lambda v: np.fmin.reduce(v["loss"], axis=-1), tune="lr")
    np.testing.assert_array_equal(least.score, [[1, 1], [3, 4]])


def test_the_table(capsys):
    compare(swept(CURVES, **NAMED), tune="lr").table()
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == "tuned IQM [95 %] P(best) sensitivity diverged".split()
    assert first.startswith("= sgd ") and first.endswith("50%") and " 0.1 " in first
    assert second.startswith("  adam ") and second.endswith("25%")


def test_to_xarray():
    found = compare(swept(CURVES, **NAMED), tune="lr").to_xarray()
    assert found.score.sel(optimizer="adam", seed=1) == 5
    assert found.diverged.dims == ("optimizer", "lr", "seed")
    assert found.improvement.sel(optimizer="sgd", other_optimizer="adam") == 1


def test_it_is_a_pytree():
    found = compare(table([[1.0, 2], [3.0, 4]]))
    double = jax.tree.map(lambda leaf: 2 * leaf, found)
    np.testing.assert_array_equal(double.iqm, 2 * found.iqm)
    assert double.axes == found.axes


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: compare([1.0]), "sweep is a list, but must be a Sweep"),
        (lambda: compare(swept(CURVES, **NAMED)), "over, tune and seeds name 'optimizer', 'seed'"),
        (lambda: compare(table([[1.0], [2.0]])), "axis 'seed' has one seed, but a comparison"),
        (lambda: compare(table([[1j, 2], [3, 4]])), "value gives complex64[2, 2], but must be"),
        (
            lambda: compare(table([[1.0, 2], [3.0, 4]]), value=lambda v: v[0]),
            "value gives float32[2], but must be a number per run, [2, 2], or its",
        ),
        (
            lambda: compare(table([[-1.0, 2], [3.0, 4]])).profile([1]),
            "some scores are not positive, but a profile is of ratios",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(sentence) and str(refused.value).endswith(".")
