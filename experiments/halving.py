"""Compare successive halving with the full grid: the same learning rate for a part of the steps.

Two problems are trained by SGD at every rate of a grid and from several seeds: a perceptron on the
handwritten digits, and logistic regression on scikit-learn's breast cancer data, standardised.
``jaxfit.halving`` trains the same runs, lets two thirds of the rates go after a 27th, a ninth and a
third of the steps, and judges by the mean held-out loss of the seeds; so does Hyperband, which
shares the rates among races that begin later (Li et al. 2018, `Hyperband: A Novel Bandit-Based
Approach to Hyperparameter Optimization <https://jmlr.org/papers/v18/16-558.html>`_).

On the digits both choose the grid's rate, for 11 % and 28 % of its steps. On the cancer data the
best rate after a few steps is not the best in the end, since large rates overfit later: halving
chooses one six times too large, and ends at 0.141 for 0.097, while Hyperband, which happens to have
the best among those that begin later, is 1 % off. All survivors have the bits of the runs alone.
(Of --seed 0.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxfit
from experiments import _command
from experiments.forks import same_bits
from jaxfit.losses import binary_cross_entropy, cross_entropy, objective
from jaxfit.models import linear, mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

WIDTHS, BATCH_SIZE, KEEP = (64, 32, 10), 32, 3
MARKS = {BLUE: "v", ORANGE: "s", "#CC79A7": "D", GREEN: "^"}  # of the rungs, first to last


class Problem(NamedTuple):
    """Hold what is trained, and the data: ``(x, y)`` to train on, and held out."""

    loss: Callable[..., jax.Array]
    start: Callable[[jax.Array], Any]  # from a key
    train: Any
    held_out: Any


class Found(NamedTuple):
    """Hold the held-out losses of the grid, and the races by name."""

    grid: jaxfit.Sweep  # state and loss [rates, seeds]
    races: Mapping[str, jaxfit.Sweep]


def problems(key: jax.Array) -> dict[str, Problem]:
    """Return the two problems, each with a fifth of its data held out."""
    one, other = jax.random.split(key)
    x, y = _command.require("sklearn.datasets", "scikit-learn").load_breast_cancer(return_X_y=True)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    (x, y), (z, w) = jaxfit.data.train_test_split(data, 0.2, other)
    x, mean, deviation = jaxfit.data.standardize(x)
    x, z = (jnp.column_stack([part, jnp.ones(len(part))]) for part in (x, (z - mean) / deviation))
    zero = lambda _: jnp.zeros(x.shape[1])
    start = lambda key: mlp_init(key, WIDTHS)
    digits = Problem(objective(mlp, cross_entropy), start, *_command.split_digits(one))
    logistic = Problem(objective(linear, binary_cross_entropy), zero, (x, y), (z, w))
    return {"digits": digits, "breast cancer": logistic}


def go_on(problem: Problem, state: Any, num_steps: int, rate: Any, key: Any) -> tuple[Any, Any]:
    """Take a number of steps from a state, or from the start; return it and the held-out loss."""
    start, order = jax.random.split(key)
    batches = jaxfit.minibatches(problem.train, BATCH_SIZE, order)
    state = problem.start(start) if state is None else state
    options = {"data": batches, "record": lambda step: step.loss}
    state = jaxfit.train(problem.loss, state, optax.sgd(rate), num_steps, **options).state
    return state, problem.loss(state.params, problem.held_out)


def search(problem: Problem, rates: np.ndarray, keys: jax.Array, steps: int) -> Found:
    """Train at all rates, and let halving and Hyperband choose; all bits are those of lone runs."""
    axes = {"rate": rates, "key": keys}
    alone = lambda rate, key: go_on(problem, None, steps, rate, key)
    grid = jaxfit.sweep(alone, axes, batch_size=1)
    leg = lambda state, num_steps, rate, key: go_on(problem, state, num_steps, rate, key)
    options = {"keep": KEEP, "over": "key", "batch_size": 1}
    halved = jaxfit.halving(leg, axes, steps, **options)
    rungs = halved.values["scores"].shape[-1]
    hyperband = jaxfit.halving(leg, axes, steps, brackets=rungs, **options)
    return Found(grid, {"halving": halved, "Hyperband": hyperband})


def report(name: str, found: Found, steps: int) -> None:
    """Print the winners beside that of the grid, and check a survivor's bits."""
    rates, losses = found.grid.axes["rate"], found.grid.values[1]
    mean = losses.mean(axis=1)
    grid = int(np.nanargmin(mean))
    whole = losses.size * steps
    print(f"{name}: {len(rates)} rates, {losses.shape[1]} seeds, {steps} steps each\n")
    print(f"{'':10}  best rate  held-out loss  worse than the grid's    steps  of the grid's")
    print(f"{'grid':10}{rates[grid]:11.4g}{mean[grid]:15.4f}{'':23}{whole:9,}")
    for title, race in found.races.items():
        chosen = int(np.nanargmin(race.values["score"].mean(axis=1)))
        apart = losses[chosen] - losses[grid]  # seed by seed
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        taken = int(race.values["steps"].sum())
        difference = f"{apart.mean():.4f} ± {error:.4f}"
        print(
            f"{title:10}{rates[chosen]:11.4g}{mean[chosen]:15.4f}{difference:>23}"
            f"{taken:9,}{taken / whole:16.1%}"
        )
        states = race.values["state"], found.grid.values[0]
        same = same_bits(*(jax.tree.map(lambda leaf, i=chosen: leaf[i], one) for one in states))
        print(f"{'':10}  its runs have the bits of the runs alone: {'yes' if same else 'NO'}")
    print()


