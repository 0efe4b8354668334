"""Race optimizers on problems, for the study ``optimizer_race``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import jaxfit
from experiments._command import require, split_digits
from jaxfit.losses import binary_cross_entropy, cross_entropy, l2, objective
from jaxfit.models import linear, mlp, mlp_init

Factory = Callable[[Any], Any]  # from a learning rate to an optimizer
Defaults = dict[str, float | None]  # default rates, None for an optimizer without one
FLOOR = 1e-6  # a loss below it is one of rounding

# Each with its default rate in the paper, its authors' code, Keras or PyTorch; optax has no
# defaults.
OPTIMIZERS: dict[str, tuple[Factory, float | None]] = {
    "sgd": (optax.sgd, 1e-2),
    "momentum": (lambda lr: optax.sgd(lr, 0.9), 1e-2),
    "nesterov": (lambda lr: optax.sgd(lr, 0.9, nesterov=True), 1e-2),
    "adagrad": (optax.adagrad, 1e-2),
    "rmsprop": (optax.rmsprop, 1e-3),
    "adam": (optax.adam, 1e-3),
    "amsgrad": (optax.amsgrad, 1e-3),
    "nadam": (optax.nadam, 2e-3),
    "radam": (optax.radam, 1e-3),
    "adamw": (optax.adamw, 1e-3),
    "adabelief": (optax.adabelief, 1e-3),
    "yogi": (optax.yogi, 1e-2),
    "adan": (optax.adan, 1e-3),
    "lamb": (optax.lamb, 1e-3),
    "novograd": (optax.novograd, 1e-2),
    "lion": (optax.lion, 1e-4),
    "adafactor": (optax.adafactor, 1e-2),
    "muon": (optax.contrib.muon, 2e-2),
    "lbfgs": (optax.lbfgs, 1.0),
}


class Problem(NamedTuple):
    """Describe what is minimised; no loss is below zero by more than rounding."""

    title: str
    init: Callable[[jax.Array], Any]  # draws a start
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    batch_size: int | None  # None if every step sees all data
    steps: int


def quadratic(key: jax.Array) -> Problem:
    """Return a bowl whose axes, turned at random, have curvatures from 0.001 to 1."""
    rotation = jax.random.orthogonal(key, 100)
    return Problem(
        "Quadratic, 100 dimensions, condition number 1000",
        lambda key: jax.random.normal(key, (100,)),
        lambda a, roots: jnp.sum((roots @ a) ** 2) / 2,
        jnp.sqrt(jnp.geomspace(1e-3, 1, 100))[:, None] * rotation,
        None,
        300,
    )


def rosenbrock(key: jax.Array) -> Problem:
    """Return Rosenbrock's valley, with starts around the usual one."""
    return Problem(
        "Rosenbrock's valley",
        lambda key: jnp.array([-1.2, 1.0]) + 0.2 * jax.random.normal(key, (2,)),
        lambda a, weights: weights @ jnp.array([1 - a[0], a[1] - a[0] ** 2]) ** 2,
        jnp.array([1.0, 100.0]),
        None,
        1000,
    )


def logistic(key: jax.Array) -> Problem:
    """Return penalised logistic regression on scikit-learn's tumours, above its optimum."""
    x, y = require("sklearn.datasets", "scikit-learn").load_breast_cancer(return_X_y=True)
    x, _, _ = jaxfit.data.standardize(jnp.asarray(x, jnp.float32))
    data = jnp.column_stack([x, jnp.ones(len(x))]), jnp.asarray(y, jnp.float32)

    def penalised(a, batch):
        return objective(linear, binary_cross_entropy)(a, batch) + 0.01 * l2(a[:-1])

    best = jaxfit.train(penalised, jnp.zeros(31), optax.lbfgs(), 50, data=data).state.params
    least = penalised(best, data)
    return Problem(
        "Logistic regression above its optimum, 569 tumours, minibatches of 32",
        lambda key: jax.random.normal(key, (31,)),
        lambda a, batch: penalised(a, batch) - least,
        data,
        32,
        500,
    )


def digits(key: jax.Array) -> Problem:
    """Return a perceptron on the training images of scikit-learn's handwritten digits."""
    return Problem(
        "MLP 64-32-10, 1438 digits, minibatches of 64",
        lambda key: mlp_init(key, (64, 32, 10)),
        objective(mlp, cross_entropy),
        split_digits(key)[0],
        64,
        500,
    )


PROBLEMS = {one.__name__: one for one in (quadratic, rosenbrock, logistic, digits)}


def race(
    problem: Problem, factories: dict[str, Factory], rates: np.ndarray, keys: jax.Array
) -> jaxfit.Sweep:
    """Return the loss on all data before and after every run: [optimizers, rates, seeds, 2]."""
    loss, data = problem.loss, problem.data

    def losses(optimizer, lr, seed):
        start, order = jax.random.split(seed)
        seen = data
        if problem.batch_size is not None:
            seen = jaxfit.minibatches(data, problem.batch_size, order)
        run = jaxfit.train(
            loss,
            problem.init(start),
            optimizer(lr),
            problem.steps,
            data=seen,
            record=lambda step: loss(step.params, data),
            record_every=problem.steps,  # the start alone
        )
        return jnp.maximum(jnp.append(run.trajectory, loss(run.state.params, data)), FLOOR)

    return jaxfit.sweep(losses, {"optimizer": factories, "lr": rates, "seed": keys}, progress=True)


def import_factory(path: str) -> Factory:
    """Import a factory of optimizers by its name, module:factory, and try one step with it."""
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
        step = lambda lr: jaxfit.train(lambda a: a @ a, jnp.ones(2), factory(lr), 1).state.params
        jax.eval_shape(step, 0.1)
    except Exception as error:  # the user's code may raise anything
        said = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--optimizer {path} does not make an optimizer from a rate: {said}."
        ) from error
    return factory
