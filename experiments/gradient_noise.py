"""Measure the scale of gradient noise along runs, and whether it predicts a useful batch size.

The noise scale B = tr Σ / |G|² compares the variance of one example's gradient with the squared
length of the mean, and should be the batch size about which larger batches cease to help: a batch
of b needs S = S_min (1 + B / b) steps, so that twice the batch saves half of the steps far below B,
a quarter at B and nothing far above (McCandlish et al. 2018, `An Empirical Model of Large-Batch
Training <https://arxiv.org/abs/1812.06162>`_). On linear regression B has a closed form, beside
which estimates along a run are set. On handwritten digits, softmax regression is trained to a fixed
loss with many batch sizes, each at its own best rate of a sweep.

All 18 estimates hold their closed forms, and on digits those from a run's own batches agree with
those from all examples, within a factor of about three. The law of steps fits. The batch at which
doubling saves a quarter is 17, 18 and 21 for the seeds 0 to 2, and the mean noise scale along
gradient descent, at the rate that is best for large batches, predicts it to about a third: 15, 20
and 15. At a quarter or an eighth of that rate the prediction is 271, at least thirteen times too
large: more of that run is spent where gradients are small, and there the rate is what limits its
speed, not the noise. So a noise scale says little before the rate is tuned.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _command, _gradient_noise
from experiments._gradient_noise import (
    BATCH_SIZE,
    CONFIDENCE,
    DIGITS,
    DIMENSION,
    RATE,
    TARGET,
    Along,
    Critical,
    Row,
    look_at_digits,
    look_at_regression,
    mean_scales,
    saved,
    steps_in_theory,
    times,
    tune,
)
from jaxfit import plot
from jaxfit.plot.static import BLACK, BLUE, GREEN, ORANGE

NAMES = {"grad_sq": "|G|²", "trace": "tr Σ", "scale": "B"}


def print_regression(rows: list[Row]) -> None:
    """Print the noise of linear regression beside its closed form."""
    print(f"Linear regression in {DIMENSION} dimensions along a run of SGD, beside closed forms,")
    print(f"all of which the intervals hold with {CONFIDENCE:.0%} confidence:\n")
    print("  step         measured   interval      exact  inside")
    for row in rows:
        print(f"{row.step:6d}  {NAMES[row.name]:5} {row.measured:11.4g} {row.margin:10.2g}", end="")
        print(f" {row.expected:10.4g} {'yes' if row.inside else 'NO':>7}")
    print(f"\n{sum(row.inside for row in rows)} of {len(rows)} are inside.")


def print_digits(along: Along) -> None:
    """Print the noise along a run on digits, from its own batches and from all examples."""
    print(f"\nSoftmax regression on {DIGITS} digits, SGD at rate {RATE:g} on batches of")
    print(f"{BATCH_SIZE}: B from |G|² and tr Σ, both averaged over a fifth of the run.\n")
    print("  steps          loss   B of all examples   B of the steps' own batches")
    length, every = len(along.batch.trace) // 5, len(along.steps) // 5
    for part in range(5):
        rows = slice(every * part, every * (part + 1))
        steps = slice(length * part, length * (part + 1))
        whole = along.all.trace[rows].mean() / along.all.grad_sq[rows].mean()
        own = along.batch.trace[steps].mean() / along.batch.grad_sq[steps].mean()
        print(f"{steps.start:6d} … {steps.stop:4d} {along.loss[rows].mean():8.3f}", end="")
        print(f" {whole:19.0f} {own:29.0f}")


def print_batches(found: Critical, tuned: float, slow: float) -> None:
    """Print the steps of every batch size beside the law, and the batch sizes that predict it."""
    sizes, middle = np.array(_gradient_noise.SIZES), np.median(found.taken, axis=1)
    fitted = steps_in_theory(sizes, found.least, found.batch)
    print(f"\nSteps to a loss of {TARGET:g} at the best rate, medians of {found.taken.shape[1]}")
    print("seeds, beside the law fitted to them, and what twice the batch saves; by that law, and")
    print("by the noise scale along gradient descent:\n")
    print("  batch    rate   steps  fitted  examples   saves  fitted  by noise")
    gained = [*(1 - middle[1:] / middle[:-1]), np.nan]
    for i, size in enumerate(sizes):
        print(f"{size:7d} {found.rates[i]:7.3g} {middle[i]:7.1f} {fitted[i]:7.1f}", end="")
        print(f" {size * middle[i]:9.0f} {gained[i]:7.0%}".replace("nan%", "   –"), end="")
        print(f" {saved(size, found.batch):7.0%} {saved(size, tuned):9.0%}")
    low, high = found.interval
    print(f"\nCritical batch size, fitted: {found.batch:.0f}, 95 % from {low:.0f} to {high:.0f}.")
    print("Mean noise scale over the steps of gradient descent to that loss, beside it:")
    for rate, scale in ((found.rates[-1], tuned), (RATE, slow)):
        print(f"  at rate {rate:2g}: {scale:4.0f}, {scale / found.batch:.2f} of what was fitted")


def draw_noise(rows: list[Row], along: Along) -> plt.Figure:
    """Draw the noise scale along both runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    step, scale, margin, exact = np.transpose(
        [(row.step, row.measured, row.margin, row.expected) for row in rows if row.name == "scale"]
    )
    left.plot(step, exact, "_", color=ORANGE, markersize=16, label="closed form")
    style = {"color": BLUE, "marker": ".", "linestyle": "none", "capsize": 3}
    left.errorbar(step, scale, margin, label="measured, with interval", **style)
    left.set(title="Linear regression", xlabel="step", ylabel="noise scale, examples", yscale="log")
    left.set_yticks([20, 50, 100], ["20", "50", "100"])
    left.minorticks_off()
    left.legend()
    plot.noise(np.arange(len(along.batch.trace)), along.batch, BATCH_SIZE, ax=right)
    right.plot(along.steps, along.all.scale, "o-", color=ORANGE, label="of all examples")
    right.set(title="Digits: from each step's batch and from all examples", ylim=(1, None))
    right.legend(fontsize=8)
    return figure


