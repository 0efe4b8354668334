"""Fork a run early and late, and measure how far each change leads away from it.

A perceptron learns handwritten digits at a constant rate. Forks leave its run at several steps and
go on with another order of the data, another rate, smaller batches or momentum. After a fixed
number of steps, each is compared with the run itself: by training loss and test accuracy, by
distance, and by the barrier of the loss on the straight line between the two, as in Frankle et al.
2020, `Linear Mode Connectivity and the Lottery Ticket Hypothesis
<https://arxiv.org/abs/1912.05671>`_.

As in that paper, another order of the data leads behind a barrier if it starts within the first
steps; a later start stays in the valley of the run, and so do half the rate and momentum. Twice the
rate and smaller batches leave the valley from any step. This holds for most seeds, not for all.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxfit
from experiments import _command
from jaxfit import analysis
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

WIDTHS, RATE, SEEDS = (64, 32, 32, 32, 10), 0.25, 9
FORKED = (0, 0.01, 0.05, 0.2, 0.5, 1)  # where forks begin, as fractions of their length
ROWS = 100  # the least number of rows that a fork records
PLACES = 25  # points on the line between two ends
loss = objective(mlp, cross_entropy)


class Kind(NamedTuple):
    """Describe how a fork differs from the run, and how it is drawn."""

    style: str
    colour: str
    rate: float = 1.0  # a multiple of the run's
    momentum: float | None = None
    batch_size: int = 64
    reordered: bool = False


CONTROL = Kind("", BLACK)
KINDS = {
    "other order": Kind("o-", BLUE, reordered=True),
    "half the rate": Kind("v-", GREEN, rate=0.5),
    "twice the rate": Kind("^-", ORANGE, rate=2.0),
    "batches of 16": Kind("s-", "#CC79A7", batch_size=16),
    # At a tenth of the rate, because momentum makes every gradient count ten times.
    "momentum 0.9": Kind("D-", "#E69F00", rate=0.1, momentum=0.9),
}


class Fork(NamedTuple):
    """Hold a fork's comparison with its run; over many seeds, with a leading axis [seeds]."""

    loss: Any  # on the training images, the fork's minus the run's
    accuracy: Any  # on the test images, the fork's minus the run's
    distance: Any  # between their ends, relative to how far the run went since the fork
    barrier: Any
    line: Any  # [places], the training loss from the run's end to the fork's
    curve: Any  # [rows], the training loss along the fork


Forks = dict[tuple[int, str], Fork]  # by step and kind


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def go_on(
    state: jaxfit.State, batches: Any, rate: float, momentum: float | None, steps: int, every: int
) -> jaxfit.Run:
    """Take a number of steps by SGD from a state, whatever optimizer it comes from."""
    optimizer = optax.sgd(rate, momentum)
    state = jaxfit.fork(state, optimizer)
    record = lambda step: loss(step.params, batches.arrays)
    options = {"record": record, "record_every": every, "keyframe_every": 10 * every}
    return jaxfit.train(loss, state, optimizer, steps, data=batches, **options)


@jax.jit
def state_at(run: jaxfit.Run, batches: Any, rate: float, step: int) -> jaxfit.State:
    """Return the state of ``replay(…, step, step)``, by one program for all steps."""
    return jaxfit.at(loss, run, optax.sgd(rate), step, data=batches).state


def distance(one: Any, other: Any) -> jax.Array:
    """Return the Euclidean distance between two trees of parameters."""
    return optax.tree.norm(optax.tree.sub(one, other))


@jax.jit
def compare(start: Any, end: Any, forked: Any, images: tuple[Any, Any]) -> tuple[jax.Array, ...]:
    """Compare the ends of a run and of its fork: return a `Fork` without its curve."""
    train, (x, y) = images
    between = analysis.line(loss, end, forked, data=train, num=PLACES)
    gained = accuracy(mlp(forked, x), y) - accuracy(mlp(end, x), y)
    relative = distance(end, forked) / distance(start, end)
    rise = between.loss[-1] - between.loss[0]
    found = rise, gained, relative, between.barrier, between.loss
    # A NaN comes from an infinite value, and a median can only count it as one.
    return jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), jnp.inf, leaf), found)


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two trees of arrays are the same to the last bit."""
    one, other = jax.device_get((one, other))
    return jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), one, other))


def study(images: tuple[Any, Any], steps: int, key: jax.Array) -> tuple[Forks, np.ndarray]:
    """Make runs and forks, print how far apart they are; return forks and the runs' losses."""
    train, (x, y) = images
    every, firsts = steps // ROWS, [round(part * steps) for part in FORKED]
    found: dict[tuple[int, str], list[Fork]] = {}
    curves, ends, exact = [], [], 0
    for init, *orders in jax.random.split(key, (SEEDS, 3)):
        batches = jaxfit.minibatches(train, CONTROL.batch_size, orders[0])
        state = jaxfit.init(mlp_init(init, WIDTHS), optax.sgd(RATE))
        run = go_on(state, batches, RATE, None, 2 * steps, every)
        curves.append(run.trajectory)
        ends.append((loss(run.state.params, train), accuracy(mlp(run.state.params, x), y)))
        for first in firsts:
            start, last = state_at(run, batches, RATE, first), first + steps
            end = run.state if last == 2 * steps else state_at(run, batches, RATE, last)
            exact += same_bits(go_on(start, batches, RATE, None, steps, every).state, end)
            for name, kind in KINDS.items():
                data = jaxfit.minibatches(train, kind.batch_size, orders[kind.reordered])
                forked = go_on(start, data, kind.rate * RATE, kind.momentum, steps, every)
                one = compare(start.params, end.params, forked.state.params, images)
                one = jax.device_get(Fork(*one, forked.trajectory))
                found.setdefault((first, name), []).append(one)
    forks = {which: Fork(*map(np.stack, zip(*many, strict=True))) for which, many in found.items()}

    value, right = np.median(ends, axis=0)
    print(f"A perceptron of widths {WIDTHS}, {2 * steps} steps of SGD at rate {RATE:g}: training")
    print(f"loss {value:.4f}, test accuracy {right:.1%}, both medians of {SEEDS} seeds.")
    print(
        f"\nForks after {steps} steps: loss and accuracy minus the run's, distance relative to how"
    )
    print("far the run went since the fork, and the barrier; medians, and the largest barrier:\n")
    print("  from     to  kind               loss   accuracy   distance    barrier    largest")
    for (first, name), fork in forks.items():
        value, right, way, height = (np.median(part) for part in fork[:4])
        print(f"{first:6d} {first + steps:6d}  {name:15} {value:+z8.4f} {right:+z10.1%}", end="")
        print(f" {way:10.3f} {height:10.4f} {fork.barrier.max():10.4f}")
    print(
        f"\nUnchanged, {exact} of {SEEDS * len(firsts)} forks end where the run was, bit for bit."
    )
    return forks, np.array(curves)


