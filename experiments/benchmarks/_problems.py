"""Define the two problems that the benchmarks share: a line and a small perceptron."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks._bench import datasets, torch


@dataclasses.dataclass(frozen=True)
class Problem:
    """Hold a loss with all that is needed to minimise it, in JAX and in PyTorch.

    The parameters of ``torch_loss`` are the leaves of ``params`` in a list; ``tolerance`` is how
    much two runs in float32 may differ.
    """

    name: str
    loss: Callable[..., Any]
    params: Any
    data: Any
    optimizer: optax.GradientTransformation
    steps: int
    tolerance: float = 1e-4
    torch_loss: Callable[..., Any] | None = None
    torch_optimizer: Callable[..., Any] | None = None


def line(steps: int) -> Problem:
    """Return the mean squared error of a line through 100 points, for gradient descent."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(-1, 1, 100), np.ones(100)], axis=1)
    y = x @ [3.0, 2.0] + rng.uniform(0, 1, 100)
    return Problem(
        "line",
        lambda a, batch: jnp.mean(jnp.square(batch[0] @ a - batch[1])),
        jnp.array([-1.0, 1.0]),
        (jnp.array(x), jnp.array(y)),
        optax.sgd(0.1),
        steps,
        torch_loss=lambda params, batch: (batch[0] @ params[0] - batch[1]).square().mean(),
        torch_optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )


def digits(steps: int) -> Problem:
    """Return the loss of a 64-64-10 perceptron on 64 handwritten digits, for Adam."""
    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    shapes = (64, 64), (64, 10)
    weights = [rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5) for shape in shapes]

    def loss(params, batch):
        (w1, b1, w2, b2), (x, y) = params, batch
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def torch_loss(params, batch):
        (w1, b1, w2, b2), (x, y) = params, batch
        return torch.nn.functional.cross_entropy(torch.relu(x @ w1 + b1) @ w2 + b2, y.long())

    return Problem(
        "digits",
        loss,
        (jnp.array(weights[0]), jnp.zeros(64), jnp.array(weights[1]), jnp.zeros(10)),
        (jnp.array(images[:64] / 16), jnp.array(labels[:64])),
        optax.adam(1e-3),
        steps,
        # Rounding decides at which step a hidden unit passes ReLU's kink, and as Adam's steps do
        # not shrink with the gradient, a weight is then several steps of 1e-3 from where it was.
        tolerance=2e-2,
        torch_loss=torch_loss,
        torch_optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
    )


def all_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all handwritten digits in float32: x [1797, 64], from 0 to 1, and y [1797]."""
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int32)
