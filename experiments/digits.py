"""Handwritten digits: softmax regression to its optimum, a perceptron and a convolutional network.

scikit-learn's 1,797 images of 8 by 8 pixels, a fifth of them held out. Softmax regression has one
optimum, and L-BFGS reaches the one that scikit-learn finds; the two networks are trained by AdamW
on minibatches. Everything drawn, the test accuracies along the way too, is computed after the runs
from the parameters they recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from matplotlib.animation import FuncAnimation

import jaxfit
from experiments import _command
from jaxfit import plot
from jaxfit.losses import cross_entropy, l2, objective
from jaxfit.models import mlp, mlp_init
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

C = 1.0  # scikit-learn's inverse strength of the penalty, at its default
TOLERANCE = 1e-6  # the relative excess over scikit-learn's optimum that counts as reaching it
BATCH_SIZE = 64
COLOURS = {"softmax": BLUE, "MLP": ORANGE, "CNN": GREEN}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A finished run, and what was computed from it; all in NumPy."""

    run: jaxfit.Run
    loss: float  # what was minimised, after the last step, on all training images
    predicted: np.ndarray  # [rows + 1, test images], the digits; last those after the last step
    accuracies: np.ndarray  # [rows + 1], on the test images
    seconds: tuple[float, float]  # to compile, and to run

    @property
    def steps(self) -> np.ndarray:
        """The number of steps made before each of the accuracies: [rows + 1]."""
        return np.append(self.run.steps, self.run.state.step)


def needed(module: str, project: str) -> Any:
    """Import a module that only this study needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{project} is not installed, or broken ({error}): "
            f'run pip install -e ".[test]" from a checkout.'
        ) from error


def load() -> tuple[jax.Array, jax.Array]:
    """scikit-learn's images and their digits: x [1797, 64], from 0 to 1, and y [1797]."""
    x, y = needed("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
    return jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)


def divided(key: jax.Array) -> tuple[Any, Any]:
    """Training and test images with their digits, the latter a fifth of all."""
    return jaxfit.data.train_test_split(load(), 0.2, key)


def fit(
    model: Callable,
    loss: Callable,
    optimizer: Any,
    params: Any,
    data: Any,
    images: tuple[Any, Any],
    steps: int,
    **options: Any,
) -> Fit:
    """Train on data by the clock; evaluate the end, and on the test images every recorded row."""

    def train(params, data):
        return jaxfit.train(loss, params, optimizer, steps, data=data, **options)

    @jax.jit
    def evaluate(rows, end, x, seen):
        rows = jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), rows, end)
        predicted = lax.map(lambda params: jnp.argmax(model(params, x), axis=-1), rows)
        return loss(end, seen), predicted

    began = time.perf_counter()
    compiled = jax.jit(train).lower(params, data).compile()
    ready = time.perf_counter()
    run = jax.block_until_ready(compiled(params, data))
    done = time.perf_counter()
    seen, (x, y) = images
    evaluated = evaluate(run.trajectory["params"], run.state.params, x, seen)
    run, (value, predicted) = jax.device_get((run, evaluated))
    accuracies = np.mean(predicted == np.asarray(y), axis=1)
    return Fit(run, float(value), predicted, accuracies, (ready - began, done - ready))


def penalised(params: Any, batch: tuple[Any, Any]) -> jax.Array:
    """What LogisticRegression(C) minimises, divided by n; the intercepts go free."""
    x, y = batch
    return cross_entropy(mlp(params, x), y) + l2(params[0]["w"]) / (C * len(y))


