"""Learning rates: one run that finds a good one, beside all of them, and theory beside a sweep.

The range test of Smith 2015, `Cyclical Learning Rates for Training Neural Networks
<https://arxiv.org/abs/1506.01186>`_, raises the rate at every step until the loss explodes, and
fastai reads four suggestions off its curve. Here they are held against a sweep that trains a
perceptron at every rate; and two more sweeps against theory: where gradient descent and heavy ball
turn unstable on a quadratic, and the loss of a line at every rate.

A tenth of the rate at the minimum never failed: it ends at 4 to 5 times the least loss with SGD and
at 1 to 2 times with Adam, in the median, and at 9 times at worst. The valley is as safe, but 8 to
40 times below the best rate. The steepest slope does better with SGD, at 1.5 to 2.4 times, and as
well with Adam, but for some seeds it lies where nothing is learned; the slide, from seed to seed,
moves by one to four decades. So it is for each of four values of --seed. Every edge is where
theory has it, and the line's losses are to 12 digits.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxfit
from experiments import _command
from experiments.digits import divided
from jaxfit.losses import cross_entropy, mse, objective
from jaxfit.models import linear, mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

WIDTHS, BATCH_SIZE = (64, 64, 10), 64
OPTIMIZERS = {"SGD": optax.sgd, "Adam": optax.adam}
TESTED = np.geomspace(1e-7, 10, 100)  # the rate at every step of a range test
LOST = np.log(10) / 2  # a run that ends above it has hardly learned: a guess costs log 10

EIGENVALUES = np.geomspace(0.1, 10, 10)
MOMENTA, STABLE = np.linspace(0, 0.95, 39), np.geomspace(0.02, 0.6, 120)
LESSON = np.linspace(0.005, 1.3, 256)
classification, regression = objective(mlp, cross_entropy), objective(linear, mse)


def fit(train: Any, optimizer: Any, key: jax.Array, steps: int) -> jaxfit.Run:
    """A perceptron from a start and on minibatches of its own, recording their losses."""
    start, order = jax.random.split(key)
    batches = jaxfit.minibatches(train, BATCH_SIZE, order)
    options = {"data": batches, "record": lambda step: step.loss}
    return jaxfit.train(classification, mlp_init(start, WIDTHS), optimizer, steps, **options)


def range_tests(train: Any, keys: jax.Array) -> np.ndarray:
    """The losses of batches while the rate grows from step to step: [optimizers, keys, steps]."""

    def losses(optimizer, key):
        schedule = lambda step: jnp.asarray(TESTED, jnp.float32)[step]
        return fit(train, optimizer(schedule), key, len(TESTED)).trajectory

    return jaxfit.sweep(losses, {"optimizer": OPTIMIZERS, "key": keys}).values


def finals(train: Any, keys: jax.Array, rates: np.ndarray, steps: int) -> np.ndarray:
    """The training loss after so many steps at each rate: [optimizers, keys, rates]."""

    def final(optimizer, key, rate):
        return classification(fit(train, optimizer(rate), key, steps).state.params, train)

    axes = {"optimizer": OPTIMIZERS, "key": keys, "rate": rates}
    return np.nan_to_num(jaxfit.sweep(final, axes).values, nan=np.inf, posinf=np.inf)


def smoothed(losses: np.ndarray, decay: float = 0.98) -> np.ndarray:
    """The mean of all losses so far, weighted by their age."""
    weights = decay ** -np.arange(len(losses))
    return np.cumsum(weights * losses) / np.cumsum(weights)


def stop(losses: np.ndarray) -> int:
    """The first step whose loss is above 4 times the best so far, or else the last."""
    exploded = ~(losses <= 4 * np.fmin.accumulate(losses))
    return int(np.argmax(exploded)) if exploded.any() else len(losses) - 1


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """Halfway down the longest decreasing subsequence, its length counted back from its end."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] += np.max(lengths[:i], where=losses[:i] > losses[i], initial=0)
    end, length = int(np.argmax(lengths)), int(np.max(lengths))
    # fastai's documentation says two thirds; a third and half a third is what it computes.
    return rates[max(0, end - length + length // 3 + length // 6)]


def slide(rates: np.ndarray, losses: np.ndarray, width: int = 15, least: float = 0.005) -> float:
    """Where an interval of steps, sliding down from the last, has slopes that differ at its end."""
    slopes = np.gradient(losses)
    differs = np.abs(slopes[width:] - slopes[:-width]) > least
    return rates[min(np.flatnonzero(~differs).max(initial=-1) + 1, len(differs) - 1)]


def minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate with the least loss."""
    return rates[np.argmin(losses)] / 10


def steep(rates: np.ndarray, losses: np.ndarray) -> float:
    """Where the loss falls most steeply with the logarithm of the rate."""
    return rates[np.argmin(np.diff(losses) / np.diff(np.log(rates)))]


RULES = {
    "valley": (valley, "o", ORANGE),
    "slide": (slide, "s", GREEN),
    "minimum": (minimum, "^", "#CC79A7"),
    "steep": (steep, "D", "#E69F00"),
}


def suggestions(losses: np.ndarray) -> dict[str, float]:
    """What fastai suggests after a range test: from all but its first tenth and last five steps."""
    losses = smoothed(losses)
    rows = slice(len(losses) // 10, stop(losses) + 1 - 5)
    return {name: rule(TESTED[rows], losses[rows]) for name, (rule, *_) in RULES.items()}


def nearest(rates: np.ndarray, rate: Any) -> Any:
    """The place of the nearest of some rates, by their ratio."""
    return np.abs(np.log(rates) - np.log(rate)[..., None]).argmin(axis=-1)


def contractions(eigenvalues: np.ndarray, key: jax.Array, steps: int = 1000) -> np.ndarray:
    """Distance to a quadratic's minimum, factor per step late in a run: [MOMENTA, STABLE]."""
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
    """The last rate that converges, and the next, the first that does not."""
    first = np.argmin(converges)
    return rates[first - 1], rates[first]


def excess(hessian: np.ndarray, away: np.ndarray, rates: np.ndarray, steps: int) -> np.ndarray:
    """How far above its least gradient descent leaves a quadratic, by theory: [rates]."""
    eigenvalues, vectors = np.linalg.eigh(hessian)
    factors = (1 - np.outer(rates, eigenvalues)) ** (2 * steps)
    return factors @ (eigenvalues * (vectors.T @ away) ** 2) / 2


class Lesson(NamedTuple):
    """The loss of a line after 10 and 100 steps at every rate of ``LESSON``."""

    losses: np.ndarray  # [2, rates]
    theory: np.ndarray  # [2, rates], above the least
    least: float
    eigenvalues: np.ndarray  # of the Hessian


def lesson(key: jax.Array) -> Lesson:
    """Gradient descent on the lesson's problem at every rate, and what theory says of it."""
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


def study_digits(
    train: Any, keys: jax.Array, rates: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Print what range tests suggest and what it is worth; their losses, and the sweep's."""
    tests, found = range_tests(train, keys), finals(train, keys, rates, steps)
    print(f"A perceptron of widths {WIDTHS} on {len(train[1])} digits, {steps} steps at each of")
    print(f"{len(rates)} rates, {len(keys)} seeds; range tests of {len(TESTED)} steps, one a seed.")
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
    """Print where momentum turns unstable beside theory; the contractions."""
    found = contractions(EIGENVALUES, key)
    print(f"\nA quadratic, its eigenvalues from {EIGENVALUES[0]:g} to {EIGENVALUES[-1]:g}:")
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
    """Print how far the lesson's losses are from theory; all of them."""
    found = lesson(key)
    low, high = found.eigenvalues
    early, late = found.losses
    last, first = bracket(late <= early * (1 + 1e-12), LESSON)  # at the least, both are rounded
    print(f"\nThe lesson at {len(LESSON)} rates, its eigenvalues {low:.4f} and {high:.4f}:")
    print(f"  converges at {last:.3f}, edge in theory {2 / high:.4f}, diverges at {first:.3f}")
    at = LESSON[early.argmin()], LESSON[found.theory[0].argmin()]
    print("  best after 10 steps {:.3f}, in theory {:.3f},".format(*at), end=" ")
    print(f"in the long run {2 / (low + high):.4f}")
    deviation = np.abs(found.losses / (found.least + found.theory) - 1).max()
    print(f"  largest relative deviation of a loss from theory {deviation:.1e}")
    return found


def draw_digits(tests: np.ndarray, found: np.ndarray, rates: np.ndarray, steps: int) -> plt.Figure:
    """The first seed's range tests, over the sweeps of all seeds."""
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
            _, marker, colour = RULES[rule]
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
    """The lesson's sweep on its theory, and the contraction of a quadratic with its edge."""
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
    parser = _command.parser("learning_rates", __doc__)
    parser.add_argument("--steps", type=int, default=300, help="at every rate, default 300")
    parser.add_argument("--rates", type=int, default=97, help="from 1e-7 to 10, default 97")
    parser.add_argument("--seeds", type=int, default=9, help="how many, default 9")

    def study(arguments: argparse.Namespace) -> None:
        _command.between("steps", arguments.steps, 10, 10_000)
        _command.between("rates", arguments.rates, 2, 1000)
        _command.between("seeds", arguments.seeds, 1, 100)
        key = jax.random.key(arguments.seed)
        split, seeds, turn = jax.random.split(key, 3)
        rates = np.geomspace(TESTED[0], TESTED[-1], arguments.rates)
        train, _ = divided(split)
        keys = jax.random.split(seeds, arguments.seeds)
        digits = study_digits(train, keys, rates, arguments.steps)
        edge, line = study_edge(turn), study_lesson(key)
        print("\nWritten:")
        for name, figure in (
            ("digits", draw_digits(*digits, rates, arguments.steps)),
            ("theory", draw_theory(edge, line)),
        ):
            path = arguments.out / f"{name}.png"
            figure.savefig(path, dpi=100)
            _command.written(path)

    _command.run(parser, study)


if __name__ == "__main__":
    main()
