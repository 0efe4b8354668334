"""Train a GAN: two networks, two optimizers, in alternating or simultaneous steps.

Goodfellow et al. 2014, `Generative Adversarial Nets <https://arxiv.org/abs/1406.2661>`_, with the
generator's loss that does not saturate. Both networks are one tree of parameters, and
``optax.partition`` gives each an optimizer. In alternating steps, the loss is the discriminator's
at even steps and the generator's at odd ones, and ``conditionally_mask`` lets the other's optimizer
rest, so that its moments stay as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.transforms import conditionally_mask

import jaxfit
from jaxfit.losses import binary_cross_entropy
from jaxfit.models import mlp, mlp_init

NAMES = {"discriminator": "discriminator", "generator": "generator"}


def init(key: jax.Array) -> dict[str, Any]:
    """Draw both networks: the generator makes points in the plane of noise in two dimensions."""
    one, other = jax.random.split(key)
    return {
        "discriminator": mlp_init(one, (2, 32, 32, 1)),
        "generator": mlp_init(other, (2, 32, 32, 2)),
    }


def ring(key: jax.Array, n: int) -> jax.Array:
    """Draw points about the unit circle, [n, 2]."""
    angle, noise = jax.random.split(key)
    angles = jax.random.uniform(angle, (n,), maxval=2 * jnp.pi)
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return points + 0.05 * jax.random.normal(noise, (n, 2))


def judge(discriminator: Any, points: jax.Array, real: bool) -> jax.Array:
    """Return the discriminator's mean loss if these points are real, or are not."""
    return binary_cross_entropy(mlp(discriminator, points)[:, 0], jnp.full(len(points), real))


def discriminator_loss(params: dict[str, Any], batch: tuple) -> jax.Array:
    """Return the loss of telling points of the data from those of the generator."""
    points, noise = batch
    fake = mlp(jax.lax.stop_gradient(params["generator"]), noise)
    return judge(params["discriminator"], points, True) + judge(
        params["discriminator"], fake, False
    )


def generator_loss(params: dict[str, Any], batch: tuple) -> jax.Array:
    """Return the loss of not being taken for real."""
    _, noise = batch
    fake = mlp(params["generator"], noise)
    return judge(jax.lax.stop_gradient(params["discriminator"]), fake, True)


def train_at_once(params: Any, points: jax.Array, key: jax.Array, num_steps: int) -> jaxfit.Run:
    """Return the run in which every step updates both networks."""
    batches = jaxfit.minibatches(points, 64, key)
    data = lambda step: (batches(step), jax.random.normal(jax.random.fold_in(key, step), (64, 2)))
    loss = lambda params, batch: discriminator_loss(params, batch) + generator_loss(params, batch)
    adam = {name: optax.adam(2e-3, b1=0.5) for name in NAMES}
    return jaxfit.train(loss, params, optax.partition(adam, NAMES), num_steps, data=data)


def train_in_turn(params: Any, points: jax.Array, key: jax.Array, num_steps: int) -> jaxfit.Run:
    """Return the run in which even steps update the discriminator, and odd ones the generator."""
    batches = jaxfit.minibatches(points, 64, key)

    def data(step: jax.Array) -> tuple:
        noise = jax.random.normal(jax.random.fold_in(key, step), (64, 2))
        return step % 2, (batches(step // 2), noise)

    def loss(params: Any, batch: tuple) -> jax.Array:
        turn, batch = batch
        return jax.lax.cond(turn == 0, discriminator_loss, generator_loss, params, batch)

    adam = {
        name: conditionally_mask(optax.adam(2e-3, b1=0.5), lambda step, turn=turn: step % 2 == turn)
        for turn, name in enumerate(NAMES)
    }
    return jaxfit.train(loss, params, optax.partition(adam, NAMES), num_steps, data=data)


def main() -> None:
    """Learn a ring, and print how far from the origin the generated points are."""
    points, key = ring(jax.random.key(0), 4096), jax.random.key(1)
    for train in train_at_once, train_in_turn:
        run = jax.jit(train, static_argnums=3)(init(jax.random.key(2)), points, key, 4000)
        noise = jax.random.normal(jax.random.key(3), (1000, 2))
        radius = jnp.linalg.norm(mlp(run.state.params["generator"], noise), axis=1)
        print(f"{train.__name__}: radius {radius.mean():.2f} ± {radius.std():.2f}, of 1.00 ± 0.05")


if __name__ == "__main__":
    main()
