"""What driving a run from Python costs: ``jaxfit.fit`` beside one big ``jaxfit.train``.

The two problems of ``single_run``, with the whole trajectory and with the losses alone, in float32;
``train`` is compiled beforehand and its trajectory brought to host memory, where that of ``fit``
is. The digits are also fitted with a directory, and on minibatches that Python reads from a
memory-mapped file. Every round runs each contender once, in turn, so that a busy machine slows all
of them; the tables show medians over the rounds, and ratios of these to the first contender's.
Before any timing, all must agree bit for bit.

Beside that: what a chunk in a directory costs by the size of its state, until the loop goes on and
until all is on disk; what it takes to read a state, and one array's rows; and to resume.

    python -m experiments.benchmarks.fit
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import optax

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
from jaxfit.checkpoint import Directory
from jaxfit.record import whole

STEPS = {"line": 1_000_000, "wider": 10_000, "digits": 50_000}


def wider(steps: int) -> Problem:
    """The digits with 256 hidden units, of whose steps none is short."""
    rng = np.random.default_rng(0)
    first, last = (
        jax.numpy.asarray(rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5), np.float32)
        for shape in ((64, 256), (256, 10))
    )
    given = first, jax.numpy.zeros(256), last, jax.numpy.zeros(10)
    return dataclasses.replace(digits(steps), name="digits, 256 hidden units", params=given)


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


def on_disk(problem: Problem) -> list[Contender]:
    """The same fit in memory and in a directory, which is new every time."""
    given = problem.loss, problem.params, problem.optimizer, problem.steps
    options = {"data": problem.data, "record": losses, "progress": False}

    def committed():
        with tempfile.TemporaryDirectory() as folder:
            return np.asarray(jaxfit.fit(*given, checkpoint_dir=folder, **options).trajectory)

    in_memory = lambda: jaxfit.fit(*given, **options).trajectory
    return [
        Contender("jaxfit.fit", problem.steps, in_memory),
        Contender("jaxfit.fit, checkpoint_dir", problem.steps, committed),
    ]


def streamed(problem: Problem, folder: pathlib.Path) -> list[Contender]:
    """Minibatches from memory, by a function that JAX computes, and from a file, by Python."""
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    for name, array in ("images", images), ("labels", labels):
        np.save(folder / f"{name}.npy", array)
    on_file = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")]
    batches = jaxfit.minibatches((images, labels), 64, jax.random.key(0))
    indices = np.asarray(jax.vmap(batches.indices)(np.arange(problem.steps)))
    by_indices = jax.tree_util.Partial(
        lambda arrays, indices, step: tuple(array[indices[step]] for array in arrays),
        tuple(map(jax.numpy.asarray, (images, labels))),
        jax.numpy.asarray(indices),
    )
    read = jaxfit.host_batches(lambda step: tuple(array[indices[step]] for array in on_file))
    given = problem.loss, problem.params, problem.optimizer, problem.steps

    def fitted(data):
        options = {"record": losses, "progress": False}
        return lambda: jaxfit.fit(*given, data=data, **options).trajectory

    kinds = {"indices drawn beforehand, in memory": by_indices, "minibatches": batches}
    kinds["host_batches, from a memory-mapped file"] = read
    return [Contender(name, problem.steps, fitted(data)) for name, data in kinds.items()]


def commit_and_resume(size: int, folder: str) -> list[float]:
    """Seconds that a run of 20 chunks takes in a directory, with so many parameters under Adam."""
    loss = lambda a: jax.numpy.sum((a - 1.0) ** 2)
    given, waits = (loss, jax.numpy.zeros(size), optax.adam(1e-3), 20), []

    class Timed(Directory):
        def commit(self, *arguments):
            self.wait()
            begun = time.perf_counter()
            super().commit(*arguments)
            going_on = time.perf_counter()
            self.wait()
            waits.append((going_on - begun, time.perf_counter() - begun))

    def fit():
        options = {"record": losses, "progress": False, "chunk_size": 1}
        return jaxfit.fit(*given, checkpoint_dir=folder, **options)

    module = sys.modules["jaxfit.fit"]
    module.Directory = Timed
    fit()
    module.Directory = Directory
    times = [time.perf_counter()]
    for read in (
        fit,
        lambda: jaxfit.load(folder),
        lambda: np.asarray(jaxfit.load(folder).trajectory),
    ):
        read()
        times.append(time.perf_counter())
    finished, loaded, rows = np.diff(times)
    return [*np.median(waits, axis=0), finished, loaded, (rows - loaded) / 20]


def time_commits(repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: the size of a state, and what it takes to write, to resume and to read."""
    rows = []
    for size in 10**4, 10**6, 10**7:
        times = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                times.append(commit_and_resume(size, folder))
        cells = [f"{1e3 * seconds:.3g}" for seconds in np.median(times, axis=0)]
        rows.append((f"{12 * size / 1e6:g} MB", *cells))
    return rows


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
    for make in (line, wider, digits) if sklearn_datasets else (line,):
        problem = make(STEPS[make.__name__])
        for kept, record in {"whole trajectory": whole, "losses": losses}.items():
            contenders = contend(problem, record)
            check(contenders)
            head = f"{problem.name}, {problem.steps:,} steps, {kept}", "µs per step", "ratio"
            print(table(head, time_steps(contenders, args.repeats), args.markdown), end="\n\n")
            if problem.name == "digits" and record is losses:
                long = dataclasses.replace(problem, steps=5 * problem.steps)
                contenders = on_disk(long)
                check(contenders)
                head = f"digits, {long.steps:,} steps, losses, on disk", "µs per step", "ratio"
                print(table(head, time_steps(contenders, args.repeats), args.markdown), end="\n\n")
                with tempfile.TemporaryDirectory() as folder:
                    contenders = streamed(problem, pathlib.Path(folder))
                    check(contenders)
                    head = "digits, losses, batches of 64", "µs per step", "ratio"
                    rows = time_steps(contenders, args.repeats)
                    print(table(head, rows, args.markdown), end="\n\n")
    what = "wait", "commit", "fit, finished", "load", "rows of a chunk"
    head = "a directory, ms; state of", *what
    print(table(head, time_commits(args.repeats), args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")


if __name__ == "__main__":
    main()
