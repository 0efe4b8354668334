"""What keyframes cost, and what it takes to read any row of a run from them.

A perceptron of more than a million parameters (64-1000-1000-10, batch 32, momentum) on the
handwritten digits, over ten thousand steps that keep the loss, with a keyframe every 100:

1. The memory of the whole trajectory, on paper, and of the keyframes, measured.
2. What recording keyframes costs: medians of alternating shorter runs with and without them.
3. The time to look at one step, wherever it is: ``jaxfit.at``, compiled once.

    python -m experiments.benchmarks.replay
"""

from __future__ import annotations

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks.single_run import datasets, machine, seconds, table
from jaxfit.losses import cross_entropy, objective
from jaxfit.models import mlp, mlp_init

loss = objective(mlp, cross_entropy)
optimizer = optax.sgd(0.01, momentum=0.9)


def train(params, batches, steps: int, keyframe_every: int | None) -> jaxfit.Run:
    return jaxfit.train(
        loss,
        params,
        optimizer,
        steps,
        data=batches,
        record=lambda step: step.loss,
        keyframe_every=keyframe_every,
    )


def gigabytes(tree) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=10_000, help="of the run (10000)")
    parser.add_argument("--every", type=int, default=100, help="steps between keyframes (100)")
    parser.add_argument("--short", type=int, default=400, help="steps of the timed runs (400)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds to take medians of (9)")
    parser.add_argument("--looks", type=int, default=20, help="random steps to look at (20)")
    parser.add_argument("--markdown", action="store_true", help="print GitHub's tables")
    args = parser.parse_args()
    if datasets is None:
        parser.exit(2, 'replay: scikit-learn is missing: pip install -e ".[bench]".\n')

    images, labels = datasets.load_digits(return_X_y=True)
    data = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    batches = jaxfit.minibatches(data, 32, jax.random.key(0))
    params = mlp_init(jax.random.key(1), (64, 1000, 1000, 10))
    fit = jax.jit(train, static_argnums=(2, 3))

    shorter = [
        lambda every=every: jax.block_until_ready(fit(params, batches, args.short, every))
        for every in (None, args.every)
    ]
    rounds = [[seconds(run) for run in shorter] for _ in range(args.repeats)]
    without, with_keyframes = np.median(rounds, axis=0) / args.short

    start = time.perf_counter()
    run = jax.block_until_ready(fit(params, batches, args.steps, args.every))
    whole = time.perf_counter() - start
    look = jax.jit(lambda run, batches, step: jaxfit.at(loss, run, optimizer, step, data=batches))
    places = np.random.default_rng(0).integers(0, args.steps, args.looks)
    start = time.perf_counter()
    step = jax.block_until_ready(look(run, batches, 0))
    compiled = time.perf_counter() - start
    times = []
    for place in places:
        start = time.perf_counter()
        step = jax.block_until_ready(look(run, batches, int(place)))
        times.append(time.perf_counter() - start)
        assert step.loss == run.trajectory[place]

    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = [
        ("parameters", f"{number:,}"),
        ("every step's parameters, on paper", f"{4 * number * args.steps / 1e9:.1f} GB"),
        ("and momentum", f"{8 * number * args.steps / 1e9:.1f} GB"),
        (f"keyframes every {args.every} steps, measured", f"{gigabytes(run.keyframes):.2f} GB"),
        ("a step without keyframes", f"{1e3 * without:.2f} ms"),
        ("a step with keyframes", f"{1e3 * with_keyframes:.2f} ms"),
        ("ratio", f"{with_keyframes / without:.3f}"),
        ("the run, with its compilation", f"{whole:.0f} s"),
        ("to look at a random step, median", f"{np.median(times):.2f} s"),
        ("the slowest of them", f"{max(times):.2f} s"),
        ("the first of them, with its compilation", f"{compiled:.2f} s"),
    ]
    print(table((f"{args.steps:,} steps", ""), rows, args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")


if __name__ == "__main__":
    main()