def draw(name: str, found: Found, ax: plt.Axes) -> None:
    """Draw the loss of every rate at the end, and where halving let it go."""
    rates, losses = found.grid.axes["rate"], found.grid.values[1]
    finite = np.where(np.isfinite(losses), losses, np.nan)
    ax.fill_between(rates, finite.min(1), finite.max(1), color=BLACK, alpha=0.15, linewidth=0)
    ax.plot(rates, finite.mean(1), color=BLACK, label="the grid: mean and range of seeds")
    scores = found.races["halving"].values["scores"].mean(axis=1)
    rung = found.races["halving"].values["rung"].max(axis=1)
    for number, (colour, mark) in zip(range(scores.shape[1]), MARKS.items(), strict=False):
        left = rung == number
        label = f"halving, let go on rung {number + 1}"
        if number == scores.shape[1] - 1:
            label = "halving, trained to the end"
        style = {"color": colour, "linestyle": "none", "markersize": 5, "label": label}
        ax.plot(rates[left], scores[left, number], mark, **style)
    ax.set(title=name, xlabel="learning rate", xscale="log", yscale="log")


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("halving", __doc__)
    parser.add_argument("--steps", type=int, default=540, help="of a run to its end (540)")
    parser.add_argument("--rates", type=int, default=27, help="how many there are (27)")
    parser.add_argument("--seeds", type=int, default=5, help="of each rate (5)")

    def study(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, 27, 10**6)
        _command.check_range("rates", arguments.rates, 9, 1000)
        _command.check_range("seeds", arguments.seeds, 2, 1000)
        rates = np.geomspace(1e-3, 10, arguments.rates).astype(np.float32)
        data, seeds = jax.random.split(jax.random.key(arguments.seed))
        keys = jax.random.split(seeds, arguments.seeds)
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
        for (name, problem), ax in zip(problems(data).items(), axes, strict=True):
            found = search(problem, rates, keys, arguments.steps)
            report(name, found, arguments.steps)
            draw(name, found, ax)
        axes[0].set_ylabel("held-out loss")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
        _command.list_files(_command.save({"rates": figure}, arguments.out))

    _command.run(parser, study)


if __name__ == "__main__":
    main()
