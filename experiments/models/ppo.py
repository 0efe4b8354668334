"""Balance a pole by reinforcement learning: the environments and the rollout are the carry.

Proximal policy optimisation (Schulman et al. 2017, `Proximal Policy Optimization Algorithms
<https://arxiv.org/abs/1707.06347>`_) plays for a while with the parameters as they are, takes some
steps on what it has seen, and plays on. So one step in ``EPOCHS`` begins by making a new rollout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxfit
from jaxfit.models import mlp, mlp_init

ENVIRONMENTS, LENGTH, EPOCHS, DISCOUNT, TRACE, CLIP = 16, 32, 4, 0.99, 0.95, 0.2


class Play(NamedTuple):
    """Where the environments stand, the next key, and what was seen last, [LENGTH, …]."""

    poles: jax.Array  # [ENVIRONMENTS, 4]: place, speed, angle and its speed
    key: jax.Array
    rollout: dict[str, jax.Array]


def push(pole: jax.Array, right: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Push a cart for 20 ms; return the pole after it, or the start if it fell, and whether so."""
    _, speed, angle, turning = pole
    force = jnp.where(right, 10.0, -10.0)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pull = (force + 0.05 * turning**2 * sine) / 1.1
    twist = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    rates = jnp.array([speed, pull - 0.05 * twist * cosine / 1.1, turning, twist])
    after = pole + 0.02 * rates
    fell = (jnp.abs(after[0]) > 2.4) | (jnp.abs(after[2]) > 0.2095)
    return jnp.where(fell, start, after), fell


def collect(params: dict[str, Any], play: Play) -> Play:
    """Play on with the policy, and estimate how good its actions were (GAE)."""
    key, actions, starts = jax.random.split(play.key, 3)
    starts = jax.random.uniform(starts, (LENGTH, ENVIRONMENTS, 4), minval=-0.05, maxval=0.05)

    def act(poles: jax.Array, given: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
        key, start = given
        logits, value = mlp(params["policy"], poles), mlp(params["value"], poles)[:, 0]
        action = jax.random.categorical(key, logits)
        after, fell = jax.vmap(push)(poles, action == 1, start)
        log_p = optax.losses.softmax_cross_entropy_with_integer_labels(logits, action)
        kept = {"poles": poles, "action": action, "log_p": -log_p, "value": value, "fell": fell}
        return after, kept

    def look_back(later: tuple, seen: dict[str, jax.Array]) -> tuple[tuple, jax.Array]:
        advantage, value = later
        goes_on = 1.0 - seen["fell"]
        surprise = 1.0 + DISCOUNT * goes_on * value - seen["value"]
        advantage = surprise + DISCOUNT * TRACE * goes_on * advantage
        return (advantage, seen["value"]), advantage

    poles, seen = jax.lax.scan(act, play.poles, (jax.random.split(actions, LENGTH), starts))
    last = mlp(params["value"], poles)[:, 0]
    _, seen["advantage"] = jax.lax.scan(look_back, (0 * last, last), seen, reverse=True)
    return Play(poles, key, seen)


def surrogate(params: dict[str, Any], seen: dict[str, jax.Array]) -> jax.Array:
    """Return PPO's loss on a rollout: of the policy, of the values, and less the entropy."""
    log_p = jax.nn.log_softmax(mlp(params["policy"], seen["poles"]))
    taken = jnp.take_along_axis(log_p, seen["action"][..., None], axis=-1)[..., 0]
    ratio, advantage = jnp.exp(taken - seen["log_p"]), seen["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    value = mlp(params["value"], seen["poles"])[..., 0] - seen["value"] - seen["advantage"]
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.mean(-policy + 0.25 * value**2 - 0.01 * entropy)


def loss(params: dict[str, Any], play: Play, step: jax.Array) -> tuple[jax.Array, Play]:
    """Make a new rollout if it is time to, and return the loss on the rollout."""
    fixed = jax.lax.stop_gradient(params)
    play = jax.lax.cond(step % EPOCHS == 0, collect, lambda _, play: play, fixed, play)
    return surrogate(params, play.rollout), play


def init(key: jax.Array) -> tuple[dict[str, Any], Play]:
    """Draw the networks; return them and where play begins, with an empty rollout."""
    policy, value, key = jax.random.split(key, 3)
    params = {"policy": mlp_init(policy, (4, 32, 2)), "value": mlp_init(value, (4, 32, 1))}
    poles = jnp.zeros((ENVIRONMENTS, 4))
    rollout = jax.eval_shape(collect, params, Play(poles, key, {})).rollout
    return params, Play(poles, key, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), rollout))


def train(params: dict[str, Any], play: Play, num_steps: int) -> jaxfit.Run:
    """Return the run, which keeps the loss and how many poles fell in the rollout before."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-3, eps=1e-5))
    kept = lambda step: {"loss": step.loss, "fell": step.carry.rollout["fell"].sum()}
    options = {"data": lambda step: step, "carry": play, "record": kept}
    return jaxfit.train(loss, params, optimizer, num_steps, **options)


def main() -> None:
    """Print how many poles fall, of 16 that are played for 32 steps."""
    run = jax.jit(train, static_argnums=2)(*init(jax.random.key(0)), 1200)
    fell = run.trajectory["fell"][EPOCHS::EPOCHS]
    print("poles that fell, of 16 in 32 steps:", *fell[::20].tolist())


if __name__ == "__main__":
    main()
