"""Race sixteen optimizers on four problems: tuned, at their default rates, and at all rates.

Every optimizer runs at every rate of a grid from several starts. A seed is judged at the rate that
the other seeds choose, so that none is tuned on what it reports. A run that diverged, or ended
above its start, counts as its start; the sensitivity to the rate is then that of Wortsman et al.
2023, `Small-scale proxies for large-scale Transformer training instabilities
<https://arxiv.org/abs/2309.14322>`_: the mean loss over all rates above the least.

Tuned, momentum or Nesterov's leads on the quadratic, the logistic regression and the digits.
Through Rosenbrock's valley Adam, AdaBelief and Yogi are as fast or faster; unlike momentum, they do
not diverge at more than half of the rates. AdaBelief is the least sensitive to the rate, except on
the logistic regression. Within these few steps all default rates are too small or too large, except
NovoGrad's on the two convex problems. Ranks close to each other mean nothing: on the digits, AdamW
with a decay of 0.0001, which is nearly Adam, comes up to four ranks before or after it, depending
on the seed and the version of JAX.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.stats import rankdata
from matplotlib.axes import Axes

from experiments import _command
from experiments._optimizer_race import (
    OPTIMIZERS,
    PROBLEMS,
    Defaults,
    Factory,
    Problem,
    Result,
    import_factory,
    interval,
    judge,
    level,
    race,
    row_steps,
    sensitivity,
)
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

LOWEST, HIGHEST = 1e-5, 10.0  # of the rates

Entrants = dict[str, tuple[Factory, float | None]]  # with default rates, where there are any


def show(problem: Problem, results: dict[str, Result], defaults: Defaults) -> None:
    """Print a line for each optimizer, the best first."""

    def cell(values):
        low, high = interval(values)
        return f"{np.median(values):.2e} [{low:.1e}, {high:.1e}]"

    print(f"  {'':12}{'tuned':>8}  {'final loss [95 %]':28}{f'to {problem.target:g}':>8}", end="")
    print(f"{'default':>10}  {'final loss [95 %]':28}{'sensitivity':>11}{'diverged':>10}")
    best = level(results)
    for name, one in sorted(results.items(), key=lambda item: np.median(item[1].final)):
        reached = np.where(one.curves <= problem.target, row_steps(problem.steps), np.inf)
        median = np.median(reached.min(axis=1))
        steps = f"{median:.0f}" if np.isfinite(median) else "–"
        print(f"{'=' if best[name] else ' '} {name:12}{one.rate:8.2g}  ", end="")
        print(f"{cell(one.final):28}{steps:>8}{defaults[name] or '–':>10}  ", end="")
        print(f"{'' if one.default is None else cell(one.default):28}", end="")
        print(f"{np.median(sensitivity(one.swept)):11.2e}{one.diverged.mean():10.0%}")


def rank(races: dict[str, dict[str, Result]]) -> None:
    """Print the ranks of all optimizers on all problems, the best on average first."""
    medians = [[np.median(one.final) for one in results.values()] for results in races.values()]
    places = np.asarray(rankdata(jnp.array(medians), "min", axis=1), int)
    best = [level(results) for results in races.values()]
    print("Ranks by the median at the tuned rate; = marks a tie with the first:\n")
    print(f"{'':12}" + "".join(f"{name:>12}" for name in races) + f"{'mean':>9}")
    names = list(best[0])
    for i in np.argsort(places.mean(axis=0), kind="stable"):
        row = [
            f"{'=' if one[names[i]] else ''}{place}"
            for one, place in zip(best, places[:, i], strict=True)
        ]
        print(f"{names[i]:12}" + "".join(f"{one:>12}" for one in row), end="")
        print(f"{places[:, i].mean():9.1f}")


def multiples(
    title: str,
    x: np.ndarray,
    values: dict[str, np.ndarray],
    mark: Callable[[Axes, str], Any],
    xlabel: str,
    ylabel: str,
) -> plt.Figure:
    """Draw a panel for each optimizer's [x, seeds], with the medians of the others behind it."""
    columns, number = 4, len(values)
    rows = -(-number // columns)
    options = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=(10, 1.3 + 1.75 * rows), **options)
    for place, ax in enumerate(axes.flat):
        ax.set_visible(place < number)
        ax.tick_params(labelbottom=place >= number - columns)
    for (name, one), ax in zip(values.items(), axes.flat, strict=False):
        for other in values.values():
            ax.plot(x, np.median(other, axis=1), color="0.85", linewidth=0.6)
        ax.lines[0].set_label("the other optimizers")
        ax.fill_between(
            x, one.min(1), one.max(1), color=BLUE, alpha=0.25, linewidth=0, label="all seeds"
        )
        ax.plot(x, np.median(one, axis=1), color=BLUE, label="their median")
        mark(ax, name)
        ax.set_title(name, fontsize=10)
        ax.set_yscale("log")
    for ax in axes.flat[max(number - columns, 0) : number]:
        ax.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize=10)
    figure.suptitle(title)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def draw_rates(
    problem: Problem, rates: np.ndarray, results: dict[str, Result], defaults: Defaults
) -> plt.Figure:
    """Draw the final loss against the rate."""

    def mark(ax, name):
        one = results[name]
        ax.set_xscale("log")
        if defaults[name]:
            ax.axvline(
                defaults[name], color=BLACK, linestyle=":", linewidth=1, label="default rate"
            )
        least = np.median(one.swept, axis=1).min()
        ax.plot(one.rate, least, "o", color=GREEN, markersize=5, label="tuned rate")
        crosses = rates[one.diverged.any(axis=1)]
        top = {"transform": ax.get_xaxis_transform(), "clip_on": False, "in_layout": False}
        style = {"color": ORANGE, "markersize": 4, "label": "a seed diverged"}
        ax.plot(crosses, np.ones(len(crosses)), "x", **style, **top)

    title = f"{problem.title}: after {problem.steps} steps"
    swept = {name: one.swept for name, one in results.items()}
    return multiples(title, rates, swept, mark, "learning rate", "final loss")


