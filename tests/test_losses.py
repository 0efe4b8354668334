"""The mean squared error and its gradient beside numpy, and the shapes it refuses to broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfit.losses import mse, objective
from jaxfit.models import linear, mlp, mlp_init, polynomial

random = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(), (7,), (7, 1), (3, 4, 2)])
def test_mse_is_the_mean_of_the_squares(shape):
    one, other = random.normal(size=shape), random.normal(size=shape)
    with jax.enable_x64(True):
        value = mse(jnp.asarray(one), jnp.asarray(other))
        assert value.shape == ()
        np.testing.assert_allclose(value, np.mean((one - other) ** 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "target"), [((5, 1), (5,)), ((5,), (5, 1)), ((5,), ()), ((1,), (5,))]
)
def test_shapes_that_would_broadcast_are_refused(prediction, target):
    with pytest.raises(ValueError, match="but both must have one shape"):
        mse(jnp.ones(prediction), jnp.ones(target))


def test_a_perceptron_of_one_output_is_not_compared_with_a_vector():
    params = mlp_init(jax.random.key(0), (2, 3, 1))
    with pytest.raises(ValueError, match=r"shape \(5, 1\) and targets of shape \(5,\)"):
        objective(mlp, mse)(params, (jnp.ones((5, 2)), jnp.ones(5)))


def test_the_gradient_of_linear_least_squares_is_its_closed_form():
    x, a, y = random.normal(size=(9, 3)), random.normal(size=3), random.normal(size=9)
    with jax.enable_x64(True):
        value, grads = jax.value_and_grad(objective(linear, mse))(
            *jax.tree.map(jnp.asarray, (a, (x, y)))
        )
        np.testing.assert_allclose(value, np.mean((x @ a - y) ** 2), rtol=1e-12)
        np.testing.assert_allclose(grads, 2 / 9 * x.T @ (x @ a - y), rtol=1e-12)


def test_an_objective_is_the_loss_of_the_prediction_and_the_target():
    absolute = lambda prediction, target: jnp.max(jnp.abs(prediction - target))
    composed = objective(polynomial, absolute)
    batch = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 1.0])
    assert composed(jnp.array([1.0, 0.0, 2.0]), batch) == 8.0
