"""Time many runs at once: ``jaxfit.sweep`` beside vmap by hand, a Python loop, PyTorch and C.

Two problems, whose runs keep the parameters and the loss of every step in float32:

- *line*: the mean squared error of a line through 100 points by gradient descent, 4,096 learning
  rates, 1,000 steps.
- *digits*: a 64-64-10 perceptron on minibatches of 64 of scikit-learn's digits with Adam, 256
  learning rates, 1,000 steps, whose runs keep the loss alone.

Every round runs each contender once, in turn, so that a busy machine slows all of them; the tables
show medians over the rounds, and their ratios to the first contender's. A Python loop makes a few
of the runs, PyTorch a few of the steps. C uses one core, where there is a compiler. Before any
timing, all must agree on the losses.

The third table is the line for 100 to 1,000,000 runs that keep their last loss, each sweep in a
process of its own: time per run and step, and the process's peak memory. The last line is the time
to the first result of 16 rates of eight optimizers on the digits, each a program of its own.

    python -m experiments.benchmarks.sweep
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._bench import Contender, datasets, torch
from experiments.benchmarks._problems import Problem, all_digits, digits, line
from jaxfit.losses import mse, objective
from jaxfit.models import linear

STEPS = 1000
LOOP_RUNS = 16  # of the Python loop, whose time per run is constant
TORCH_STEPS = 20  # of PyTorch, whose time per step is constant
RATES = {"line": np.linspace(0.01, 0.9, 4096), "digits": np.geomspace(1e-5, 1e-1, 256)}
SCALING = 100, 1_000, 10_000, 100_000, 1_000_000
OPTIMIZERS = "sgd", "adam", "lion", "adagrad", "rmsprop", "yogi", "nadam", "adamax"


def by_hand(problem: Problem, optimizer: Callable, batch_at: Callable, keep: Callable) -> Callable:
    """Return a run of one learning rate, written as a scan with optax."""

    def fn(lr):
        def step(carry, t):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, batch_at(t))
            updates, opt_state = optimizer(lr).update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), keep(loss, params)

        carry = problem.params, optimizer(lr).init(problem.params)
        return lax.scan(step, carry, jnp.arange(STEPS))[1]

    return fn


def by_jaxfit(problem: Problem, optimizer: Callable, data: Any, keep: Callable) -> Callable:
    """Return a run of one learning rate by ``jaxfit.train``."""

    def fn(lr):
        record = lambda step: keep(step.loss, step.params)
        options = {"data": data, "record": record}
        run = jaxfit.train(problem.loss, problem.params, optimizer(lr), STEPS, **options)
        return run.trajectory

    return fn


def swept(name: str, fn: Callable, rates: np.ndarray, **options: Any) -> Contender:
    """Return a contender that makes the runs by ``jaxfit.sweep``."""
    run = lambda: jaxfit.sweep(fn, {"lr": rates}, **options).values
    return Contender(name, len(rates) * STEPS, run)


def vmapped(name: str, fn: Callable, rates: np.ndarray) -> Contender:
    """Return a contender that makes the runs by ``jax.vmap``."""
    jitted = jax.jit(jax.vmap(fn))
    return Contender(name, len(rates) * STEPS, lambda: jax.device_get(jitted(rates)))


def looped(name: str, fn: Callable, rates: np.ndarray) -> Contender:
    """Return a contender that makes the first runs one after another."""
    jitted, some = jax.jit(fn), rates[:LOOP_RUNS]

    def run():
        rows = [jax.device_get(jitted(lr)) for lr in some]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    return Contender(name, len(some) * STEPS, run)


def torch_vmapped(problem: Problem, rates: np.ndarray, batch_at: Callable) -> Contender:
    """Return a contender that makes the first steps of all runs at once, in PyTorch."""
    start = [torch.tensor(np.asarray(leaf)) for leaf in jax.tree.leaves(problem.params)]
    batches = jax.device_get([batch_at(t) for t in range(TORCH_STEPS)])
    batches = [[torch.tensor(leaf) for leaf in batch] for batch in batches]
    grads_and_loss = torch.func.vmap(torch.func.grad_and_value(problem.torch_loss), (0, None))
    rate = torch.tensor(rates, dtype=torch.float32)

    def run():
        params = [leaf.expand(len(rates), *leaf.shape).clone() for leaf in start]
        lr = [rate.reshape(-1, *[1] * (leaf.ndim - 1)) for leaf in params]
        mean, square = ([torch.zeros_like(leaf) for leaf in params] for _ in range(2))
        losses, kept = [], []
        for t, batch in enumerate(batches, start=1):
            grads, loss = grads_and_loss(params, batch)
            losses.append(loss)
            if problem.name == "line":
                kept.append(params)
                updates = grads
            else:
                mean = [0.9 * m + 0.1 * g for m, g in zip(mean, grads, strict=True)]
                square = [0.999 * s + 0.001 * g * g for s, g in zip(square, grads, strict=True)]
                updates = [
                    m / (1 - 0.9**t) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
                    for m, s in zip(mean, square, strict=True)
                ]
            params = [p - r * u for p, r, u in zip(params, lr, updates, strict=True)]
        return torch.stack(losses, dim=1).numpy(), kept

    return Contender("torch.func.vmap", len(rates) * TORCH_STEPS, run)


def in_c(problem: Problem, rates: np.ndarray) -> Contender:
    """Return a contender that makes the runs of the line in C, on one core."""
    source = pathlib.Path(__file__).with_name("_line.c")
    options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cc", *options, source, "-o", f"{folder}/line.so"], check=True)
        line_in_c = ctypes.CDLL(f"{folder}/line.so").line
    (x, y), lanes = jax.device_get(problem.data), 16
    x, y = np.ascontiguousarray(x[:, 0]), np.ascontiguousarray(y)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)

    def run():
        kept = [np.empty((len(rates) // lanes, STEPS, lanes), np.float32) for _ in range(3)]
        line_in_c(len(rates), STEPS, len(x), *map(pointer, (rates, x, y, *kept)))
        return [leaf.swapaxes(1, 2).reshape(-1, STEPS) for leaf in kept]

    return Contender("C, runs in vector lanes, one core", len(rates) * STEPS, run)


def contend(name: str) -> list[Contender]:
    """Return all contenders for a problem; the others are compared with the first."""
    rates = RATES[name].astype(np.float32)
    first = jax.devices()[:1]
    if name == "line":
        problem = line(STEPS)
        ours = dataclasses.replace(problem, loss=objective(linear, mse))
        data, batch_at = problem.data, lambda step: problem.data
        optimizer, keep = optax.sgd, lambda loss, params: (loss, params)
    else:
        problem = digits(STEPS)
        arrays = jax.tree.map(jnp.asarray, all_digits())
        data = batch_at = jaxfit.minibatches(arrays, 64, jax.random.key(0))
        optimizer, keep = optax.adam, lambda loss, params: (loss,)
    hand = by_hand(problem, optimizer, batch_at, keep)
    fn = by_jaxfit(problem, optimizer, data, keep)
    contenders = [
        vmapped("jax.vmap of a scan by hand", hand, rates),
        swept("jaxfit.sweep", fn, rates, devices=first),
        swept("jaxfit.sweep, a device for each core", fn, rates),
    ]
    if name == "line":
        fast = by_jaxfit(ours, optimizer, data, keep)
        contenders.append(
            swept("jaxfit.sweep, jaxfit's linear and mse", fast, rates, devices=first)
        )
        if shutil.which("cc"):
            contenders.append(in_c(problem, rates))
    contenders.append(looped("a Python loop over a jitted scan by hand", hand, rates))
    return contenders + ([torch_vmapped(problem, rates, batch_at)] if torch else [])


def check(contenders: list[Contender]) -> None:
    """Raise an AssertionError unless all contenders find the losses of the first."""
    expected = contenders[0].run()[0]
    for contender in contenders[1:]:
        losses = contender.run()[0][:, :TORCH_STEPS]
        first = expected[: len(losses), :TORCH_STEPS]
        np.testing.assert_allclose(losses, first, rtol=2e-2, atol=1e-4, err_msg=contender.name)


def scale(number: int) -> None:
    """Sweep a number of rates of the line; print it, ns per run and step, s, and MB of memory."""
    problem = line(STEPS)
    every = {"data": problem.data, "record": lambda step: step.loss, "record_every": STEPS}

    def fn(lr):
        run = jaxfit.train(problem.loss, problem.params, optax.sgd(lr), STEPS, **every)
        return problem.loss(run.state.params, problem.data)

    rates = np.linspace(0.01, 0.9, number).astype(np.float32)
    duration = _bench.seconds(lambda: jaxfit.sweep(fn, {"lr": rates}).values)
    # Not getrusage, whose peak counts what the process that started this one had.
    status = pathlib.Path("/proc/self/status").read_text()
    memory = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    print(f"{number:,}|{1e9 * duration / number / STEPS:.1f}|{duration:.2f}|{memory:.0f}")


def first_result(by: str) -> None:
    """Print the seconds until all runs of eight optimizers are there, compiled for the first time.

    Args:
      by: ``"sweep"``, or ``"hand"`` for a loop over jitted and vmapped scans.
    """
    problem, rates = digits(20), np.geomspace(1e-4, 1e-2, 16).astype(np.float32)
    arrays = jax.tree.map(jnp.asarray, all_digits())
    batches = jaxfit.minibatches(arrays, 64, jax.random.key(0))
    keep, optimizers = (
        lambda loss, params: loss,
        {name: getattr(optax, name) for name in OPTIMIZERS},
    )
    jax.block_until_ready(batches(0))
    start = time.perf_counter()
    if by == "sweep":

        def fn(optimizer, lr):
            return by_jaxfit(problem, optimizer, batches, keep)(lr)

        jaxfit.sweep(fn, {"optimizer": optimizers, "lr": rates})
    else:
        for optimizer in optimizers.values():
            jax.device_get(jax.jit(jax.vmap(by_hand(problem, optimizer, batches, keep)))(rates))
    print(f"{time.perf_counter() - start:.2f}")


def in_a_process(*arguments: str) -> str:
    """Return what this benchmark prints in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.sweep", *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.strip()


