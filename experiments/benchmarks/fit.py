"""Measure what driving a run from Python costs: ``jaxfit.fit`` beside one big ``jaxfit.train``.

The two problems of ``single_run``, and the second with 256 hidden units, recording the whole
trajectory and the losses alone, in float32. ``train`` is compiled beforehand and its trajectory
brought to host memory, where that of ``fit`` is. The digits are also fitted with a directory, and
on minibatches that Python reads from a memory-mapped file; the line also with a callback, one that
does nothing and one that writes all losses to a CSV file. Every round runs each contender once, in
turn, so that a busy machine slows all of them; the tables show medians over the rounds, and their
ratios to the first contender's. Before any timing, all must agree bit for bit.

The last table is about a directory, by the size of the state: how long a chunk holds up the loop,
and how long it takes to be on disk; how long it takes to return a finished run, to load it, and to
read the rows of a chunk.

    python -m experiments.benchmarks.fit
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._bench import Contender, datasets
from experiments.benchmarks._problems import Problem, all_digits, digits, line
from jaxfit._disk.directory import Directory
from jaxfit.record import whole

STEPS = {"line": 1_000_000, "wider": 10_000, "digits": 50_000}


def wider(steps: int) -> Problem:
    """Return the digits with 256 hidden units, whose every step takes long."""
    rng = np.random.default_rng(0)
    first, last = (
        jnp.asarray(rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5), np.float32)
        for shape in ((64, 256), (256, 10))
    )
    params = first, jnp.zeros(256), last, jnp.zeros(10)
    return dataclasses.replace(digits(steps), name="digits, 256 hidden units", params=params)


def losses(step: jaxfit.Step) -> jax.Array:
    """Record the loss alone."""
    return step.loss


def fitted(problem: Problem, data: Any, record: Any = losses, **options: Any) -> Callable[[], Any]:
    """Return a function that fits and returns the trajectory."""
    options = {"data": data, "record": record, "progress": False, **options}
    return lambda: (
        jaxfit.fit(
            problem.loss, problem.params, problem.optimizer, problem.steps, **options
        ).trajectory
    )


def lengths(problem: Problem, record: Any) -> list[Contender]:
    """Return one big run, and fits with chunks by the clock and of three lengths."""

    @jax.jit
    def train(data):
        return jaxfit.train(
            problem.loss,
            problem.params,
            problem.optimizer,
            problem.steps,
            data=data,
            record=record,
        )

    runs = {
        "jaxfit.train": lambda: jax.device_get(train(problem.data).trajectory),
        "jaxfit.fit": fitted(problem, problem.data, record),
    }
    for size in (problem.steps // divisor for divisor in (10, 100, 1000)):
        name = f"jaxfit.fit, chunks of {size:,} steps"
        runs[name] = fitted(problem, problem.data, record, chunk_size=size)
    return [Contender(name, problem.steps, run) for name, run in runs.items()]


def on_disk(problem: Problem) -> list[Contender]:
    """Return the same fit in memory and in a directory, which is new every time."""

    def committed():
        with tempfile.TemporaryDirectory() as folder:
            return np.asarray(fitted(problem, problem.data, checkpoint_dir=folder)())

    return [
        Contender("jaxfit.fit", problem.steps, fitted(problem, problem.data)),
        Contender("jaxfit.fit, checkpoint_dir", problem.steps, committed),
    ]


def streamed(problem: Problem, folder: pathlib.Path) -> list[Contender]:
    """Return fits on minibatches that JAX takes from memory, and that Python reads from a file."""
    arrays, on_file = all_digits(), []
    for name, array in zip(("images", "labels"), arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
        on_file.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    batches = jaxfit.minibatches(arrays, 64, jax.random.key(0))
    indices = np.asarray(jax.vmap(batches.indices)(np.arange(problem.steps)))
    by_indices = jax.tree_util.Partial(
        lambda arrays, indices, step: tuple(array[indices[step]] for array in arrays),
        tuple(map(jnp.asarray, arrays)),
        jnp.asarray(indices),
    )
    read = jaxfit.host_batches(lambda step: tuple(array[indices[step]] for array in on_file))
    kinds = {"indices drawn beforehand, in memory": by_indices, "minibatches": batches}
    kinds["host_batches, from a memory-mapped file"] = read
    return [Contender(name, problem.steps, fitted(problem, data)) for name, data in kinds.items()]


def called(problem: Problem, folder: pathlib.Path) -> list[Contender]:
    """Return the same fit without a callback and with some."""
    kept = lambda step: {"step": step.step, "loss": step.loss}
    nothing = lambda state, rows, evaluation: None
    every = problem.steps // 100
    runs: dict[str, dict[str, Any]] = {
        "jaxfit.fit": {},
        "a callback that does nothing, every chunk": {"callback": nothing},
        f"the same, every {every:,} steps": {"callback": nothing, "evaluate_every": every},
        "callbacks.csv, every chunk": {"callback": jaxfit.callbacks.csv(folder / "run.csv")},
    }
    return [
        Contender(name, problem.steps, fitted(problem, problem.data, kept, **options))
        for name, options in runs.items()
    ]


def commit_and_read(size: int, folder: str) -> list[float]:
    """Write a run of 20 chunks, with Adam's state, to a directory, and return seconds.

    They are: to commit a chunk, until the loop goes on and until the chunk is on disk; to return
    the finished run; to load it; and to read the rows of a chunk.
    """
    loss, waits = lambda a: jnp.sum((a - 1.0) ** 2), []
    commit = Directory.commit

    def timed(directory, *arguments):
        directory.wait()
        begun = time.perf_counter()
        commit(directory, *arguments)
        going_on = time.perf_counter()
        directory.wait()
        waits.append((going_on - begun, time.perf_counter() - begun))

    def fit():
        options = {"record": losses, "progress": False, "chunk_size": 1}
        return jaxfit.fit(
            loss, jnp.zeros(size), optax.adam(1e-3), 20, checkpoint_dir=folder, **options
        )

    with mock.patch.object(Directory, "commit", timed):
        fit()
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


def measure_directories(repeats: int) -> list[tuple[str, ...]]:
    """Return rows of a table: the size of a state, and ms to commit, to resume and to read."""
    rows = []
    for size in 10**4, 10**6, 10**7:
        times = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                times.append(commit_and_read(size, folder))
        cells = [f"{1e3 * seconds:.3g}" for seconds in np.median(times, axis=0)]
        rows.append((f"{12 * size / 1e6:g} MB", *cells))
    return rows


def compare(arguments: argparse.Namespace, title: str, contenders: list[Contender]) -> None:
    """Check that all trajectories are the same, bit for bit, and print a table of the times."""
    expected = contenders[0].run()
    for contender in contenders[1:]:
        jax.tree.map(np.testing.assert_array_equal, contender.run(), expected)
    _bench.print_comparison(arguments, title, contenders)


def main() -> None:
    """Check and time all contenders, and print the tables."""
    parser = _bench.parser("fit", __doc__, repeats=7)
    args = _bench.parse(parser)
    for make in (line, wider, digits) if datasets else (line,):
        problem = make(STEPS[make.__name__])
        for kept, record in {"whole trajectory": whole, "losses": losses}.items():
            title = f"{problem.name}, {problem.steps:,} steps, {kept}"
            compare(args, title, lengths(problem, record))
    if datasets:
        problem = digits(STEPS["digits"])
        long = dataclasses.replace(problem, steps=5 * problem.steps)
        compare(args, f"digits, {long.steps:,} steps, losses, on disk", on_disk(long))
        with tempfile.TemporaryDirectory() as folder:
            contenders = streamed(problem, pathlib.Path(folder))
            compare(args, "digits, losses, batches of 64", contenders)
    with tempfile.TemporaryDirectory() as folder:
        contenders = called(line(STEPS["line"]), pathlib.Path(folder))
        compare(args, f"line, {STEPS['line']:,} steps, losses, with a callback", contenders)
    head = "a directory, ms; state of", "wait", "commit", "fit, finished", "load", "rows of a chunk"
    _bench.print_table(args, head, measure_directories(args.repeats))
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
