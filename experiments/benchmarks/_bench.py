"""Share what the benchmarks have in common: options, timing in alternating rounds, tables."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def optional(name: str) -> Any:
    """Import a peer, or return None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


PEERS = {name: optional(name) for name in ("sklearn.datasets", "optimistix", "jaxopt", "torch")}
datasets, optimistix, jaxopt, torch = PEERS.values()


@dataclasses.dataclass(frozen=True)
class Contender:
    """Hold one way to do the work: calling ``run`` makes ``steps`` steps."""

    name: str
    steps: int
    run: Callable[[], Any]


def parser(name: str, doc: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has: --repeats and --markdown."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"rounds per median (default: {repeats})"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command's arguments, and make sure that JAX compiles what is timed."""
    # A persistent cache, if the user's environment names one, would stand in for the compiler.
    jax.config.update("jax_enable_compilation_cache", False)
    return parser.parse_args()


def require_sklearn(parser: argparse.ArgumentParser) -> None:
    """Exit with an error message if scikit-learn is not installed."""
    if datasets is None:
        name = parser.prog.split(".")[-1]
        parser.exit(2, f'{name}: scikit-learn is missing: pip install -e ".[bench]".\n')


def seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that a run takes the second time, when its memory is mapped."""
    run()
    start = time.perf_counter()
    kept = run()  # held until the clock has stopped: freeing it is not part of the run
    stop = time.perf_counter()
    del kept
    return stop - start


def medians(runs: Sequence[Callable[[], Any]], repeats: int) -> np.ndarray:
    """Return each run's median seconds: [runs].

    Every round makes all runs in turn, so that a busy machine slows all of them.
    """
    return np.median([[seconds(run) for run in runs] for _ in range(repeats)], axis=0)


def step_times(contenders: Sequence[Contender], repeats: int) -> np.ndarray:
    """Return each contender's median seconds per step: [contenders]."""
    times = medians([contender.run for contender in contenders], repeats)
    return times / [contender.steps for contender in contenders]


def compare_steps(contenders: Sequence[Contender], repeats: int) -> list[tuple[str, ...]]:
    """Return rows of a table: contender, µs per step, ratio to the first contender."""
    times = step_times(contenders, repeats)
    return [
        (contender.name, f"{1e6 * one:.3g}", f"{one / times[0]:.2f}")
        for contender, one in zip(contenders, times, strict=True)
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Return a table as text, aligned or in Markdown; all columns but the first to the right."""
    if markdown:
        rule = ("---", *("---:" for _ in head[1:]))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in (head, *rows)
    )


def print_table(
    arguments: argparse.Namespace, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table in the format that the arguments ask for, and an empty line."""
    print(table(head, rows, arguments.markdown), end="\n\n", flush=True)


def print_comparison(
    arguments: argparse.Namespace,
    title: str,
    contenders: Sequence[Contender],
    unit: str = "µs per step",
) -> None:
    """Time contenders by the step and print a table of them."""
    print_table(arguments, (title, unit, "ratio"), compare_steps(contenders, arguments.repeats))


def print_source(parser: argparse.ArgumentParser) -> None:
    """Print where the numbers come from: the processor, the versions, the devices, the command."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    model = models[0] if models else platform.processor() or platform.machine()
    names = ["jax", "jaxlib", "optax", *(m.__name__ for m in (optimistix, jaxopt, torch) if m)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    machine = ", ".join(
        [model, f"{os.cpu_count()} cores", f"Python {platform.python_version()}", *versions]
    )
    devices = f"JAX devices: {jax.device_count()} × {jax.default_backend()}"
    print(f"{machine}; {devices}; {' '.join([parser.prog, *sys.argv[1:]])}")