def draw_batches(found: Critical, tuned: float, slow: float) -> plt.Figure:
    """Draw the steps that each batch size needs, and what twice the batch saves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    sizes, middle = np.array(_gradient_noise.SIZES), np.median(found.taken, axis=1)
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    left.plot(sizes, found.taken, ".", color=BLUE, alpha=0.3, markersize=4)
    left.plot(sizes, middle, "o", color=BLUE, label="measured: median, and seeds")
    right.plot(sizes[:-1], 1 - middle[1:] / middle[:-1], "o", color=BLUE, label="measured")
    laws = {
        f"fitted: B = {found.batch:.0f}": (found.batch, BLACK, "-"),
        f"noise at rate {found.rates[-1]:g}: B = {tuned:.0f}": (tuned, ORANGE, "--"),
        f"noise at rate {RATE:g}: B = {slow:.0f}": (slow, GREEN, ":"),
    }
    for label, (batch, colour, style) in laws.items():
        line = steps_in_theory(fine, found.least, batch)
        left.plot(fine, line, style, color=colour, label=label)
        right.plot(fine, saved(fine, batch), style, color=colour, label=label)
        right.plot([batch], [0.25], "D", color=colour, markersize=5)
    left.set(title=f"Steps to a loss of {TARGET:g}, each at its best rate", yscale="log")
    left.set(ylabel="steps", ylim=(None, 3 * found.taken[np.isfinite(found.taken)].max()))
    left.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    right.set(title="What twice the batch saves; ◆ the critical batch", ylabel="part of the steps")
    right.axhline(0, color=BLACK, linewidth=0.5)
    for ax in (left, right):
        ax.set(xlabel="batch size", xscale="log")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.legend(fontsize=8)
    return figure


def study(data: Any, seeds: int, steps: int, key: jax.Array) -> dict[str, plt.Figure]:
    """Measure noise and batch sizes, print what was found, and return the pictures."""
    line, run, sweep = jax.random.split(key, 3)
    rows = look_at_regression(line)
    print_regression(rows)
    along = look_at_digits(data, run)
    print_digits(along)
    found = tune(times(data, jax.random.split(sweep, seeds), steps))
    rates = jnp.asarray([found.rates[-1], RATE], jnp.float32)
    tuned, slow = map(float, mean_scales(data, rates, 3 * steps))
    print_batches(found, tuned, slow)
    batches = draw_batches(found, tuned, slow)
    return {"noise": draw_noise(rows, along), "batches": batches}


def main() -> None:
    """Run the study from the command line."""
    parser = _command.parser("gradient_noise", __doc__)
    option = parser.add_argument
    option("--seeds", type=int, default=9, help="runs of every batch size and rate (default: 9)")
    option("--steps", type=int, default=40, help="longest run on large batches (default: 40)")

    def measure(arguments: argparse.Namespace) -> None:
        _command.check_range("seeds", arguments.seeds, 1, 100)
        _command.check_range("steps", arguments.steps, 1, 1000)
        data = tuple(part[:DIGITS] for part in _command.load_digits())
        key = jax.random.key(arguments.seed)
        figures = study(data, arguments.seeds, arguments.steps, key)
        _command.list_files(_command.save(figures, arguments.out))

    _command.run(parser, measure)


if __name__ == "__main__":
    main()
