"""Measure noise scales and batch sizes for ``gradient_noise``, and compute their theory."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import stdtrit  # the quantiles of Student's t

import jaxfit
from jaxfit import analysis
from jaxfit.losses import cross_entropy, mse, objective
from jaxfit.models import linear, mlp, mlp_init

DIMENSION, NOISE, FAR = 20, 1.0, 5.0  # of the regression, and how far from its truth it starts
LOOKED_AT = (0, 20, 40, 60, 80, 120)  # steps of its run
BATCHES, EXAMPLES = 256, 64  # drawn at each of them
CONFIDENCE = 0.99  # in all comparisons together

DIGITS, WIDTHS = 600, (64, 10)
BATCH_SIZE, RATE, STEPS = 32, 1.0, 300  # of the run on digits
SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
RATES = 2.0 ** np.arange(5)
TARGET = 0.3  # the loss on all of them to get to; guessing costs log 10
ROWS = 60  # the least number of losses recorded on the way
classification, regression = objective(mlp, cross_entropy), objective(linear, mse)


class Closed(NamedTuple):
    """Hold what `analysis.gradient_noise` estimates: |G|², tr Σ, and B, their ratio."""

    grad_sq: Any
    trace: Any
    scale: Any


def closed_form(away: np.ndarray) -> Closed:
    """Return the noise of linear regression on normal x, at parameters off the truth: ``[…, d]``.

    With δ the difference and σ the noise, an example's gradient is 2x (δ·x - σε), with mean 2δ and
    mean square 4 ((d + 2) |δ|² + d σ²), since E (δ·x)² |x|² = (d + 2) |δ|².
    """
    square, d = np.sum(np.asarray(away, np.float64) ** 2, axis=-1), np.shape(away)[-1]
    grad_sq, trace = 4 * square, 4 * ((d + 1) * square + d * NOISE**2)
    return Closed(grad_sq, trace, trace / grad_sq)


def draw(key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """Draw new examples of the regression, whose true coefficients are zero."""
    place, error = jax.random.split(key)
    x = jax.random.normal(place, (number, DIMENSION))
    return x, NOISE * jax.random.normal(error, (number,))


class Row(NamedTuple):
    """Hold one number of the noise at one step of the regression, beside its closed form."""

    step: int
    name: str
    measured: float
    margin: float  # half the confidence interval
    expected: float

    @property
    def inside(self) -> bool:
        """Return whether the closed form is within the confidence interval."""
        return abs(self.measured - self.expected) <= self.margin


def look_at_regression(key: jax.Array) -> list[Row]:
    """Train on new examples in every step, and estimate the noise along the run from others."""
    order, other = jax.random.split(key)

    def noise(step):
        keys = jax.random.split(jax.random.fold_in(other, step.step), BATCHES)
        of = lambda key: analysis.gradient_noise(
            regression, step.params, data=draw(key, EXAMPLES), chunk_size=EXAMPLES
        )
        return step.params, jax.vmap(of)(keys)

    @jax.jit
    def examine():
        data = lambda step: draw(jax.random.fold_in(order, step), 16)
        start = jnp.full(DIMENSION, FAR / DIMENSION**0.5)
        run = jaxfit.train(regression, start, optax.sgd(0.01), max(LOOKED_AT) + 1, data=data)
        return analysis.along(noise, regression, run, steps=LOOKED_AT, data=data)

    away, found = examine()
    return compare(found, closed_form(away))


def compare(found: analysis.GradientNoise, expected: Closed) -> list[Row]:
    """Put estimates from batches, ``[steps, batches]``, beside closed forms ``[steps]``.

    B is the ratio of the means, whose standard error is that of tr Σ - B |G|², over the mean |G|².
    """
    rows = []
    # Bonferroni: all comparisons hold together.
    tail = (1 - CONFIDENCE) / (len(LOOKED_AT) * len(Closed._fields))
    for i, step in enumerate(LOOKED_AT):
        square, trace = (np.asarray(one[i], np.float64) for one in (found.grad_sq, found.trace))
        scale = trace.mean() / square.mean()
        width = stdtrit(len(square) - 1, 1 - tail / 2) / math.sqrt(len(square))
        error = np.std(trace - scale * square, ddof=1) / square.mean()
        measured = [(square.mean(), square.std(ddof=1)), (trace.mean(), trace.std(ddof=1))]
        measured.append((scale, error))
        for name, (value, spread) in zip(Closed._fields, measured, strict=True):
            rows.append(Row(step, name, value, width * spread, getattr(expected, name)[i]))
    return rows


def of_all(noise: analysis.GradientNoise, number: int) -> Closed:
    """Return the noise of examples drawn from a number of them, whose mean gradient is G itself.

    `analysis.gradient_noise` takes the examples for a sample of something larger.
    """
    grad_sq = noise.grad_sq + noise.trace / number
    trace = noise.trace * (number - 1) / number
    return Closed(grad_sq, trace, trace / grad_sq)


def noise_of(data: Any, params: Any) -> analysis.GradientNoise:
    """Return the noise of the digits' gradients at some parameters."""
    return analysis.gradient_noise(classification, params, data=data, chunk_size=256)


class Along(NamedTuple):
    """Hold the noise along a run on digits, from each step's batch and from all examples."""

    steps: np.ndarray  # [rows], of ``all``
    loss: np.ndarray  # [rows], on all examples
    batch: analysis.GradientNoise  # [steps of the run]
    all: Closed  # [rows]


