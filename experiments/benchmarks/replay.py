"""Measure what keyframes cost, and how long it takes to read any row of a run from them.

A perceptron of more than a million parameters (64-1000-1000-10, batch 32, momentum) on the
handwritten digits, over ten thousand steps that keep the loss, with a keyframe every 100:

1. The memory of the whole trajectory, on paper, and of the keyframes, measured.
2. The cost of recording keyframes: medians of alternating shorter runs with and without them.
3. The time to look at one step, wherever it is: ``jaxfit.at``, compiled once.

    python -m experiments.benchmarks.replay
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._problems import all_digits
from jaxfit.losses import cross_entropy, objective
from jaxfit.models import mlp, mlp_init

loss = objective(mlp, cross_entropy)
optimizer = optax.sgd(0.01, momentum=0.9)


def train(params: Any, batches: Any, steps: int, keyframe_every: int | None) -> jaxfit.Run:
    """Return the run of the perceptron."""
    return jaxfit.train(
        loss,
        params,
        optimizer,
        steps,
        data=batches,
        record=lambda step: step.loss,
        keyframe_every=keyframe_every,
    )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a single run takes, compilation included, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


def time_looks(run: jaxfit.Run, batches: Any, number: int) -> tuple[float, list[float]]:
    """Return the seconds to look at the first step, compilation included, and at random ones."""
    look = jax.jit(lambda run, batches, step: jaxfit.at(loss, run, optimizer, step, data=batches))
    first, _ = timed(lambda: look(run, batches, 0))
    times = []
    for place in np.random.default_rng(0).integers(0, len(run.steps), number):
        duration, step = timed(lambda place=place: look(run, batches, int(place)))
        times.append(duration)
        assert step.loss == run.trajectory[place]
    return first, times


def main() -> None:
    """Measure memory and times, and print the table."""
    parser = _bench.parser("replay", __doc__, repeats=9)
    option = parser.add_argument
    option("--steps", type=int, default=10_000, help="steps of the run (default: 10000)")
    option("--every", type=int, default=100, help="steps between keyframes (default: 100)")
    option("--short", type=int, default=400, help="steps of the timed runs (default: 400)")
    option("--looks", type=int, default=20, help="random steps to look at (default: 20)")
    args = _bench.parse(parser)
    _bench.require_sklearn(parser)

    batches = jaxfit.minibatches(jax.tree.map(jnp.asarray, all_digits()), 32, jax.random.key(0))
    params = mlp_init(jax.random.key(1), (64, 1000, 1000, 10))
    fit = jax.jit(train, static_argnums=(2, 3))
    shorter = [
        lambda every=every: jax.block_until_ready(fit(params, batches, args.short, every))
        for every in (None, args.every)
    ]
    without, with_keyframes = _bench.medians(shorter, args.repeats) / args.short
    whole, run = timed(lambda: fit(params, batches, args.steps, args.every))
    first, times = time_looks(run, batches, args.looks)

    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(run.keyframes))
    rows = [
        ("parameters", f"{number:,}"),
        ("every step's parameters, on paper", f"{4 * number * args.steps / 1e9:.1f} GB"),
        ("and momentum", f"{8 * number * args.steps / 1e9:.1f} GB"),
        (f"keyframes every {args.every} steps, measured", f"{kept / 1e9:.2f} GB"),
        ("a step without keyframes", f"{1e3 * without:.2f} ms"),
        ("a step with keyframes", f"{1e3 * with_keyframes:.2f} ms"),
        ("ratio", f"{with_keyframes / without:.3f}"),
        ("the run, with its compilation", f"{whole:.0f} s"),
        ("to look at a random step, median", f"{np.median(times):.2f} s"),
        ("the slowest of them", f"{max(times):.2f} s"),
        ("the first of them, with its compilation", f"{first:.2f} s"),
    ]
    _bench.print_table(args, (f"{args.steps:,} steps", ""), rows)
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
