"""Start, watch and kill the processes that train for ``long_run``."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxfit
from experiments._long_run_network import restore_modules, sample
from experiments._long_run_text import decode

CHUNK = 200  # steps per commit: about five seconds
SAMPLE_EVERY = 30  # seconds


def committed(out: pathlib.Path) -> int:
    """Return the step up to which the run is committed; -1 if nothing is."""
    names = [path.name for path in (out / "run").glob("*")]
    return max(
        (int(name[11:]) for name in names if re.fullmatch(r"\d{10}-\d{10}", name)), default=-1
    )


def say(seconds: float, what: str) -> None:
    """Print what happened after some seconds of training."""
    print(f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}  {what}", flush=True)


def show(seconds: float, model: Any, loaded: Any, key: jax.Array) -> None:
    """Print a sample from a loaded run."""
    say(seconds, f"step {int(loaded.state.step)} writes:")
    text = decode(sample(restore_modules(model, loaded.state.params), key)).strip("\n")
    print(textwrap.indent(text, "        | ", lambda line: True), flush=True)


class Watched(NamedTuple):
    """Hold what was seen of a training process."""

    seconds: float  # of training so far, in all processes
    committed_at: float  # when the last commit was seen, by time.perf_counter()
    interrupted: bool  # by Ctrl-C


def watch(
    process: subprocess.Popen[bytes],
    out: pathlib.Path,
    trained: float,
    moment: float,
    report: Callable[[float], None],
) -> Watched:
    """Wait until a process has trained up to a moment, or has ended.

    Args:
      process: the process, which has just been started.
      out: the study's folder.
      trained: seconds of training in earlier processes.
      moment: when to stop waiting, in seconds of training; not before the first commit.
      report: called with the seconds of training from time to time.
    """
    before = at = max(committed(out), 0)
    seconds, begun, committed_at, interrupted = trained, None, 0.0, False
    try:
        while process.poll() is None and (begun is None or seconds < moment):
            time.sleep(0.02)
            now, step = time.perf_counter(), committed(out)
            if step > at:
                at, committed_at = step, now
            if begun is None and at > before:  # starting and compiling are not training
                begun = now
                say(seconds, f"process {process.pid} goes on from step {before}")
            if begun is not None:
                seconds = trained + now - begun
                report(seconds)
    except KeyboardInterrupt:
        interrupted = True
    return Watched(seconds, committed_at, interrupted)


def train(arguments: argparse.Namespace, log: dict[str, Any], start: Any) -> None:
    """Train in other processes until the time is up, and kill some; keep the log up to date."""
    out, end = arguments.out, 60 * arguments.minutes
    random = np.random.default_rng([arguments.seed % 2**32, 2**32 - 1])
    parts = np.sort(random.uniform(0.1, 0.9, arguments.kills))
    moments = [*(log["seconds"] + parts * (end - log["seconds"])), end]
    key, sampled = jax.random.key(arguments.seed), -SAMPLE_EVERY
    command = [sys.executable, "-m", "experiments.long_run", "--worker", "--out", out.resolve()]
    command += ["--seed", str(arguments.seed), "--width", str(arguments.width)]
    options: dict[str, Any] = {"cwd": pathlib.Path(__file__).parents[1], "stdin": subprocess.PIPE}

    def report(seconds: float) -> None:
        nonlocal sampled
        if seconds - sampled >= SAMPLE_EVERY:
            sampled = seconds
            show(seconds, start, jaxfit.load(out / "run"), key)

    for moment in moments:
        with subprocess.Popen(command, start_new_session=True, **options) as process:
            seen = watch(process, out, log["seconds"], moment, report)
            if process.poll() is not None:  # it has printed why
                raise SystemExit(process.returncode or 1)
            if killed := moment != end and not seen.interrupted:
                process.kill()
                late = time.perf_counter() - seen.committed_at
            else:
                process.send_signal(signal.SIGINT)
            process.wait()
        if killed:
            at = committed(out)
            guess = at + min(int(late * at / max(seen.seconds, late)), 2 * CHUNK)
            said = f"killed at step ~{guess}, committed up to step {at}"
            say(seen.seconds, f"process {process.pid} {said}")
            log["kills"].append(at)
        log["seconds"] = seen.seconds
        (out / "log.json").write_text(json.dumps(log))
        if seen.interrupted:
            break
