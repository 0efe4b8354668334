"""Hypergradients: learn a schedule of rates, and which labels to trust, through whole runs.

What a run ends with is a differentiable function of all that went into it: of the learning rate of
every step, of the weight of every example. So they can be learned by gradient descent, an outer run
of ``jaxfit.train`` whose loss holds the inner one, and every schedule and every set of weights on
the way is recorded. The schedule is held against the best simple ones that a sweep finds, on seeds
it has not seen: Maclaurin, Duvenaud & Adams 2015, `Gradient-based Hyperparameter Optimization
through Reversible Learning <https://arxiv.org/abs/1502.03492>`_. The weights find wrong labels, the
data hyper-cleaning of Franceschi et al. 2017, `Forward and Reverse Gradient-Based Hyperparameter
Optimization <https://arxiv.org/abs/1703.01785>`_.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import ListedColormap

import jaxfit
from experiments import _command
from experiments.digits import load
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

SIZES, BATCH_SIZE = (64, 32, 10), 64
SEEDS, NEW_SEEDS = 8, 32  # to learn and sweep on, and to test on
START = 0.1, 0.5  # the rate of every step and the momentum that learning starts from
RATES, MOMENTA = np.geomspace(0.05, 4, 16), (0.0, 0.5, 0.8, 0.9, 0.95)  # of the sweep
LEARNED, CONSTANT, LINEAR, PLAIN = "learned", "constant", "linear decay", "constant, no momentum"
COLOURS = {LEARNED: ORANGE, CONSTANT: BLUE, LINEAR: GREEN, PLAIN: BLACK}
WRONG, DRAWS, CLEANING_STEPS = 0.4, 5, 100

Arrays = tuple[jax.Array, jax.Array]  # x [n, 64] and y [n]
Hyper = tuple[jax.Array, jax.Array]  # the learning rate of every step [steps], and the momentum

softmax = objective(mlp, cross_entropy)  # without hidden layers, that is softmax regression
# Smooth: with ReLU, hypergradients jump more than fiftyfold after some 50 outer steps.
perceptron = functools.partial(mlp, activation=jnp.tanh)
loss = objective(perceptron, cross_entropy)


def stretch(steps: int) -> int:
    """The largest divisor up to √steps: keyframes so far apart need the least memory, nearly.

    A divisor, for the steps that are left over would be compiled once more.
    """
    return max(k for k in range(1, math.isqrt(steps) + 1) if steps % k == 0)


def row(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def descend(final: Callable, start: Any, rate: float, steps: int, **options: Any) -> jaxfit.Run:
    """The outer run: Adam, at a rate that falls to zero along a cosine."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    record = lambda step: jaxfit.record.whole(step) | {"grads": step.grads}
    return jaxfit.train(final, start, optimizer, steps, record=record, **options)


def inner(hyper: Hyper, key: jax.Array, train: Arrays) -> jaxfit.Run:
    """A run of SGD with a rate for every step; the key draws the start and the batches."""
    rates, momentum = hyper
    start, order = jax.random.split(key)
    return jaxfit.train(
        loss,
        mlp_init(start, SIZES),
        optax.sgd(lambda count: rates[count], momentum=momentum),
        len(rates),
        data=jaxfit.minibatches(train, BATCH_SIZE, order),
        record=lambda step: step.loss,
        keyframe_every=stretch(len(rates)),
    )


def decoded(free: Any) -> Hyper:
    """Rates above 0 and a momentum between 0 and 1, from numbers that are free."""
    return jnp.exp(free["log_rates"]), jax.nn.sigmoid(free["logit_momentum"])


def final_loss(free: Any, keys: jax.Array, train: Arrays) -> jax.Array:
    """The loss on all training images after the run, its mean over seeds."""
    ends = jax.vmap(lambda key: inner(decoded(free), key, train).state.params)(keys)
    return jnp.mean(jax.vmap(loss, (0, None))(ends, train))


def learn(keys: jax.Array, train: Arrays, steps: int, outer_steps: int) -> jaxfit.Run:
    """Learn the rate of every step, and the momentum, by descending `final_loss`.

    In 100 steps, for more gain nothing: hypergradients explode long before losses do. At rates
    half as large again as those learned, the loss is 1.4 times what it was, the hypergradient's
    norm more than a million times: Metz et al. 2021, `Gradients are Not All You Need
    <https://arxiv.org/abs/2111.05803>`_.
    """
    rate, momentum = START
    start = {
        "log_rates": jnp.full(steps, math.log(rate)),
        "logit_momentum": jnp.asarray(math.log(momentum / (1 - momentum))),
    }

    def run(keys, train):
        return descend(lambda free: final_loss(free, keys, train), start, 0.05, outer_steps)

    return jax.jit(run)(keys, train)


