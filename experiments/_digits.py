"""Fit models to the handwritten digits, for the study ``digits``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments._command import require
from jaxfit.losses import cross_entropy, l2, objective
from jaxfit.models import mlp, mlp_init

C = 1.0  # scikit-learn's inverse strength of the penalty, at its default
BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Fit:
    """Hold a finished run and what was computed from it, as NumPy arrays."""

    run: jaxfit.Run
    loss: float  # the minimised loss after the last step, on all training images
    predicted: np.ndarray  # [rows + 1, test images], the last row after the last step
    accuracies: np.ndarray  # [rows + 1], on the test images
    seconds: tuple[float, float]  # to compile, and to run

    @property
    def steps(self) -> np.ndarray:
        """Return the number of steps made before each of the accuracies: [rows + 1]."""
        return np.append(self.run.steps, self.run.state.step)


def fit(
    model: Callable,
    loss: Callable,
    optimizer: Any,
    params: Any,
    data: Any,
    images: tuple[Any, Any],
    steps: int,
    **options: Any,
) -> Fit:
    """Train a model and time it; evaluate the end, and every row on the test images."""

    def train(params, data):
        return jaxfit.train(loss, params, optimizer, steps, data=data, **options)

    @jax.jit
    def evaluate(rows, end, x, seen):
        rows = jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), rows, end)
        predicted = lax.map(lambda params: jnp.argmax(model(params, x), axis=-1), rows)
        return loss(end, seen), predicted

    began = time.perf_counter()
    compiled = jax.jit(train).lower(params, data).compile()
    ready = time.perf_counter()
    run = jax.block_until_ready(compiled(params, data))
    done = time.perf_counter()
    seen, (x, y) = images
    evaluated = evaluate(run.trajectory["params"], run.state.params, x, seen)
    run, (value, predicted) = jax.device_get((run, evaluated))
    accuracies = np.mean(predicted == np.asarray(y), axis=1)
    return Fit(run, float(value), predicted, accuracies, (ready - began, done - ready))


def penalised(params: Any, batch: tuple[Any, Any]) -> jax.Array:
    """Return what LogisticRegression(C) minimises, divided by n; intercepts are not penalised."""
    x, y = batch
    return cross_entropy(mlp(params, x), y) + l2(params[0]["w"]) / (C * len(y))


def fit_softmax(images: tuple[Any, Any]) -> Fit:
    """Fit softmax regression, a perceptron without hidden layers, by L-BFGS in float64."""

    def record(step):
        searched = optax.tree.get(step.opt_state, "num_linesearch_steps")  # by the step before
        return jaxfit.record.whole(step) | {"searched": searched}

    with jax.enable_x64(True):
        train, test = ((jnp.asarray(x, jnp.float64), y) for x, y in images)
        params = [{"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}]
        optimizer = optax.lbfgs(memory_size=20)
        return fit(mlp, penalised, optimizer, params, train, (train, test), 200, record=record)


def scikit_optimum(images: tuple[Any, Any]) -> tuple[float, float, int]:
    """Return scikit-learn's optimum: the loss there, the test accuracy, and its iterations."""
    linear_model = require("sklearn.linear_model", "scikit-learn")
    threadpoolctl = require("threadpoolctl", "threadpoolctl")  # a dependency of scikit-learn
    (x, y), test = ([np.asarray(array) for array in part] for part in images)
    best = linear_model.LogisticRegression(C=C, solver="newton-cg", tol=1e-8, max_iter=1000)
    # A problem as small as this gains nothing from threads, and can lose seconds to them.
    with threadpoolctl.threadpool_limits(1), jax.enable_x64(True):
        best.fit(np.asarray(x, np.float64), y)
        params = [{"w": best.coef_.T, "b": best.intercept_}]
        return float(penalised(params, (x, y))), best.score(*test), int(best.n_iter_.max())


def cnn_init(key: jax.Array) -> list[Any]:
    """Draw the layers of `cnn`: three Equinox modules."""
    linear = require("equinox", "Equinox").nn.Linear
    sizes = (9 * 1, 8), (9 * 8, 16), (4 * 4 * 16, 10)
    keys = jax.random.split(key, len(sizes))
    return [linear(*size, key=key) for size, key in zip(sizes, keys, strict=True)]


def cnn(layers: list[Any], x: jax.Array) -> jax.Array:
    """Apply two convolutions of 3 by 3 pixels, max pooling of 2 by 2, and a linear layer.

    A convolution is written as a linear layer on every pixel and its eight neighbours. This is the
    same function as ``equinox.nn.Conv2d``, whose gradient XLA compiles to slow code on a CPU
    inside a loop: with ``Conv2d``, a step takes 20 times as long.
    """
    *convolutions, last = layers
    x = x.reshape(-1, 8, 8, 1)
    for layer in convolutions:
        x = jax.nn.relu(jax.vmap(jax.vmap(jax.vmap(layer)))(neighbours(x)))
    x = x.reshape(-1, 4, 2, 4, 2, 16).max((2, 4))
    return jax.vmap(last)(x.reshape(-1, 4 * 4 * 16))


def neighbours(x: jax.Array) -> jax.Array:
    """Join every pixel [n, h, w, c] and its neighbours, zeros beyond the edge: [n, h, w, 9 c]."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


NETWORKS = {"MLP": (mlp, lambda key: mlp_init(key, (64, 128, 10))), "CNN": (cnn, cnn_init)}


def fit_network(name: str, images: tuple[Any, Any], steps: int, key: jax.Array) -> Fit:
    """Fit a network by AdamW on minibatches, at a rate that falls to zero along a cosine."""
    model, init = NETWORKS[name]
    start, order = jax.random.split(key)
    batches = jaxfit.minibatches(images[0], BATCH_SIZE, order)
    optimizer = optax.adamw(optax.cosine_decay_schedule(0.01, steps), weight_decay=0.3)
    loss = objective(model, cross_entropy)
    # A row every 5 steps is enough for the curves, as the first layer moves little in between.
    return fit(model, loss, optimizer, init(start), batches, images, steps, record_every=5)
