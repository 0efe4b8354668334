"""What driving a run from Python costs: ``jaxfit.fit`` beside one big ``jaxfit.train``.

The two problems of ``single_run``, with the whole trajectory and with the losses alone, in float32;
``train`` is compiled beforehand and its trajectory brought to host memory, where that of ``fit``
is. Every round runs each contender once, in turn, so that a busy machine slows all of them; the
tables show medians over the rounds, and ratios of these to the first contender's. Before any
timing, all must agree bit for bit.

    python -m experiments.benchmarks.fit
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import jax
import numpy as np

import jaxfit
from experiments.benchmarks.single_run import (
    Contender,
    Problem,
    digits,
    line,
    machine,
    table,
    time_steps,
)
from experiments.benchmarks.single_run import datasets as sklearn_datasets
from jaxfit.record import whole

STEPS = {"line": 1_000_000, "digits": 50_000}


def losses(step: jaxfit.Step) -> jax.Array:
    return step.loss


def contend(problem: Problem, record: Any) -> list[Contender]:
    """One big run, and fits with chunks by the clock and of three lengths."""
    given = problem.loss, problem.params, problem.optimizer, problem.steps

    @jax.jit
    def train(data):
        return jaxfit.train(*given, data=data, record=record)

    def fitted(chunk_size):
        options = {"record": record, "progress": False, "chunk_size": chunk_size}
        return lambda: jaxfit.fit(*given, data=problem.data, **options).trajectory

    contenders = [("jaxfit.train", lambda: jax.device_get(train(problem.data).trajectory))]
    contenders.append(("jaxfit.fit", fitted(None)))
    for divisor in 10, 100, 1000:
        size = problem.steps // divisor
        contenders.append((f"jaxfit.fit, chunks of {size:,} steps", fitted(size)))
    return [Contender(name, problem.steps, run) for name, run in contenders]


def check(contenders: list[Contender]) -> None:
    """Raise an AssertionError unless all trajectories are the same."""
    expected = contenders[0].run()
    for contender in contenders[1:]:
        jax.tree.map(np.testing.assert_array_equal, contender.run(), expected)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds to take medians of (7)")
    parser.add_argument("--markdown", action="store_true", help="print GitHub's tables")
    args = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)
    for make in (line, digits) if sklearn_datasets else (line,):
        problem = make(STEPS[make.__name__])
        for kept, record in {"whole trajectory": whole, "losses": losses}.items():
            contenders = contend(problem, record)
            check(contenders)
            head = f"{problem.name}, {problem.steps:,} steps, {kept}", "µs per step", "ratio"
            print(table(head, time_steps(contenders, args.repeats), args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")


if __name__ == "__main__":
    main()
