"""Fit a Gaussian process with GPJax: a model is a pytree, and its marginal likelihood the loss."""

from __future__ import annotations

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import optax

import jaxfit


def wave(key: jax.Array, n: int) -> gpx.Dataset:
    """Draw noisy points of a sine."""
    place, noise = jax.random.split(key)
    x = jax.random.uniform(place, (n, 1), minval=-3.0, maxval=3.0)
    return gpx.Dataset(X=x, y=jnp.sin(2 * x) + 0.3 * jax.random.normal(noise, (n, 1)))


def make() -> gpx.ConjugateModel:
    """Return a model with a squared exponential kernel and Gaussian noise."""
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.RBF())
    return prior * gpx.likelihoods.Gaussian()


def loss(model: gpx.ConjugateModel, data: gpx.Dataset) -> jax.Array:
    """Return the negative logarithm of the marginal likelihood."""
    return -gpx.objectives.conjugate_mll(model, data)


@eqx.filter_jit
def train(model: gpx.ConjugateModel, data: gpx.Dataset, num_steps: int) -> jaxfit.Run:
    """Return the run."""
    return jaxfit.train(loss, model, optax.adam(0.05), num_steps, data=data)


def main() -> None:
    """Print the length scale and the noise that fit best."""
    jax.config.update("jax_enable_x64", True)  # for the Cholesky factors
    run = train(make(), wave(jax.random.key(0), 50), 300)
    model = run.state.params
    length, noise = model.prior.kernel.lengthscale, model.likelihood.obs_stddev
    print(f"{run}\nlength scale {length.unwrap():.3f}, noise {noise.unwrap():.3f} of 0.3")


if __name__ == "__main__":
    main()
