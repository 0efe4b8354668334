"""Race optimizers on problems and judge them, for the study ``optimizer_race``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments._command import require, split_digits
from jaxfit.losses import binary_cross_entropy, cross_entropy, l2, objective
from jaxfit.models import linear, mlp, mlp_init

Factory = Callable[[Any], Any]  # from a learning rate to an optimizer
Defaults = dict[str, float | None]  # default rates, None for an optimizer without one
ROWS, RESAMPLES = 50, 4000  # the most rows of a run; the resamples of a bootstrap

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
}


class Problem(NamedTuple):
    """Describe what is minimised; no loss is below zero by more than rounding."""

    title: str
    init: Callable[[jax.Array], Any]  # draws a start
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    batch_size: int | None  # None if every step sees all data
    steps: int
    target: float  # a loss to reach


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
        1e-2,
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
        1e-3,
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
        1e-2,
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
        0.05,
    )


PROBLEMS = {one.__name__: one for one in (quadratic, rosenbrock, logistic, digits)}


def race(
    problem: Problem, factories: dict[str, Factory], rates: np.ndarray, keys: jax.Array
) -> jaxfit.Sweep:
    """Return the loss of every run on all data: [optimizers, rates, seeds, rows], the end last."""
    loss, data = problem.loss, problem.data

    def losses(optimizer, lr, key):
        start, order = jax.random.split(key)
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
            record_every=every(problem.steps),
        )
        return jnp.append(run.trajectory, loss(run.state.params, data))

    return jaxfit.sweep(losses, {"optimizer": factories, "lr": rates, "key": keys}, progress=True)


def every(steps: int) -> int:
    """Return the number of steps from row to row."""
    return -(-steps // ROWS)


def row_steps(steps: int) -> np.ndarray:
    """Return the number of steps made before each row."""
    return np.append(np.arange(0, steps, every(steps)), steps)


def capped(curves: np.ndarray) -> np.ndarray:
    """Return losses [..., rows] capped at that of the start, which also replaces NaNs."""
    return np.fmin(curves, curves[..., :1])


def tuned(final: np.ndarray) -> np.ndarray:
    """Return the rate at which each seed is judged, as an index into final [rates, seeds]: [seeds].

    It is the rate with the lowest median over the other seeds, so that no seed chooses its own.
    """
    seeds = range(final.shape[1])
    return np.array([np.median(np.delete(final, one, 1), axis=1).argmin() for one in seeds])


def sensitivity(final: np.ndarray) -> np.ndarray:
    """Return the mean over rates of capped losses [rates, seeds] above their least: [seeds]."""
    return final.mean(axis=0) - final.min(axis=0)


def interval(values: np.ndarray) -> np.ndarray:
    """Return 95 % limits of the median over the last axis, by the percentile bootstrap: [2, …]."""
    n = values.shape[-1]
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    return np.quantile(np.median(values[..., drawn], axis=-1), [0.025, 0.975], axis=-1)


def tied(values: np.ndarray) -> np.ndarray:
    """Return which rows of [optimizers, seeds] are tied with the one of the lowest median.

    For those, the interval of the median difference, seed by seed, is not all above zero.
    """
    low, _ = interval(values - values[np.median(values, axis=1).argmin()])
    return low <= 0


class Result(NamedTuple):
    """Hold the results of one optimizer on one problem; all losses are `capped`."""

    swept: np.ndarray  # final losses [rates, seeds]
    diverged: np.ndarray  # [rates, seeds], whether a run ended no lower than it began
    rate: float  # the one with the lowest median over all seeds
    curves: np.ndarray  # losses at the rates that `tuned` finds [seeds, rows]
    default: np.ndarray | None  # final losses at the default rate [seeds]

    @property
    def final(self) -> np.ndarray:
        """Return the final losses at the rates that `tuned` finds: [seeds]."""
        return self.curves[:, -1]


def judge(table: jaxfit.Sweep, rates: int, defaults: Defaults) -> dict[str, Result]:
    """Return the results of each optimizer; the first ``rates`` learning rates are the grid."""
    results = {}
    for name, default in defaults.items():
        curves = capped(table.sel(optimizer=name).values[:rates])
        final = curves[..., -1]
        results[name] = Result(
            final,
            final == curves[..., 0],
            float(table.axes["lr"][np.median(final, axis=1).argmin()]),
            curves[tuned(final), np.arange(final.shape[1])],
            capped(table.sel(optimizer=name, lr=default).values)[:, -1] if default else None,
        )
    return results


def level(results: dict[str, Result]) -> dict[str, bool]:
    """Return which optimizers are tied with the best."""
    return dict(zip(results, tied(np.array([one.final for one in results.values()])), strict=True))


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
