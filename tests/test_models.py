"""The models agree with NumPy, and refuse shapes that would broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit.models import linear, mlp, mlp_init, polynomial
from tests.common import assert_same_bits

random = np.random.default_rng(0)


def test_linear_is_a_matrix_times_a_vector():
    x, a = random.normal(size=(7, 3)), random.normal(size=3)
    with jax.enable_x64(True):
        np.testing.assert_allclose(linear(jnp.asarray(a), jnp.asarray(x)), x @ a, rtol=1e-12)


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_polynomial_is_polyval_with_the_constant_term_first(terms):
    x, a = random.normal(size=7), random.normal(size=terms)
    with jax.enable_x64(True):
        values = polynomial(jnp.asarray(a), jnp.asarray(x))
        np.testing.assert_allclose(values, np.polyval(a[::-1], x), rtol=1e-12, atol=1e-12)
        slopes = jax.jacobian(polynomial)(jnp.asarray(a), jnp.asarray(x))
        np.testing.assert_allclose(slopes, np.vander(x, terms, increasing=True), rtol=1e-12)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [({}, lambda z: np.maximum(z, 0)), ({"activation": jnp.tanh}, np.tanh)],
    ids=["relu", "tanh"],
)
def test_mlp_is_affine_layers_with_a_nonlinearity_between_them(activation, by_hand):
    x = random.normal(size=(2, 5, 3))
    layers = [
        {"w": random.normal(size=shape), "b": random.normal(size=shape[1])}
        for shape in ((3, 4), (4, 6), (6, 2))
    ]
    hidden = by_hand(by_hand(x @ layers[0]["w"] + layers[0]["b"]) @ layers[1]["w"] + layers[1]["b"])
    with jax.enable_x64(True):
        out = mlp(jax.tree.map(jnp.asarray, layers), jnp.asarray(x), **activation)
        np.testing.assert_allclose(out, hidden @ layers[2]["w"] + layers[2]["b"], rtol=1e-12)


def test_an_mlp_without_hidden_layers_is_affine():
    layer = {"w": jnp.array([[2.0], [3.0]]), "b": jnp.array([-10.0])}
    np.testing.assert_array_equal(
        mlp([layer], jnp.array([[1.0, 1.0], [0.0, 4.0]])), [[-5.0], [2.0]]
    )


def test_mlp_init_draws_weights_of_variance_two_over_inputs_and_zero_biases():
    layers = mlp_init(jax.random.key(0), (200, 600, 150))
    for layer, (inputs, outputs) in zip(layers, [(200, 600), (600, 150)], strict=True):
        assert layer["w"].shape == (inputs, outputs)
        np.testing.assert_array_equal(layer["b"], np.zeros(outputs))
        np.testing.assert_allclose(np.var(layer["w"]), 2 / inputs, rtol=0.02)
        assert abs(np.mean(layer["w"])) < 5 * np.sqrt(2 / inputs / layer["w"].size)


def test_mlp_init_is_a_function_of_its_key_and_draws_every_layer_anew():
    layers = mlp_init(jax.random.key(0), (8, 8, 8))
    assert_same_bits(layers, mlp_init(jax.random.key(0), (8, 8, 8)))
    assert not np.any(layers[0]["w"] == layers[1]["w"])
    assert not np.any(layers[0]["w"] == mlp_init(jax.random.key(1), (8, 8, 8))[0]["w"])


@pytest.mark.parametrize(
    ("model", "params", "x"),
    [
        (linear, (3,), (5, 2)),
        (linear, (1,), (5, 2)),
        (linear, (2, 1), (5, 2)),
        (linear, (2,), (2,)),
        (linear, (2,), (4, 5, 2)),
        (linear, (), (5, 2)),
        (polynomial, (3,), (5, 1)),
        (polynomial, (3, 1), (5,)),
        (polynomial, (3,), ()),
        (polynomial, (0,), (5,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(model, params, x):
    with pytest.raises(ValueError, match=rf"^{model.__name__} was given .*, but takes .*: reshape"):
        model(jnp.ones(params), jnp.ones(x))


@pytest.mark.parametrize("sizes", [(), (3,)])
def test_a_perceptron_needs_inputs_and_outputs(sizes):
    with pytest.raises(ValueError, match="give at least two sizes"):
        mlp_init(jax.random.key(0), sizes)
