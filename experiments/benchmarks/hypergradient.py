"""Measure the memory and the time of a gradient through a whole run, with keyframes and without.

The derivative of the last loss with respect to the learning rate, by reverse mode, through T steps
of a perceptron (64-64-10, batch 64, Adam) on the handwritten digits. Without keyframes, reverse
mode keeps what every step needs for its derivative; with ``keyframe_every=k``, k = √T, it keeps the
states of T / k keyframes and what the k steps of one segment need. Memory is the compiled program's
temporary memory, as XLA reports it. Times are medians of alternating runs of those programs whose
memory is within ``--gigabytes``.

    python -m experiments.benchmarks.hypergradient
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._problems import digits

HEAD = "steps", "k", "MB, plain", "MB, keyframes", "growth", "µs per step: the run"
HEAD += "its derivative, plain", "with keyframes", "ratio"


def last_loss(steps: int, keyframe_every: int | None) -> Callable:
    """Return the loss after a run as a function of the logarithm of its learning rate."""
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


def measure(steps: int, limit: float, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Return MB and µs per step of the run, its derivative, and that with keyframes: [3] each.

    Programs that need more MB than the limit are not run: their time is nan.
    """
    plain, keyframes = last_loss(steps, None), last_loss(steps, math.isqrt(steps))
    at = jnp.float32(math.log(1e-3))
    programs = [
        jax.jit(function).lower(at).compile()
        for function in (plain, jax.grad(plain), jax.grad(keyframes))
    ]
    sizes = np.array([one.memory_analysis().temp_size_in_bytes / 1e6 for one in programs])
    runs = [lambda one=one: jax.block_until_ready(one(at)) for one in programs]
    times, timed = np.full(3, np.nan), np.flatnonzero(sizes < limit)
    times[timed] = 1e6 * _bench.medians([runs[i] for i in timed], repeats) / steps
    return sizes, times


def main() -> None:
    """Measure runs of all lengths, and print the table."""
    parser = _bench.parser("hypergradient", __doc__, repeats=5)
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[10**3, 10**4, 10**5],
        help="lengths of the run (default: 1000 10000 100000)",
    )
    parser.add_argument(
        "--gigabytes", type=float, default=4.0, help="most memory of a timed run (default: 4)"
    )
    args = _bench.parse(parser)
    _bench.require_sklearn(parser)

    rows, before = [], math.nan
    for steps in args.steps:
        (_, plain, keyframes), times = measure(steps, 1e3 * args.gigabytes, args.repeats)
        cells = [f"{plain:,.1f}", f"{keyframes:,.1f}", f"{keyframes / before:.2f}"]
        cells += [f"{time:.1f}" for time in times] + [f"{times[2] / times[1]:.2f}"]
        cells = [cell.replace("nan", "–") for cell in cells]
        rows.append((f"{steps:,}", f"{math.isqrt(steps)}", *cells))
        before = keyframes
    _bench.print_table(args, HEAD, rows)
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
