"""The memory and the time of a gradient through a whole run, with keyframes and without.

The derivative of the last loss with respect to the learning rate, by reverse mode, through T steps
of a perceptron (64-64-10, batch 64, Adam) on the handwritten digits. Without keyframes, reverse
mode keeps what every step needs for its derivative; with ``keyframe_every=k``, k = √T, it keeps the
states of T / k keyframes and what the k steps of one segment need. Memory is the compiled program's
temporary memory, as XLA reports it; times are medians of alternating runs, where it is there.

    python -m experiments.benchmarks.hypergradient
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks.single_run import datasets, digits, machine, seconds, table


def last_loss(steps: int, keyframe_every: int | None) -> Callable:
    """The loss after a run, as a function of the logarithm of its learning rate."""
    problem = digits(steps)

    def end(log_rate):
        run = jaxfit.train(
            problem.loss,
            problem.params,
            optax.adam(jnp.exp(log_rate)),
            steps,
            data=lambda step: problem.data,
            record=lambda step: step.loss,
            keyframe_every=keyframe_every,
        )
        return problem.loss(run.state.params, problem.data)

    return end


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.hypergradient",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs to take medians of (5)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[10**3, 10**4, 10**5], help="(1000 10000 100000)"
    )
    parser.add_argument(
        "--gigabytes", type=float, default=4.0, help="the most memory a timed run may take (4)"
    )
    parser.add_argument("--markdown", action="store_true", help="print GitHub's tables")
    args = parser.parse_args()
    if datasets is None:
        parser.exit(2, 'hypergradient: scikit-learn is missing: pip install -e ".[bench]".\n')

    at = jnp.float32(math.log(1e-3))
    rows, before = [], None
    for steps in args.steps:
        every = math.isqrt(steps)
        programs = [
            jax.jit(derivative(last_loss(steps, k))).lower(at).compile()
            for derivative, k in (
                (lambda end: end, None),
                (jax.grad, None),
                (jax.grad, every),
            )
        ]
        _, plain, keyframes = (p.memory_analysis().temp_size_in_bytes / 1e6 for p in programs)
        timed = [
            p
            for p, size in zip(programs, (0, plain, keyframes), strict=True)
            if size < 1e3 * args.gigabytes
        ]
        runs = [lambda p=p: jax.block_until_ready(p(at)) for p in timed]
        times = np.median([[seconds(run) for run in runs] for _ in range(args.repeats)], axis=0)
        forward, *reverse = times
        without, with_keyframes = reverse if len(reverse) == 2 else (math.nan, reverse[0])
        rows.append(
            (
                f"{steps:,}",
                f"{every}",
                f"{plain:,.1f}",
                f"{keyframes:,.1f}",
                "–" if before is None else f"{keyframes / before:.2f}",
                f"{1e6 * forward / steps:.1f}",
                f"{1e6 * without / steps:.1f}".replace("nan", "–"),
                f"{1e6 * with_keyframes / steps:.1f}",
                f"{with_keyframes / without:.2f}".replace("nan", "–"),
            )
        )
        before = keyframes
    head = (
        "steps",
        "k",
        "MB, plain",
        "MB, keyframes",
        "growth",
        "µs per step: the run",
        "its derivative, plain",
        "with keyframes",
        "ratio",
    )
    print(table(head, rows, args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")


if __name__ == "__main__":
    main()
