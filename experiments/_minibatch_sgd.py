"""Run minibatch SGD on quadratic losses and compute its theory, for ``minibatch_sgd``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import stdtrit  # the quantiles of Student's t

import jaxfit
from jaxfit.losses import mse, objective
from jaxfit.models import linear

SIZES = (1, 4, 20, 100)  # batch sizes, which divide the number of examples
SEEDS = 256
LINE, NOISE = "the line", "additive noise"
CURVATURE = 5.0  # of the problem with additive noise
CONFIDENCE = 0.99  # in all comparisons together


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Describe a mean of quadratic losses of the examples, with gradients h_i a - b_i."""

    name: str
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    start: tuple[float, ...]
    h: np.ndarray  # [examples, parameters, parameters]
    b: np.ndarray  # [examples, parameters]

    @property
    def hessian(self) -> np.ndarray:
        """Return the Hessian of the loss on all examples."""
        return self.h.mean(axis=0)

    @property
    def best(self) -> np.ndarray:
        """Return a*, the parameters of the least loss."""
        return np.linalg.solve(self.hessian, self.b.mean(axis=0))

    @property
    def noise(self) -> np.ndarray:
        """Return the covariance of the examples' gradients at a*, where their mean is zero."""
        gradients = self.h @ self.best - self.b
        return gradients.T @ gradients / len(gradients)

    def error(self, runs: jaxfit.Run) -> np.ndarray:
        """Return a - a* of every row: [seeds, rows, parameters]."""
        return np.asarray(runs.trajectory["params"], np.float64) - self.best


def lesson(key: jax.Array) -> Quadratic:
    """Return the lesson's line. Since x xᵀ varies too, gradient noise grows with the distance."""
    data = jaxfit.data.line(key)
    x, y = (np.asarray(array, np.float64) for array in data)
    h, b = 2 * x[:, :, None] * x[:, None, :], 2 * x * y[:, None]
    return Quadratic(LINE, objective(linear, mse), data, (-1.0, 1.0), h, b)


def additive(key: jax.Array) -> Quadratic:
    """Return a problem of one parameter, whose examples z only shift the gradient, h a - z."""

    def loss(a, z):
        return jnp.mean(CURVATURE * a**2 / 2 - a * z)

    data = jax.random.normal(key, (100, 1))
    z = np.asarray(data, np.float64)
    return Quadratic(NOISE, loss, data, (1.0,), np.full((100, 1, 1), CURVATURE), z)


def operators(problem: Quadratic, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (first, second): a step takes vec E[e eᵀ], e = a - a*, by I - η first + η² second."""
    hessian, one = problem.hessian, np.eye(problem.h.shape[1])
    first, both = np.kron(hessian, one) + np.kron(one, hessian), np.kron(hessian, hessian)
    squares = np.einsum("nij,nkl->ikjl", problem.h, problem.h) / len(problem.h)
    return first, both + (squares.reshape(both.shape) - both) / size


def stationary(problem: Quadratic, lr: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of SGD on examples drawn with replacement: exact, and for small rates.

    A step with rate η takes e = a - a* to (I - η H_b) e - η g_b. The batch's Hessian H_b and its
    gradient g_b at a* are independent of e, and E[g_b] = 0. So E[e] and the cross terms go to zero,
    and M = E[e eᵀ] solves M = E[(I - η H_b) M (I - η H_b)] + η² C / B, with C the covariance of
    one example's gradient at a* and B the batch size. This equation is linear in M:
    (first - η second) vec M = η / B vec C. If H_b is constant, h, then M = η C / (h (2 - η h) B).

    For small rates, first vec M = η / B vec C: Mandt, Hoffman & Blei 2017, `Stochastic Gradient
    Descent as Approximate Bayesian Inference <https://arxiv.org/abs/1704.04289>`_.
    """
    first, second = operators(problem, size)
    noise = lr / size * problem.noise
    exact, small = (np.linalg.solve(m, noise.ravel()) for m in (first - lr * second, first))
    return exact.reshape(noise.shape), small.reshape(noise.shape)


def shuffled(problem: Quadratic, lr: float, size: int) -> float:
    """Return E|a - a*|² for one parameter and additive noise, where every epoch is a permutation.

    The batch means of an epoch are drawn without replacement, so that their covariance with each
    other is negative and they sum to zero. Epochs are independent. The value returned is the mean
    over the steps of an epoch.
    """
    n, shrink, c = len(problem.b), 1 - lr * problem.hessian[0, 0], problem.noise[0, 0]
    own, other = c / size * (n - size) / (n - 1), -c / (n - 1)
    weights = shrink ** np.arange(n // size)
    within = (own - other) * np.cumsum(weights**2) + other * np.cumsum(weights) ** 2
    before = within[-1] / (1 - (shrink * weights[-1]) ** 2)  # from all epochs before this one
    return float(np.mean(lr**2 * (within + (shrink * weights) ** 2 * before)))


def forgotten(problem: Quadratic, lr: float) -> float:
    """Return the number of steps after which 1e-10 of the initial squared distance is left."""
    first, second = operators(problem, 1)
    lost = np.linalg.eigvalsh(lr * first - lr**2 * second)
    slowest = min(float(lost.min()), 2 - float(lost.max()), 1 - 1e-10)
    return math.log(1e-10) / math.log1p(-slowest)


class Row(NamedTuple):
    """Hold how far SGD wandered: mean |a - a*|² over time and seeds, and theory, or nan."""

    problem: str
    replace: bool
    size: int
    measured: float
    margin: float  # half the confidence interval
    exact: float
    small: float

    @property
    def inside(self) -> bool:
        """Return whether exact theory is within the confidence interval."""
        return abs(self.measured - self.exact) <= self.margin


Sweep = dict[tuple[int, bool], jaxfit.Run]


def sweep(problem: Quadratic, lr: float, steps: int, key: jax.Array) -> Sweep:
    """Run SGD from many seeds with every batch size, drawing with replacement and without."""

    def runs(keys, data, size, replace):
        def run(key):
            batches = jaxfit.minibatches(data, size, key, replace=replace)
            start = jnp.array(problem.start)
            return jaxfit.train(problem.loss, start, optax.sgd(lr), steps, data=batches)

        return jax.vmap(run)(keys)

    runs = jax.jit(runs, static_argnums=(2, 3))
    kinds = [(size, replace) for replace in (True, False) for size in SIZES]
    keys = jax.random.split(key, (len(kinds), SEEDS))  # no two kinds share their random numbers
    return {kind: runs(keys[i], problem.data, *kind) for i, kind in enumerate(kinds)}


def compare(problem: Quadratic, lr: float, runs: Sweep, first: int) -> list[Row]:
    """Measure how far all runs wandered from the step ``first`` on.

    As the seeds are independent, the standard error is that of the seeds' means over time.
    """
    # Bonferroni: every size is compared with theory at most three times, twice with replacement.
    tail = (1 - CONFIDENCE) / (3 * len(SIZES))
    rows = []
    for (size, replace), many in runs.items():
        means = np.sum(problem.error(many)[:, first:] ** 2, axis=-1).mean(axis=1)
        margin = stdtrit(SEEDS - 1, 1 - tail / 2) * means.std(ddof=1) / math.sqrt(SEEDS)
        exact = small = math.nan
        if replace:
            exact, small = map(np.trace, stationary(problem, lr, size))
        elif problem.name == NOISE and size < len(problem.b):
            exact = shuffled(problem, lr, size)
        rows.append(Row(problem.name, replace, size, means.mean(), margin, exact, small))
    return rows
