"""Compare minibatch SGD at several batch sizes, and how far it wanders, with exact theory.

Gradient descent at a constant rate goes to the least loss; with minibatches it comes close and then
wanders about it. The lesson's line is fitted with several batch sizes from many seeds, and how far
the parameters wander is compared with theory, which is exact where examples are drawn with
replacement. Without replacement, as is usual, they wander less, and far less if the
1 / (rate × curvature) steps that they remember span many epochs. This has an exact theory on a
second problem, whose noise does not depend on the parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxfit
from experiments import _command, _minibatch_sgd
from experiments._minibatch_sgd import (
    CONFIDENCE,
    CURVATURE,
    NOISE,
    SEEDS,
    Quadratic,
    Row,
    Sweep,
    additive,
    compare,
    forgotten,
    lesson,
    shuffled,
    stationary,
    sweep,
)
from jaxfit import plot
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

COLOURS = {1: BLUE, 4: ORANGE, 20: GREEN, 100: BLACK}  # of the batch sizes


def study(steps: int, lr: float, seed: int) -> tuple[list[Quadratic], list[Sweep], list[Row]]:
    """Run the sweeps and print how far they wander; return the problems, runs and rows."""
    key = jax.random.key(seed)
    problems = [lesson(key), additive(jax.random.fold_in(key, 1))]
    n = len(problems[0].b)
    if lr >= 2 / CURVATURE:  # the line is stable up to higher rates
        raise ValueError(
            f"--lr is {lr:g}, but where the curvature is {CURVATURE:g} SGD is stable below "
            f"{2 / CURVATURE:g} only: choose a smaller rate."
        )
    least = max(forgotten(problem, lr) for problem in problems)
    if steps < least + n:
        raise ValueError(
            f"--steps is {steps}, but at a rate of {lr:g} the start is forgotten after {least:.3g} "
            f"steps, and at least {n} more are measured: take more steps, or a larger rate."
        )
    first = steps - int(steps - least) // n * n  # so that whole epochs are measured
    keys = jax.random.split(jax.random.fold_in(key, 2))
    sweeps = [sweep(one, lr, steps, key) for one, key in zip(problems, keys, strict=True)]
    both = zip(problems, sweeps, strict=True)
    rows = [row for one, runs in both for row in compare(one, lr, runs, first)]
    theory = [row for row in rows if not math.isnan(row.exact)]

    print(f"{steps} steps of SGD at learning rate {lr:g}, from {SEEDS} seeds, on two quadratics:")
    for problem in problems:
        curvatures = " and ".join(f"{value:.3g}" for value in np.linalg.eigvalsh(problem.hessian))
        print(f"  {problem.name}: {n} examples, curvature {curvatures}")
    print(f"\nE|a - a*|², the mean squared distance from the least loss, from step {first} on.")
    print(f"The intervals hold all {len(theory)} exact values with {CONFIDENCE:.0%} confidence:\n")
    print("  problem         replacement  batch   measured        ±      exact  inside  small rate")
    for row in rows:
        numbers = f"{row.measured:11.3e}{row.margin:9.1e}{row.exact:11.3e}"
        inside = "–" if row not in theory else "yes" if row.inside else "NO"
        words = f"  {row.problem:16}{'with' if row.replace else 'without':12}{row.size:6d}"
        print(f"{words}{numbers}{inside:>8}{row.small:12.3e}".replace("nan", "  –"))
    print(f"\n{sum(row.inside for row in theory)} of {len(theory)} are inside.")
    print(f"A batch of all {n} without replacement is gradient descent: only rounding is left.")
    return problems, sweeps, rows


def beginning(runs: jaxfit.Run, rows: int) -> jaxfit.Run:
    """Return the first rows of the first seed's run."""
    params = runs.trajectory["params"][0]
    state = dataclasses.replace(runs.state, params=params[rows])
    return jaxfit.Run(runs.steps[0, :rows], {"params": params[:rows]}, None, state)


def draw_paths(problem: Quadratic, runs: Sweep) -> plt.Figure:
    """Draw the path to the least loss and the wandering after it, a panel for each batch size."""
    figure, panels = plt.subplots(
        2, len(_minibatch_sgd.SIZES) // 2, figsize=(8, 7), layout="constrained"
    )
    for ax, size in zip(panels.flat, _minibatch_sgd.SIZES, strict=True):
        plot.path(beginning(runs[size, False], 100), problem.loss, problem.data, ax=ax)
        ax.lines[0].set_color(COLOURS[size])
        ax.legend(loc="upper left")
        ax.set(title=f"batch size {size}", xlabel="slope", ylabel="intercept")
    figure.suptitle("100 steps over the contours of the loss, examples drawn without replacement")
    return figure


def draw_losses(problem: Quadratic, runs: Sweep) -> plt.Figure:
    """Draw the loss on all examples against steps, and against examples seen."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.5), sharey=True, layout="constrained")
    for size in _minibatch_sgd.SIZES:
        error = problem.error(runs[size, False])[:, 1:200]
        steps = np.arange(1, 1 + error.shape[1])
        # The excess of a quadratic loss, exactly: a difference of losses would lose its digits.
        excess = np.einsum("...i,ij,...j", error, problem.hessian, error) / 2
        low, median, high = np.quantile(excess, [0.1, 0.5, 0.9], axis=0)
        for ax, seen in zip(panels, (steps, size * steps), strict=True):
            ax.fill_between(seen, low, high, color=COLOURS[size], alpha=0.2, linewidth=0)
            ax.plot(seen, median, color=COLOURS[size], linewidth=1, label=f"batch size {size}")
    for ax, name in zip(panels, ("steps", "examples seen"), strict=True):
        ax.set(xlabel=name, xscale="log", yscale="log", ylim=(1e-6, None))
    panels[0].set_ylabel("loss on all examples, above the least")
    panels[0].legend(loc="lower left")
    figure.suptitle(f"The loss: median and middle 80 % of {SEEDS} seeds, without replacement")
    return figure


def draw_variances(problems: list[Quadratic], lr: float, rows: list[Row]) -> plt.Figure:
    """Draw how far SGD wanders against batch size, and below it, relative to exact theory."""
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
            # Gradient descent, the largest batch without replacement, is far below this axis.
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
        below.set_xticks(_minibatch_sgd.SIZES, [str(size) for size in _minibatch_sgd.SIZES])
        below.minorticks_off()
    panels[0, 0].set_ylabel("E|a − a*|²")
    panels[1, 0].set_ylabel("over exact theory")
    panels[0, 1].legend(fontsize=8)
    figure.suptitle("The mean squared distance from the least loss at which SGD wanders")
    return figure


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("minibatch_sgd", __doc__)
    parser.add_argument("--steps", type=int, default=2000, help="number of steps (default: 2000)")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate (default: 0.1)")

    def wander(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, 1, 10_000)
        _command.check_positive("lr", arguments.lr)
        problems, sweeps, rows = study(arguments.steps, arguments.lr, arguments.seed)
        figures = {
            "paths": draw_paths(problems[0], sweeps[0]),
            "loss": draw_losses(problems[0], sweeps[0]),
            "variance": draw_variances(problems, arguments.lr, rows),
        }
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, wander)


if __name__ == "__main__":
    main()
