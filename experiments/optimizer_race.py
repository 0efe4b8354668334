"""Sixteen optimizers on four problems: tuned, at their default rates, and how much tuning matters.

Every optimizer runs at every rate of a grid from several starts. A seed is judged at the rate that
the other seeds choose, so that none is tuned on what it reports. A run that diverged, or ended
above its start, counts as its start; the sensitivity to the rate is then that of Wortsman et al.
2023, `Small-scale proxies for large-scale Transformer training instabilities
<https://arxiv.org/abs/2309.14322>`_: the mean loss over all rates above the least.

Tuned, momentum or Nesterov's leads on the quadratic, the logistic regression and the digits;
through Rosenbrock's valley Adam, AdaBelief and Yogi are as fast or faster, and do not, as momentum
does, diverge at more than half of the rates. AdaBelief minds the rate least, but for the logistic
regression. Within these few steps all default rates are too small or too large, except NovoGrad's
on the two convex problems. Places close to each other mean nothing: on the digits, AdamW with a
decay of 0.0001, which is nearly Adam, comes before it or behind it, by up to four places, as the
seed and the version of JAX will have it.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.scipy.stats import rankdata
from matplotlib.axes import Axes

import jaxfit
from experiments import _command
from experiments.digits import divided, needed
from jaxfit.losses import binary_cross_entropy, cross_entropy, l2, objective
from jaxfit.models import linear, mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

Factory = Callable[[Any], Any]  # from a learning rate to an optimizer
Defaults = dict[str, float | None]  # rates, where there are any
LOWEST, HIGHEST = 1e-5, 10.0  # of the rates
ROWS, RESAMPLES = 50, 4000  # recorded of a run at most; of a bootstrap

# Each with its default rate in the paper, its authors' code, Keras or PyTorch; optax has none.
OPTIMIZERS: dict[str, tuple[Factory, float | None]] = {
    "sgd": (optax.sgd, 1e-2),
    "momentum": (lambda lr: optax.sgd(lr, 0.9), 1e-2),
    "nesterov": (lambda lr: optax.sgd(lr, 0.9, nesterov=True), 1e-2),
    "adagrad": (optax.adagrad, 1e-2),
    "rmsprop": (optax.rmsprop, 1e-3),
    "adam": (optax.adam, 1e-3),
    "amsgrad": (optax.amsgrad, 1e-3),
    "nadam": (optax.nadam, 2e-3),
    "radam": (optax.radam, 1e-3),
    "adamw": (optax.adamw, 1e-3),
    "adabelief": (optax.adabelief, 1e-3),
    "yogi": (optax.yogi, 1e-2),
    "adan": (optax.adan, 1e-3),
    "lamb": (optax.lamb, 1e-3),
    "novograd": (optax.novograd, 1e-2),
    "lion": (optax.lion, 1e-4),
}


class Problem(NamedTuple):
    """What is minimised; no loss is below zero by more than rounding."""

    title: str
    init: Callable[[jax.Array], Any]  # draws a start
    loss: Callable[[Any, Any], jax.Array]
    data: Any
    batch_size: int | None  # None: every step sees all data
    steps: int
    target: float  # a loss to reach


def quadratic(key: jax.Array) -> Problem:
    """A bowl whose axes, turned at random, have curvatures from 0.001 to 1."""
    rotation = jax.random.orthogonal(key, 100)
    return Problem(
        "Quadratic, 100 dimensions, condition number 1000",
        lambda key: jax.random.normal(key, (100,)),
        lambda a, roots: jnp.sum((roots @ a) ** 2) / 2,
        jnp.sqrt(jnp.geomspace(1e-3, 1, 100))[:, None] * rotation,
        None,
        300,
        1e-2,
    )


def rosenbrock(key: jax.Array) -> Problem:
    """The bent valley, from places about the usual start."""
    return Problem(
        "Rosenbrock's valley",
        lambda key: jnp.array([-1.2, 1.0]) + 0.2 * jax.random.normal(key, (2,)),
        lambda a, weights: weights @ jnp.array([1 - a[0], a[1] - a[0] ** 2]) ** 2,
        jnp.array([1.0, 100.0]),
        None,
        1000,
        1e-3,
    )


def logistic(key: jax.Array) -> Problem:
    """Penalised logistic regression on scikit-learn's tumours, above its optimum."""
    x, y = needed("sklearn.datasets", "scikit-learn").load_breast_cancer(return_X_y=True)
    x, _, _ = jaxfit.data.standardize(jnp.asarray(x, jnp.float32))
    data = jnp.column_stack([x, jnp.ones(len(x))]), jnp.asarray(y, jnp.float32)

    def penalised(a, batch):
        return objective(linear, binary_cross_entropy)(a, batch) + 0.01 * l2(a[:-1])

    best = jaxfit.train(penalised, jnp.zeros(31), optax.lbfgs(), 50, data=data).state.params
    least = penalised(best, data)
    return Problem(
        "Logistic regression above its optimum, 569 tumours, minibatches of 32",
        lambda key: jax.random.normal(key, (31,)),
        lambda a, batch: penalised(a, batch) - least,
        data,
        32,
        500,
        1e-2,
    )


