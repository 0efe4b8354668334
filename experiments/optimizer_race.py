"""Race nineteen optimizers on four problems, each tuned on other seeds than it is judged on.

Every optimizer runs at every rate of a grid from several starts, and ``jaxfit.analysis.compare``
judges it: the interquartile mean of its final losses and an interval of that by paired bootstrap,
its odds against the best, its sensitivity to the rate, the runs that diverged (Agarwal et al. 2021,
`Deep Reinforcement Learning at the Edge of the Statistical Precipice
<https://arxiv.org/abs/2108.13264>`_). A loss below a millionth counts as a millionth.

On the quadratic, momentum, Adam, AdamW, AdaBelief, Yogi and L-BFGS reach that floor from every
start, and LAMB is tied with them; Lion and RMSprop end farthest from it. L-BFGS does so at every
rate, as its line search finds its own; it pays with more than one gradient per step. Through
Rosenbrock's valley Yogi and L-BFGS reach the floor; AdamW, AdaBelief, Adam, momentum and Adan are
tied with them, but momentum diverges in more than half of its runs, and these hardly ever. Without
matrices, Muon is Adam with Nesterov's momentum, and has NAdam's results to the last digit shown.
Of the networks' sizes here, none is large enough for Adafactor to factor its second moments.
"""

from __future__ import annotations

import argparse
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import _command
from experiments._optimizer_race import (
    OPTIMIZERS,
    PROBLEMS,
    Defaults,
    Factory,
    Problem,
    import_factory,
    race,
)
from jaxfit import Sweep, plot
from jaxfit.analysis import Comparison, compare
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

LOWEST, HIGHEST = 1e-5, 10.0  # of the rates

Entrants = dict[str, tuple[Factory, float | None]]  # with default rates, where there are any


def rank(races: dict[str, Comparison]) -> None:
    """Print the places of all optimizers on all problems, the best on average first."""
    names = next(iter(races.values())).axes[0][1]
    places = np.array([one.iqm.argsort().argsort() + 1 for one in races.values()])
    print("Places by the interquartile mean; = marks a tie with the first:\n")
    print(f"{'':12}" + "".join(f"{name:>12}" for name in races) + f"{'mean':>9}")
    for i in np.argsort(places.mean(axis=0), kind="stable"):
        print(f"{names[i]:12}", end="")
        for place, one in zip(places[:, i], races.values(), strict=True):
            print(f"{('=' if names[i] in one.tied else '') + str(place):>12}", end="")
        print(f"{places[:, i].mean():9.1f}")


def draw_rates(problem: Problem, table: Sweep, found: Comparison, defaults: Defaults) -> plt.Figure:
    """Draw the final loss against the rate, in a panel for each optimizer."""
    rates, names = table.axes["lr"], found.axes[0][1]
    losses = np.where(found.diverged, table.values[..., 0], table.values[..., 1])
    middle = np.median(losses, axis=2)
    columns = 4
    rows = -(-len(names) // columns)
    options = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=(8, 1.4 + 1.75 * rows), **options)
    for place, ax in enumerate(axes.flat):
        ax.set_visible(place < len(names))
        ax.tick_params(labelbottom=place >= len(names) - columns)
    for i, (name, ax) in enumerate(zip(names, axes.flat, strict=False)):
        low, high = losses[i].min(axis=1), losses[i].max(axis=1)
        ax.fill_between(rates, low, high, color=BLUE, alpha=0.25, linewidth=0, label="all seeds")
        ax.plot(rates, middle[i], color=BLUE, label="their median")
        if defaults[name]:
            style = {"color": BLACK, "linestyle": ":", "linewidth": 1, "label": "default rate"}
            ax.axvline(defaults[name], **style)
        tuned = np.bincount(found.chosen[i]).argmax()
        ax.plot(rates[tuned], middle[i, tuned], "o", color=GREEN, markersize=5, label="tuned rate")
        crosses = rates[found.diverged[i].any(axis=1)]
        top = {"transform": ax.get_xaxis_transform(), "clip_on": False, "in_layout": False}
        style = {"color": ORANGE, "markersize": 4, "label": "a seed diverged"}
        ax.plot(crosses, np.ones(len(crosses)), "x", **style, **top)
        ax.set_title(name, fontsize=10)
        ax.set(xscale="log", yscale="log")
    for ax in axes.flat[max(len(names) - columns, 0) : len(names)]:
        ax.set_xlabel("learning rate")
    figure.supylabel("final loss", fontsize=10)
    figure.suptitle(f"{problem.title}: after {problem.steps} steps")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def draw_comparison(problem: Problem, found: Comparison) -> plt.Figure:
    """Draw the intervals of all optimizers, and how often each is near the best of a seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    plot.intervals(found, ax=left)
    left.set(title="Interquartile mean, 95 % interval", xscale="log")
    plot.profiles(found, np.geomspace(1, 1e4, 400), ax=right)
    right.set(title="Performance profiles", xticks=10.0 ** np.arange(5))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.suptitle(f"{problem.title}: after {problem.steps} steps at the tuned rates")
    return figure


def enter(paths: list[str]) -> Entrants:
    """Return the optimizers of the race, and those that the user adds as module:factory."""
    entrants = dict(OPTIMIZERS)
    for path in paths:
        name = path.partition(":")[2]
        entrants[path if name in entrants else name] = import_factory(path), None
    return entrants


def study(
    problem: Problem, entrants: Entrants, rates: np.ndarray, keys: jax.Array
) -> tuple[Comparison, dict[str, plt.Figure]]:
    """Race on one problem and print the comparison; return it and its pictures."""
    factories = {name: factory for name, (factory, _) in entrants.items()}
    defaults = {name: default for name, (_, default) in entrants.items()}
    began = time.perf_counter()
    table = race(problem, factories, rates, keys)
    seconds = time.perf_counter() - began
    found = compare(table, over="optimizer", tune="lr")
    runs = table.values[..., 0].size
    print(f"{problem.title}: {runs} runs of {problem.steps} steps in {seconds:.1f} s\n")
    found.table()
    print(flush=True)
    return found, {
        "rates": draw_rates(problem, table, found, defaults),
        "comparison": draw_comparison(problem, found),
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
    option("--rates", type=int, default=13, help="number of rates, 1e-5 to 10 (default: 13)")
    option("--seeds", type=int, default=10, help="runs at every rate (default: 10)")

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
        rates = np.geomspace(LOWEST, HIGHEST, arguments.rates)
        draw, rest = jax.random.split(jax.random.key(arguments.seed))
        keys = jax.random.split(rest, arguments.seeds)
        races, written = {}, []
        for name in chosen:
            problem = PROBLEMS[name](draw)
            problem = problem._replace(steps=arguments.steps or problem.steps)
            races[name], figures = study(problem, entrants, rates, keys)
            named = {f"{name}_{kind}": figure for kind, figure in figures.items()}
            written += _command.save(named, arguments.out)
        rank(races)
        _command.list_files(written)

    _command.run(parser, race_all)


if __name__ == "__main__":
    main()