def main() -> None:
    """Check and time all contenders, and print the tables."""
    parser = _bench.parser("sweep", __doc__, repeats=7)
    parser.add_argument("--scale", type=int, metavar="N", help="only sweep N rates of the line")
    parser.add_argument("--first", choices=["sweep", "hand"], help="only time the first result")
    args = _bench.parse(parser)
    if args.scale:
        return scale(args.scale)
    if args.first:
        return first_result(args.first)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    for name in RATES if datasets else ["line"]:
        contenders = contend(name)
        check(contenders)
        title = f"{name}, {len(RATES[name]):,} rates, {STEPS:,} steps"
        _bench.print_comparison(args, title, contenders, "µs per run and step")
    lines = [in_a_process("--scale", str(n)).split("|") for n in SCALING]
    head = "runs of the line", "ns per run and step", "s", "MB of memory at most"
    _bench.print_table(args, head, lines)
    if datasets:
        rounds = [[in_a_process("--first", by) for by in ("hand", "sweep")] for _ in range(3)]
        hand, ours = np.median(np.array(rounds, float), axis=0)
        head = "time to the first result, eight optimizers, s", "by hand", "jaxfit.sweep"
        _bench.print_table(args, head, [("", f"{hand:.2f}", f"{ours:.2f} ({ours / hand:.2f})")])
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
