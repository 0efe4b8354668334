"""Learn a schedule of rates, and which labels to trust, by gradients through whole runs.

The result of a run is a differentiable function of everything that went into it: of the learning
rate of every step, of the weight of every example. So these can be learned by gradient descent, in
an outer run of ``jaxfit.train`` whose loss contains the inner one, and every schedule and every set
of weights along the way is recorded. The schedule is compared with the best simple ones of a sweep,
on seeds it has not seen: Maclaurin, Duvenaud & Adams 2015, `Gradient-based Hyperparameter
Optimization through Reversible Learning <https://arxiv.org/abs/1502.03492>`_. The weights find
wrong labels, the data hyper-cleaning of Franceschi et al. 2017, `Forward and Reverse Gradient-Based
Hyperparameter Optimization <https://arxiv.org/abs/1703.01785>`_.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import ListedColormap

import jaxfit
from experiments import _command
from experiments._hypergradients import (
    CONSTANT,
    LINEAR,
    PLAIN,
    WRONG,
    Arrays,
    Hyper,
    clean,
    decoded,
    evaluate,
    learn,
    row,
    sweep,
)
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

SEEDS, NEW_SEEDS = 8, 32  # to learn and sweep on, and to test on
DRAWS = 5  # of wrong labels
LEARNED = "learned"
COLOURS = {LEARNED: ORANGE, CONSTANT: BLUE, LINEAR: GREEN, PLAIN: BLACK}


def study_schedule(arrays: Arrays, key: jax.Array, steps: int, outer_steps: int) -> tuple:
    """Learn a schedule and print how it does; return the outer run, schedules and results."""
    split, *keys = jax.random.split(key, 3)
    train, test = jaxfit.data.train_test_split(arrays, 0.2, split)
    used, new = (jax.random.split(key, n) for key, n in zip(keys, (SEEDS, NEW_SEEDS), strict=True))
    began = time.perf_counter()
    outer = jax.block_until_ready(learn(used, train, steps, outer_steps))
    seconds = time.perf_counter() - began
    hypers = {LEARNED: decoded(outer.state.params)} | sweep(used, train, test, steps)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *hypers.values())
    found = evaluate(stacked, jnp.concatenate([used, new]), train, test)
    found = {name: row(found, i) for i, name in enumerate(hypers)}

    norms = np.asarray(jax.vmap(optax.tree.norm)(outer.trajectory["grads"]))
    middle = np.median(norms)
    print(f"The rates of {steps} steps of SGD on {len(train[1])} digits, and its momentum, learned")
    print(f"in {outer_steps} outer steps, {seconds:.0f} s in all. Norm of the hypergradient:")
    print(f"{norms[0]:.2g} at first, {middle:.2g} in the median, {norms.max():.2g} at most.\n")
    print(f"Loss on all training images after the run: the mean of the {SEEDS} seeds that learning")
    print(f"and the sweep used, and that of {NEW_SEEDS} new seeds; for the new seeds also the test")
    print("accuracy, and how often the learned rates end lower:\n")
    print("  rates            mean rate  momentum   used |   mean  median   worst  accuracy  lower")
    for name, (rates, momentum) in hypers.items():
        old, new = np.split(found[name]["loss"], [SEEDS])
        lower = np.sum(found[LEARNED]["loss"][SEEDS:] < new)
        print(f"  {name:21} {rates.mean():5.3f} {momentum:9.3f} {old.mean():6.4f} |", end="")
        print(f" {new.mean():6.4f}  {np.median(new):6.4f} {new.max():7.4f}", end="")
        print(f" {found[name]['accuracy'][SEEDS:].mean():9.4f}", end="")
        print("" if name == LEARNED else f" {lower:6d}")
    return outer, hypers, found


def study_cleaning(arrays: Arrays, key: jax.Array, outer_steps: int) -> dict[str, Any]:
    """Learn weights for several draws and print what they find; return arrays [draws, …]."""
    keys = jax.random.split(key, DRAWS)
    draws = jax.vmap(clean, (None, 0, None))
    found = jax.device_get(jax.jit(draws, static_argnums=2)(arrays, keys, outer_steps))
    low, wrong = found["weights"] < 0.5, found["wrong"]
    caught = [100 * np.sum(low & of, axis=1) / np.sum(of, axis=1) for of in (wrong, ~wrong)]
    print(f"\n{WRONG:.0%} of {wrong.shape[1]} labels are wrong;", end=" ")
    print(f"mean ± standard deviation of {DRAWS} draws.")
    print("Weights start at 0.5 and end below it for")
    for name, part in zip(("wrong", "right"), caught, strict=True):
        print(f"  {part.mean():5.1f} ± {part.std(ddof=1):.1f} % of the {name} labels")
    print("Test accuracy of softmax regression:")
    for name, part in sorted(found["accuracy"].items(), key=lambda item: item[1].mean()):
        print(f"  {name:21} {part.mean():6.1f} ± {part.std(ddof=1):.1f} %")
    return found


def draw_schedule(outer: jaxfit.Run, hypers: dict[str, Hyper], found: dict) -> plt.Figure:
    """Draw the schedule as it is learned, the outer loss, and the inner losses."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    rows, colours = outer.trajectory, plt.get_cmap("viridis")
    last = len(outer.steps)
    every = jax.tree.map(lambda a, b: jnp.append(a, b[None], 0), rows["params"], outer.state.params)
    rates, momenta = map(np.asarray, decoded(every))
    for step in np.unique(np.linspace(0, last, 8).round().astype(int)):
        shown = rates[step] / (1 - momenta[step])
        left.plot(shown, color=colours(0.95 * step / last), linewidth=1)
    for name, style in ((CONSTANT, "--"), (LINEAR, ":")):
        swept, momentum = hypers[name]
        left.plot(swept / (1 - momentum), style, color=BLACK, label=f"best {name}")
    colours = ListedColormap(colours(np.linspace(0, 0.95, 256)))
    figure.colorbar(
        plt.cm.ScalarMappable(plt.Normalize(0, last), colours), ax=left, label="outer step"
    )
    left.set(title="The schedule as it is learned", xlabel="step", yscale="log")
    left.set_ylabel("rate / (1 − momentum)")

    middle.plot(outer.steps, rows["loss"], color=ORANGE, label=LEARNED)
    for name in (PLAIN, CONSTANT, LINEAR):
        value = found[name]["loss"][:SEEDS].mean()
        middle.axhline(value, linestyle="--", color=COLOURS[name], label=f"best {name}")
    middle.set(title=f"The outer loss: mean of {SEEDS} seeds", xlabel="outer step", yscale="log")
    middle.set_ylabel("loss after the run, nats")

    for name in (CONSTANT, LINEAR, LEARNED):
        curve = found[name]["batches"][SEEDS:].mean(axis=0)
        label = name if name == LEARNED else f"best {name}"
        right.plot(curve, color=COLOURS[name], linewidth=1.2, label=label)
    right.set(title=f"Inner runs: mean of {NEW_SEEDS} new seeds", xlabel="step", yscale="log")
    right.set_ylabel("loss of the batch, nats")
    for ax in (left, middle, right):
        ax.legend()
    return figure


