"""Fit a neural ODE with diffrax: derivatives go through the solver, and the module is trained.

Kidger 2021, `On Neural Differential Equations <https://arxiv.org/abs/2202.02435>`_.
"""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jaxfit
from jaxfit.losses import mse

optimizer = optax.adabelief(3e-3)


class Field(eqx.Module):
    """A vector field in the plane, which is a network."""

    network: eqx.nn.MLP

    def __init__(self, key: jax.Array):
        self.network = eqx.nn.MLP(2, 2, 32, 1, activation=jax.nn.softplus, key=key)

    def __call__(self, t: jax.Array, y: jax.Array, args: None) -> jax.Array:
        return self.network(y)


def solve(field: Field, times: jax.Array, start: jax.Array) -> jax.Array:
    """Return the solution from a start [2] at some times, [times, 2]."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Bosh3(),
        times[0],
        times[-1],
        times[1] - times[0],
        start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
    ).ys


def spirals(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Return 20 times, and spirals from random starts [n, 20, 2]."""
    times = jnp.linspace(0.0, 4.0, 20)
    turn = jnp.array([[-0.1, 1.0], [-1.0, -0.1]])
    starts = jax.random.uniform(key, (n, 2), minval=-1.0)
    return times, jax.vmap(lambda t: starts @ jax.scipy.linalg.expm(turn * t).T, out_axes=1)(times)


def loss(field: Field, batch: tuple) -> jax.Array:
    """Return the mean squared error of the solutions from where the curves [n, times, 2] begin."""
    times, curves = batch
    return mse(jax.vmap(solve, (None, None, 0))(field, times, curves[:, 0]), curves)


@eqx.filter_jit
def train(field: Field, times: jax.Array, curves: jax.Array, num_steps: int) -> jaxfit.Run:
    """Return the run, on 16 curves at each step."""
    batches = jaxfit.minibatches(curves, 16, jax.random.key(1))
    data = lambda step: (times, batches(step))
    return jaxfit.train(loss, field, optimizer, num_steps, data=data)


def main() -> None:
    """Fit spirals, and print how the error falls."""
    times, curves = spirals(jax.random.key(0), 128)
    run = train(Field(jax.random.key(2)), times, curves, 300)
    print("loss", *(f"{loss:.5f}" for loss in run.trajectory["loss"][::50]))


if __name__ == "__main__":
    main()