def digits(key: jax.Array) -> Problem:
    """A perceptron on the training images of scikit-learn's handwritten digits."""
    return Problem(
        "MLP 64-32-10, 1438 digits, minibatches of 64",
        lambda key: mlp_init(key, (64, 32, 10)),
        objective(mlp, cross_entropy),
        divided(key)[0],
        64,
        500,
        0.05,
    )


PROBLEMS = {one.__name__: one for one in (quadratic, rosenbrock, logistic, digits)}


def race(
    problem: Problem, factories: dict[str, Factory], rates: np.ndarray, keys: jax.Array
) -> jaxfit.Sweep:
    """The losses on all data of every run: [optimizers, rates, seeds, rows], the last row final."""
    loss, data = problem.loss, problem.data

    def losses(optimizer, lr, key):
        start, order = jax.random.split(key)
        seen = data
        if problem.batch_size is not None:
            seen = jaxfit.minibatches(data, problem.batch_size, order)
        run = jaxfit.train(
            loss,
            problem.init(start),
            optimizer(lr),
            problem.steps,
            data=seen,
            record=lambda step: loss(step.params, data),
            record_every=every(problem.steps),
        )
        return jnp.append(run.trajectory, loss(run.state.params, data))

    return jaxfit.sweep(losses, {"optimizer": factories, "lr": rates, "key": keys}, progress=True)


def every(steps: int) -> int:
    """The steps from row to row."""
    return -(-steps // ROWS)


def row_steps(steps: int) -> np.ndarray:
    """The steps before each of the rows."""
    return np.append(np.arange(0, steps, every(steps)), steps)


def capped(curves: np.ndarray) -> np.ndarray:
    """Losses [..., rows], none above that of its start; a diverged run's count as that."""
    return np.fmin(curves, curves[..., :1])


def tuned(final: np.ndarray) -> np.ndarray:
    """The rate at which each seed is judged, as an index into final [rates, seeds]: [seeds].

    It has the lowest median over the other seeds: none has a say in its own.
    """
    seeds = range(final.shape[1])
    return np.array([np.median(np.delete(final, one, 1), axis=1).argmin() for one in seeds])


def sensitivity(final: np.ndarray) -> np.ndarray:
    """The mean over the rates of capped losses [rates, seeds], above the least of them: [seeds]."""
    return final.mean(axis=0) - final.min(axis=0)


def interval(values: np.ndarray) -> np.ndarray:
    """95 % limits of the median over the last axis, by the percentile bootstrap: [2, …]."""
    n = values.shape[-1]
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    return np.quantile(np.median(values[..., drawn], axis=-1), [0.025, 0.975], axis=-1)


def tied(values: np.ndarray) -> np.ndarray:
    """Which rows of [optimizers, seeds] cannot be told from the one with the lowest median.

    The interval of the median difference to it, seed by seed, is not all above zero.
    """
    low, _ = interval(values - values[np.median(values, axis=1).argmin()])
    return low <= 0


class Result(NamedTuple):
    """How one optimizer did on one problem; all losses are `capped`."""

    swept: np.ndarray  # final, [rates, seeds]
    diverged: np.ndarray  # which of these ended no lower than they began
    rate: float  # with the lowest median of all seeds
    curves: np.ndarray  # at the rates that `tuned` finds, [seeds, rows]
    default: np.ndarray | None  # final, at the default rate, [seeds]

    @property
    def final(self) -> np.ndarray:
        """At the rates that `tuned` finds: [seeds]."""
        return self.curves[:, -1]


def judge(table: jaxfit.Sweep, rates: int, defaults: Defaults) -> dict[str, Result]:
    """What the losses say of each optimizer; the grid is the first so many rates."""
    results = {}
    for name, default in defaults.items():
        curves = capped(table.sel(optimizer=name).values[:rates])
        final = curves[..., -1]
        results[name] = Result(
            final,
            final == curves[..., 0],
            float(table.axes["lr"][np.median(final, axis=1).argmin()]),
            curves[tuned(final), np.arange(final.shape[1])],
            capped(table.sel(optimizer=name, lr=default).values)[:, -1] if default else None,
        )
    return results


def level(results: dict[str, Result]) -> dict[str, bool]:
    """Which optimizers are tied with the best."""
    return dict(zip(results, tied(np.array([one.final for one in results.values()])), strict=True))


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
    """Print the places of all optimizers on all problems, the best on average first."""
    medians = [[np.median(one.final) for one in results.values()] for results in races.values()]
    places = np.asarray(rankdata(jnp.array(medians), "min", axis=1), int)
    best = [level(results) for results in races.values()]
    print("Places by the median at the tuned rate; = cannot be told from the first:\n")
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
    """A panel for each optimizer's [x, seeds], with the medians of the others behind it."""
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
    """The final loss against the rate."""

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
    """The loss on the way, at the tuned rates."""

    def mark(ax, name):
        ax.axhline(problem.target, color=ORANGE, linestyle="--", linewidth=1, label="target")

    curves = {name: one.curves.T for name, one in results.items()}
    title, steps = f"{problem.title}: at the tuned rates", row_steps(problem.steps)
    return multiples(title, steps, curves, mark, "step", "loss")


def imported(path: str) -> Factory:
    """A factory of optimizers by its name, module:factory, after a step on trial."""
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
        step = lambda lr: jaxfit.train(lambda a: a @ a, jnp.ones(2), factory(lr), 1).state.params
        jax.eval_shape(step, 0.1)
    except Exception as error:  # the code is the user's
        said = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"--optimizer {path} makes no optimizer of a rate: {said}.") from error
    return factory


