"""Learn schedules and weights by hypergradients, for the study ``hypergradients``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init

SIZES, BATCH_SIZE = (64, 32, 10), 64
START = 0.1, 0.5  # the rate of every step and the momentum that learning starts from
RATES, MOMENTA = np.geomspace(0.05, 4, 16), (0.0, 0.5, 0.8, 0.9, 0.95)  # of the sweep
CONSTANT, LINEAR, PLAIN = "constant", "linear decay", "constant, no momentum"
WRONG, CLEANING_STEPS = 0.4, 100  # the fraction of wrong labels, and the steps of an inner run

Arrays = tuple[jax.Array, jax.Array]  # x [n, 64] and y [n]
Hyper = tuple[jax.Array, jax.Array]  # the learning rate of every step [steps], and the momentum

softmax = objective(mlp, cross_entropy)  # without hidden layers, that is softmax regression
# Smooth: with ReLU, hypergradients jump more than fiftyfold after some 50 outer steps.
perceptron = functools.partial(mlp, activation=jnp.tanh)
loss = objective(perceptron, cross_entropy)


def stretch(steps: int) -> int:
    """Return the largest divisor of ``steps`` up to its square root.

    Keyframes that far apart need almost the least memory. It is a divisor because steps that are
    left over would be compiled separately.
    """
    return max(k for k in range(1, math.isqrt(steps) + 1) if steps % k == 0)


def row(tree: Any, index: Any) -> Any:
    """Return one row of every array in a tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def descend(final: Callable, start: Any, rate: float, steps: int, **options: Any) -> jaxfit.Run:
    """Make the outer run: Adam, at a rate that falls to zero along a cosine."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    record = lambda step: jaxfit.record.whole(step) | {"grads": step.grads}
    return jaxfit.train(final, start, optimizer, steps, record=record, **options)


def inner(hyper: Hyper, key: jax.Array, train: Arrays) -> jaxfit.Run:
    """Run SGD with a rate for every step; the key draws the start and the batches."""
    rates, momentum = hyper
    start, order = jax.random.split(key)
    return jaxfit.train(
        loss,
        mlp_init(start, SIZES),
        optax.sgd(lambda count: rates[count], momentum=momentum),
        len(rates),
        data=jaxfit.minibatches(train, BATCH_SIZE, order),
        record=lambda step: step.loss,
        keyframe_every=stretch(len(rates)),
    )


def decoded(free: Any) -> Hyper:
    """Return rates above 0 and a momentum between 0 and 1, from unconstrained numbers."""
    return jnp.exp(free["log_rates"]), jax.nn.sigmoid(free["logit_momentum"])


def final_loss(free: Any, keys: jax.Array, train: Arrays) -> jax.Array:
    """Return the mean over seeds of the loss on all training images after the run."""
    ends = jax.vmap(lambda key: inner(decoded(free), key, train).state.params)(keys)
    return jnp.mean(jax.vmap(loss, (0, None))(ends, train))


def learn(keys: jax.Array, train: Arrays, steps: int, outer_steps: int) -> jaxfit.Run:
    """Learn the rate of every step, and the momentum, by descending `final_loss`.

    More than 100 outer steps gain nothing, because hypergradients explode long before losses do. At
    1.5 times the learned rates, the loss grows 1.4-fold, but the hypergradient's norm more than a
    millionfold: Metz et al. 2021, `Gradients are Not All You Need
    <https://arxiv.org/abs/2111.05803>`_.
    """
    rate, momentum = START
    start = {
        "log_rates": jnp.full(steps, math.log(rate)),
        "logit_momentum": jnp.asarray(math.log(momentum / (1 - momentum))),
    }

    def run(keys, train):
        return descend(lambda free: final_loss(free, keys, train), start, 0.05, outer_steps)

    return jax.jit(run)(keys, train)


def evaluate(hypers: Hyper, keys: jax.Array, train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
    """Return each schedule's results from every seed [schedules, seeds], and losses of batches."""

    def one(hyper, key, train, test):
        run = inner(hyper, key, train)
        end, (x, y) = run.state.params, test
        right = accuracy(perceptron(end, x), y)
        return {"batches": run.trajectory, "loss": loss(end, train), "accuracy": right}

    seeds = jax.vmap(one, (None, 0, None, None))
    return jax.device_get(jax.jit(jax.vmap(seeds, (0, *3 * [None])))(hypers, keys, train, test))


