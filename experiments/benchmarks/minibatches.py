"""What a shuffled minibatch costs inside ``train``, and that it costs the same for any n.

1. µs per step of a perceptron (64-64-10, batch 64, Adam) on the handwritten digits: on a constant
   batch, and on batches of ``jaxfit.minibatches`` and of other ways to choose them.
2. The same on n random images, from a thousand to ten million: beside it a run whose indices were
   drawn beforehand, which is what the memory alone costs.
3. µs to compute 64 indices, for n up to a billion.

Every round runs each contender once, in turn, so that a busy machine slows all of them; the tables
show medians over the rounds, and ratios of these to the first contender's.

    python -m experiments.benchmarks.minibatches
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments.benchmarks.single_run import Contender, Problem, digits, machine, table, time_steps
from experiments.benchmarks.single_run import datasets as sklearn_datasets

BATCH = 64
key = jax.random.key(0)


def drawn(arrays: Any, indices: jax.Array) -> Callable:
    """Batches of indices that were chosen before the run, [steps, BATCH]."""
    return lambda step: jax.tree.map(lambda leaf: leaf[indices[step]], arrays)


def permuted(arrays: Any) -> Callable:
    """Batches cut from a permutation of all examples, which every step computes."""
    n = len(jax.tree.leaves(arrays)[0])

    def batch(step):
        per_epoch = n // BATCH
        order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), n)
        rows = lax.dynamic_slice_in_dim(order, step % per_epoch * BATCH, BATCH)
        return jax.tree.map(lambda leaf: leaf[rows], arrays)

    return batch


def bytes_as_floats(batches: Callable) -> Callable:
    """Batches of pixels that are kept as a byte each, for ten million images to fit."""

    def batch(step):
        x, y = batches(step)
        return x / 16, y

    return batch


def contender(name: str, problem: Problem, data: Any, make: Callable, **options) -> Contender:
    """Train on ``make(data)``; the arrays are arguments, so that nothing is folded."""
    fit = jax.jit(
        lambda params, data: jaxfit.train(
            problem.loss, params, optax.adam(1e-3), problem.steps, data=make(data), **options
        )
    )
    return Contender(name, problem.steps, lambda: jax.block_until_ready(fit(problem.params, data)))


def ways(problem: Problem, arrays: Any, **options) -> list[Contender]:
    """Ways to choose a batch of the digits."""
    batches = jaxfit.minibatches(arrays, BATCH, key)
    order = jax.vmap(batches.indices)(jnp.arange(problem.steps))
    same = lambda data: data
    makers = {
        "a constant batch": (jax.tree.map(lambda leaf: leaf[:BATCH], arrays), same),
        "indices drawn beforehand": ((arrays, order), lambda data: drawn(*data)),
        "minibatches, shuffle=False": (jaxfit.minibatches(arrays, BATCH, shuffle=False), same),
        "minibatches": (batches, same),
        "minibatches, replace=True": (jaxfit.minibatches(arrays, BATCH, key, replace=True), same),
        "jax.random.permutation in every step": (arrays, permuted),
    }
    return [
        contender(name, problem, data, make, **options) for name, (data, make) in makers.items()
    ]


def sizes(problem: Problem, numbers: list[int], repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: n, µs per step with indices drawn beforehand and with minibatches."""
    contenders = []
    for n in numbers:
        rng = np.random.default_rng(0)
        arrays = (
            jnp.asarray(rng.integers(0, 17, (n, 64), np.uint8)),
            jnp.asarray(rng.integers(0, 10, n, np.int32)),
        )
        order = jnp.asarray(rng.integers(0, n, (problem.steps, BATCH), np.int32))
        contenders += [
            contender("", problem, (arrays, order), lambda data: bytes_as_floats(drawn(*data))),
            contender("", problem, jaxfit.minibatches(arrays, BATCH, key), bytes_as_floats),
        ]
    pairs = np.reshape([float(row[1]) for row in time_steps(contenders, repeats)], (-1, 2))
    return [
        (f"{n:,}", f"{one:.2f}", f"{other:.2f}", f"{other - one:.2f}")
        for n, (one, other) in zip(numbers, pairs, strict=True)
    ]


def indices_alone(numbers: list[int], repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: n, µs to compute a batch's indices."""
    steps = 10_000

    def sums(n: int) -> Contender:
        batches = jaxfit.minibatches(jnp.zeros((n, 0)), BATCH, key)
        add = jax.jit(
            lambda batches: lax.scan(
                lambda total, step: (total + batches.indices(step), None),
                jnp.zeros(BATCH, jnp.int32),
                jnp.arange(steps),
            )[0]
        )
        return Contender(f"{n:,}", steps, lambda: jax.block_until_ready(add(batches)))

    return time_steps([sums(n) for n in numbers], repeats)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.minibatches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=21, help="rounds to take medians of (21)")
    parser.add_argument("--steps", type=int, default=500, help="of every run (500)")
    parser.add_argument(
        "--largest", type=int, default=10**7, help="the most images, of 65 bytes each (10000000)"
    )
    parser.add_argument("--markdown", action="store_true", help="print GitHub's tables")
    args = parser.parse_args()
    if sklearn_datasets is None:
        parser.exit(2, 'minibatches: scikit-learn is missing: pip install -e ".[bench]".\n')

    problem = digits(args.steps)
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    arrays = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    head = "µs per step", "ratio"
    for name, options in {
        "the whole trajectory": {},
        "the loss alone": {"record": lambda step: step.loss},
    }.items():
        rows = time_steps(ways(problem, arrays, **options), args.repeats)
        print(table((f"digits, keeping {name}", *head), rows, args.markdown), end="\n\n")
    numbers = [n for n in (10**3, 10**5, 10**7) if n < args.largest] + [args.largest]
    head_of_sizes = "images", "indices drawn beforehand", "minibatches", "difference, µs"
    print(table(head_of_sizes, sizes(problem, numbers, args.repeats), args.markdown), end="\n\n")
    rows = indices_alone([10**3, 10**5, 10**7, 10**9], args.repeats)
    print(table(("64 indices of n", *head), rows, args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")


if __name__ == "__main__":
    main()