def look_at_digits(data: Any, key: jax.Array) -> Along:
    """Train softmax regression on minibatches, and measure the noise at its steps afterwards."""
    start, order = jax.random.split(key)
    steps = np.arange(0, STEPS, STEPS // 20)

    @jax.jit
    def examine(data):
        batches = jaxfit.minibatches(data, BATCH_SIZE, order, replace=True)
        sgd, options = optax.sgd(RATE), {"data": batches}
        run = jaxfit.train(classification, mlp_init(start, WIDTHS), sgd, STEPS, **options)
        along = functools.partial(analysis.along, run=run, loss=classification, **options)
        batch = along(lambda step: noise_of(step.batch, step.params), steps=range(STEPS))
        both = lambda step: (classification(step.params, data), noise_of(data, step.params))
        return batch, along(both, steps=steps)

    batch, (loss, whole) = jax.device_get(examine(data))
    return Along(steps, loss, batch, of_all(whole, len(data[1])))


def first_below(losses: jax.Array, every: int) -> jax.Array:
    """Return the step at which the loss first gets to the target; infinity if it does not.

    Args:
      losses: [rows], the first of which is above the target.
      every: the steps from row to row, between which the logarithm of the loss is interpolated.
    """
    row = jnp.argmax(losses <= TARGET)
    before, after = jnp.log(losses[row - 1]), jnp.log(losses[row])
    part = (before - jnp.log(TARGET)) / (before - after)
    return jnp.where(jnp.any(losses <= TARGET), (row - 1 + part) * every, jnp.inf)


def budget(size: int, steps: int) -> tuple[int, int]:
    """Return how many steps a run with this batch size may take, and how many lie between rows."""
    longest = math.ceil(steps * (1 + 40 / size))
    return longest, longest // ROWS or 1


def times(data: Any, keys: jax.Array, steps: int) -> np.ndarray:
    """Return the steps to the target by SGD: [SIZES, RATES, keys]."""

    def time(size, rate, key):
        start, order = jax.random.split(key)
        batches = jaxfit.minibatches(data, size, order, replace=True)
        longest, every = budget(size, steps)
        record = lambda step: classification(step.params, data)
        options = {"data": batches, "record": record, "record_every": every}
        params = mlp_init(start, WIDTHS)
        run = jaxfit.train(classification, params, optax.sgd(rate), longest, **options)
        return first_below(run.trajectory, every)

    axes = {"size": list(SIZES), "rate": jnp.asarray(RATES, jnp.float32), "key": keys}
    return np.asarray(jaxfit.sweep(time, axes).values, np.float64)


@functools.partial(jax.jit, static_argnums=3)
def scales(data: Any, keys: jax.Array, rate: float, steps: int) -> Any:
    """Return losses and noise along gradient descent on all examples: ``[keys, steps]`` each."""

    def one(key):
        params = mlp_init(jax.random.split(key)[0], WIDTHS)
        run = jaxfit.train(classification, params, optax.sgd(rate), steps, data=data)
        noise = lambda step: noise_of(data, step.params)
        return run.trajectory["loss"], analysis.along(noise, classification, run, data=data)

    return jax.lax.map(one, keys)


def mean_scale(data: Any, keys: jax.Array, rate: float, steps: int) -> np.ndarray:
    """Return the mean noise scale over the steps of gradient descent to the target: [keys].

    By McCandlish et al. 2018, appendix D, this is the critical batch size of a whole run.
    """
    losses, found = jax.device_get(scales(data, keys, rate, steps))
    before = np.cumsum(losses <= TARGET, axis=1) == 0
    return np.mean(of_all(found, len(data[1])).scale, axis=1, where=before)


def steps_in_theory(sizes: np.ndarray, least: float, critical: float) -> np.ndarray:
    """Return S = S_min (1 + B / b), the steps that a batch size b needs."""
    return least * (1 + critical / np.asarray(sizes))


def saved(sizes: np.ndarray, critical: float) -> np.ndarray:
    """Return which part of the steps twice the batch saves by that law: a quarter at b = B."""
    sizes = np.asarray(sizes)
    return 1 - steps_in_theory(2 * sizes, 1.0, critical) / steps_in_theory(sizes, 1.0, critical)


def fit(taken: np.ndarray) -> tuple[float, float]:
    """Fit that law to the steps of SIZES by least squares of logarithms: S_min and B."""
    tried = np.geomspace(0.1, 1e5, 2000)
    residuals = np.log(taken) - np.log(steps_in_theory(np.array(SIZES), 1.0, tried[:, None]))
    best = residuals.var(axis=1).argmin()
    return float(np.exp(residuals[best].mean())), float(tried[best])


class Critical(NamedTuple):
    """Hold the steps that each batch size needs at its best rate, and the law fitted to them."""

    rates: np.ndarray  # [SIZES]
    taken: np.ndarray  # [SIZES, seeds], steps to the target
    least: float
    batch: float
    interval: np.ndarray  # [2], 95 %, of the batch, from bootstraps of the seeds


def tune(taken: np.ndarray) -> Critical:
    """Choose every batch size's best rate from steps ``[SIZES, RATES, seeds]``, and fit the law."""
    middle = np.median(taken, axis=2)
    best = middle.argmin(axis=1)
    if not np.isfinite(middle.min(axis=1)).all():
        late = [size for size, steps in zip(SIZES, middle, strict=True) if np.isinf(steps).all()]
        raise ValueError(
            f"--steps allows too few for a loss of {TARGET:g} with batches of {late[0]}: take more."
        )
    chosen = np.take_along_axis(taken, best[:, None, None], axis=1)[:, 0]
    rng, number = np.random.default_rng(0), taken.shape[2]
    again = [np.median(chosen[:, rng.integers(number, size=number)], axis=1) for _ in range(200)]
    batches = [fit(steps)[1] for steps in again if np.isfinite(steps).all()]
    found = fit(np.median(chosen, axis=1))
    return Critical(RATES[best], chosen, *found, np.quantile(batches, [0.025, 0.975]))
