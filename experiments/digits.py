"""Classify handwritten digits by softmax regression, a perceptron and a convolutional network.

The data are scikit-learn's 1,797 images of 8 by 8 pixels, a fifth of them held out. Softmax
regression has one optimum, which L-BFGS reaches, as scikit-learn does; the two networks are trained
by AdamW on minibatches. Everything drawn, including the test accuracies along the way, is computed
after the runs, from the parameters that they recorded.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation

from experiments import _command
from experiments._digits import (
    BATCH_SIZE,
    NETWORKS,
    C,
    Fit,
    fit_network,
    fit_softmax,
    scikit_optimum,
)
from jaxfit import plot
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

TOLERANCE = 1e-6  # the relative excess over scikit-learn's optimum that counts as reaching it
COLOURS = {"softmax": BLUE, "MLP": ORANGE, "CNN": GREEN}


def study(images: tuple[Any, Any], steps: int, key: jax.Array) -> tuple[dict[str, Fit], np.ndarray]:
    """Fit all models and print the results; return the fits, and softmax's excess [steps + 1]."""
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
    """Draw training losses, test accuracies, and how softmax regression nears its optimum."""
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
    shown = excess > 0  # what is below scikit-learn's optimum is rounding
    right.plot(np.flatnonzero(shown), excess[shown], color=BLUE, label="softmax by L-BFGS")
    right.axhline(TOLERANCE, color=BLACK, linestyle="--", linewidth=1, label=f"{TOLERANCE:g}")
    right.set(title="Excess over scikit-learn's optimum", xlabel="step", yscale="log")
    right.set_ylabel("penalised loss / least − 1")
    for ax in (left, middle, right):
        ax.legend()
    return figure


def draw_confusion(name: str, one: Fit, test: tuple[Any, Any]) -> plt.Figure:
    """Draw which digits are mistaken for which, and the images concerned."""
    (x, y), predicted = (np.asarray(array) for array in test), one.predicted[-1]
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (y, predicted), 1)
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 4))
    ax = left.subplots()
    # The diagonal, a hundred times the rest, is left out of the colours to show the errors.
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


def animate_weights(one: Fit) -> FuncAnimation:
    """Animate the first-layer weights of the 32 hidden units that weigh most in the end."""
    first, last = one.run.state.params
    weight = np.linalg.norm(first["w"], axis=0) * np.linalg.norm(last["w"], axis=1)
    units = np.argsort(-weight)[:32]
    # Of 32 frames, most are at the beginning, where the weights move most.
    last_row = len(one.run.steps) - 1
    rows = np.unique((np.linspace(0, 1, 32) ** 2 * last_row).round().astype(int))
    weights = one.run.trajectory["params"][0]["w"][rows][:, :, units]  # [frames, 64, 32]
    # One picture of 4 by 8 units, with an empty line between them.
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
    """Draw everything from the fits and list the files; return the animation, or None."""
    train, test = images
    best = max(fits, key=lambda name: fits[name].accuracies[-1])
    figures = {
        "curves": draw_curves(fits, excess, len(train[1])),
        "confusion": draw_confusion(best, fits[best], test),
    }
    written = _command.save(figures, out)
    animation = animate_weights(fits["MLP"]) if animate else None
    if animation:
        for ending in (".html", ".gif"):
            written.append(plot.save(animation, out / f"weights{ending}", dpi=80))
    _command.list_files(written)
    return animation


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("digits", __doc__)
    parser.add_argument(
        "--steps", type=int, default=1150, help="steps of the networks (default: 1150)"
    )
    parser.add_argument("--no-animation", action="store_true", help="draw no animation")

    def fit_all(arguments: argparse.Namespace) -> FuncAnimation | None:
        _command.check_range("steps", arguments.steps, 1, 2**31 - 1)
        split, rest = jax.random.split(jax.random.key(arguments.seed))
        images = _command.split_digits(split)
        fits, excess = study(images, arguments.steps, rest)
        return draw(fits, excess, images, arguments.out, not arguments.no_animation)

    _command.run(parser, fit_all)


if __name__ == "__main__":
    main()
