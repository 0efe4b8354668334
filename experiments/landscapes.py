"""Look at the loss around runs: on the plane of a path, around minima, and between ends of runs.

A perceptron learns handwritten digits. Its path is drawn on the plane of its two principal
components, beside what a walk at random explains in two directions. Planes in random directions,
normalised filter by filter, show the loss around the ends of runs with small and with large
batches. Lines lead from the end of a run to those of runs from another start, from the same start
with another order of the data, and of forks that leave the run later.

With --seed 0, the plane holds 96 % of the variance about the end, where a walk at random has 90 %,
yet the path strays from it by up to a fifth of its span. Batches of 512 end three times as sharp as
batches of 16, and the mean loss around them is 1.6 times as high. A run from another start ends
behind a barrier of 2.8; another order from the same start leaves one of less than 0.001, and forks
from step 30 on leave none.

Li et al. 2018, `Visualizing the Loss Landscape of Neural Nets <https://arxiv.org/abs/1712.09913>`_;
Antognini and Sohl-Dickstein 2018, `PCA of high dimensional random walks with comparison to neural
network training <https://arxiv.org/abs/1806.08805>`_; Frankle et al. 2020, `Linear Mode
Connectivity and the Lottery Ticket Hypothesis <https://arxiv.org/abs/1912.05671>`_.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxfit
from experiments import _command
from experiments.forks import go_on, loss, state_at
from jaxfit import analysis, plot
from jaxfit.losses import accuracy
from jaxfit.models import mlp, mlp_init

WIDTHS, RATE, ROWS, PLACES = (64, 32, 32, 32, 10), 0.1, 100, 21
BATCHES = {"small": 16, "large": 512}
FORKED = (0, 0.02, 0.2, 1)  # where forks begin, as fractions of their length
THEORY = {  # of a walk at random: the part of its variance in the first and second direction
    "mean": 6 / (np.pi * np.arange(1, 3)) ** 2,
    "last": 8 / (np.pi * np.array([1, 3])) ** 2,
}


def begin(key: jax.Array) -> jaxfit.State:
    """Return a state at step 0."""
    return jaxfit.init(mlp_init(key, WIDTHS), optax.sgd(RATE))


def path_of(run: jaxfit.Run, batches: Any, every: int) -> Any:
    """Return the parameters along a run by replay, each with a leading axis [rows]."""
    optimizer, steps = optax.sgd(RATE), range(0, int(run.state.step), every)
    found = jax.jit(
        lambda run, data: analysis.along(
            lambda step: step.params, loss, run, optimizer, steps=steps, data=data
        )
    )(run, batches)
    return jax.tree.map(lambda rows, end: jnp.append(rows, end[None], 0), found, run.state.params)


def walk_like(path: Any, key: jax.Array) -> jax.Array:
    """Return a walk at random with as many rows and dimensions as a path: [rows, dimensions]."""
    rows = jax.tree.leaves(path)[0].shape[0]
    size = sum(leaf[0].size for leaf in jax.tree.leaves(path))
    return jnp.cumsum(jax.random.normal(key, (rows, size)), axis=0)


def rescaled(params: Any) -> Any:
    """Return a perceptron that predicts the same: its first layer times 10, its second over 10."""
    first, second, *rest = params
    first = jax.tree.map(lambda leaf: 10 * leaf, first)
    return [first, second | {"w": second["w"] / 10}, *rest]


def study_path(path: Any, train: Any, key: jax.Array) -> tuple[analysis.PCA, analysis.Plane]:
    """Print how much of a path its plane holds; return its components and the loss on the plane."""
    walk = walk_like(path, key)
    print("Parts of the variance in the first and the second principal component, in %:")
    print("  about             the run     random walk          theory")
    for center, theory in THEORY.items():
        found, random = (analysis.pca(one, center=center) for one in (path, walk))
        parts = (100 * np.asarray(one) for one in (found.ratio, random.ratio, theory))
        print(f"  {center:6}" + "".join("{:12.1f} +{:5.1f}".format(*pair) for pair in parts))
    far = jnp.linalg.norm(found.coordinates[0])
    print(f"  off the plane by up to {found.off_plane.max():.3f}, of {far:.3f} from start to end")
    low, high = found.coordinates.min(axis=0), found.coordinates.max(axis=0)
    margin = 0.2 * jnp.max(high - low)
    directions = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], found.directions) for i in (0, 1))
    end = jax.tree.map(lambda leaf: leaf[-1], path)
    extent = jnp.stack([low - margin, high + margin], axis=1)
    around = jax.jit(
        lambda end, directions, extent, train: analysis.plane(
            loss, end, directions, data=train, num=PLACES, extent=extent
        )
    )(end, directions, extent, train)
    return found, around


def study_minima(ends: dict[str, Any], images: tuple[Any, Any]) -> dict[str, analysis.Plane]:
    """Print how sharp and how good the ends of some runs are; return the loss around them."""
    train, (x, y) = images

    @jax.jit
    def around(params: Any, train: Any) -> tuple[Any, analysis.Plane]:
        found = analysis.plane(loss, params, data=train, num=PLACES)
        sharpness = analysis.curvature(loss, params, data=train).eigenvalues[0]
        values = loss(params, train), accuracy(mlp(params, x), y), optax.tree.norm(params)
        return (*values, sharpness, jnp.mean(found.loss)), found

    print("\nEnds of runs, and the mean loss on a filter-normalised plane around each:")
    print("  batches      loss   test accuracy    norm   sharpness   mean around")
    planes = {}
    for name, params in ends.items():
        (value, right, norm, sharpness, mean), planes[name] = around(params, train)
        print(f"  {name:8} {value:8.5f} {right:15.1%} {norm:7.2f} {sharpness:11.4g} {mean:13.4f}")
    _, same = around(rescaled(params), train)
    off = jnp.max(jnp.abs(same.loss / planes[name].loss - 1))
    print(f"  10 W₁ and W₂/10 have the same plane, by theory: off by at most {off:.1e}")
    return planes


def study_barriers(train: Any, steps: int, key: jax.Array) -> dict[str, analysis.Line]:
    """Print the barriers between the end of a run and others; return the lines to them."""
    starts, orders = (jax.random.split(one) for one in jax.random.split(key))
    batches, other = (jaxfit.minibatches(train, 64, order) for order in orders)
    run = go_on(begin(starts[0]), batches, RATE, None, 2 * steps, steps // ROWS)
    line = jax.jit(lambda a, b, train: analysis.line(loss, a, b, data=train))
    from_other = go_on(begin(starts[1]), other, RATE, None, steps, steps // ROWS).state.params
    middle = state_at(run, batches, RATE, steps).params
    lines = {"another start": line(middle, from_other, train)}
    for first in (round(part * steps) for part in FORKED):
        left = state_at(run, batches, RATE, first)
        there = go_on(left, other, RATE, None, steps, steps // ROWS).state.params
        end = run.state if first == steps else state_at(run, batches, RATE, first + steps)
        name = f"fork at step {first}" if first else "the same start"
        lines[name] = line(end.params, there, train)
    print(f"\nBarriers on the line between ends of two runs, {steps} steps after they part:")
    for name, found in lines.items():
        print(f"  {name:18} {found.barrier:8.4f}, between losses", end=" ")
        print(f"{found.loss[0]:.4f} and {found.loss[-1]:.4f}")
    return lines


def draw_path(found: analysis.PCA, around: analysis.Plane) -> plt.Figure:
    """Draw a path on the plane of its principal components."""
    figure, ax = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    plot.plane(found, around, ax=ax)
    ax.set_title("A run and the training loss on the plane of its components")
    return figure


def draw_minima(planes: dict[str, analysis.Plane]) -> plt.Figure:
    """Draw the loss around the ends of runs."""
    figure, panels = plt.subplots(1, len(planes), figsize=(11, 5), layout="constrained")
    for ax, (name, found) in zip(panels, planes.items(), strict=True):
        plot.plane(plane=found, ax=ax)
        ax.set_title(f"Training loss around the end with batches of {BATCHES[name]}")
        ax.set_aspect("equal")
    return figure


def draw_barriers(lines: dict[str, analysis.Line]) -> plt.Figure:
    """Draw the loss on the lines between ends of runs."""
    figure, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for name, found in lines.items():
        plot.line(found, ax=ax, label=name)
    ax.set(title="Training loss between the ends of two runs")
    return figure


def study(images: tuple[Any, Any], steps: int, key: jax.Array) -> dict[str, plt.Figure]:
    """Make all runs, print what is found, and return the pictures."""
    start, order, walk, rest = jax.random.split(key, 4)
    train, every = images[0], steps // ROWS
    runs = {}
    for name, size in BATCHES.items():
        batches = jaxfit.minibatches(train, size, order)
        runs[name] = go_on(begin(start), batches, RATE, None, steps, every)
    batches = jaxfit.minibatches(train, BATCHES["small"], order)
    found, around = study_path(path_of(runs["small"], batches, every), train, walk)
    planes = study_minima({name: run.state.params for name, run in runs.items()}, images)
    lines = study_barriers(train, steps, rest)
    return {
        "path": draw_path(found, around),
        "minima": draw_minima(planes),
        "barriers": draw_barriers(lines),
    }


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("landscapes", __doc__)
    parser.add_argument(
        "--steps", type=int, default=1500, help="length of every run (default: 1500)"
    )

    def look(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, ROWS, 10_000)
        split, rest = jax.random.split(jax.random.key(arguments.seed))
        figures = study(_command.split_digits(split), arguments.steps, rest)
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, look)


if __name__ == "__main__":
    main()
