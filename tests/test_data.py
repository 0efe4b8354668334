"""Problems drawn from a key have the promised statistics, and minibatches are a good shuffle."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

import jaxfit
from jaxfit import _shuffle
from jaxfit.data import line, linear_problem, minibatches, standardize, train_test_split
from tests.common import assert_close, assert_same_bits, concatenate, guess, loss, row

key = jax.random.key(0)


def test_a_line_has_a_column_of_ones_and_places_between_minus_one_and_one():
    x, y = line(key, 50)
    assert x.shape == (50, 2) and y.shape == (50,)
    np.testing.assert_array_equal(x[:, 1], np.ones(50))
    assert x[:, 0].min() < -0.9 and x[:, 0].max() > 0.9 and jnp.abs(x[:, 0]).max() <= 1


def test_a_line_is_a_function_of_its_key():
    assert_same_bits(line(key), line(key))
    (x, y), (other_x, other_y) = line(key), line(jax.random.key(1))
    assert x.shape == (100, 2) and not np.any(x[:, 0] == other_x[:, 0]) and not np.any(y == other_y)


@pytest.mark.parametrize("coefficients", [(3.0, 2.0), jnp.array([-1.0, 0.0])])
def test_the_noise_on_a_line_lies_between_zero_and_one(coefficients):
    x, y = line(key, coefficients=coefficients)
    noise = y - x @ jnp.asarray(coefficients)
    assert -1e-5 < noise.min() < 0.1 and 0.9 < noise.max() < 1 + 1e-5


def test_least_squares_on_a_long_line_finds_slope_and_raised_intercept():
    x, y = (np.asarray(array, np.float64) for array in line(key, 200_000))
    best, residual, *_ = np.linalg.lstsq(x, y)
    np.testing.assert_allclose(best, [3.0, 2.5], atol=5e-3)  # five standard errors
    np.testing.assert_allclose(residual / 200_000, 1 / 12, atol=1e-3)


@pytest.mark.parametrize(
    ("n", "features", "condition"), [(20, 4, 1.0), (20, 4, 100.0), (4, 4, 1e6), (9, 2, 1e9)]
)
def test_a_linear_problem_has_exactly_the_spectrum_asked_for(n, features, condition):
    with jax.enable_x64(True):
        x, y, coefficients = linear_problem(jax.random.key(1), n, features, condition=condition)
        assert (x.shape, y.shape, coefficients.shape) == ((n, features), (n,), (features,))
        eigenvalues = np.linalg.svd(x, compute_uv=False) ** 2 / n
        expected = condition ** -np.linspace(0, 1, features)
        np.testing.assert_allclose(eigenvalues, expected, rtol=1e-10)
        np.testing.assert_allclose(y, np.asarray(x) @ coefficients, rtol=1e-12, atol=1e-12)


def test_the_noise_of_a_linear_problem_has_the_standard_deviation_asked_for():
    x, y, coefficients = linear_problem(key, 20_000, 2, noise=0.3)
    noise = np.asarray(y - x @ coefficients)
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.02)
    assert abs(noise.mean()) < 0.01


def test_a_linear_problem_is_drawn_under_jit_too():
    draw = lambda key: linear_problem(key, 20, 3, condition=10.0, noise=0.1)
    assert_close(jax.jit(draw)(key), draw(key), rtol=1e-4, atol=1e-5)
    assert not np.any(draw(key)[2] == draw(jax.random.key(1))[2])


@pytest.mark.parametrize(
    ("n", "features", "condition", "sentence"),
    [
        (2, 3, 1.0, "n is 2 and features 3, but .*: raise n"),
        (2, 0, 1.0, "n is 2 and features 0, but "),
        (5, 3, 0.1, "condition is 0.1, but a condition number is at least 1"),
        (5, 3, float("nan"), "condition is nan"),
        (5, 1, 9.0, "with one feature it can only be 1"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(n, features, condition, sentence):
    with pytest.raises(ValueError, match=sentence):
        linear_problem(key, n, features, condition=condition)


# Standardising, and splitting examples in two.


def test_standardized_columns_have_mean_zero_and_variance_one():
    columns = np.random.default_rng(0).normal([5.0, -1.0, 100.0], [1.0, 10.0, 0.1], (50, 3))
    with jax.enable_x64(True):
        z, mean, deviation = standardize(jnp.asarray(columns))
        np.testing.assert_allclose(mean, columns.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(deviation, columns.std(axis=0), rtol=1e-12)
        np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(z.std(axis=0), 1.0, rtol=1e-12)


def test_statistics_of_some_examples_are_applied_to_others():
    train, test = np.random.default_rng(0).normal(1.0, 3.0, (2, 30, 4, 2)).astype(np.float32)
    z, mean, deviation = standardize(train)
    assert z.shape == (30, 4, 2) and mean.shape == deviation.shape == (4, 2)
    np.testing.assert_allclose((train - mean) / deviation, z, rtol=1e-5, atol=1e-6)
    expected = (test - np.mean(train, axis=0)) / np.std(train, axis=0)
    np.testing.assert_allclose((test - mean) / deviation, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_column_becomes_zero_and_stays_finite():
    # In float32, the mean of a thousand times 0.1 is not 0.1, so the deviation is not zero.
    x = jnp.asarray(np.stack([np.full(1000, 0.1), np.arange(1000.0)], axis=1), jnp.float32)
    assert jnp.std(x[:, 0]) != 0
    for standardized in (standardize, jax.jit(standardize)):
        z, mean, deviation = standardized(x)
        np.testing.assert_array_equal(z[:, 0], 0.0)
        assert mean[0] == np.float32(0.1) and deviation[0] == 1.0 and deviation[1] > 1.0
    np.testing.assert_array_equal(standardize(x[:1])[0], 0.0)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((jnp.float16, scale) for scale in (1.0, 1e4, 1e-2, 1e-6)),
        *((jnp.bfloat16, scale) for scale in (1.0, 1e37, 1e-36)),
        *((jnp.float32, scale) for scale in (1.0, 1e19, 1e38, 1e-19, 1e-25, 1e-34)),
    ],
)
def test_neither_large_columns_nor_small_ones_leave_the_range_of_their_dtype(dtype, scale):
    columns = scale * np.random.default_rng(0).uniform(
        [-1.0, -3.0, 0.5], [1.0, -1.0, 3.0], (200, 3)
    )
    x = jnp.asarray(columns, dtype)
    exact = np.asarray(x, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    for standardized in (standardize, jax.jit(standardize)):
        z, mean, deviation = standardized(x)
        assert z.dtype == mean.dtype == deviation.dtype == dtype
        mean, deviation, z = (np.asarray(array, np.float64) for array in (mean, deviation, z))
        np.testing.assert_allclose(mean, exact.mean(0), rtol=4 * eps, atol=smallest + eps * scale)
        np.testing.assert_allclose(deviation, exact.std(0), rtol=4 * eps, atol=smallest)
        expected = (exact - exact.mean(0)) / exact.std(0)
        np.testing.assert_allclose(z, expected, rtol=4 * eps, atol=8 * eps)


def test_a_column_from_one_end_of_float_to_the_other_is_standardized():
    for dtype in (np.float16, np.float32):
        most = jnp.finfo(dtype).max
        z, mean, deviation = standardize(jnp.array([[most], [-most], [-most], [most]]))
        assert z.ravel().tolist() == [1.0, -1.0, -1.0, 1.0]
        assert mean == 0 and deviation == most


@pytest.mark.parametrize("dtype", [np.int8, np.int32, bool, np.complex64])
def test_other_numbers_are_standardized_in_floating_ones(dtype):
    x = np.random.default_rng(0).integers(-100, 100, (50, 2)).clip(0).astype(dtype)
    for array, real in zip(standardize(x), (False, False, True), strict=True):
        assert array.dtype == (np.complex64 if dtype == np.complex64 and not real else np.float32)
    np.testing.assert_allclose(standardize(x)[2], np.std(x.astype(np.complex128), 0), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e30])
def test_the_derivative_of_standardizing_has_no_scale(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
    moments = lambda x: jnp.sum(x[0] ** 3) + jnp.sum(x[1] + x[2]) / scale
    slope = lambda scale: jax.jit(jax.grad(lambda x: moments(standardize(scale * x))))(x)
    moments_of_one = lambda x: jnp.sum(x[0] ** 3) + jnp.sum(x[1] + x[2])
    expected = jax.grad(lambda x: moments_of_one(standardize(x)))(x)
    np.testing.assert_allclose(slope(scale), expected, rtol=1e-4, atol=1e-5)


def test_standardizing_has_a_derivative_where_a_column_is_constant_too():
    x = jnp.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    slopes = jax.grad(lambda x: jnp.sum(standardize(x)[0] ** 3))(x)
    assert jnp.isfinite(slopes).all() and jnp.abs(slopes[:, 0]).max() > 0.1


def test_a_split_is_a_partition_that_takes_all_leaves_alike():
    arrays = {"x": np.arange(40.0).reshape(20, 2), "y": (jnp.arange(20), None)}
    train, test = train_test_split(arrays, 0.25, key)
    assert jax.tree.structure(train) == jax.tree.structure(test) == jax.tree.structure(arrays)
    assert train["x"].shape == (15, 2) and test["x"].shape == (5, 2)
    for part in (train, test):
        np.testing.assert_array_equal(part["x"], arrays["x"][part["y"][0]])
    held_out = test["y"][0].tolist()
    assert sorted(train["y"][0].tolist() + held_out) == list(range(20))
    assert held_out != list(range(5)) and held_out != sorted(held_out)


@pytest.mark.parametrize(
    ("n", "fraction", "held_out"),
    [(9, 0.25, 2), (9, 0.3, 3), (9, np.float32(0.6), 5), (9, 0.94, 8), (2, 0.5, 1)],
)
def test_a_fraction_is_rounded_to_whole_examples(n, fraction, held_out):
    train, test = train_test_split(np.arange(n), fraction, key)
    assert (len(train), len(test)) == (n - held_out, held_out)


def test_a_split_is_a_function_of_its_key():
    split = lambda key: train_test_split(jnp.arange(50), 0.5, key)
    assert_same_bits(split(key), split(jax.random.key(0)))
    assert_same_bits(split(key), split(jax.random.PRNGKey(0)))
    assert_same_bits(split(key), jax.jit(split)(key))
    assert not np.array_equal(split(key)[1], split(jax.random.key(1))[1])


@pytest.mark.parametrize(
    ("arrays", "fraction", "key", "error", "sentence"),
    [
        (jnp.ones(9), 0, key, ValueError, "fraction is 0 of 9 examples, but both parts .*: give"),
        (jnp.ones(9), 1, key, ValueError, "fraction is 1 of 9 examples"),
        (jnp.ones(9), -0.5, key, ValueError, "fraction is -0.5 of 9 examples"),
        (jnp.ones(9), 1.5, key, ValueError, "fraction is 1.5 of 9 examples"),
        (jnp.ones(9), float("nan"), key, ValueError, "fraction is nan of 9 examples"),
        (jnp.ones(9), 0.05, key, ValueError, "fraction is 0.05 of 9 examples"),
        (jnp.ones(9), 0.95, key, ValueError, "fraction is 0.95 of 9 examples"),
        (jnp.ones(1), 0.5, key, ValueError, "fraction is 0.5 of 1 examples"),
        (jnp.ones(9), 0.2, 0, TypeError, "key is 0, but must be a PRNG key: give one"),
        (jnp.ones(9), 0.2, jax.random.split(key), ValueError, r"key<fry>\[2\], but must be one"),
        ((jnp.ones(9), jnp.ones(8)), 0.2, key, ValueError, r"shape \(9,\) and \(8,\), but"),
        ("text", 0.2, key, TypeError, "arrays holds 'text', but its leaves must be arrays"),
        ((), 0.2, key, ValueError, "arrays of shape none"),
    ],
)
def test_a_split_that_cannot_be_is_refused(arrays, fraction, key, error, sentence):
    with pytest.raises(error, match=sentence):
        train_test_split(arrays, fraction, key)


# The statistics of the shuffle.


@functools.cache
def epochs(n, draws, of):
    """Return whole epochs [draws, n]: the first of many keys, or many of one key."""
    whole = lambda key, epoch: minibatches(jnp.zeros((n, 0)), n, key).indices(epoch)
    draw = {
        "keys": lambda number: whole(jax.random.key(number), 0),
        "epochs": lambda number: whole(key, number),
    }[of]
    return np.asarray(jax.jit(jax.vmap(draw))(np.arange(draws, dtype=np.int32)), np.int64)


def p_value(counts, variance, freedom):
    """Return the p-value of counts that vary equally in ``freedom`` independent directions."""
    return chi2.sf(np.sum((counts - counts.mean()) ** 2) / variance, freedom)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["keys", "epochs"])
@pytest.mark.parametrize(("n", "draws"), [(5, 20_000), (12, 20_000), (97, 4_000), (1_797, 2_000)])
def test_every_example_comes_as_often_at_every_place_and_after_every_other(n, draws, of):
    order = epochs(n, draws, of)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(n), (draws, n)))
    at_place = np.bincount((n * np.arange(n) + order).ravel(), minlength=n * n)
    # The matrix of a random permutation has variance 1 / (n - 1), given its row and column sums.
    assert p_value(at_place, draws / (n - 1), (n - 1) ** 2) > 1e-4
    # In a circle, so that every example has a successor: row and column sums are fixed, and the
    # diagonal is empty.
    following = np.roll(order, -1, axis=1)
    pairs = np.bincount((n * order + following).ravel(), minlength=n * n).reshape(n, n)
    freedom = n**2 - 3 * n + 1
    variance = draws * n * (n - 2) / (n - 1) / freedom
    assert p_value(pairs[~np.eye(n, dtype=bool)], variance, freedom) > 1e-4
    gaps = np.bincount(((following - order) % n).ravel(), minlength=n)
    assert gaps[0] == 0 and p_value(gaps[1:], n * variance, n - 2) > 1e-4


@pytest.mark.parametrize("of", ["keys", "epochs"])
@pytest.mark.parametrize("n", [2, 5])
def test_all_orders_of_a_few_examples_are_equally_likely(n, of):
    _, counts = np.unique(epochs(n, 20_000, of), axis=0, return_counts=True)
    assert len(counts) == math.factorial(n)
    assert p_value(counts, counts.mean(), counts.size - 1) > 1e-4


@pytest.mark.parametrize("of", ["keys", "epochs"])
@pytest.mark.parametrize(("n", "draws"), [(2, 20_000), (12, 20_000), (97, 4_000), (1_797, 2_000)])
def test_one_epoch_says_nothing_of_the_next(n, draws, of):
    order = epochs(n, draws, of)
    # The number of places where two independent permutations agree has mean 1, variance 1 and a
    # fourth central moment of 4, as for Poisson's distribution, or 1 for two examples, where it is
    # 0 or 2.
    same = np.sum(order[1:] == order[:-1], axis=1)
    five_errors = 5 / np.sqrt(draws)
    assert abs(same.mean() - 1) < five_errors
    assert abs(np.mean((same - 1) ** 2) - 1) < five_errors * np.sqrt(3)
    place = np.argsort(order, axis=1)
    for rows in (order, place):
        correlation = np.corrcoef(rows[1:].ravel(), rows[:-1].ravel())[0, 1]
        assert abs(correlation) < five_errors / np.sqrt(n - 1)


def test_examples_drawn_with_replacement_are_uniform_and_independent_of_each_other():
    batches = minibatches(jnp.zeros((7, 0)), 20, key, replace=True)
    rows = np.asarray(jax.jit(jax.vmap(batches.indices))(jnp.arange(2_000)))
    assert rows.shape == (2_000, 20) and rows.dtype == np.int32
    singles = np.bincount(rows.ravel(), minlength=7)
    pairs = np.bincount((7 * rows[:, ::2] + rows[:, 1::2]).ravel(), minlength=49)
    across = np.bincount((7 * rows[1:] + rows[:-1]).ravel(), minlength=49)
    for counts in (singles, pairs, across):
        assert p_value(counts, counts.mean(), counts.size - 1) > 1e-4


# The stream of epochs.


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(sizes=st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
@example(sizes=(1, 1))
@example(sizes=(32, 32))
@example(sizes=(33, 32))
@example(sizes=(40, 7))
def test_every_epoch_has_every_example_exactly_once(sizes):
    n, batch_size = sizes
    batches = minibatches(jnp.zeros((n, 0)), batch_size, key)
    steps = np.arange(-(-3 * n // batch_size))
    rows, epoch = jax.jit(jax.vmap(lambda step: (batches.indices(step), batches.epoch(step))))(
        steps
    )
    assert rows.shape == (len(steps), batch_size) and rows.dtype == epoch.dtype == np.int32
    stream = np.asarray(rows).ravel()[: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(stream, axis=1), [np.arange(n)] * 3)
    np.testing.assert_array_equal(epoch, steps * batch_size // n)
    assert len(batches) == n and batches.steps_per_epoch == len(steps[steps * batch_size < n])


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_any_size_take_the_same_stream(shuffle):
    stream = lambda size: jax.jit(
        jax.vmap(minibatches(jnp.zeros((12, 0)), size, key, shuffle=shuffle).indices)
    )(np.arange(60 // size))
    whole = np.asarray(stream(12)).ravel()
    for size in (1, 5, 10):
        np.testing.assert_array_equal(np.asarray(stream(size)).ravel(), whole)
    if not shuffle:
        np.testing.assert_array_equal(whole, np.tile(np.arange(12), 5))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.integers(1, 2**31 - 1).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    steps=st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6),
)
@example(sizes=(1, 1), steps=[0, 1, 2, 3, 2**31 - 2, 2**31 - 1])
@example(sizes=(2**31 - 1, 2**31 - 1), steps=[0, 1, 2, 3, 2**31 - 2, 2**31 - 1])
@example(sizes=(2**30, 2**30 - 1), steps=[0, 1, 2, 3, 2**31 - 2, 2**31 - 1])
@example(sizes=(10**9, 128), steps=[0, 1, 7812499, 7812500, 2**31 - 2, 2**31 - 1])
def test_the_position_in_the_stream_is_that_of_whole_numbers_of_any_size(sizes, steps):
    n, batch_size = sizes
    epoch, place = _shuffle.position(jnp.asarray(steps, np.uint32), batch_size, n)
    expected = [divmod(step * batch_size, n) for step in steps]
    assert list(zip(epoch.tolist(), place.tolist(), strict=True)) == expected


def nothing(n):
    """Return n examples without columns, made eagerly: XLA would count them one by one."""
    return jax.device_put(np.zeros((n, 0), np.float32))


@pytest.mark.parametrize("n", [10**9, 2**30, 2**31 - 1])
def test_a_few_of_a_billion_examples(n):
    batches = minibatches(nothing(n), 1000, key)
    in_order = minibatches(nothing(n), 1000, shuffle=False)
    for step in (0, 123_456_789, 2**31 - 1):
        rows = np.asarray(batches.indices(step))
        assert rows.min() >= 0 and rows.max() < n and len(set(rows.tolist())) == 1000
        assert rows.max() - rows.min() > n / 2
        assert batches.epoch(step) == step * 1000 // n
        place = (step * 1000 + np.arange(1000)) % n
        np.testing.assert_array_equal(in_order.indices(step), place)


def test_a_billion_examples_are_shuffled_evenly():
    rows = np.asarray(minibatches(nothing(10**9), 10**5, key).indices(3))
    # With a hundred thousand of a billion, it does not matter that none is drawn twice.
    for counts in (np.bincount(rows // 10**6), np.bincount(rows % 1000)):
        assert len(counts) == 1000 and p_value(counts, 100, 999) > 1e-4


# Batches.


MODES = {"shuffled": {}, "in order": {"shuffle": False}, "replaced": {"replace": True}}
in_every_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES)


@in_every_mode
def test_batches_keep_the_structure_and_the_pairs(options):
    x = np.arange(22.0, dtype=np.float32).reshape(11, 2)
    arrays = {"x": x, "rest": (jnp.arange(11), None)}
    batches = minibatches(arrays, 4, key, **options)
    for step in (0, 2, 100):
        batch, rows = batches(step), batches.indices(step)
        assert jax.tree.structure(batch) == jax.tree.structure(arrays)
        assert batch["x"].shape == (4, 2) and batch["x"].dtype == np.float32
        np.testing.assert_array_equal(batch["rest"][0], rows)
        np.testing.assert_array_equal(batch["x"], x[rows])


@in_every_mode
def test_a_batch_is_the_same_eagerly_and_compiled_and_for_any_kind_of_step(options):
    arrays = jnp.arange(30.0).reshape(15, 2)
    batches = minibatches(arrays, 4, key, **options)
    alone = jax.jit(lambda step: batches(step))
    passed = jax.jit(lambda batches, step: batches(step))
    several = jax.jit(jax.vmap(batches))(jnp.array([0, 3, 7, 2**31 - 1]))
    for i, step in enumerate((0, 3, 7, 2**31 - 1)):
        batch = batches(step)
        again = minibatches(arrays, 4, key, **options)
        others = batches(np.int32(step)), alone(jnp.int32(step)), passed(again, step), several[i]
        for other in others:
            assert_same_bits(other, batch)
    assert not np.array_equal(several[0], several[1])


@in_every_mode
def test_what_is_passed_into_a_compiled_function_is_not_baked_into_it(options):
    traced = []

    @jax.jit
    def batch(batches, step):
        traced.append(step)
        return batches(step)

    for number in range(3):
        arrays = jnp.arange(10.0) + 100.0 * number
        batches = minibatches(arrays, 4, jax.random.key(number), **options)
        np.testing.assert_array_equal(batch(batches, number), arrays[batches.indices(number)])
    assert len(traced) == 1


@in_every_mode
def test_batches_are_a_pytree_of_arrays_and_key(options):
    batches = minibatches(jnp.arange(10.0), 4, key, **options)
    leaves, structure = jax.tree.flatten(batches)
    assert len(leaves) == 1 + (batches.key is not None)
    assert (batches.key is None) == (options == {"shuffle": False})
    again = jax.tree.unflatten(structure, leaves)
    assert_same_bits(again(5), batches(5))
    assert (len(again), again.batch_size, again.steps_per_epoch) == (10, 4, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batches.batch_size = 5


@pytest.mark.parametrize(
    ("options", "summary"),
    [
        ({}, "2 of 5 examples, shuffled, 3 steps per epoch"),
        ({"shuffle": False}, "2 of 5 examples, in order, 3 steps per epoch"),
        ({"replace": True}, "2 of 5 examples, with replacement, 3 steps per epoch"),
    ],
)
def test_the_repr_of_batches_is_a_summary_whatever_their_leaves_are(options, summary):
    arrays = {"x": np.ones((5, 3), np.float32), "y": (jnp.arange(5), None)}
    expected = f"Minibatches({summary}: {{'x': float32[5, 3], 'y': (int32[5], None)}})"
    batches = minibatches(arrays, 2, key, **options)
    assert repr(batches) == expected
    texts = []
    jax.eval_shape(lambda batches: texts.append(repr(batches)), batches)
    jax.jit(lambda batches: texts.append(repr(batches)))(batches)
    texts.append(repr(jax.eval_shape(lambda batches: batches, batches)))
    assert texts == 3 * [expected]


@pytest.mark.parametrize("change", [jnp.shape, lambda leaf: None, lambda leaf: object()])
def test_batches_with_leaves_that_are_no_arrays_have_a_repr_too(change):
    batches = minibatches({"x": jnp.ones(5), "y": jnp.ones(5)}, 2, jax.random.PRNGKey(0))
    assert repr(jax.tree.map(change, batches)).startswith("Minibatches(2 examples, shuffled: {'x'")


def test_the_repr_of_batches_of_many_arrays_is_one_short_line():
    layers = [{"weights": jnp.ones((5, 3)), "biases": jnp.ones((5, 1))} for _ in range(100)]
    text = repr(minibatches(layers, 2, key))
    assert "\n" not in text and len(text) < 300 and "float32[5, 3]" in text


@pytest.mark.parametrize("options", [{}, {"replace": True}])
def test_every_key_of_many_gives_what_it_gives_alone(options):
    keys = jax.random.split(jax.random.key(1), 5)
    batch = lambda key: minibatches(jnp.arange(97), 20, key, **options)(9)  # epochs 1 and 2
    together, alone = jax.jit(jax.vmap(batch))(keys), jax.jit(batch)
    for i in range(5):
        assert_same_bits(together[i], alone(keys[i]))
    assert len(np.unique(together, axis=0)) == 5


@pytest.mark.parametrize("options", [{}, {"replace": True}])
def test_keys_of_either_style_give_the_same_batch(options):
    batch = lambda key: minibatches(jnp.arange(50), 8, key, **options)(3)
    assert_same_bits(batch(jax.random.key(7)), batch(jax.random.PRNGKey(7)))
    assert_same_bits(batch(jax.random.key(7)), batch(np.array([0, 7], np.uint32)))
    others = jax.random.key(7, impl="rbg"), jax.random.key(8, impl="rbg"), jax.random.key(8)
    for other in others:
        assert not np.array_equal(batch(other), batch(jax.random.key(7)))
    if not options:
        rows = [minibatches(jnp.arange(50), 50, other)(2) for other in others]
        np.testing.assert_array_equal(np.sort(rows, axis=1), [np.arange(50)] * 3)


def test_a_batch_drawn_with_replacement_may_be_larger_than_the_data():
    batches = minibatches(jnp.array([5, 6, 7]), 40, key, replace=True)
    assert batches(0).shape == (40,) and set(batches(0).tolist()) == {5, 6, 7}
    assert batches.steps_per_epoch == 1 and batches.epoch(2) == 26
    single = minibatches(jnp.array([5]), 3, key, replace=True)
    assert single(0).tolist() == [5, 5, 5]


@in_every_mode
def test_indices_are_the_same_under_strict_promotion_and_in_double_precision(options):
    rows = lambda: minibatches(jnp.zeros((23, 0)), 9, key, **options).indices(
        jnp.asarray(2**31 - 1)
    )
    expected = rows()
    with jax.numpy_dtype_promotion("strict"):
        assert_same_bits(rows(), expected)
    with jax.enable_x64(True):
        assert_same_bits(rows(), expected)


def primitives(jaxpr):
    """Yield the name and the result shapes of every operation of a program, in loops too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, [variable.aval.shape for variable in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from primitives(inner)


@in_every_mode
def test_a_batch_costs_the_same_of_a_thousand_and_of_a_million_examples(options):
    def made(n):
        batches = minibatches((jnp.ones((n, 3)), jnp.ones(n)), 16, key, **options)
        return list(primitives(jax.make_jaxpr(lambda b, step: b(step))(batches, 3).jaxpr))

    few, many = made(10**3), made(10**6)
    assert few == many and few
    names, shapes = zip(*many, strict=True)
    assert "sort" not in names and "gather" in names
    assert ("scan" in names) == (not options)  # which shows that loops are looked into
    assert max(math.prod(shape) for made in shapes for shape in made) <= 24 * 16


@pytest.mark.parametrize(
    ("arrays", "options", "error", "sentence"),
    [
        ((jnp.ones(5), jnp.ones(4)), {}, ValueError, r"\(5,\) and \(4,\), but they must share one"),
        ((jnp.ones(5), 1.0), {}, ValueError, r"\(5,\) and \(\), but they must share one leading"),
        ([1, 2, 3], {}, ValueError, "give arrays"),
        ({"x": "text"}, {}, TypeError, "arrays holds 'text', but its leaves must be arrays"),
        ({"x": np.array(["a", "b"])}, {}, TypeError, "its leaves must be arrays: convert them"),
        (jnp.sum, {}, TypeError, "arrays holds sum, but its leaves must be arrays"),
        (jnp.ones((0, 3)), {}, ValueError, r"shape \(0, 3\), but .* one example or more"),
        ((), {}, ValueError, "arrays of shape none, but"),
        (nothing(2**31), {}, ValueError, r"arrays have 2147483648 .*: give fewer than 2\*"),
        (jnp.ones(5), {"batch_size": 6}, ValueError, "is 6, but there are only 5 .* at most 5, or"),
        (jnp.ones(5), {"batch_size": 0}, ValueError, "batch_size is 0, but must be at least 1"),
        (jnp.ones(5), {"batch_size": -1}, ValueError, "batch_size is -1, but must be at least 1"),
        (jnp.ones(5), {"batch_size": 2.0}, TypeError, "batch_size is 2.0, but must be a whole"),
        (jnp.ones(5), {"batch_size": True}, TypeError, "batch_size is True, but must be a whole"),
        (
            jnp.ones(5),
            {"batch_size": 2**31, "replace": True},
            ValueError,
            r"batch_size is 2147483648, but must be at least 1 and below 2\*\*31",
        ),
        (jnp.ones(5), {"key": None}, TypeError, r"key is None, but .*\(0\), or shuffle=False\."),
        (jnp.ones(5), {"key": None, "replace": True}, TypeError, "key is None, but must be a PRNG"),
        (jnp.ones(5), {"key": 0}, TypeError, r"key is 0, but .*: give one, such as jax.random.key"),
        (jnp.ones(5), {"key": jnp.array([0, 1])}, TypeError, r"key is int32\[2\], but must be a"),
        (jnp.ones(5), {"key": np.uint32(7)}, TypeError, r"key is uint32\[\], but must be a PRNG"),
        (
            jnp.ones(5),
            {"key": jax.random.split(key, 3)},
            ValueError,
            r"an array key<fry>\[3\], but",
        ),
        (
            jnp.ones(5),
            {"key": jax.random.split(jax.random.PRNGKey(0), 3)},
            ValueError,
            r"key is an array uint32\[3, 2\], but must be one PRNG key: pick one, or map over",
        ),
        (jnp.ones(5), {"key": jnp.zeros(3, np.uint32)}, ValueError, r"an array uint32\[3\], but"),
        (
            jnp.ones(5),
            {"replace": True, "shuffle": False},
            ValueError,
            "replace=True was given with shuffle=False, but .*: leave one of them out",
        ),
    ],
)
def test_batches_that_cannot_be_are_refused(arrays, options, error, sentence):
    with pytest.raises(error, match=sentence):
        minibatches(arrays, **{"batch_size": 2, "key": key, **options})


@in_every_mode
@pytest.mark.parametrize(
    ("step", "error", "sentence"),
    [
        (-1, ValueError, "step is -1, but steps are counted from 0 to"),
        (2**31, ValueError, "step is 2147483648, but steps are counted from 0 to"),
        (np.int32(-1), ValueError, "step is -1, but steps are counted from 0 to"),
        (np.int64(2**40), ValueError, "step is 1099511627776, but steps are counted from 0 to"),
        (2.7, TypeError, r"step is float32\[\], but must be one integer"),
        (True, TypeError, r"step is bool\[\], but must be one integer"),
        (jnp.arange(3), TypeError, r"step is int32\[3\], but must be one integer: map over"),
    ],
)
def test_steps_that_cannot_be_are_refused(step, error, sentence, options):
    batches = minibatches(jnp.ones(5), 2, key, **options)
    for function in (batches, batches.indices, batches.epoch):
        with pytest.raises(error, match=sentence):
            function(step)


# Batches inside a run.


def noisy_line(n=20):
    return line(jax.random.key(1), n)


def fit(batches, steps=12, start=guess, **options):
    return jaxfit.train(loss, start, optax.adam(0.1), steps, data=batches, **options)


@in_every_mode
def test_a_run_sees_the_batch_of_its_step(options):
    batches = minibatches(noisy_line(), 8, key, **options)
    run = jax.jit(lambda batches: fit(batches, record=lambda s: (s.batch, s.params, s.loss)))(
        batches
    )
    seen, params, losses = run.trajectory
    assert_same_bits(seen, jax.jit(jax.vmap(batches))(jnp.arange(12)))
    assert_close(losses, jax.vmap(loss)(params, seen))


def test_two_halves_of_a_run_on_batches_are_the_whole():
    run = jax.jit(lambda batches, start, steps: fit(batches, steps, start), static_argnums=2)
    batches = minibatches(noisy_line(), 8, key)
    whole = run(batches, jaxfit.init(guess, optax.adam(0.1)), 12)
    half = run(batches, jaxfit.init(guess, optax.adam(0.1)), 5)
    rest = run(batches, half.state, 7)
    assert_same_bits(rest.state, whole.state)
    assert_same_bits(concatenate(half.trajectory, rest.trajectory), whole.trajectory)
    # A constant batch would pass all of the above.
    first, second = batches(0), batches(1)
    assert not np.array_equal(first[0], second[0])


def test_runs_of_many_keys_see_the_batches_that_each_sees_alone():
    keys = jax.random.split(key, 3)
    run = lambda key: fit(
        minibatches(noisy_line(), 8, key), record=lambda s: {"batch": s.batch, "loss": s.loss}
    )
    together, alone = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for i in range(3):
        solo, member = alone(keys[i]), row(together, i)
        assert_same_bits(member.trajectory["batch"], solo.trajectory["batch"])
        assert_close(member, solo, rtol=1e-4)
    assert len(np.unique(together.trajectory["loss"][:, 1])) == 3


def test_the_derivative_of_a_run_with_respect_to_its_examples():
    with jax.enable_x64(True):
        arrays = jnp.concatenate([x.ravel() for x in noisy_line(6)]).astype(jnp.float64)

        def end(arrays):
            batches = minibatches((arrays[:12].reshape(6, 2), arrays[12:]), 4, key)
            run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.2, momentum=0.5), 5, data=batches)
            return run.state.params[0] + jnp.sum(run.trajectory["loss"])

        slope = jax.jit(jax.grad(end))(arrays)
        nudges = 1e-6 * jnp.eye(18)
        ends = jax.jit(jax.vmap(end))(jnp.concatenate([arrays + nudges, arrays - nudges]))
        np.testing.assert_allclose(slope, (ends[:18] - ends[18:]) / 2e-6, rtol=1e-6, atol=1e-8)
        assert np.all(slope != 0)
