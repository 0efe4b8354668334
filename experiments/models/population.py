"""Train a population: those that do worst go on as copies of the best, at other learning rates.

Jaderberg et al. 2017, `Population Based Training of Neural Networks
<https://arxiv.org/abs/1711.09846>`_. The population is one `State` whose leaves are stacked, with
the learning rates in the optimizer's state, so to exploit and to explore is to index and to change
an array.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init

loss = objective(mlp, cross_entropy)
optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)


def init(keys: jax.Array, rates: jax.Array) -> jaxfit.State:
    """Return the first population, [members, …], each with a rate of its own."""

    def member(key: jax.Array, rate: jax.Array) -> jaxfit.State:
        return with_rate(jaxfit.init(mlp_init(key, (64, 32, 10)), optimizer), rate)

    return jax.vmap(member)(keys, rates)


def with_rate(state: jaxfit.State, rate: jax.Array) -> jaxfit.State:
    """Return a State, or a population, with this learning rate."""
    opt_state = optax.tree.set(state.opt_state, learning_rate=rate)
    return jaxfit.State(state.step, state.params, opt_state, state.carry)


def evolve(states: jaxfit.State, losses: jax.Array, key: jax.Array) -> jaxfit.State:
    """Let the last quarter go on as copies of the first, at 0.8 or 1.25 times their rate."""
    order = jnp.argsort(losses)
    number = len(order) // 4
    last = order[-number:]
    source = jnp.arange(len(order)).at[last].set(order[:number])
    factor = jnp.where(jax.random.bernoulli(key, shape=(number,)), 0.8, 1.25)
    states = jax.tree.map(lambda leaf: leaf[source], states)
    rates = states.opt_state.hyperparams["learning_rate"]
    return with_rate(states, rates.at[last].multiply(factor))


def train(
    states: jaxfit.State, batches: Any, held_out: Any, key: jax.Array, rounds: int, num_steps: int
) -> tuple[jaxfit.State, dict[str, jax.Array]]:
    """Return the last population; and the losses and rates of every round, [rounds, members]."""

    def one(states: jaxfit.State, key: jax.Array) -> tuple[jaxfit.State, dict[str, jax.Array]]:
        go_on = lambda state: jaxfit.train(loss, state, optimizer, num_steps, data=batches).state
        states = jax.vmap(go_on)(states)
        losses = jax.vmap(lambda params: loss(params, held_out))(states.params)
        rates = states.opt_state.hyperparams["learning_rate"]
        return evolve(states, losses, key), {"loss": losses, "rate": rates}

    return jax.lax.scan(one, states, jax.random.split(key, rounds))


def main() -> None:
    """Train twelve perceptrons on handwritten digits; print the rates that are left."""
    digits, (x, y) = split_digits(jax.random.key(0))
    batches = jaxfit.minibatches(digits, 64, jax.random.key(1))
    states = init(jax.random.split(jax.random.key(2), 12), jnp.geomspace(1e-4, 1.0, 12))
    run = jax.jit(train, static_argnums=(4, 5))
    states, history = run(states, batches, (x, y), jax.random.key(3), 12, 40)
    for losses, rates in zip(history["loss"][::3], history["rate"][::3], strict=True):
        low, median, high = jnp.quantile(rates, jnp.array([0.0, 0.5, 1.0]))
        print(f"best loss {losses.min():.3f}, rates {low:.1e} … {median:.1e} … {high:.1e}")
    best = jax.tree.map(lambda leaf: leaf[history["loss"][-1].argmin()], states.params)
    print(f"accuracy of the best {accuracy(mlp(best, x), y):.3f}")


if __name__ == "__main__":
    main()
