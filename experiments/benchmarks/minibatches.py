"""Measure what a shuffled minibatch costs inside ``train``, and that it costs the same for any n.

1. µs per step of a perceptron (64-64-10, batch 64, Adam) on the handwritten digits: on a constant
   batch, and on batches of ``jaxfit.minibatches`` and of other ways to choose them.
2. The same on n random images, from a thousand to ten million, beside a run whose indices were
   drawn beforehand, which shows the cost of reading memory alone.
3. µs to compute 64 indices, for n up to a billion.

Every round runs each contender once, in turn, so that a busy machine slows all of them; the tables
show medians over the rounds, and their ratios to the first contender's.

    python -m experiments.benchmarks.minibatches
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._bench import Contender
from experiments.benchmarks._problems import Problem, all_digits, digits

BATCH = 64
INDICES_STEPS = 10_000
key = jax.random.key(0)


def drawn(arrays: Any, indices: jax.Array) -> Callable:
    """Return batches of indices that were chosen before the run, [steps, BATCH]."""
    return lambda step: jax.tree.map(lambda leaf: leaf[indices[step]], arrays)


def permuted(arrays: Any) -> Callable:
    """Return batches cut from a permutation of all examples, which every step computes."""
    n = len(jax.tree.leaves(arrays)[0])

    def batch(step):
        per_epoch = n // BATCH
        order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), n)
        rows = lax.dynamic_slice_in_dim(order, step % per_epoch * BATCH, BATCH)
        return jax.tree.map(lambda leaf: leaf[rows], arrays)

    return batch


def scaled(batches: Callable) -> Callable:
    """Return batches of pixels that are stored as bytes, so that ten million images fit."""

    def batch(step):
        x, y = batches(step)
        return x / 16, y

    return batch


def contender(name: str, problem: Problem, data: Any, make: Callable, **options: Any) -> Contender:
    """Return a contender that trains on ``make(data)``; arrays are arguments, so none is folded."""
    fit = jax.jit(
        lambda params, data: jaxfit.train(
            problem.loss, params, optax.adam(1e-3), problem.steps, data=make(data), **options
        )
    )
    return Contender(name, problem.steps, lambda: jax.block_until_ready(fit(problem.params, data)))


def ways(problem: Problem, arrays: Any, **options: Any) -> list[Contender]:
    """Return contenders that choose batches of the digits in different ways."""
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


def compare_sizes(problem: Problem, numbers: list[int], repeats: int) -> list[tuple[str, ...]]:
    """Return rows of a table: n, µs per step with indices drawn beforehand, with minibatches."""
    contenders = []
    for n in numbers:
        rng = np.random.default_rng(0)
        arrays = (
            jnp.asarray(rng.integers(0, 17, (n, 64), np.uint8)),
            jnp.asarray(rng.integers(0, 10, n, np.int32)),
        )
        order = jnp.asarray(rng.integers(0, n, (problem.steps, BATCH), np.int32))
        contenders += [
            contender("", problem, (arrays, order), lambda data: scaled(drawn(*data))),
            contender("", problem, jaxfit.minibatches(arrays, BATCH, key), scaled),
        ]
    pairs = 1e6 * _bench.step_times(contenders, repeats).reshape(-1, 2)
    return [
        (f"{n:,}", f"{one:.2f}", f"{other:.2f}", f"{other - one:.2f}")
        for n, (one, other) in zip(numbers, pairs, strict=True)
    ]


def index_sums(n: int) -> Contender:
    """Return a contender that computes the indices of batches of n examples, and adds them up."""
    batches = jaxfit.minibatches(jnp.zeros((n, 0)), BATCH, key)
    add = jax.jit(
        lambda batches: lax.scan(
            lambda total, step: (total + batches.indices(step), None),
            jnp.zeros(BATCH, jnp.int32),
            jnp.arange(INDICES_STEPS),
        )[0]
    )
    return Contender(f"{n:,}", INDICES_STEPS, lambda: jax.block_until_ready(add(batches)))


def main() -> None:
    """Time all contenders, and print the tables."""
    parser = _bench.parser("minibatches", __doc__, repeats=21)
    option = parser.add_argument
    option("--steps", type=int, default=500, help="steps of every run (default: 500)")
    option(
        "--largest",
        type=int,
        default=10**7,
        help="largest number of images, of 65 bytes each (default: 10000000)",
    )
    args = _bench.parse(parser)
    _bench.require_sklearn(parser)

    problem = digits(args.steps)
    arrays = jax.tree.map(jnp.asarray, all_digits())
    for name, options in {
        "the whole trajectory": {},
        "the loss alone": {"record": lambda step: step.loss},
    }.items():
        contenders = ways(problem, arrays, **options)
        _bench.print_comparison(args, f"digits, keeping {name}", contenders)
    numbers = [n for n in (10**3, 10**5, 10**7) if n < args.largest] + [args.largest]
    head = "images", "indices drawn beforehand", "minibatches", "difference, µs"
    _bench.print_table(args, head, compare_sizes(problem, numbers, args.repeats))
    contenders = [index_sums(n) for n in (10**3, 10**5, 10**7, 10**9)]
    _bench.print_comparison(args, "64 indices of n", contenders)
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
