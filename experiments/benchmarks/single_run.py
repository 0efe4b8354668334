"""Time one training run: jaxfit beside a ``lax.scan`` by hand, a Python loop, and its peers.

Two problems, each with a constant batch, in float32:

- *line*: mean squared error of a line through 100 points by gradient descent, 10,000 steps. A step
  is less than a thousand operations, so almost all of the time is overhead.
- *digits*: a 64-64-10 perceptron on 64 of scikit-learn's digits with Adam, 500 steps.

Two quantities for each:

- *time per step*, compiled beforehand. Parameters and data are arguments, so that nothing can be
  folded into constants. Contenders keep the parameters and the loss of every step unless their
  name says otherwise. Python loops make at most 1,000 steps.
- *trace and compile time* of the scan by hand and of ``jaxfit.train``, from empty caches.

A third table shows what many parameters cost: a least-squares loss of several leaves, with and
without an l2 penalty over all of them, with Adam, by hand and by ``jaxfit.train``.

Every round runs each contender once, in turn, so that a busy machine slows all of them; the tables
show medians over the rounds, and their ratios to the first contender's. Before any timing, all must
agree on the parameters after the last step and on everything kept on the way: to nine places when
run in float64, and to within rounding in float32.

    python -m experiments.benchmarks.single_run
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._bench import datasets, torch
from experiments.benchmarks._problems import Problem, digits, line
from experiments.benchmarks._single_run import by_jaxfit, check, contend, optax_by_hand

LEAVES_STEPS = 1_000


def leaves(number: int, penalty: float) -> Problem:
    """Return a least-squares loss of many small arrays of parameters, for Adam."""

    def loss(params, batch):
        fit = sum(jnp.mean((batch * leaf - 1) ** 2) for leaf in params)
        return fit + penalty * jaxfit.losses.l2(params) if penalty else fit

    return Problem(
        f"{number:,} leaves{' with l2' * bool(penalty)}",
        loss,
        [jnp.full(8, 1 / (1 + place)) for place in range(number)],
        jnp.arange(1.0, 9.0),
        optax.adam(1e-3),
        LEAVES_STEPS,
    )


def compile_afresh(fit: Callable, problem: Problem) -> tuple[Callable, float, float]:
    """Compile from empty caches; return the program, and the seconds to trace it and in all."""
    jax.clear_caches()
    gc.collect()  # what the caches held, so that it is not freed while the clock runs
    start = time.perf_counter()
    lowered = jax.jit(fit).lower(problem.params, problem.data)
    traced = time.perf_counter()
    program = lowered.compile()
    return program, traced - start, time.perf_counter() - start


def compare_compilation(problem: Problem, repeats: int) -> list[tuple[str, ...]]:
    """Return rows of a table: contender, ms to trace, to trace and compile, each with its ratio."""
    makers = {"lax.scan by hand, optax": optax_by_hand, "jaxfit.train": by_jaxfit}
    rounds = [
        [compile_afresh(make(problem), problem)[1:] for make in makers.values()]
        for _ in range(repeats + 1)
    ]
    medians = np.median(rounds[1:], axis=0)  # the first round pays for imports on first use
    return [
        (
            name,
            *(f"{1e3 * t:.1f} ({r:.2f})" for t, r in zip(times, times / medians[0], strict=True)),
        )
        for name, times in zip(makers, medians, strict=True)
    ]


def compare_leaves(numbers: list[int]) -> list[tuple[str, ...]]:
    """Return rows of a table: problem, s to compile and µs per step, by hand and by jaxfit."""
    rows = []
    for number, penalty in itertools.product(numbers, (0, 0.01)):
        problem = leaves(number, penalty)
        compiling, stepping = [], []
        for make in (optax_by_hand, by_jaxfit):
            program, _, duration = compile_afresh(make(problem), problem)
            run = lambda program=program, args=(problem.params, problem.data): (
                jax.block_until_ready(program(*args))
            )
            compiling.append(duration)
            stepping.append(min(_bench.seconds(run) for _ in range(3)) / problem.steps)
        (theirs, ours), (their_step, our_step) = compiling, stepping
        cells = f"{theirs:.2f}", f"{ours:.2f} ({ours / theirs:.2f})"
        cells += f"{1e6 * their_step:.3g}", f"{1e6 * our_step:.3g} ({our_step / their_step:.2f})"
        rows.append((problem.name, *cells))
    return rows


def main() -> None:
    """Check and time all contenders, and print the tables."""
    parser = _bench.parser("single_run", __doc__, repeats=15)
    parser.add_argument(
        "--steps",
        type=int,
        default=10_000,
        help="steps of the line; the digits take a twentieth (default: 10000)",
    )
    parser.add_argument(
        "--leaves",
        type=int,
        nargs="*",
        default=[10, 50, 100],
        help="numbers of leaves; 1000 compile for minutes (default: 10 50 100)",
    )
    args = _bench.parse(parser)
    if torch:
        # With more threads than idle cores, PyTorch is far slower on problems as small as these.
        torch.set_num_threads(1)

    makers = [(line, args.steps)]
    if datasets:
        makers.append((digits, max(args.steps // 20, 1)))
    for make, steps in makers:
        with jax.enable_x64(True):
            check(contend(make(steps)), 1e-9)
        problem = make(steps)
        contenders = contend(problem)
        check(contenders, problem.tolerance)
        _bench.print_comparison(args, f"{problem.name}, {steps:,} steps", contenders)
        head = f"{problem.name}, compilation", "ms to trace (ratio)", "and to compile (ratio)"
        _bench.print_table(args, head, compare_compilation(problem, args.repeats))
    head = "leaves", "s to compile by hand", "jaxfit (ratio)"
    head += "µs per step by hand", "jaxfit (ratio)"
    _bench.print_table(args, head, compare_leaves(args.leaves))
    _bench.print_source(parser)
    missing = [name for name, module in _bench.PEERS.items() if module is None]
    if missing:
        print(f'Left out: {", ".join(missing)}; pip install -e ".[bench]" adds them.')


if __name__ == "__main__":
    main()
