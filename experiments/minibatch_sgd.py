"""Minibatch SGD: what a batch size costs in steps and examples, and the variance that remains.

Gradient descent at a constant rate goes to the least loss; with minibatches it goes near and then
wanders about there. The lesson's line is fitted with several batch sizes from many seeds, and how
far the parameters wander is held against theory, which is exact where examples are drawn with
replacement. Without, as is usual, they wander less, and far less where the 1 / (rate × curvature)
steps that they remember make many epochs; that has an exact theory too on a second problem, whose
noise does not depend on the parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.special import stdtrit  # the quantiles of Student's t

import jaxfit
from experiments import _command
from jaxfit import plot
from jaxfit.losses import mse, objective
from jaxfit.models import linear
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

SIZES = {1: BLUE, 4: ORANGE, 20: GREEN, 100: BLACK}  # they divide the number of examples
SEEDS = 256
LINE, NOISE = "the line", "additive noise"
CURVATURE = 5.0  # of the latter
CONFIDENCE = 0.99  # of all comparisons together


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """A mean of quadratic losses of the examples, whose gradients are h_i a - b_i."""

    name: str
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    start: tuple[float, ...]
    h: np.ndarray  # [examples, parameters, parameters]
    b: np.ndarray  # [examples, parameters]

    @property
    def hessian(self) -> np.ndarray:
        return self.h.mean(axis=0)

    @property
    def best(self) -> np.ndarray:
        """a*, the parameters of the least loss."""
        return np.linalg.solve(self.hessian, self.b.mean(axis=0))

    @property
    def noise(self) -> np.ndarray:
        """The covariance over the examples of their gradients at a*: there its mean is zero."""
        gradients = self.h @ self.best - self.b
        return gradients.T @ gradients / len(gradients)

    def error(self, runs: jaxfit.Run) -> np.ndarray:
        """a - a* of every row: [seeds, rows, parameters]."""
        return np.asarray(runs.trajectory["params"], np.float64) - self.best


def lesson(key: jax.Array) -> Quadratic:
    """The lesson's line. A gradient's noise grows with the distance, for x xᵀ varies too."""
    data = jaxfit.data.line(key)
    x, y = (np.asarray(array, np.float64) for array in data)
    h, b = 2 * x[:, :, None] * x[:, None, :], 2 * x * y[:, None]
    return Quadratic(LINE, objective(linear, mse), data, (-1.0, 1.0), h, b)


def additive(key: jax.Array) -> Quadratic:
    """One parameter, and examples z that are only added to the gradient, h a - z."""

    def loss(a, z):
        return jnp.mean(CURVATURE * a**2 / 2 - a * z)

    data = jax.random.normal(key, (100, 1))
    z = np.asarray(data, np.float64)
    return Quadratic(NOISE, loss, data, (1.0,), np.full((100, 1, 1), CURVATURE), z)


def operators(problem: Quadratic, size: float) -> tuple[np.ndarray, np.ndarray]:
    """What one step does to vec M, M = E[e eᵀ], e = a - a*: I - η first + η² second."""
    hessian, one = problem.hessian, np.eye(problem.h.shape[1])
    first, both = np.kron(hessian, one) + np.kron(one, hessian), np.kron(hessian, hessian)
    squares = np.einsum("nij,nkl->ikjl", problem.h, problem.h) / len(problem.h)
    return first, both + (squares.reshape(both.shape) - both) / size


def stationary(problem: Quadratic, lr: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The covariance of SGD on examples drawn with replacement: exactly, and for small rates.

    A step with rate η takes e = a - a* to (I - η H_b) e - η g_b. The batch's Hessian H_b and its
    gradient g_b at a* are independent of e, and E[g_b] = 0: so E[e] goes to zero, the cross terms
    with it, and M = E[e eᵀ] is where M = E[(I - η H_b) M (I - η H_b)] + η² C / B, with C the
    covariance of one example's gradient at a* and B the batch size. This is linear in M:
    (first - η second) vec M = η / B vec C. Where H_b is always h, M = η C / (h (2 - η h) B).

    For small rates, first vec M = η / B vec C: Mandt, Hoffman & Blei 2017, `Stochastic Gradient
    Descent as Approximate Bayesian Inference <https://arxiv.org/abs/1704.04289>`_.
    """
    first, second = operators(problem, size)
    noise = lr / size * problem.noise
    exact, small = (np.linalg.solve(m, noise.ravel()) for m in (first - lr * second, first))
    return exact.reshape(noise.shape), small.reshape(noise.shape)


