"""Distil a network into a smaller one: the teacher's logits are part of the data.

Hinton, Vinyals and Dean 2015, `Distilling the Knowledge in a Neural Network
<https://arxiv.org/abs/1503.02531>`_.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init

TEMPERATURE, WEIGHT = 4.0, 0.9


def loss(student: Any, batch: tuple) -> jax.Array:
    """Return the student's cross entropy with the labels, and with what the teacher thinks."""
    x, y, teacher = batch
    logits = mlp(student, x)
    soft = cross_entropy(logits / TEMPERATURE, jax.nn.softmax(teacher / TEMPERATURE))
    return (1 - WEIGHT) * cross_entropy(logits, y) + WEIGHT * TEMPERATURE**2 * soft


def train(teacher: Any, student: Any, digits: tuple, key: jax.Array, num_steps: int) -> jaxfit.Run:
    """Return the student's run."""
    x, y = digits
    batches = jaxfit.minibatches((x, y, mlp(teacher, x)), 64, key)
    return jaxfit.train(loss, student, optax.adam(0.01), num_steps, data=batches)


def main() -> None:
    """Print how many digits a teacher reads, its student, and the same student by itself."""
    (x, y), (test_x, test_y) = split_digits(jax.random.key(0))
    key = jax.random.key(1)
    draw = lambda *sizes: mlp_init(jax.random.key(2), sizes)
    alone = jax.jit(
        lambda params, batches: jaxfit.train(
            objective(mlp, cross_entropy), params, optax.adam(0.01), 500, data=batches
        )
    )
    batches = jaxfit.minibatches((x, y), 64, key)
    teacher, small = alone(draw(64, 128, 10), batches).state.params, draw(64, 8, 10)
    models = {
        "teacher": teacher,
        "student": jax.jit(train, static_argnums=4)(teacher, small, (x, y), key, 500).state.params,
        "by itself": alone(small, batches).state.params,
    }
    for name, params in models.items():
        print(f"{name:10} {accuracy(mlp(params, test_x), test_y):.3f}")


if __name__ == "__main__":
    main()