def evaluate(hypers: Hyper, keys: jax.Array, train: Arrays, test: Arrays) -> dict[str, np.ndarray]:
    """What every schedule does from every seed: [schedules, seeds], and losses on the way."""

    def one(hyper, key, train, test):
        run = inner(hyper, key, train)
        end, (x, y) = run.state.params, test
        right = accuracy(perceptron(end, x), y)
        return {"batches": run.trajectory, "loss": loss(end, train), "accuracy": right}

    seeds = jax.vmap(one, (None, 0, None, None))
    return jax.device_get(jax.jit(jax.vmap(seeds, (0, *3 * [None])))(hypers, keys, train, test))


def sweep(keys: jax.Array, train: Arrays, test: Arrays, steps: int) -> dict[str, Hyper]:
    """The best schedule of every simple kind on the seeds that learning has too."""
    flat, falling = np.ones(steps), 1 - np.arange(steps) / steps
    kinds = {PLAIN: (flat, (0.0,)), CONSTANT: (flat, MOMENTA), LINEAR: (falling, MOMENTA)}
    grid = [
        (kind, rate * shape, momentum)
        for kind, (shape, momenta) in kinds.items()
        for rate in RATES
        for momentum in momenta
    ]
    hypers = tuple(jnp.array(part, jnp.float32) for part in list(zip(*grid, strict=True))[1:])
    best = {}
    for i in np.argsort(evaluate(hypers, keys, train, test)["loss"].mean(axis=1)):  # NaNs last
        best.setdefault(grid[i][0], (hypers[0][i], hypers[1][i]))
    return {kind: best[kind] for kind in kinds}


def study_schedule(arrays: Arrays, key: jax.Array, steps: int, outer_steps: int) -> tuple:
    """Learn a schedule and print how it does; the outer run, all schedules, their evaluation."""
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
    print(f"Loss on all training images after the run: mean of the {SEEDS} seeds that learning and")
    print(f"sweep used, and of {NEW_SEEDS} new ones; from these also the accuracy on test images,")
    print("and how often the learned rates end lower:\n")
    print("  rates            mean rate  momentum   used |   mean  median   worst  accuracy  lower")
    for name, (rates, momentum) in hypers.items():
        old, new = np.split(found[name]["loss"], [SEEDS])
        lower = np.sum(found[LEARNED]["loss"][SEEDS:] < new)
        print(f"  {name:21} {rates.mean():5.3f} {momentum:9.3f} {old.mean():6.4f} |", end="")
        print(f" {new.mean():6.4f}  {np.median(new):6.4f} {new.max():7.4f}", end="")
        print(f" {found[name]['accuracy'][SEEDS:].mean():9.4f}", end="")
        print("" if name == LEARNED else f" {lower:6d}")
    return outer, hypers, found


def corrupt(arrays: Arrays, key: jax.Array) -> tuple[Arrays, jax.Array, Arrays, Arrays]:
    """Training examples of which some labels are wrong, which ones; validation and test ones."""
    first, second, noise = jax.random.split(key, 3)
    rest, test = jaxfit.data.train_test_split(arrays, 1 / 3, first)
    (x, y), validation = jaxfit.data.train_test_split(rest, 1 / 6, second)
    wrong = jnp.arange(len(y)) < round(WRONG * len(y))  # they are in random order
    other = (y + jax.random.randint(noise, y.shape, 1, 10)) % 10
    return (x, jnp.where(wrong, other, y)), wrong, validation, test