def draw_forks(forks: Forks) -> plt.Figure:
    """Draw distance and barrier against the step of the fork: medians, and a dot per seed."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    firsts = list(dict.fromkeys(first for first, _ in forks))
    for ax, what in zip(panels, ("distance", "barrier"), strict=True):
        for number, (name, kind) in enumerate(KINDS.items()):
            values = np.array([getattr(forks[first, name], what) for first in firsts])
            places = np.arange(len(firsts)) + 0.09 * (number - 2)  # side by side
            ax.plot(places, values, ".", color=kind.colour, alpha=0.35, markersize=4)
            style = {"color": kind.colour, "markersize": 5, "label": name}
            ax.plot(places, np.median(values, axis=1), kind.style, **style)
        ax.set_xticks(range(len(firsts)), [str(first) for first in firsts])
        ax.set_xlabel("step of the fork")
    panels[0].set(title="Distance between the ends", ylabel="relative to the run since the fork")
    panels[0].set_yscale("log")
    panels[0].legend()
    panels[1].set(title="Barrier between the ends", ylabel="loss above the straight line")
    panels[1].set_yscale("symlog", linthresh=1e-3)  # which has room for zero
    panels[1].set_ylim(bottom=-1e-4)
    figure.suptitle(f"Medians of {SEEDS} seeds, and a dot for every seed")
    return figure


def draw_lines(forks: Forks) -> plt.Figure:
    """Draw the training loss from run to fork where only the order of the data differs."""
    figure, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    found = {first: fork.line for (first, name), fork in forks.items() if name == "other order"}
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(found)))
    for (first, lines), colour in zip(found.items(), colours, strict=True):
        places = np.linspace(0, 1, PLACES)
        ax.plot(places, lines.T, color=colour, linewidth=0.6, alpha=0.4)
        ax.plot(places, np.median(lines, axis=0), color=colour, linewidth=2, label=str(first))
    ax.set(yscale="log", xlabel="from the end of the run (0) to the fork's (1)")
    ax.set(ylabel="training loss", title=f"Between two orders of the data: {SEEDS} seeds, medians")
    ax.legend(title="step of the fork")
    return figure


def draw_curves(forks: Forks, curves: np.ndarray, steps: int) -> plt.Figure:
    """Draw the training loss of the first seed's run, and of its forks made early and late."""
    shared = {"sharex": True, "sharey": True, "layout": "constrained"}
    figure, panels = plt.subplots(2, 1, figsize=(8, 7), **shared)
    every, firsts = steps // ROWS, list(dict.fromkeys(first for first, _ in forks))
    for ax, first in zip(panels, (firsts[2], firsts[4]), strict=True):
        drawn = [("the run", 0, curves[0], CONTROL.colour)]
        drawn += [(name, first, forks[first, name].curve[0], KINDS[name].colour) for name in KINDS]
        for name, start, curve, colour in drawn:
            shown = start + every * np.arange(len(curve))
            ax.plot(shown, curve, color=colour, linewidth=1, label=name)
        ax.set(title=f"Forks from step {first}", ylabel="training loss", yscale="log")
    panels[0].legend()
    panels[1].set_xlabel("step")
    return figure


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("forks", __doc__)
    parser.add_argument(
        "--steps", type=int, default=1000, help="length of every fork (default: 1000)"
    )

    def fork_all(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, 100, 10_000)
        split, rest = jax.random.split(jax.random.key(arguments.seed))
        forks, curves = study(_command.split_digits(split), arguments.steps, rest)
        figures = {
            "forks": draw_forks(forks),
            "lines": draw_lines(forks),
            "curves": draw_curves(forks, curves, arguments.steps),
        }
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, fork_all)


if __name__ == "__main__":
    main()
