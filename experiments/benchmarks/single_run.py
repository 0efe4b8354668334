"""What one training run costs: jaxfit beside a ``lax.scan`` by hand, a Python loop, and its peers.

Two problems, each with a constant batch, in float32:

- *line*: mean squared error of a line through 100 points by gradient descent, 10,000 steps. A step
  is less than a thousand operations, so what is measured is next to nothing but overhead.
- *digits*: a 64-64-10 perceptron on 64 of scikit-learn's digits with Adam, 500 steps.

and two quantities of each:

- *time per step*, compiled beforehand. Parameters and data are arguments, so that nothing can be
  folded into constants. Contenders keep the parameters and the loss of every step unless their
  name says otherwise. Python loops make at most 1,000 steps.
- *trace and compile time* of the scan by hand and of ``jaxfit.train``, from empty caches.

A third table asks what many parameters cost: a least-squares loss of 10, 50 and 100 leaves, with
and without an l2 penalty over all of them, with Adam, by hand and by ``jaxfit.train``.

Every round runs each contender once, in turn, so that a busy machine slows all of them; the tables
show medians over the rounds, and ratios of these to the first contender's. Before any timing, all
must agree on the parameters after the last step and on everything kept on the way: to nine places
when run in float64, and as far as rounding lets them in float32.

    python -m experiments.benchmarks.single_run
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import importlib.metadata
import itertools
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxfit
from jaxfit.losses import mse, objective
from jaxfit.models import linear

LOOP_STEPS = 1_000  # of the Python loops, which are slow and whose time per step is constant


def optional(name: str) -> Any:
    """Import a peer, or return None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


PEERS = {name: optional(name) for name in ("sklearn.datasets", "optimistix", "jaxopt", "torch")}
datasets, optimistix, jaxopt, torch = PEERS.values()


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss with all that is needed to minimise it, in JAX and in PyTorch.

    The parameters of ``torch_loss`` are the list of the leaves of ``params``; ``tolerance`` is by
    how much two runs in float32 may differ.
    """

    name: str
    loss: Callable
    params: Any
    data: Any
    optimizer: optax.GradientTransformation
    steps: int
    torch_loss: Callable | None
    torch_optimizer: Callable | None
    tolerance: float


def leaves(number: int, penalty: float, steps: int) -> Problem:
    def loss(params, batch):
        fit = sum(jnp.mean((batch * leaf - 1) ** 2) for leaf in params)
        return fit + penalty * jaxfit.losses.l2(params) if penalty else fit

    return Problem(
        f"{number:,} leaves{' with l2' * bool(penalty)}",
        loss,
        [jnp.full(8, 1 / (1 + place)) for place in range(number)],
        jnp.arange(1.0, 9.0),
        optax.adam(1e-3),
        steps,
        torch_loss=None,
        torch_optimizer=None,
        tolerance=1e-4,
    )


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to solve a problem: ``run()`` returns the final parameters and what was kept.

    That is ``(params, loss)`` of every step, stacked or as a list of rows, or, of a contender that
    keeps no trajectory, the number of steps it says it made.
    """

    name: str
    steps: int
    run: Callable[[], tuple[Any, Any]]


def line(steps: int) -> Problem:
    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(-1, 1, 100), np.ones(100)], axis=1)
    y = x @ [3.0, 2.0] + rng.uniform(0, 1, 100)
    return Problem(
        "line",
        lambda a, batch: jnp.mean(jnp.square(batch[0] @ a - batch[1])),
        jnp.array([-1.0, 1.0]),
        (jnp.array(x), jnp.array(y)),
        optax.sgd(0.1),
        steps,
        lambda params, batch: (batch[0] @ params[0] - batch[1]).square().mean(),
        lambda params: torch.optim.SGD(params, lr=0.1),
        tolerance=1e-4,
    )


def digits(steps: int) -> Problem:
    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    shapes = (64, 64), (64, 10)
    weights = [rng.normal(size=shape, scale=(2 / shape[0]) ** 0.5) for shape in shapes]

    def loss(params, batch):
        (w1, b1, w2, b2), (x, y) = params, batch
        logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def torch_loss(params, batch):
        (w1, b1, w2, b2), (x, y) = params, batch
        return torch.nn.functional.cross_entropy(torch.relu(x @ w1 + b1) @ w2 + b2, y.long())

    return Problem(
        "digits",
        loss,
        (jnp.array(weights[0]), jnp.zeros(64), jnp.array(weights[1]), jnp.zeros(10)),
        (jnp.array(images[:64] / 16), jnp.array(labels[:64])),
        optax.adam(1e-3),
        steps,
        torch_loss,
        lambda params: torch.optim.Adam(params, lr=1e-3),
        # Rounding decides at which step a hidden unit passes ReLU's kink, and as Adam's steps do
        # not shrink with the gradient, a weight is then several steps of 1e-3 from where it was.
        tolerance=2e-2,
    )


def sgd_by_hand(problem: Problem) -> Callable:
    def fit(params, data):
        def step(params, _):
            loss, grads = jax.value_and_grad(problem.loss)(params, data)
            return params - 0.1 * grads, (params, loss)

        return lax.scan(step, params, length=problem.steps)

    return fit