def draw_cleaning(found: dict[str, Any]) -> plt.Figure:
    """Draw where the weights of right and wrong labels end, and the outer descent."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    weights, wrong = found["weights"], found["wrong"]
    parts, bins = [weights[~wrong], weights[wrong]], np.linspace(0, 1, 21)
    left.hist(parts, bins, color=(BLUE, ORANGE), label=("right labels", "wrong labels"))
    left.axvline(0.5, color=BLACK, linestyle=":", label="start")
    left.set(title=f"Learned weights, {DRAWS} draws", xlabel="weight", ylabel="examples")
    left.set_yscale("symlog", linthresh=10)

    outer = found["outer"]
    steps, (test_loss, test_accuracy) = outer.steps[0], outer.trajectory["aux"]
    for ax, values, colour, label in (
        (middle, outer.trajectory["loss"], ORANGE, "validation, descended"),
        (middle, test_loss, BLUE, "test"),
        (right, 100 * test_accuracy, ORANGE, "learned weights"),
    ):
        ax.plot(steps, values.T, color=colour, alpha=0.25, linewidth=0.8)
        ax.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=label)
    middle.set(title="Loss after the inner run", xlabel="outer step", ylabel="cross-entropy, nats")
    styles = (BLACK, ":"), (BLACK, "-."), (GREEN, "--"), (BLUE, "--")
    names = "noisy labels", "noisy, stopped early", "validation alone", "right labels only"
    for name, (colour, style) in zip(names, styles, strict=True):
        right.axhline(found["accuracy"][name].mean(), color=colour, linestyle=style, label=name)
    right.set(title="Accuracy after the inner run", xlabel="outer step", ylabel="test accuracy, %")
    low, high = right.get_ylim()
    right.set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    for ax, place in ((left, "upper center"), (middle, "upper right"), (right, "lower right")):
        ax.legend(loc=place)
    return figure


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("hypergradients", __doc__)
    option = parser.add_argument
    option("--steps", type=int, default=200, help="steps of a learned schedule (default: 200)")
    option("--outer-steps", type=int, default=100, help="steps of learning (default: 100)")

    def learn_both(arguments: argparse.Namespace) -> None:
        _command.check_range("steps", arguments.steps, 1, 10_000)
        _command.check_range("outer-steps", arguments.outer_steps, 1, 10_000)
        arrays = _command.load_digits()
        first, second = jax.random.split(jax.random.key(arguments.seed))
        schedules = study_schedule(arrays, first, arguments.steps, arguments.outer_steps)
        weights = study_cleaning(arrays, second, arguments.outer_steps)
        figures = {"schedule": draw_schedule(*schedules), "cleaning": draw_cleaning(weights)}
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, learn_both)


if __name__ == "__main__":
    main()