def main() -> None:
    parser = _command.parser("optimizer_race", __doc__)
    option = parser.add_argument
    option("--problem", action="append", metavar="NAME", help=f"some of {', '.join(PROBLEMS)}")
    option(
        "--optimizer",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help="one more, as a function from a rate to an optimizer; can be given again",
    )
    option("--steps", type=int, help="of every run, default 300 to 1000")
    option("--rates", type=int, default=32, help="from 1e-5 to 10, default 32")
    option("--seeds", type=int, default=8, help="of every rate, default 8")

    def race_all(arguments: argparse.Namespace) -> None:
        chosen = arguments.problem or list(PROBLEMS)
        for name in chosen:
            if name not in PROBLEMS:
                raise ValueError(f"--problem is {name}, but must be one of {', '.join(PROBLEMS)}.")
        if arguments.steps is not None:
            _command.between("steps", arguments.steps, 1, 1_000_000)
        _command.between("rates", arguments.rates, 1, 1000)
        _command.between("seeds", arguments.seeds, 2, 1000)
        entrants = dict(OPTIMIZERS)
        for path in arguments.optimizer:
            name = path.partition(":")[2]
            entrants[path if name in entrants else name] = imported(path), None
        factories = {name: factory for name, (factory, _) in entrants.items()}
        defaults = {name: default for name, (_, default) in entrants.items()}

        grid = np.geomspace(LOWEST, HIGHEST, arguments.rates)
        rates = np.append(grid, sorted({rate for rate in defaults.values() if rate}))
        draw, rest = jax.random.split(jax.random.key(arguments.seed))
        keys = jax.random.split(rest, arguments.seeds)
        races, written = {}, []
        for name in chosen:
            problem = PROBLEMS[name](draw)
            problem = problem._replace(steps=arguments.steps or problem.steps)
            began = time.perf_counter()
            table = race(problem, factories, rates, keys)
            seconds = time.perf_counter() - began
            results = races[name] = judge(table, len(grid), defaults)
            runs = table.values[..., 0].size
            print(f"{problem.title}: {runs} runs of {problem.steps} steps in {seconds:.1f} s\n")
            show(problem, results, defaults)
            print(flush=True)
            for kind, figure in (
                ("rates", draw_rates(problem, grid, results, defaults)),
                ("curves", draw_curves(problem, results)),
            ):
                written.append(arguments.out / f"{name}_{kind}.png")
                figure.savefig(written[-1], dpi=100)
        rank(races)
        print("\nWritten:")
        for path in written:
            _command.written(path)

    _command.run(parser, race_all)


if __name__ == "__main__":
    main()