def optax_by_hand(problem: Problem) -> Callable:
    def fit(params, data):
        def step(carry, _):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(problem.loss)(params, data)
            updates, opt_state = problem.optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (params, loss)

        carry = params, problem.optimizer.init(params)
        (params, _), rows = lax.scan(step, carry, length=problem.steps)
        return params, rows

    return fit


def by_jaxfit(problem: Problem) -> Callable:
    def fit(params, data):
        run = jaxfit.train(
            problem.loss,
            params,
            problem.optimizer,
            problem.steps,
            data=data,
            record=lambda step: (step.params, step.loss),
        )
        return run.state.params, run.trajectory

    return fit


def by_jaxfit_end(problem: Problem) -> Callable:
    def fit(params, data):
        run = jaxfit.train(problem.loss, params, problem.optimizer, problem.steps, data=data)
        return run.state.params, run.state.step

    return fit


def by_optimistix(problem: Problem) -> Callable:
    # Tolerances of zero are never met: the last update would have to be smaller than that.
    solver = optimistix.OptaxMinimiser(problem.optimizer, rtol=0.0, atol=0.0)

    def fit(params, data):
        solution = optimistix.minimise(
            problem.loss, solver, params, data, max_steps=problem.steps, throw=False
        )
        return solution.value, solution.stats["num_steps"]

    return fit


def by_jaxopt(problem: Problem) -> Callable:
    # A tolerance of zero would be met by a gradient of zero.
    solver = jaxopt.OptaxSolver(problem.loss, problem.optimizer, maxiter=problem.steps, tol=-1.0)

    def fit(params, data):
        params, state = solver.run(params, data)
        return params, state.iter_num

    return fit


def compiled(name: str, problem: Problem, fit: Callable) -> Contender:
    jitted = jax.jit(fit)

    def run():
        return jax.block_until_ready(jitted(problem.params, problem.data))

    return Contender(name, problem.steps, run)


def python_loop(problem: Problem) -> Contender:
    @jax.jit
    def step(params, opt_state, data):
        loss, grads = jax.value_and_grad(problem.loss)(params, data)
        updates, opt_state = problem.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    steps = min(problem.steps, LOOP_STEPS)

    def run():
        params, opt_state, rows = problem.params, problem.optimizer.init(problem.params), []
        for _ in range(steps):
            before = params
            params, opt_state, loss = step(params, opt_state, problem.data)
            rows.append((before, loss))
        return jax.block_until_ready((params, rows))

    return Contender("jitted optax step in a Python loop", steps, run)


def torch_eager(problem: Problem) -> Contender:
    start = [torch.tensor(np.asarray(leaf)) for leaf in jax.tree.leaves(problem.params)]
    data = [torch.tensor(np.asarray(leaf)) for leaf in problem.data]
    steps = min(problem.steps, LOOP_STEPS)

    def run():
        params, rows = [leaf.clone().requires_grad_() for leaf in start], []
        optimizer = problem.torch_optimizer(params)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = problem.torch_loss(params, data)
            loss.backward()
            # PyTorch writes the new parameters over the old ones.
            rows.append(([leaf.detach().clone() for leaf in params], loss.detach()))
            optimizer.step()
        return [leaf.detach() for leaf in params], rows

    return Contender("PyTorch eager", steps, run)


def contend(problem: Problem) -> list[Contender]:
    """All contenders for a problem; the first is what the others are compared with."""
    fits = {"lax.scan by hand, optax": (problem, optax_by_hand)}
    if problem.name == "line":
        ours = dataclasses.replace(problem, loss=objective(linear, mse))
        fits = {"lax.scan by hand, x @ a": (problem, sgd_by_hand), **fits}
        fits["jaxfit.train, the same loss"] = problem, by_jaxfit
        fits["lax.scan by hand, jaxfit's linear and mse"] = ours, sgd_by_hand
        fits["jaxfit.train, jaxfit's linear and mse"] = ours, by_jaxfit
        fits["jaxfit.train, no trajectory"] = problem, by_jaxfit_end
        if optimistix:
            fits["optimistix OptaxMinimiser, no trajectory"] = problem, by_optimistix
        if jaxopt:
            fits["jaxopt OptaxSolver, no trajectory"] = problem, by_jaxopt
    else:
        fits["jaxfit.train"] = problem, by_jaxfit
    loops = [python_loop(problem), *([torch_eager(problem)] if torch else [])]
    return [compiled(name, task, by(task)) for name, (task, by) in fits.items()] + loops


def check(contenders: list[Contender], tolerance: float) -> None:
    """Raise an AssertionError unless all contenders do the work of the first."""

    def same(name, actual, expected):
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)

    last, (path, losses) = contenders[0].run()
    # The parameters before every step and after the last: [steps + 1, …].
    path = jax.tree.map(lambda rows, end: np.concatenate([rows, end[None]]), path, last)
    for contender in contenders:
        n = contender.steps
        params, kept = contender.run()
        same(contender.name, params, jax.tree.map(lambda rows, n=n: rows[n], path))
        if isinstance(kept, list):
            kept = jax.tree.map(lambda *rows: np.stack(rows), *kept)
        known = jax.tree.map(lambda rows, n=n: rows[:n], (path, losses))
        same(contender.name, kept, known if isinstance(kept, tuple) else n)


