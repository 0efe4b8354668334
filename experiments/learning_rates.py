"""Compare learning rates that a range test suggests with a sweep, and sweeps with theory.

The range test of Smith 2015, `Cyclical Learning Rates for Training Neural Networks
<https://arxiv.org/abs/1506.01186>`_, raises the rate at every step until the loss explodes, and
fastai reads four suggestions off its curve. Here they are compared with a sweep that trains a
perceptron at every rate. Two more sweeps are compared with theory: where gradient descent and heavy
ball turn unstable on a quadratic, and the loss of a line at every rate.

A tenth of the rate at the minimum never failed: in the median it ends at 4 to 5 times the least
loss with SGD and at 1 to 2 times with Adam, and at worst at 9 times. The valley is as safe, but
lies 8 to 40 times below the best rate. The steepest slope does better with SGD, at 1.5 to 2.4
times, and as well with Adam, but for some seeds it lies where nothing is learned. The slide moves
by one to four decades from seed to seed. All of this holds for each of four values of --seed. Every
edge is where theory puts it, and the line's losses agree with theory to 12 digits.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import _command, _learning_rates
from experiments._learning_rates import (
    EIGENVALUES,
    LESSON,
    LOST,
    MOMENTA,
    OPTIMIZERS,
    RULES,
    STABLE,
    TESTED,
    Lesson,
    bracket,
    contractions,
    finals,
    lesson,
    nearest,
    range_tests,
    suggestions,
)
from jaxfit.analysis._range_test import smoothed, stop
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

STYLES = {  # a marker and a colour for each of the rules
    "valley": ("o", ORANGE),
    "slide": ("s", GREEN),
    "minimum": ("^", "#CC79A7"),
    "steep": ("D", "#E69F00"),
}


def study_digits(
    train: Any, keys: jax.Array, rates: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Print what range tests suggest and how good it is; return their losses and the sweep's."""
    tests, found = range_tests(train, keys), finals(train, keys, rates, steps)
    widths = _learning_rates.WIDTHS
    print(f"A perceptron of widths {widths} on {len(train[1])} digits, {steps} steps at each of")
    print(f"{len(rates)} rates, {len(keys)} seeds; a range test of {len(TESTED)} steps per seed.")
    for name, curves, ends in zip(OPTIMIZERS, tests, found, strict=True):
        median = np.median(ends, axis=0)
        learned = rates[(ends < LOST).all(axis=0)].max(initial=0)
        print(f"\n{name}: best at rate {rates[median.argmin()]:.3g}, to a median loss of", end=" ")
        print(f"{median.min():.4f}; up to {learned:.3g} every seed learns.")
        print("  suggestion      rate   least … most        loss there, over the best   worst")
        suggested = [suggestions(losses) for losses in curves]
        for rule in RULES:
            every = np.array([one[rule] for one in suggested])
            worth = median[nearest(rates, every)] / median.min()
            reach = f"{every.min():.2g} … {every.max():.2g}"
            print(f"  {rule:10} {np.median(every):9.3g}   {reach:16}", end="")
            print(f"{np.median(worth):30.1f} {worth.max():7.1f}")
    return tests, found


def study_edge(key: jax.Array) -> np.ndarray:
    """Print where momentum turns unstable, beside theory; return the contractions."""
    found = contractions(EIGENVALUES, key)
    print(f"\nA quadratic with eigenvalues from {EIGENVALUES[0]:g} to {EIGENVALUES[-1]:g}:")
    print("  momentum β   converges   2 (1 + β) / λmax   diverges")
    edges, inside = 2 * (1 + MOMENTA) / EIGENVALUES[-1], 0
    for number, (momentum, edge) in enumerate(zip(MOMENTA, edges, strict=True)):
        last, first = bracket(found[number] < 1, STABLE)
        inside += last < edge < first
        if number % 12 == 0:
            print(f"  {momentum:10.2f} {last:11.4f} {edge:18.4f} {first:10.4f}")
    print(f"  theory lies between two neighbours at {inside} of {len(MOMENTA)} momenta")
    return found


def study_lesson(key: jax.Array) -> Lesson:
    """Print how far the lesson's losses are from theory; return losses and theory."""
    found = lesson(key)
    low, high = found.eigenvalues
    early, late = found.losses
    last, first = bracket(
        late <= early * (1 + 1e-12), LESSON
    )  # at the least loss, both are rounded
    print(f"\nThe lesson at {len(LESSON)} rates, with eigenvalues {low:.4f} and {high:.4f}:")
    print(f"  converges at {last:.3f}, edge in theory {2 / high:.4f}, diverges at {first:.3f}")
    at = LESSON[early.argmin()], LESSON[found.theory[0].argmin()]
    print("  best after 10 steps {:.3f}, in theory {:.3f},".format(*at), end=" ")
    print(f"in the long run {2 / (low + high):.4f}")
    deviation = np.abs(found.losses / (found.least + found.theory) - 1).max()
    print(f"  largest relative deviation of a loss from theory {deviation:.1e}")
    return found