def sweep(keys: jax.Array, train: Arrays, test: Arrays, steps: int) -> dict[str, Hyper]:
    """Return the best schedule of every simple kind, on the seeds that learning uses."""
    flat, falling = np.ones(steps), 1 - np.arange(steps) / steps
    kinds = {PLAIN: (flat, (0.0,)), CONSTANT: (flat, MOMENTA), LINEAR: (falling, MOMENTA)}
    grid = [
        (kind, rate * shape, momentum)
        for kind, (shape, momenta) in kinds.items()
        for rate in RATES
        for momentum in momenta
    ]
    hypers = tuple(jnp.array(part, jnp.float32) for part in list(zip(*grid, strict=True))[1:])
    best = {}
    for i in np.argsort(evaluate(hypers, keys, train, test)["loss"].mean(axis=1)):  # NaNs last
        best.setdefault(grid[i][0], (hypers[0][i], hypers[1][i]))
    return {kind: best[kind] for kind in kinds}


def corrupt(arrays: Arrays, key: jax.Array) -> tuple[Arrays, jax.Array, Arrays, Arrays]:
    """Return training data with wrong labels, which ones are wrong, validation and test data."""
    first, second, noise = jax.random.split(key, 3)
    rest, test = jaxfit.data.train_test_split(arrays, 1 / 3, first)
    (x, y), validation = jaxfit.data.train_test_split(rest, 1 / 6, second)
    wrong = jnp.arange(len(y)) < round(WRONG * len(y))  # the examples are in random order
    other = (y + jax.random.randint(noise, y.shape, 1, 10)) % 10
    return (x, jnp.where(wrong, other, y)), wrong, validation, test


def weighted(params: Any, batch: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Return Σ w_i ℓ_i / n, in which a weight is a fraction of an example.

    `cross_entropy` divides by Σ w_i, which makes the common scale of the weights meaningless; more
    of the right labels would then lose theirs.
    """
    return softmax(params, batch) * jnp.mean(batch[2])


def fit(x: jax.Array, y: jax.Array, weights: jax.Array) -> jaxfit.Run:
    """Fit softmax regression by gradient descent on all examples, weighted."""
    start = [{"w": jnp.zeros((64, 10), x.dtype), "b": jnp.zeros(10, x.dtype)}]
    optimizer, every = optax.sgd(0.5, momentum=0.9), stretch(CLEANING_STEPS)
    data = x, y, weights
    return jaxfit.train(weighted, start, optimizer, CLEANING_STEPS, data=data, keyframe_every=every)


def learn_weights(train: Arrays, validation: Arrays, test: Arrays, steps: int) -> jaxfit.Run:
    """Learn weights that lower the validation loss after the run; test data are only recorded."""
    x, y = train

    def final(logits):
        end = fit(x, y, jax.nn.sigmoid(logits)).state.params
        return softmax(end, validation), (softmax(end, test), accuracy(mlp(end, test[0]), test[1]))

    return descend(final, jnp.zeros(len(y), x.dtype), 0.2, steps, has_aux=True)


def clean(arrays: Arrays, key: jax.Array, outer_steps: int) -> dict[str, Any]:
    """Learn weights for one draw of wrong labels, and compare with training without them."""
    (x, y), wrong, validation, test = corrupt(arrays, key)
    outer = learn_weights((x, y), validation, test, outer_steps)
    weights = jax.nn.sigmoid(outer.state.params)
    kinds = {"noisy labels": jnp.ones_like(weights), "learned weights": weights}
    kinds["right labels only"] = 1 - wrong.astype(x.dtype)
    runs = jax.vmap(fit, (None, None, 0))(x, y, jnp.stack(list(kinds.values())))
    ends = {name: row(runs.state.params, i) for i, name in enumerate(kinds)}
    noisy = row(runs.trajectory["params"], 0)
    least = jnp.argmin(jax.vmap(softmax, (0, None))(noisy, validation))
    ends["noisy, stopped early"] = row(noisy, least)
    ends["validation alone"] = fit(*validation, jnp.ones(len(validation[1]), x.dtype)).state.params
    accuracies = {name: 100 * accuracy(mlp(end, test[0]), test[1]) for name, end in ends.items()}
    return {"outer": outer, "weights": weights, "wrong": wrong, "accuracy": accuracies}
