"""The problems drawn from a key have the statistics and the spectrum they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit.data import line, linear_problem
from tests.common import assert_close, assert_same_bits

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