def draw_digits(tests: np.ndarray, found: np.ndarray, rates: np.ndarray, steps: int) -> plt.Figure:
    """Draw the first seed's range tests above the sweeps of all seeds."""
    shared = {"sharex": True, "sharey": "row", "layout": "constrained"}
    figure, panels = plt.subplots(2, len(OPTIMIZERS), figsize=(11, 7), **shared)
    columns = zip(panels.T, OPTIMIZERS, tests, found, strict=True)
    for (top, bottom), name, (losses, *_), ends in columns:
        smooth, median = smoothed(losses), np.median(ends, axis=0)
        kept = slice(stop(smooth) + 1)
        top.plot(TESTED[kept], losses[kept], color=BLUE, alpha=0.35, label="of a batch")
        top.plot(TESTED[kept], smooth[kept], color=BLUE, label="smoothed")
        bottom.fill_between(rates, ends.min(axis=0), ends.max(axis=0), color=BLUE, alpha=0.2)
        bottom.plot(rates, median, color=BLUE, label=f"median and range of {len(ends)} seeds")
        for rule, rate in suggestions(losses).items():
            marker, colour = STYLES[rule]
            place = nearest(rates, np.array(rate))
            style = {"color": colour, "markeredgecolor": BLACK, "markersize": 8, "linestyle": ""}
            top.plot(rate, np.interp(rate, TESTED, smooth), marker, label=rule, **style)
            bottom.plot(rates[place], median[place], marker, **style)
            for ax in (top, bottom):
                ax.axvline(rate, color=colour, linewidth=0.8, zorder=0)
        best = median.argmin()
        ring = {"color": BLACK, "markerfacecolor": "none", "linestyle": "", "label": "best rate"}
        bottom.plot(rates[best], median[best], "o", markersize=14, **ring)
        lost = (np.arange(len(rates)) > best) & (ends >= LOST).any(axis=0)
        place = {"transform": bottom.get_xaxis_transform(), "clip_on": False}
        style = {"color": BLACK, "markersize": 4, "linestyle": "", "label": "a seed does not learn"}
        bottom.plot(rates[lost], np.full(lost.sum(), 0.97), "x", **style, **place)
        top.set(title=f"{name}: a range test of {len(TESTED)} steps", xscale="log")
        bottom.set(title=f"{name}: {steps} steps at every rate", yscale="log")
        bottom.set_xlabel("learning rate")
    panels[0, 0].set_ylabel("loss, nats")
    panels[1, 0].set_ylabel("training loss at the end, nats")
    panels[0, 0].set_ylim(0, 2 * np.log(10))
    panels[0, 0].legend(loc="lower left")
    panels[1, 0].legend(loc="lower left")
    return figure


def draw_theory(found: np.ndarray, line: Lesson) -> plt.Figure:
    """Draw the lesson's sweep with its theory, and a quadratic's contraction with its edge."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    low, high = line.eigenvalues
    for number, (steps, colour) in enumerate([(10, ORANGE), (100, BLUE)]):
        theory, measured = line.theory[number], line.losses[number] - line.least
        left.plot(LESSON, theory, color=colour, linewidth=1, label=f"theory, {steps} steps")
        left.plot(LESSON, measured, ".", color=colour, markersize=4, label="measured")
    left.axvline(2 / high, color=BLACK, linestyle="--", linewidth=1, label="edge, 2 / λmax")
    best = 2 / (low + high)
    left.axvline(best, color=BLACK, linestyle=":", linewidth=1, label="best, 2 / (λmin + λmax)")
    left.set(title="The lesson: a line through 100 points", yscale="log")
    left.set(xlabel="learning rate", ylabel="mean squared error above the least")
    left.set_ylim(1e-18, 1e15)
    left.legend(loc="upper left")

    colours = {"cmap": "RdBu_r", "vmin": 0.8, "vmax": 1.2, "shading": "nearest"}
    image = right.pcolormesh(MOMENTA, STABLE, found.T.clip(max=2), **colours)
    figure.colorbar(image, label="distance to the minimum, factor per step", extend="both")
    edge = 2 * (1 + MOMENTA) / EIGENVALUES[-1]
    right.plot(MOMENTA, edge, color=BLACK, label="edge, 2 (1 + β) / λmax")
    small, large = np.sqrt(EIGENVALUES[[0, -1]])
    best = ((large - small) / (large + small)) ** 2, 4 / (small + large) ** 2
    right.plot(*best, "*", color=BLACK, markersize=12, linestyle="", label="best, by theory")
    right.set(title="A quadratic: gradient descent and heavy ball", yscale="log")
    right.set(xlabel="momentum β", ylabel="learning rate")
    right.legend(loc="lower left")
    return figure


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("learning_rates", __doc__)
    option = parser.add_argument
    option("--steps", type=int, default=300, help="steps at every rate (default: 300)")
    option("--rates", type=int, default=97, help="number of rates, 1e-7 to 10 (default: 97)")
    option("--seeds", type=int, default=9, help="number of seeds (default: 9)")

    def study(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, 10, 10_000)
        _command.check_range("rates", arguments.rates, 2, 1000)
        _command.check_range("seeds", arguments.seeds, 1, 100)
        key = jax.random.key(arguments.seed)
        split, seeds, turn = jax.random.split(key, 3)
        rates = np.geomspace(TESTED[0], TESTED[-1], arguments.rates)
        train, _ = _command.split_digits(split)
        keys = jax.random.split(seeds, arguments.seeds)
        digits = study_digits(train, keys, rates, arguments.steps)
        edge, line = study_edge(turn), study_lesson(key)
        figures = {
            "digits": draw_digits(*digits, rates, arguments.steps),
            "theory": draw_theory(edge, line),
        }
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, study)


if __name__ == "__main__":
    main()