def draw_curves(problem: Problem, results: dict[str, Result]) -> plt.Figure:
    """Draw the loss along the runs at the tuned rates."""

    def mark(ax, name):
        ax.axhline(problem.target, color=ORANGE, linestyle="--", linewidth=1, label="target")

    curves = {name: one.curves.T for name, one in results.items()}
    title, steps = f"{problem.title}: at the tuned rates", row_steps(problem.steps)
    return multiples(title, steps, curves, mark, "step", "loss")


def enter(paths: list[str]) -> Entrants:
    """Return the optimizers of the race, and those that the user adds as module:factory."""
    entrants = dict(OPTIMIZERS)
    for path in paths:
        name = path.partition(":")[2]
        entrants[path if name in entrants else name] = import_factory(path), None
    return entrants


def study(
    problem: Problem, entrants: Entrants, grid: np.ndarray, keys: jax.Array
) -> tuple[dict[str, Result], dict[str, plt.Figure]]:
    """Race on one problem and print the results; return them and their pictures."""
    factories = {name: factory for name, (factory, _) in entrants.items()}
    defaults = {name: default for name, (_, default) in entrants.items()}
    rates = np.append(grid, sorted({rate for rate in defaults.values() if rate}))
    began = time.perf_counter()
    table = race(problem, factories, rates, keys)
    seconds = time.perf_counter() - began
    results = judge(table, len(grid), defaults)
    runs = table.values[..., 0].size
    print(f"{problem.title}: {runs} runs of {problem.steps} steps in {seconds:.1f} s\n")
    show(problem, results, defaults)
    print(flush=True)
    return results, {
        "rates": draw_rates(problem, grid, results, defaults),
        "curves": draw_curves(problem, results),
    }


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("optimizer_race", __doc__)
    option = parser.add_argument
    option(
        "--problem",
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(PROBLEMS)}; repeat it for more (default: all)",
    )
    option(
        "--optimizer",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="add a function from a learning rate to an optimizer; repeat it for more",
    )
    option("--steps", type=int, help="steps of every run (default: 300 to 1000)")
    option("--rates", type=int, default=32, help="number of rates, 1e-5 to 10 (default: 32)")
    option("--seeds", type=int, default=8, help="runs at every rate (default: 8)")

    def race_all(arguments: argparse.Namespace) -> None:
        chosen = arguments.problem or list(PROBLEMS)
        for name in chosen:
            if name not in PROBLEMS:
                raise ValueError(f"--problem is {name}, but must be one of {', '.join(PROBLEMS)}.")
        if arguments.steps is not None:
            _command.check_range("steps", arguments.steps, 1, 1_000_000)
        _command.check_range("rates", arguments.rates, 1, 1000)
        _command.check_range("seeds", arguments.seeds, 2, 1000)
        entrants = enter(arguments.optimizer)
        grid = np.geomspace(LOWEST, HIGHEST, arguments.rates)
        draw, rest = jax.random.split(jax.random.key(arguments.seed))
        keys = jax.random.split(rest, arguments.seeds)
        races, written = {}, []
        for name in chosen:
            problem = PROBLEMS[name](draw)
            problem = problem._replace(steps=arguments.steps or problem.steps)
            races[name], figures = study(problem, entrants, grid, keys)
            named = {f"{name}_{kind}": figure for kind, figure in figures.items()}
            written += _command.save(named, arguments.out)
        rank(races)
        _command.list_files(written)

    _command.run(parser, race_all)


if __name__ == "__main__":
    main()
