"""Run range tests and sweeps for ``learning_rates``, and compute their theory."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from jaxfit.analysis import SuggestedRates, suggest_rates
from jaxfit.losses import cross_entropy, mse, objective
from jaxfit.models import linear, mlp, mlp_init

WIDTHS, BATCH_SIZE = (64, 64, 10), 64
RULES = [field.name for field in dataclasses.fields(SuggestedRates)]
OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
TESTED = np.geomspace(1e-7, 10, 100)  # the rates of the steps of a range test
LOST = np.log(10) / 2  # a run that ends above this has hardly learned: guessing costs log 10

EIGENVALUES = np.geomspace(0.1, 10, 10)
MOMENTA, STABLE = np.linspace(0, 0.95, 39), np.geomspace(0.02, 0.6, 120)
LESSON = np.linspace(0.005, 1.3, 256)
classification, regression = objective(mlp, cross_entropy), objective(linear, mse)


def fit(train: Any, optimizer: Any, key: jax.Array, steps: int) -> jaxfit.Run:
    """Train a perceptron on minibatches, recording their losses; the key draws both."""
    start, order = jax.random.split(key)
    batches = jaxfit.minibatches(train, BATCH_SIZE, order)
    options = {"data": batches, "record": lambda step: step.loss}
    return jaxfit.train(classification, mlp_init(start, WIDTHS), optimizer, steps, **options)


def range_tests(train: Any, keys: jax.Array) -> np.ndarray:
    """Return batch losses as the rate grows from step to step: [optimizers, keys, steps]."""

    def losses(optimizer, key):
        schedule = lambda step: jnp.asarray(TESTED, jnp.float32)[step]
        return fit(train, optimizer(schedule), key, len(TESTED)).trajectory

    return jaxfit.sweep(losses, {"optimizer": OPTIMIZERS, "key": keys}).values


def finals(train: Any, keys: jax.Array, rates: np.ndarray, steps: int) -> np.ndarray:
    """Return the training loss after all steps at each rate: [optimizers, keys, rates]."""

    def final(optimizer, key, rate):
        return classification(fit(train, optimizer(rate), key, steps).state.params, train)

    axes = {"optimizer": OPTIMIZERS, "key": keys, "rate": rates}
    return np.nan_to_num(jaxfit.sweep(final, axes).values, nan=np.inf, posinf=np.inf)


def suggestions(losses: np.ndarray) -> dict[str, float]:
    """Return what a range test suggests, by the names of the rules."""
    return dataclasses.asdict(suggest_rates(TESTED, losses))


def nearest(rates: np.ndarray, rate: Any) -> Any:
    """Return the index of the nearest of the rates, by ratio."""
    return np.abs(np.log(rates) - np.log(rate)[..., None]).argmin(axis=-1)


def contractions(eigenvalues: np.ndarray, key: jax.Array) -> np.ndarray:
    """Return the factor by which late steps change the distance to the minimum.

    Returns:
      [MOMENTA, STABLE], from the second half of 1000 steps.
    """
    steps = 1000
    with jax.enable_x64(True):
        n = len(eigenvalues)
        axes, _ = jnp.linalg.qr(jax.random.normal(key, (n, n)))
        hessian = (axes * eigenvalues) @ axes.T
        loss = lambda a: a @ hessian @ a / 2

        def contraction(momentum, rate):
            optimizer = optax.sgd(rate, momentum)
            options = {"record": lambda step: step.loss, "record_every": steps // 2}
            run = jaxfit.train(loss, axes.sum(axis=1), optimizer, steps, **options)
            half, end = run.trajectory[1], loss(run.state.params)
            return jnp.where(end == 0, 0, end / half) ** (1 / steps)

        found = jaxfit.sweep(contraction, {"momentum": MOMENTA, "rate": STABLE}).values
    return np.nan_to_num(found, nan=np.inf, posinf=np.inf)


def bracket(converges: np.ndarray, rates: np.ndarray) -> tuple[float, float]:
    """Return the last rate that converges and the next, the first that does not."""
    first = np.argmin(converges)
    return rates[first - 1], rates[first]


def excess(hessian: np.ndarray, away: np.ndarray, rates: np.ndarray, steps: int) -> np.ndarray:
    """Return a quadratic's excess loss after gradient descent, by theory: [rates]."""
    eigenvalues, vectors = np.linalg.eigh(hessian)
    factors = (1 - np.outer(rates, eigenvalues)) ** (2 * steps)
    return factors @ (eigenvalues * (vectors.T @ away) ** 2) / 2


class Lesson(NamedTuple):
    """Hold the loss of a line after 10 and 100 steps at every rate of ``LESSON``."""

    losses: np.ndarray  # [2, rates]
    theory: np.ndarray  # [2, rates], above the least
    least: float
    eigenvalues: np.ndarray  # of the Hessian


def lesson(key: jax.Array) -> Lesson:
    """Run gradient descent on the lesson's problem at every rate, and compute its theory."""
    with jax.enable_x64(True):
        x, y = (np.asarray(column, np.float64) for column in jaxfit.data.line(key))
        start = np.array([-1.0, 1.0])

        def losses(rate):
            options = {"record": lambda step: step.loss, "record_every": 10}
            run = jaxfit.train(regression, start, optax.sgd(rate), 100, data=(x, y), **options)
            return run.trajectory[1], regression(run.state.params, (x, y))

        found = np.stack(jaxfit.sweep(losses, {"rate": LESSON}).values)
    best, hessian = np.linalg.lstsq(x, y)[0], 2 * x.T @ x / len(y)
    theory = np.stack([excess(hessian, start - best, LESSON, steps) for steps in (10, 100)])
    return Lesson(found, theory, np.mean((x @ best - y) ** 2), np.linalg.eigvalsh(hessian))