def seconds(run: Callable[[], Any]) -> float:
    """Time a run that finds the memory it needs mapped: it has just been run."""
    run()
    start = time.perf_counter()
    kept = run()  # held until the clock has stopped: freeing it is not part of the run
    stop = time.perf_counter()
    del kept
    return stop - start


def time_steps(contenders: list[Contender], repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: contender, µs per step, ratio to the first contender."""
    rounds = [[seconds(c.run) / c.steps for c in contenders] for _ in range(repeats)]
    medians = np.median(rounds, axis=0)
    names = [c.name for c in contenders]
    columns = [f"{1e6 * t:.3g}" for t in medians], [f"{r:.2f}" for r in medians / medians[0]]
    return list(zip(names, *columns, strict=True))


def time_compilation(problem: Problem, repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: contender, ms to trace, ms to trace and compile, each with its ratio."""
    makers = {"lax.scan by hand, optax": optax_by_hand, "jaxfit.train": by_jaxfit}

    def once(make):
        fit = make(problem)
        jax.clear_caches()
        gc.collect()  # what the caches held, which would otherwise be freed on the clock
        start = time.perf_counter()
        lowered = jax.jit(fit).lower(problem.params, problem.data)
        traced = time.perf_counter()
        lowered.compile()
        return traced - start, time.perf_counter() - start

    rounds = [[once(make) for make in makers.values()] for _ in range(repeats + 1)]
    medians = np.median(rounds[1:], axis=0)  # the first round pays for imports on first use
    return [
        (
            name,
            *(f"{1e3 * t:.1f} ({r:.2f})" for t, r in zip(times, times / medians[0], strict=True)),
        )
        for name, times in zip(makers, medians, strict=True)
    ]


def time_leaves(steps: int, repeats: int) -> list[tuple[str, ...]]:
    """Rows of a table: problem, seconds to trace and compile, µs per step, by hand and by ours."""
    rows = []
    for number, penalty in itertools.product((10, 50, 100), (0, 0.01)):
        problem, seen = leaves(number, penalty, steps), []
        for _ in range(repeats):
            for make in (optax_by_hand, by_jaxfit):
                jax.clear_caches()
                gc.collect()
                start = time.perf_counter()
                program = jax.jit(make(problem)).lower(problem.params, problem.data).compile()
                compiling = time.perf_counter() - start
                run = lambda program=program: jax.block_until_ready(
                    program(problem.params, problem.data)  # noqa: B023
                )
                seen.append((compiling, min(seconds(run) for _ in range(3)) / steps))
        (theirs, their_step), (ours, our_step) = (
            np.median(seen[which::2], axis=0) for which in (0, 1)
        )
        cells = f"{theirs:.2f}", f"{ours:.2f} ({ours / theirs:.2f})"
        cells += f"{1e6 * their_step:.3g}", f"{1e6 * our_step:.3g} ({our_step / their_step:.2f})"
        rows.append((problem.name, *cells))
    return rows


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], markdown: bool) -> str:
    if markdown:
        rule = ("---", *("---:" for _ in head[1:]))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in (head, *rows)
    )


def machine() -> str:
    """The line that says where the numbers come from."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    model = models[0] if models else platform.processor() or platform.machine()
    names = ["jax", "jaxlib", "optax", *(m.__name__ for m in (optimistix, jaxopt, torch) if m)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    python = f"Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {', '.join([python, *versions])}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.single_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds to take medians of (15)")
    parser.add_argument(
        "--steps", type=int, default=10_000, help="of the line; the digits take 1/20 (10000)"
    )
    parser.add_argument("--markdown", action="store_true", help="print GitHub's tables")
    args = parser.parse_args()

    # A persistent cache, if the user's environment names one, would stand in for the compiler.
    jax.config.update("jax_enable_compilation_cache", False)
    if torch:
        # More of its threads than cores that happen to be idle make such small work far slower.
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
        head = f"{problem.name}, {steps:,} steps", "µs per step", "ratio"
        print(table(head, time_steps(contenders, args.repeats), args.markdown), end="\n\n")
        head = f"{problem.name}, compilation", "ms to trace (ratio)", "and to compile (ratio)"
        print(table(head, time_compilation(problem, args.repeats), args.markdown), end="\n\n")
    head = (
        "leaves",
        "s to compile by hand",
        "jaxfit (ratio)",
        "µs per step by hand",
        "jaxfit (ratio)",
    )
    print(table(head, time_leaves(1_000, 1), args.markdown), end="\n\n")
    print(f"{machine()}, on {jax.default_backend()}: {' '.join([parser.prog, *sys.argv[1:]])}")
    missing = [name for name, module in PEERS.items() if module is None]
    if missing:
        print(f'Left out: {", ".join(missing)}, for which pip install -e ".[bench]".')


if __name__ == "__main__":
    main()