def fit_softmax(images: tuple[Any, Any], steps: int = 200) -> Fit:
    """Softmax regression, which is a perceptron without hidden layers, by L-BFGS in float64."""

    def record(step):
        searched = optax.tree.get(step.opt_state, "num_linesearch_steps")  # by the step before
        return jaxfit.record.whole(step) | {"searched": searched}

    with jax.enable_x64(True):
        train, test = ((jnp.asarray(x, jnp.float64), y) for x, y in images)
        params = [{"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}]
        optimizer = optax.lbfgs(memory_size=20)
        return fit(mlp, penalised, optimizer, params, train, (train, test), steps, record=record)


def scikit_optimum(images: tuple[Any, Any]) -> tuple[float, float, int]:
    """scikit-learn's optimum: the objective there, the test accuracy, and its iterations."""
    linear_model = needed("sklearn.linear_model", "scikit-learn")
    threadpoolctl = needed("threadpoolctl", "threadpoolctl")  # which scikit-learn brings
    (x, y), test = ([np.asarray(array) for array in part] for part in images)
    best = linear_model.LogisticRegression(C=C, solver="newton-cg", tol=1e-8, max_iter=1000)
    # So small a problem gains nothing from threads, and can lose seconds waiting for them.
    with threadpoolctl.threadpool_limits(1), jax.enable_x64(True):
        best.fit(np.asarray(x, np.float64), y)
        params = [{"w": best.coef_.T, "b": best.intercept_}]
        return float(penalised(params, (x, y))), best.score(*test), int(best.n_iter_.max())


def cnn_init(key: jax.Array) -> list[Any]:
    """Draw the layers of `cnn`: three modules of Equinox."""
    linear = needed("equinox", "Equinox").nn.Linear
    sizes = (9 * 1, 8), (9 * 8, 16), (4 * 4 * 16, 10)
    keys = jax.random.split(key, len(sizes))
    return [linear(*size, key=key) for size, key in zip(sizes, keys, strict=True)]


def cnn(layers: list[Any], x: jax.Array) -> jax.Array:
    """Two convolutions of 3 by 3 pixels, the largest of every 2 by 2, and a linear layer.

    A convolution is written as a linear layer on every pixel and its eight neighbours: the same
    function as ``equinox.nn.Conv2d``, whose gradients XLA for the CPU compiles to slow code inside
    a loop: with ``Conv2d``, a step takes 20 times as long.
    """
    *convolutions, last = layers
    x = x.reshape(-1, 8, 8, 1)
    for layer in convolutions:
        x = jax.nn.relu(jax.vmap(jax.vmap(jax.vmap(layer)))(neighbours(x)))
    x = x.reshape(-1, 4, 2, 4, 2, 16).max((2, 4))
    return jax.vmap(last)(x.reshape(-1, 4 * 4 * 16))


def neighbours(x: jax.Array) -> jax.Array:
    """Every pixel with those around it, zeros beyond the edge: [n, h, w, c] to [n, h, w, 9 c]."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)


NETWORKS = {"MLP": (mlp, lambda key: mlp_init(key, (64, 128, 10))), "CNN": (cnn, cnn_init)}


def fit_network(name: str, images: tuple[Any, Any], steps: int, key: jax.Array) -> Fit:
    """A network by AdamW on minibatches, at a rate that falls to zero along a cosine."""
    model, init = NETWORKS[name]
    start, order = jax.random.split(key)
    batches = jaxfit.minibatches(images[0], BATCH_SIZE, order)
    optimizer = optax.adamw(optax.cosine_decay_schedule(0.01, steps), weight_decay=0.3)
    loss = objective(model, cross_entropy)
    # A row every 5 steps: enough for the curves, and the first layer moves little in between.
    return fit(model, loss, optimizer, init(start), batches, images, steps, record_every=5)


def study(images: tuple[Any, Any], steps: int, key: jax.Array) -> tuple[dict[str, Fit], np.ndarray]:
    """Fit all three and print what comes out: the fits, and softmax's excess [steps + 1]."""
    print(f"{len(images[0][1])} images to train on, {len(images[1][1])} to test on\n")
    softmax = fit_softmax(images)
    least, score, iterations = scikit_optimum(images)
    kept = softmax.run.trajectory
    excess = np.append(kept["loss"], softmax.loss) / least - 1
    far = np.flatnonzero(np.abs(excess) > TOLERANCE)[-1]
    print(f"Softmax regression, C = {C:g}:  steps     penalised loss   test accuracy")
    for name, number, value, right in (
        ("jaxfit, L-BFGS", len(excess) - 1, softmax.loss, softmax.accuracies[-1]),
        ("scikit-learn, Newton-CG", iterations, least, score),
    ):
        print(f"  {name:25} {number:5d} {value:18.13f} {right:15.4f}")
    print(f"  relative difference {excess[-1]:.1e}, ", end="")
    print(f"within {TOLERANCE:g} after {far + 1} steps" if far + 1 < len(excess) else "too large")
    print(f"  {kept['searched'][1:].mean():.2f} evaluations per step, by the line search")

    fits = {"softmax": softmax}
    fits |= {name: fit_network(name, images, steps, key) for name in NETWORKS}
    print(
        "\nmodel    parameters   steps   seconds to compile + run   loss minimised   test accuracy"
    )
    for name, one in fits.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(one.run.state.params))
        seconds = "{:.1f} + {:.1f}".format(*one.seconds)
        print(f"{name:8} {size:10d} {one.steps[-1]:7d} {seconds:>26}", end="")
        print(f" {one.loss:16.4f} {one.accuracies[-1]:15.4f}")
    return fits, excess


def draw_curves(fits: dict[str, Fit], excess: np.ndarray, n: int) -> plt.Figure:
    """Training losses, test accuracies, and how softmax regression nears its optimum."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for name, one in fits.items():
        loss, color = one.run.trajectory["loss"], COLOURS[name]
        if name == "softmax":
            left.plot(one.run.steps, loss, color=color, label=f"{name}, penalised")
            middle.plot(one.steps, 100 * one.accuracies, color=color, label=name)
        else:
            width = min(15, len(loss))
            smooth = np.convolve(loss, np.full(width, 1 / width), "valid")
            at = one.run.steps[(width - 1) // 2 :][: len(smooth)]
            left.plot(one.run.steps, loss, color=color, alpha=0.25, linewidth=0.7)
            left.plot(at, smooth, color=color, label=f"{name}, mean of {width} batches")
            epochs = one.steps * BATCH_SIZE / n
            middle.plot(epochs, 100 * one.accuracies, color=color, label=name)
            middle.set_xlim(0, epochs[-1])
    low = min(85, *(100 * one.accuracies[-1] - 5 for one in fits.values()))
    middle.set(title="Accuracy on the test images", ylabel="accuracy, %", ylim=(low, 100))
    middle.set_xlabel("epoch (of softmax regression: step)")
    left.set(title="Training loss", xlabel="step", ylabel="cross-entropy, nats", yscale="log")
    shown = excess > 0  # below scikit-learn's optimum there is only rounding
    right.plot(np.flatnonzero(shown), excess[shown], color=BLUE, label="softmax by L-BFGS")
    right.axhline(TOLERANCE, color=BLACK, linestyle="--", linewidth=1, label=f"{TOLERANCE:g}")
    right.set(title="Excess over scikit-learn's optimum", xlabel="step", yscale="log")
    right.set_ylabel("penalised loss / least − 1")
    for ax in (left, middle, right):
        ax.legend()
    return figure


def draw_confusion(name: str, one: Fit, test: tuple[Any, Any]) -> plt.Figure:
    """Which digits are taken for which, and the images that were."""
    (x, y), predicted = (np.asarray(array) for array in test), one.predicted[-1]
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, predicted), 1)
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 4))
    ax = left.subplots()
    # The diagonal, a hundred times the rest, has no colour, so that errors have one.
    errors = np.ma.masked_array(counts, np.eye(10, dtype=bool))
    ax.imshow(errors, cmap="Oranges", vmin=0, vmax=max(2 * errors.max(), 1))
    ax.set_facecolor("0.9")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ax.text(column, row, count, ha="center", va="center", color=BLACK)
    wrong = np.flatnonzero(predicted != y)
    ax.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    ax.set_title(f"{name} on the test images: {len(wrong)} of {len(y)} wrong")
    more = ", the first 12" if len(wrong) > 12 else ""
    right.suptitle(f"Mistaken images{more}: true → predicted")
    for place, ax in enumerate(right.subplots(3, 4).flat):
        ax.axis("off")
        if place < len(wrong):
            index = wrong[place]
            ax.imshow(x[index].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(f"{y[index]} → {predicted[index]}")
    return figure


def animate_weights(one: Fit, frames: int = 32) -> FuncAnimation:
    """What the 32 hidden units that weigh most in the end look for, through the run."""
    first, last = one.run.state.params
    weight = np.linalg.norm(first["w"], axis=0) * np.linalg.norm(last["w"], axis=1)
    units = np.argsort(-weight)[:32]
    # Frames crowd at the beginning, where the weights move most.
    last_row = len(one.run.steps) - 1
    rows = np.unique((np.linspace(0, 1, frames) ** 2 * last_row).round().astype(int))
    weights = one.run.trajectory["params"][0]["w"][rows][:, :, units]  # [frames, 64, 32]
    # One picture of 4 by 8 units, with an empty line after each.
    tiles = np.full((len(rows), 4, 9, 8, 9), np.nan)
    tiles[:, :, :8, :, :8] = weights.reshape(-1, 8, 8, 4, 8).transpose(0, 3, 1, 4, 2)
    tiles = tiles.reshape(-1, 36, 72)[:, :-1, :-1]

    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    limit = np.quantile(np.abs(weights), 0.995)
    image = ax.imshow(tiles[0], cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.axis("off")
    figure.colorbar(image, label="weight of a pixel", extend="both", shrink=0.85)
    title = ax.set_title(" ", loc="left")

    def draw(frame):
        row = rows[frame]
        image.set_data(tiles[frame])
        step, loss = one.run.steps[row], one.run.trajectory["loss"][row]
        title.set_text(f"First layer of the MLP   step {step:4d}   loss of the batch {loss:.4f}")
        return image, title

    return FuncAnimation(figure, draw, frames=len(rows), interval=120)


def draw(fits: dict[str, Fit], excess: np.ndarray, images: Any, out: Any, animate: bool) -> Any:
    """Draw everything from the fits, and say what was written where; the animation, or None."""
    train, test = images
    best = max(fits, key=lambda name: fits[name].accuracies[-1])
    written = [out / "curves.png", out / "confusion.png"]
    draw_curves(fits, excess, len(train[1])).savefig(written[0], dpi=100)
    draw_confusion(best, fits[best], test).savefig(written[1], dpi=100)
    animation = animate_weights(fits["MLP"]) if animate else None
    if animation:
        for ending in (".html", ".gif"):
            written.append(plot.save(animation, out / f"weights{ending}", dpi=80))
    print("\nWritten:")
    for path in written:
        _command.written(path)
    return animation


def main() -> None:
    parser = _command.parser("digits", __doc__)
    parser.add_argument("--steps", type=int, default=1150, help="of the networks, default 1150")
    parser.add_argument("--no-animation", action="store_true", help="draw no animation")

    def fit_all(arguments: argparse.Namespace) -> FuncAnimation | None:
        _command.between("steps", arguments.steps, 1, 2**31 - 1)
        split, rest = jax.random.split(jax.random.key(arguments.seed))
        images = divided(split)
        fits, excess = study(images, arguments.steps, rest)
        return draw(fits, excess, images, arguments.out, not arguments.no_animation)

    _command.run(parser, fit_all)


if __name__ == "__main__":
    main()