def shuffled(problem: Quadratic, lr: float, size: int) -> float:
    """E|a - a*|² for one parameter and additive noise, where every epoch is a permutation.

    The batch means of an epoch are drawn without replacement: their covariance with each other is
    negative, and they sum to zero. Epochs are independent. The mean over the places in an epoch.
    """
    n, shrink, c = len(problem.b), 1 - lr * problem.hessian[0, 0], problem.noise[0, 0]
    own, other = c / size * (n - size) / (n - 1), -c / (n - 1)
    weights = shrink ** np.arange(n // size)
    within = (own - other) * np.cumsum(weights**2) + other * np.cumsum(weights) ** 2
    before = within[-1] / (1 - (shrink * weights[-1]) ** 2)  # from all epochs before this one
    return float(np.mean(lr**2 * (within + (shrink * weights) ** 2 * before)))


def forgotten(problem: Quadratic, lr: float) -> float:
    """How many steps it takes until 1e-10 is left of the squared distance at the start."""
    first, second = operators(problem, 1)
    lost = np.linalg.eigvalsh(lr * first - lr**2 * second)
    slowest = min(float(lost.min()), 2 - float(lost.max()), 1 - 1e-10)
    return math.log(1e-10) / math.log1p(-slowest)


class Row(NamedTuple):
    """How far SGD wandered: |a - a*|² over time and seeds, beside theory or nan."""

    problem: str
    replace: bool
    size: int
    measured: float
    margin: float  # half the confidence interval
    exact: float
    small: float

    @property
    def inside(self) -> bool:
        return abs(self.measured - self.exact) <= self.margin


Sweep = dict[tuple[int, bool], jaxfit.Run]


def sweep(problem: Quadratic, lr: float, steps: int, key: jax.Array) -> Sweep:
    """Runs from many seeds for every batch size, examples drawn with replacement and without."""

    def runs(keys, data, size, replace):
        def run(key):
            batches = jaxfit.minibatches(data, size, key, replace=replace)
            start = jnp.array(problem.start)
            return jaxfit.train(problem.loss, start, optax.sgd(lr), steps, data=batches)

        return jax.vmap(run)(keys)

    runs = jax.jit(runs, static_argnums=(2, 3))
    kinds = [(size, replace) for replace in (True, False) for size in SIZES]
    keys = jax.random.split(key, (len(kinds), SEEDS))  # no two kinds share their luck
    return {kind: runs(keys[i], problem.data, *kind) for i, kind in enumerate(kinds)}


def compare(problem: Quadratic, lr: float, runs: Sweep, first: int) -> list[Row]:
    """Measure how far all runs wandered from the step ``first`` on.

    The seeds are independent, so the standard error is that of the seeds' means over time.
    """
    # Bonferroni: every size is held against theory at most three times, twice with replacement.
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


def study(steps: int, lr: float, seed: int) -> tuple[list[Quadratic], list[Sweep], list[Row]]:
    """Run the sweeps and print how far they wander; the problems, their runs and the table."""
    key = jax.random.key(seed)
    problems = [lesson(key), additive(jax.random.fold_in(key, 1))]
    n = len(problems[0].b)
    if lr >= 2 / CURVATURE:  # the line bears more: no example on it is as curved
        raise ValueError(
            f"--lr is {lr:g}, but where the curvature is {CURVATURE:g} SGD is stable below "
            f"{2 / CURVATURE:g} only: choose a smaller rate."
        )
    least = max(forgotten(problem, lr) for problem in problems)
    if steps < least + n:
        raise ValueError(
            f"--steps is {steps}, but at a rate of {lr:g} the start is forgotten after {least:.3g} "
            f"steps, and an epoch of {n} is measured then: take more steps, or a larger rate."
        )
    first = steps - int(steps - least) // n * n  # whole epochs are left
    keys = jax.random.split(jax.random.fold_in(key, 2))
    sweeps = [sweep(one, lr, steps, key) for one, key in zip(problems, keys, strict=True)]
    both = zip(problems, sweeps, strict=True)
    rows = [row for one, runs in both for row in compare(one, lr, runs, first)]
    theory = [row for row in rows if not math.isnan(row.exact)]

    print(f"{steps} steps of SGD at learning rate {lr:g}, from {SEEDS} seeds, on two quadratics:")
    for problem in problems:
        curvatures = " and ".join(f"{value:.3g}" for value in np.linalg.eigvalsh(problem.hessian))
        print(f"  {problem.name}: {n} examples, curvature {curvatures}")
    print(f"\nE|a - a*|², the mean squared distance from the least loss, from step {first} on,")
    print(f"with {CONFIDENCE:.0%} confidence that all {len(theory)} exact values are inside:\n")
    print("  problem         replacement  batch   measured        ±      exact  inside  small rate")
    for row in rows:
        numbers = f"{row.measured:11.3e}{row.margin:9.1e}{row.exact:11.3e}"
        inside = "–" if row not in theory else "yes" if row.inside else "NO"
        words = f"  {row.problem:16}{'with' if row.replace else 'without':12}{row.size:6d}"
        print(f"{words}{numbers}{inside:>8}{row.small:12.3e}".replace("nan", "  –"))
    print(f"\n{sum(row.inside for row in theory)} of {len(theory)} are inside.")
    print(f"A batch of all {n} without replacement is gradient descent: rounding alone is left.")
    return problems, sweeps, rows


def beginning(runs: jaxfit.Run, rows: int) -> jaxfit.Run:
    """The first rows of the first seed's run."""
    params = runs.trajectory["params"][0]
    state = dataclasses.replace(runs.state, params=params[rows])
    return jaxfit.Run(runs.steps[0, :rows], {"params": params[:rows]}, None, state)


def draw_paths(problem: Quadratic, runs: Sweep) -> plt.Figure:
    """The way to the least loss and what comes after it, a panel for every batch size."""
    figure, panels = plt.subplots(2, len(SIZES) // 2, figsize=(8, 7), layout="constrained")
    for ax, (size, colour) in zip(panels.flat, SIZES.items(), strict=True):
        plot.path(beginning(runs[size, False], 100), problem.loss, problem.data, ax=ax)
        ax.lines[0].set_color(colour)
        ax.legend(loc="upper left")
        ax.set(title=f"batch size {size}", xlabel="slope", ylabel="intercept")
    figure.suptitle("100 steps over the contours of the loss, examples drawn without replacement")
    return figure


def draw_losses(problem: Quadratic, runs: Sweep) -> plt.Figure:
    """The loss on all examples against steps, and against examples seen."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True, layout="constrained")
    for size, colour in SIZES.items():
        error = problem.error(runs[size, False])[:, 1:200]
        steps = np.arange(1, 1 + error.shape[1])
        # What a quadratic is above its least value; a difference of losses would lose the digits.
        excess = np.einsum("...i,ij,...j", error, problem.hessian, error) / 2
        low, median, high = np.quantile(excess, [0.1, 0.5, 0.9], axis=0)
        for ax, seen in zip(panels, (steps, size * steps), strict=True):
            ax.fill_between(seen, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(seen, median, color=colour, linewidth=1, label=f"batch size {size}")
    for ax, name in zip(panels, ("steps", "examples seen"), strict=True):
        ax.set(xlabel=name, xscale="log", yscale="log", ylim=(1e-6, None))
    panels[0].set_ylabel("loss on all examples, above the least")
    panels[0].legend(loc="lower left")
    figure.suptitle(f"The loss: median of {SEEDS} seeds and where 8 in 10 are, without replacement")
    return figure


def draw_variances(problems: list[Quadratic], lr: float, rows: list[Row]) -> plt.Figure:
    """How far SGD wanders against batch size, and below as a multiple of exact theory."""
    figure, panels = plt.subplots(
        2, 2, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    for problem, (above, below) in zip(problems, panels.T, strict=True):
        sizes = np.geomspace(1, len(problem.b), 50)
        exact, small = np.transpose(
            [np.trace(stationary(problem, lr, size), axis1=1, axis2=2) for size in sizes]
        )
        above.plot(sizes, exact, color=BLUE, label="with replacement, exact theory")
        above.plot(sizes, small, "--", color=ORANGE, label="its limit for small rates")
        below.plot(sizes, small / exact, "--", color=ORANGE)
        below.axhline(1, color=BLUE)
        if problem.name == NOISE:
            sizes = [size for size in range(1, len(problem.b)) if len(problem.b) % size == 0]
            exact = [shuffled(problem, lr, size) for size in sizes]
            above.plot(sizes, exact, "-.", color=GREEN, label="without replacement, exact theory")
        for replace, colour, mark in ((True, BLUE, "o"), (False, GREEN, "s")):
            # Gradient descent, the largest batch without replacement, has no place on this axis.
            found = [row for row in rows if row[:2] == (problem.name, replace)]
            found = [row[2:6] for row in found if replace or row.size < len(problem.b)]
            size, measured, margin, exact = np.transpose(found)
            style = {"color": colour, "marker": mark, "markersize": 5, "capsize": 3}
            style["linestyle"] = ":" if np.isnan(exact).all() else "none"
            label = f"{'with' if replace else 'without'} replacement, measured"
            above.errorbar(size, measured, margin, label=label, **style)
            beside = size if replace else 1.1 * size
            below.errorbar(beside, measured / exact, margin / exact, **style)
        above.set(title=problem.name, xscale="log", yscale="log")
        below.set(xlabel="batch size")
        below.set_xticks(list(SIZES), [str(size) for size in SIZES])
        below.minorticks_off()
    panels[0, 0].set_ylabel("E|a − a*|²")
    panels[1, 0].set_ylabel("over exact theory")
    panels[0, 1].legend(fontsize=8)
    figure.suptitle("The mean squared distance from the least loss at which SGD wanders")
    return figure


def main() -> None:
    parser = _command.parser("minibatch_sgd", __doc__)
    parser.add_argument("--steps", type=int, default=2000, help="default 2000")
    parser.add_argument("--lr", type=float, default=0.1, help="the learning rate, default 0.1")

    def wander(arguments: argparse.Namespace) -> None:
        _command.between("steps", arguments.steps, 1, 10_000)
        if not arguments.lr > 0:
            raise ValueError(f"--lr is {arguments.lr:g}, but a learning rate is positive.")
        problems, sweeps, rows = study(arguments.steps, arguments.lr, arguments.seed)
        print("\nWritten:")
        for name, figure in (
            ("paths", draw_paths(problems[0], sweeps[0])),
            ("loss", draw_losses(problems[0], sweeps[0])),
            ("variance", draw_variances(problems, arguments.lr, rows)),
        ):
            path = arguments.out / f"{name}.png"
            figure.savefig(path, dpi=100)
            _command.written(path)

    _command.run(parser, wander)


if __name__ == "__main__":
    main()
