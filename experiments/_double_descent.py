"""Draw, fit and train least squares for ``double_descent``, and compute its theory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.linalg import cho_factor, cho_solve
from scipy.special import stdtrit  # the quantiles of Student's t

import jaxfit
from jaxfit.losses import mse, objective
from jaxfit.models import linear

EXAMPLES = 100
ALL = 400  # the features that there are where the model sees only the first
FEATURES = (2, 5, 10, 25, 50, 75, 90, 100, 110, 130, 160, 200, 300, 400)
TRAINED = (50, 90, 100, 110, 200)  # the features with which gradient descent is run as well
METHODS = ("gradient descent", "heavy ball")
CONFIDENCE = 0.99  # in all comparisons together
regression = objective(linear, mse)


class Problem(NamedTuple):
    """Describe a truth by its coefficients, of which a model sees the first p."""

    name: str
    noise: float  # the standard deviation of y given all features
    grows: bool  # whether there are p features, equally important, or always ALL, ever less so

    def seen(self, p: int) -> np.ndarray:
        """Return the coefficients of the features that a model of p features sees: [p]."""
        if self.grows:
            return np.full(p, p**-0.5)
        weights = 1 / np.arange(1, ALL + 1)
        return weights[:p] / np.linalg.norm(weights)

    def unseen(self, p: int) -> float:
        """Return the variance of what the other features add to y."""
        return 0.0 if self.grows else 1 - float(np.sum(self.seen(p) ** 2))


PROBLEMS = (Problem("p of p features", 1.0, True), Problem(f"first p of {ALL}", 0.3, False))


def theory(problem: Problem, p: int) -> float:
    """Return the expected excess risk of the minimum-norm solution for p features.

    To the model, features that it does not see are noise, of variance s with that of y. With fewer
    features than examples, n, the variance of the solution is s p / (n - p - 1), for the inverse of
    a Wishart matrix has that trace in the mean. With more, it is s n / (p - n - 1), and a part
    1 - n/p of the coefficients is orthogonal to all examples, so it stays zero. The mean is
    infinite where p is within one of n.

    Belkin, Hsu & Xu 2020, `Two Models of Double Descent for Weak Features
    <https://arxiv.org/abs/1903.07571>`_; for many features, and without unseen ones, Hastie,
    Montanari, Rosset & Tibshirani 2022, `Surprises in High-Dimensional Ridgeless Least Squares
    Interpolation <https://arxiv.org/abs/1903.08560>`_.
    """
    n, unseen = EXAMPLES, problem.unseen(p)
    if abs(p - n) <= 1:
        return math.inf
    ratio, bias = (p / (n - p - 1), 0.0) if p < n else (n / (p - n - 1), 1 - n / p)
    return unseen + bias * float(np.sum(problem.seen(p) ** 2)) + ratio * (unseen + problem.noise**2)


class Draws(NamedTuple):
    """Hold random numbers, normal and independent, from which all problems take their examples."""

    x: Any  # [draws, EXAMPLES, ALL]
    error: Any  # [draws, EXAMPLES]


def draw(key: jax.Array, number: int) -> Draws:
    """Draw the same numbers for all problems and models, which are then compared with less noise.

    They are drawn outside the sweep, whose programs, one for each number of features, would take
    longer to compile with them than to run.
    """
    place, error = jax.random.split(key)
    with jax.enable_x64(True):
        x = jax.random.normal(place, (number, EXAMPLES, ALL))
        return Draws(x, jax.random.normal(error, (number, EXAMPLES)))


def data(draws: Draws, p: int, which: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return a draw of a problem: x [n, p], y [n], coefficients [p] and unseen variance.

    What unseen features add to y is normal and independent of x, so it comes with the error.
    """
    seen = jnp.stack([problem.seen(p) for problem in PROBLEMS])[which]
    unseen = jnp.array([problem.unseen(p) for problem in PROBLEMS])[which]
    noise = jnp.array([problem.noise for problem in PROBLEMS])[which]
    x = draws.x[:, :p]
    return x, x @ seen + jnp.sqrt(unseen + noise**2) * draws.error, seen, unseen


