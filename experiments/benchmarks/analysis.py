"""Time the analysis of runs: curvature beside SciPy's, and what ``along`` costs after a run.

1. One and five eigenvalues of the Hessian of a perceptron of 10^5 and 10^6 parameters on all
   handwritten digits, after 100 steps of gradient descent: by jaxfit, and by SciPy's ``eigsh`` with
   a compiled Hessian-vector product and a tolerance of 1e-3. Errors are relative to ``eigsh`` with
   a tolerance of 1e-6. Outside of ``jax.jit``, ``curvature`` compiles at every call; inside, once.
   And a spectrum, of 8 probes of 40 products.
2. The sharpness, by ten products, at 400 steps of a run: recorded at every step, or found after
   the run by ``along``, from the rows and by replay; and the memory that ``along`` takes beside its
   arguments and results, as XLA reports it.

    python -m experiments.benchmarks.analysis
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import numpy as np
import optax
from scipy.sparse.linalg import LinearOperator, eigsh

import jaxfit
from experiments.benchmarks import _bench
from experiments.benchmarks._bench import Contender
from experiments.benchmarks._problems import all_digits
from jaxfit import analysis
from jaxfit.losses import cross_entropy, objective
from jaxfit.models import mlp, mlp_init

SIZES = {"10^5 parameters": (64, 300, 250, 10), "10^6 parameters": (64, 1000, 900, 10)}
SMALL = 64, 64, 10
loss = objective(mlp, cross_entropy)
optimizer = optax.sgd(0.1)


def by_scipy(params: Any, data: Any) -> Callable[[int, float], np.ndarray]:
    """Return a function that finds the k largest eigenvalues by implicitly restarted Lanczos."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.grad(lambda flat, data: loss(unravel(flat), data))
    product = jax.jit(
        lambda flat, v, data: jax.jvp(lambda flat: gradient(flat, data), (flat,), (v,))[1]
    )
    shape, matvec = (flat.size, flat.size), lambda v: product(flat, v.ravel(), data)
    operator = LinearOperator(shape, matvec, dtype=np.float32)
    start = np.random.default_rng(0).normal(size=flat.size).astype(np.float32)

    def largest(k: int, tolerance: float = 1e-3) -> np.ndarray:
        options = {"which": "LA", "tol": tolerance, "v0": start, "return_eigenvectors": False}
        return eigsh(operator, k, **options)[::-1]

    return largest


def compare_curvature(name: str, data: Any, repeats: int) -> list[tuple[str, ...]]:
    """Return rows of a table: what is found, s by SciPy, jaxfit in and out of jit, and errors."""
    train = lambda start: jaxfit.train(
        loss, start, optimizer, 100, data=data, record=lambda step: step.loss
    )
    params = jax.jit(train)(mlp_init(jax.random.key(0), SIZES[name])).state.params
    scipy, rows = by_scipy(params, data), []
    for k in (1, 5):
        find = lambda params, k=k: analysis.curvature(loss, params, data=data, k=k)
        jitted = jax.jit(find)
        ours = [lambda by=by: jax.block_until_ready(by(params)) for by in (jitted, find)]
        theirs = lambda k=k: scipy(k)
        times = _bench.medians([theirs, *ours], repeats)
        found, reference = find(params), scipy(k, 1e-6)
        error = lambda values, reference=reference: np.abs(values / reference - 1).max()
        bound = np.max(found.residuals / np.abs(found.eigenvalues))
        errors = f"{error(found.eigenvalues):.1e} (≤ {bound:.1e})", f"{error(theirs()):.1e}"
        cells = [f"{time:.2f} ({time / times[0]:.2f})" for time in times]
        rows.append((f"{name}, k = {k}", *cells, *errors))
    spectrum = jax.jit(lambda params: analysis.spectrum(loss, params, data=data))
    (time,) = _bench.medians([lambda: jax.block_until_ready(spectrum(params))], repeats)
    rows.append((f"{name}, a spectrum", "", f"{time:.2f}", "", "", ""))
    return rows


def sharpness(data: Any) -> Callable[[jaxfit.Step], jax.Array]:
    """Return a function of a Step: the largest eigenvalue, by ten products."""
    find = lambda step: analysis.curvature(loss, step.params, data=data, num_matvecs=10)
    return lambda step: find(step).eigenvalues[0]


def train(start: Any, data: Any, steps: int, record: Any, every: int | None = None) -> jaxfit.Run:
    """Return a run of gradient descent on the digits."""
    options = {"record": record, "keyframe_every": every}
    return jaxfit.train(loss, start, optimizer, steps, data=data, **options)


def compare_along(data: Any, steps: int) -> tuple[list[Contender], dict[str, int]]:
    """Return ways to the sharpness at every step, checked, and the bytes that ``along`` takes."""
    start, fn = mlp_init(jax.random.key(0), SMALL), sharpness(data)
    along = jax.jit(
        lambda run: analysis.along(fn, loss, run, optimizer, steps=range(len(run.steps)), data=data)
    )
    runs = {
        "the rows": jax.jit(
            lambda: train(start, data, steps, lambda step: {"params": step.params})
        )(),
        "keyframes": jax.jit(lambda: train(start, data, steps, lambda step: step.loss, 20))(),
    }
    recorded = jax.jit(lambda: train(start, data, steps, fn))
    expected = recorded().trajectory
    contenders = [
        Contender("recorded at every step", steps, lambda: jax.block_until_ready(recorded()))
    ]
    memory = {}
    for name, run in runs.items():
        np.testing.assert_allclose(along(run), expected, rtol=1e-5)
        call = lambda run=run: jax.block_until_ready(along(run))
        contenders.append(Contender(f"along, from {name}", steps, call))
        memory[name] = along.lower(run).compile().memory_analysis().temp_size_in_bytes
    return contenders, memory


def main() -> None:
    """Check and time all contenders, and print the tables."""
    parser = _bench.parser("analysis", __doc__, repeats=3)
    parser.add_argument(
        "--sizes", nargs="*", choices=SIZES, default=[*SIZES], help="perceptrons (default: both)"
    )
    parser.add_argument("--steps", type=int, default=400, help="steps of the run (default: 400)")
    args = _bench.parse(parser)
    _bench.require_sklearn(parser)
    data = jax.tree.map(jax.numpy.asarray, all_digits())

    rows = [row for name in args.sizes for row in compare_curvature(name, data, args.repeats)]
    head = (
        "",
        "s by SciPy",
        "jaxfit, jitted",
        "not jitted",
        "error of jaxfit (its bound)",
        "SciPy's",
    )
    _bench.print_table(args, head, rows)
    contenders, more = compare_along(data, args.steps)
    _, fewer = compare_along(data, args.steps // 4)
    _bench.print_comparison(args, f"sharpness at {args.steps} steps", contenders)
    cells = [(f"from {name}", f"{fewer[name]:,}", f"{more[name]:,}") for name in more]
    head = "bytes that along takes", f"{args.steps // 4} steps", f"{args.steps} steps"
    _bench.print_table(args, head, cells)
    _bench.print_source(parser)


if __name__ == "__main__":
    main()