def weighted(params: Any, batch: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Σ w_i ℓ_i / n, so that a weight is a part of an example.

    `cross_entropy` divides by Σ w_i: then the common scale of all weights has no meaning, and more
    of the right labels lose theirs.
    """
    return softmax(params, batch) * jnp.mean(batch[2])


def fit(x: jax.Array, y: jax.Array, weights: jax.Array) -> jaxfit.Run:
    """Softmax regression by gradient descent on all examples, weighted."""
    start = [{"w": jnp.zeros((64, 10), x.dtype), "b": jnp.zeros(10, x.dtype)}]
    optimizer, every = optax.sgd(0.5, momentum=0.9), stretch(CLEANING_STEPS)
    data = x, y, weights
    return jaxfit.train(weighted, start, optimizer, CLEANING_STEPS, data=data, keyframe_every=every)


def learn_weights(train: Arrays, validation: Arrays, test: Arrays, steps: int) -> jaxfit.Run:
    """Descend the validation loss after the run; the test images are looked at, no more."""
    x, y = train

    def final(logits):
        end = fit(x, y, jax.nn.sigmoid(logits)).state.params
        return softmax(end, validation), (softmax(end, test), accuracy(mlp(end, test[0]), test[1]))

    return descend(final, jnp.zeros(len(y), x.dtype), 0.2, steps, has_aux=True)


def clean(arrays: Arrays, key: jax.Array, outer_steps: int) -> dict[str, Any]:
    """Learn weights for one draw of wrong labels; and what training does without them."""
    (x, y), wrong, validation, test = corrupt(arrays, key)
    outer = learn_weights((x, y), validation, test, outer_steps)
    weights = jax.nn.sigmoid(outer.state.params)
    kinds = {"noisy labels": jnp.ones_like(weights), "learned weights": weights}
    kinds["right labels only"] = 1 - wrong.astype(x.dtype)
    runs = jax.vmap(fit, (None, None, 0))(x, y, jnp.stack(list(kinds.values())))
    ends = {name: row(runs.state.params, i) for i, name in enumerate(kinds)}
    noisy = row(runs.trajectory["params"], 0)
    least = jnp.argmin(jax.vmap(softmax, (0, None))(noisy, validation))
    ends["noisy, stopped early"] = row(noisy, least)
    ends["validation alone"] = fit(*validation, jnp.ones(len(validation[1]), x.dtype)).state.params
    accuracies = {name: 100 * accuracy(mlp(end, test[0]), test[1]) for name, end in ends.items()}
    return {"outer": outer, "weights": weights, "wrong": wrong, "accuracy": accuracies}


def study_cleaning(arrays: Arrays, key: jax.Array, outer_steps: int) -> dict[str, Any]:
    """Learn weights for several draws and print what they find; every array is [draws, …]."""
    keys = jax.random.split(key, DRAWS)
    draws = jax.vmap(clean, (None, 0, None))
    found = jax.device_get(jax.jit(draws, static_argnums=2)(arrays, keys, outer_steps))
    low, wrong = found["weights"] < 0.5, found["wrong"]
    caught = [100 * np.sum(low & of, axis=1) / np.sum(of, axis=1) for of in (wrong, ~wrong)]
    print(f"\n{WRONG:.0%} of {wrong.shape[1]} labels are wrong; {DRAWS} draws, mean and deviation.")
    print("Weights start at 0.5 and end below it for")
    for name, part in zip(("wrong", "right"), caught, strict=True):
        print(f"  {part.mean():5.1f} ± {part.std(ddof=1):.1f} % of the {name} labels")
    print("Test accuracy of softmax regression:")
    for name, part in sorted(found["accuracy"].items(), key=lambda item: item[1].mean()):
        print(f"  {name:21} {part.mean():6.1f} ± {part.std(ddof=1):.1f} %")
    return found


def draw_schedule(outer: jaxfit.Run, hypers: dict[str, Hyper], found: dict) -> plt.Figure:
    """The schedule as it is learned, the outer loss, and the inner losses."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    rows, colours = outer.trajectory, plt.get_cmap("viridis")
    last = len(outer.steps)
    every = jax.tree.map(lambda a, b: jnp.append(a, b[None], 0), rows["params"], outer.state.params)
    rates, momenta = map(np.asarray, decoded(every))
    for row in np.unique(np.linspace(0, last, 8).round().astype(int)):
        shown = rates[row] / (1 - momenta[row])
        left.plot(shown, color=colours(0.95 * row / last), linewidth=1)
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
    """Where the weights of right and wrong labels end, and the outer descent."""
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
    parser = _command.parser("hypergradients", __doc__)
    parser.add_argument(
        "--steps", type=int, default=200, help="of the runs with a learned schedule, default 200"
    )
    parser.add_argument("--outer-steps", type=int, default=100, help="default 100")

    def learn_both(arguments: argparse.Namespace) -> None:
        for name, number in (("steps", arguments.steps), ("outer-steps", arguments.outer_steps)):
            _command.between(name, number, 1, 10_000)
        arrays = load()
        first, second = jax.random.split(jax.random.key(arguments.seed))
        schedules = study_schedule(arrays, first, arguments.steps, arguments.outer_steps)
        weights = study_cleaning(arrays, second, arguments.outer_steps)
        print("\nWritten:")
        for name, figure in (
            ("schedule", draw_schedule(*schedules)),
            ("cleaning", draw_cleaning(weights)),
        ):
            path = arguments.out / f"{name}.png"
            figure.savefig(path, dpi=100)
            _command.written(path)

    _command.run(parser, learn_both)


if __name__ == "__main__":
    main()