def solve(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the least-squares solution of minimum norm: [p]."""
    if x.shape[0] > x.shape[1]:
        return cho_solve(cho_factor(x.T @ x), x.T @ y)
    return x.T @ cho_solve(cho_factor(x @ x.T), y)


def risks(draws: Draws) -> np.ndarray:
    """Return the excess risk of the solution for every draw: [FEATURES, PROBLEMS, draws]."""

    def risk(features, problem, draw):
        x, y, seen, unseen = data(draw, features, problem)
        return unseen + jnp.sum((solve(x, y) - seen) ** 2)

    axes = {"features": list(FEATURES), "problem": jnp.arange(len(PROBLEMS)), "draw": draws}
    with jax.enable_x64(True):
        return jaxfit.sweep(risk, axes).values


class Trained(NamedTuple):
    """Hold what gradient descent reached on the first problem: [TRAINED, METHODS, draws] each."""

    risk: np.ndarray
    distance: np.ndarray  # from the minimum-norm solution, relative to its length


def trained(draws: Draws, steps: int) -> Trained:
    """Train least squares from zero, without momentum and with the best, at their best rates.

    Both stay in the span of the examples, so that what they converge to is the minimum-norm
    solution. The extreme eigenvalues of the Hessian, which may be zero along other directions,
    give rate and momentum (Polyak 1964).
    """

    def train(features, momentum, draw):
        x, y, seen, _ = data(draw, features, 0)
        gram = x @ x.T if features > EXAMPLES else x.T @ x
        least, most = 2 / EXAMPLES * jnp.linalg.eigvalsh(gram)[jnp.array([0, -1])]
        roots = jnp.sqrt(least) + jnp.sqrt(most)
        rate = jnp.where(momentum, 4 / roots**2, 2 / (least + most))
        beta = jnp.where(momentum, (jnp.sqrt(most) - jnp.sqrt(least)) / roots, 0) ** 2
        options = {"record": lambda step: step.loss, "record_every": steps}
        optimizer = optax.sgd(rate, beta)
        run = jaxfit.train(
            regression, jnp.zeros(features), optimizer, steps, data=(x, y), **options
        )
        found, best = run.state.params, solve(x, y)
        away = jnp.linalg.norm(found - best) / jnp.linalg.norm(best)
        return Trained(jnp.sum((found - seen) ** 2), away)

    axes = {"features": list(TRAINED), "momentum": jnp.array([False, True]), "draw": draws}
    with jax.enable_x64(True):
        return jaxfit.sweep(train, axes, batch_size=len(draws.x)).values


class Row(NamedTuple):
    """Hold the excess risk of a problem with p features, measured and in theory."""

    problem: str
    p: int
    measured: float
    error: float  # the standard error
    margin: float  # half the confidence interval
    median: float
    expected: float

    @property
    def inside(self) -> bool:
        """Return whether theory is within the confidence interval."""
        return abs(self.measured - self.expected) <= self.margin


def compare(found: np.ndarray) -> list[Row]:
    """Put the mean of the excess risks ``[FEATURES, PROBLEMS, draws]`` beside theory."""
    number = found.shape[-1]
    finite = [p for p in FEATURES if math.isfinite(theory(PROBLEMS[0], p))]
    # Bonferroni: all comparisons with theory hold together.
    tail = (1 - CONFIDENCE) / (len(finite) * len(PROBLEMS))
    width = stdtrit(number - 1, 1 - tail / 2)
    rows = []
    for problem, values in zip(PROBLEMS, np.moveaxis(found, 1, 0), strict=True):
        for p, drawn in zip(FEATURES, values, strict=True):
            error = drawn.std(ddof=1) / math.sqrt(number)
            numbers = drawn.mean(), error, width * error, np.median(drawn), theory(problem, p)
            rows.append(Row(problem.name, p, *map(float, numbers)))
    return rows
