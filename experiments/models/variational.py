"""Infer a posterior with NumPyro: its ELBO is the loss, and the key of each step is in the carry.

The key is split as ``SVI.update`` does, so the numbers are those of ``SVI.run``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import jaxfit

optimizer = optax.adam(0.02)


def model(x: jax.Array, y: jax.Array) -> None:
    """Regress y on x, with an unknown noise."""
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("examples", len(y)):
        numpyro.sample("y", dist.Normal(x @ weights, noise), obs=y)


def make() -> SVI:
    """Return the inference: a model, its guide, an optimizer and the ELBO."""
    return SVI(model, AutoNormal(model), optimizer, Trace_ELBO())


def train(svi: SVI, key: jax.Array, data: tuple, num_steps: int) -> jaxfit.Run:
    """Return the run, whose parameters are unconstrained; see ``svi.constrain_fn``."""
    start = svi.init(key, *data)

    def loss(params: dict[str, Any], key: jax.Array, data: tuple) -> tuple[jax.Array, jax.Array]:
        key, now = jax.random.split(key)
        return svi.loss.loss(now, svi.constrain_fn(params), svi.model, svi.guide, *data), key

    params = svi.optim.get_params(start.optim_state)
    return jax.jit(
        lambda params, key, data: jaxfit.train(
            loss, params, optimizer, num_steps, data=data, carry=key
        )
    )(params, start.rng_key, data)


def main() -> None:
    """Print the posterior of the weights beside the exact one for the true noise."""
    x, y, _ = jaxfit.data.linear_problem(jax.random.key(0), 100, 3, condition=4.0, noise=0.5)
    svi = make()
    run = train(svi, jax.random.key(1), (x, y), 3000)
    found = svi.constrain_fn(run.state.params)
    precision = jnp.eye(3) + x.T @ x / 0.25
    print("mean", found["weights_auto_loc"], "exact", jnp.linalg.solve(precision, x.T @ y / 0.25))
    # Of all normals without correlations, the closest to the posterior has its precisions.
    print("deviation", found["weights_auto_scale"], "exact", jnp.diag(precision) ** -0.5)


if __name__ == "__main__":
    main()
