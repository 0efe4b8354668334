"""Losses whose second derivatives are known."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

DIAGONAL = jnp.array([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])


def diagonal(a):
    return jnp.sum(DIAGONAL * a**2) / 2


def rosenbrock(a):
    return (1 - a[0]) ** 2 + 100 * (a[1] - a[0] ** 2) ** 2


def factors(weights):
    """The distance of a product of two matrices from diag(3, 2, 1)."""
    first, second = weights
    return jnp.sum((second @ first - jnp.diag(jnp.array([3.0, 2.0, 1.0]))) ** 2) / 2


def softmax_regression():
    """The digits: a loss, parameters of zero, all data."""
    x, y = load_digits(return_X_y=True)

    def loss(params, batch):
        x, y = batch
        logits = x @ params["w"] + params["b"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    return loss, params, (jnp.asarray(x / 16, jnp.float32), jnp.asarray(y))


def quadratic(eigenvalues, key):
    """A loss with these eigenvalues and random axes, and its matrix."""
    n = len(eigenvalues)
    axes = jax.random.orthogonal(key, n)
    matrix = (axes * eigenvalues) @ axes.T
    return lambda a: a @ matrix @ a / 2, matrix
