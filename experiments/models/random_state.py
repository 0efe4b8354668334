"""Split a key from step to step, as a published loop does, whose numbers are then reproduced.

A loop of one's own needs no key in the carry: a batch may have one, ``fold_in(key, step)``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy
from jaxfit.models import mlp, mlp_init


def loss(params: Any, key: jax.Array, data: tuple) -> tuple[jax.Array, jax.Array]:
    """Return the cross entropy of 64 random examples with noise on them, and the next key."""
    key, pick, noise = jax.random.split(key, 3)
    x, y = data
    rows = jax.random.choice(pick, len(x), (64,), replace=False)
    noisy = x[rows] + 0.1 * jax.random.normal(noise, (64, *x.shape[1:]))
    return cross_entropy(mlp(params, noisy), y[rows]), key


def train(params: Any, key: jax.Array, data: tuple, num_steps: int) -> jaxfit.Run:
    """Return the run, whose state has the next key of the loop as its carry."""
    return jaxfit.train(loss, params, optax.adam(0.01), num_steps, data=data, carry=key)


def main() -> None:
    """Train on handwritten digits, stop half way and go on: it is the same run."""
    digits, (x, y) = split_digits(jax.random.key(0))
    params, key = mlp_init(jax.random.key(2), (64, 32, 10)), jax.random.key(1)
    run = jax.jit(train, static_argnums=3)(params, key, digits, 300)
    half = jax.jit(train, static_argnums=3)(params, key, digits, 150)
    rest = jax.jit(lambda state: jaxfit.train(loss, state, optax.adam(0.01), 150, data=digits))
    again = rest(half.state)
    same = jax.tree.map(jnp.array_equal, again.state.params, run.state.params)
    print(f"{run}\naccuracy {accuracy(mlp(run.state.params, x), y):.3f}")
    print(f"in two halves: the same bits {jax.tree.all(same)}")


if __name__ == "__main__":
    main()
