"""Any function of a step, at chosen steps of a run, after the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check, _tree
from jaxfit._problem import Problem
from jaxfit._reach import check_stretch, reach
from jaxfit._types import Data, Loss, Optimizer, PyTree
from jaxfit.analysis._rows import (
    AbsentError,
    carry_of,
    check_run,
    like_one,
    on_host,
    pick,
    recorded,
    step_of,
)
from jaxfit.replay import replay
from jaxfit.run import Run, State, Step

__all__ = ["along"]

Examine = Callable[[Step], PyTree]


def along(
    fn: Callable[[Step], PyTree],
    loss: Loss,
    run: Run,
    optimizer: Optimizer | None = None,
    *,
    steps: Sequence[int] | np.ndarray | None = None,
    data: Data | None = None,
    has_aux: bool = False,
    batch_size: int | None = None,
) -> PyTree:
    """Compute a function of a `Step` at chosen steps of a run, after the run.

    Where the run recorded the parameters and ``fn`` asks for nothing that its rows lack, it is
    computed from the rows. Everything else is made again by `jaxfit.replay`, bit for bit.

    Args:
      fn: a function of a `Step`, such as a recorder; pure and traceable.
      loss: the loss of the run.
      run: a `Run` in memory, on disk (``jaxfit.load``), or several, stacked by ``jax.vmap`` or a
        `jaxfit.sweep`, which may be given itself. All stacked runs must be of one optimizer and
        the same data for a replay; map over `along` with ``jax.vmap`` if they are not.
      optimizer: the optimizer of the run; only a replay needs it.
      steps: which steps, in any order; those of all rows by default. Evenly spaced steps are
        replayed in one go; others one by one, from the keyframe before each.
      data: the data of the run; from the rows, only what ``step.batch`` is.
      has_aux: as in `jaxfit.train`.
      batch_size: how many rows are examined at once, under ``jax.vmap``; one after the other by
        default, so that memory does not grow with their number. A replay takes step by step.

    Returns:
      What ``fn`` returns, stacked: every leaf has the leading axes ``[*runs, steps]``.

    Raises:
      TypeError, ValueError: if the run has neither the rows nor the keyframes that ``fn`` needs.

    Under ``jax.jit``, the run's steps are not known when it is compiled, so that a replay goes to
    each from its own keyframe: give ``steps`` there.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> from jaxfit import analysis
    >>> loss, sgd = lambda a: jnp.sum(a**4) / 12, optax.sgd(0.01)
    >>> run = jaxfit.train(loss, jnp.ones(2), sgd, 300, keyframe_every=100)
    >>> sharpness = lambda step: analysis.curvature(loss, step.params, k=2).eigenvalues[0]
    >>> along = analysis.along(sharpness, loss, run, steps=[0, 100, 200])
    >>> bool(jnp.allclose(along, run.trajectory["params"][jnp.array([0, 100, 200]), 0] ** 2))
    True
    >>> analysis.along(lambda step: step.updates, loss, run, sgd, steps=range(0, 300, 100)).shape
    (3, 2)
    """
    run = check_run(run)
    if not callable(fn):
        raise TypeError(f"fn is {_check.show(fn)}, but must be a function of a Step.")
    if batch_size is not None:
        batch_size = _check.count("batch_size", batch_size)
    wanted, problem = _wanted(steps, run), Problem(loss, cast(Any, optimizer), data, has_aux)

    def examine(run: Run) -> PyTree:
        return _along(fn, problem, run, wanted, batch_size, all_rows=steps is None)

    lead = np.shape(run.state.step)
    return _along_all(examine, run, lead) if lead else examine(run)


def _along(
    fn: Examine,
    problem: Problem,
    run: Run,
    wanted: np.ndarray | None,
    batch_size: int | None,
    all_rows: bool,
) -> PyTree:
    """Examine one run, from its rows or by replay."""
    missing = _missing(fn, problem, run)
    index = None
    if missing is None:
        index = np.arange(np.shape(run.steps)[0]) if all_rows else _row_numbers(run, wanted)
    if index is not None:
        return _from_rows(fn, problem, run, index, batch_size)
    can_replay = run.keyframes is not None or isinstance(run.trajectory, State)
    if problem.optimizer is None or not can_replay:
        raise ValueError(
            f"fn needs {missing or 'other steps'}, which the rows of the run do not hold, and "
            f"nothing can be replayed without keyframes and the optimizer: train(…, "
            f"keyframe_every=100) and give the optimizer, or record more."
        )
    return _by_replay(fn, problem, run, wanted)


def _along_all(examine: Callable[[Run], PyTree], runs: Run, lead: tuple[int, ...]) -> PyTree:
    """Examine stacked runs one after the other, and stack what is found."""

    def join(leaf: Any) -> Any:
        is_stacked = getattr(leaf, "ndim", 0) >= len(lead)
        return leaf.reshape(-1, *leaf.shape[len(lead) :]) if is_stacked else leaf

    flat = jax.tree.map(join, runs)
    if on_host(flat):
        found = [examine(pick(flat, i)) for i in range(len(flat.state.step))]
        results = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    else:
        results = lax.map(lambda run: examine(_tree.unpack(run)), _tree.pack(flat))
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), results)


def _wanted(steps: Any, run: Run) -> np.ndarray | None:
    """Return the steps to examine; None for those of all rows where they are not known."""
    if steps is None:
        if isinstance(run.steps, jax.core.Tracer):
            return None
        known = np.asarray(run.steps).reshape(-1, np.shape(run.steps)[-1])
        return known[0] if (known == known[0]).all() else None
    wanted = np.asarray(steps) if not isinstance(steps, jax.core.Tracer) else None
    if wanted is None or wanted.ndim != 1 or not len(wanted) or wanted.dtype.kind not in "iu":
        raise TypeError(
            f"steps is {_check.show(steps)}, but must be whole numbers known when the program is "
            f"compiled: give a list of steps, a range or a NumPy array."
        )
    return wanted


def _row_numbers(run: Run, wanted: Any) -> np.ndarray | None:
    """Return the numbers of the rows of some steps; None if they are unknown or not all there."""
    if not isinstance(run.steps, jax.core.Tracer):
        known = np.asarray(run.steps)
    elif run.keyframes is None and run._known_steps is not None:
        known = np.asarray(run._known_steps)
    else:
        return None
    index = np.searchsorted(known, wanted)
    there = known[np.minimum(index, len(known) - 1)] == wanted
    return index if there.all() else None


def _step_at(problem: Problem, run: Run, number: jax.Array, held: dict[str, PyTree]) -> Step:
    """Return the step of a row, with its batch where the data are known."""
    data = problem.data
    known: dict[str, Any] = {"step": number} | held
    if not problem.has_aux:
        known["aux"] = None
    arguments = 1 if carry_of(run) is None else 2
    if data is not None:
        known["batch"] = data(number) if callable(data) else data
    elif _check.takes(problem.loss, arguments):
        known["batch"] = None
    return step_of(known)


def _missing(fn: Examine, problem: Problem, run: Run) -> str | None:
    """Name what a function needs of a step that the rows do not hold."""
    held = recorded(run)
    if held is None:
        return "params"

    def row(number: jax.Array, held: Any) -> PyTree:
        return _tree.pack(fn(_step_at(problem, run, number, _tree.unpack(held))))

    try:
        jax.eval_shape(row, jax.ShapeDtypeStruct((), np.int32), like_one(held))
    except AbsentError as absent:
        return f"step.{absent}"
    return None


def _from_rows(
    fn: Examine, problem: Problem, run: Run, index: Any, batch_size: int | None
) -> PyTree:
    """Examine rows: one after the other, or some at once."""
    rows = run.steps, recorded(run)

    def examine(row: PyTree) -> PyTree:
        number, held = _tree.unpack(row)
        return _tree.pack(fn(_step_at(problem, run, number, held)))

    if not on_host(rows):
        one, numbers = (lambda i: examine(_tree.pack(pick(rows, i)))), jnp.asarray(index)
        return _tree.unpack(lax.map(one, numbers, batch_size=batch_size))
    # A tracer cannot read what is not JAX's, and all rows at once may be larger than the device.
    size = batch_size or 1
    at_once = jax.jit(jax.vmap(examine))
    blocks = [index[i : i + size] for i in range(0, len(index), size)]
    found = [at_once(_tree.pack(pick(rows, block))) for block in blocks]
    return _tree.unpack(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found))


def _by_replay(fn: Examine, problem: Problem, run: Run, wanted: np.ndarray | None) -> PyTree:
    """Examine steps that are made again: all in one go, or each from the keyframe before it."""
    loss, optimizer, data, has_aux = problem
    frames = run.keyframes if run.keyframes is not None else run.trajectory

    def one(run: Run, step: Any) -> PyTree:
        reached = reach(problem, run, step)
        return reached.row_of(fn)(reached.state, reached.take(reached.state)[1])

    if wanted is None:
        return _tree.unpack(lax.map(lambda step: one(run, step), run.steps))
    ordered, inverse = np.unique(wanted, return_inverse=True)
    check_stretch(int(ordered[0]), int(ordered[-1]) + 1, frames.step, run.state.step)
    gaps, spacing = np.unique(np.diff(ordered)), _spacing(frames.step, run._known_steps)
    if len(gaps) <= 1 and max(gaps, default=0) <= spacing:
        first, last, every = int(ordered[0]), int(ordered[-1]), int(max(gaps, default=1))
        options: dict[str, Any] = {"data": data, "has_aux": has_aux, "record_every": every}
        part = replay(loss, run, optimizer, first, last + 1, record=fn, **options)
        found = part.trajectory
    elif on_host(frames):
        from_frame = jax.jit(lambda frame, step: one(_from(run, frame), step))
        numbers = np.searchsorted(frames.step, ordered, side="right") - 1
        results = [
            from_frame(_tree.pack(pick(frames, slice(i, i + 1))), step)
            for i, step in zip(numbers, ordered, strict=True)
        ]
        found = _tree.unpack(jax.tree.map(lambda *leaves: jnp.stack(leaves), *results))
    else:
        found = _tree.unpack(lax.map(lambda step: one(run, step), jnp.asarray(ordered)))
    return pick(found, inverse)


def _from(run: Run, frame: State) -> Run:
    """Return a run with a single keyframe."""
    return dataclasses.replace(run, trajectory=None, keyframes=_tree.unpack(frame))


def _spacing(steps: Any, known: range | None) -> float:
    """Return how far keyframes are apart, at most."""
    if isinstance(steps, jax.core.Tracer):
        return np.inf if known is None or len(known) == 1 else known.step
    return float(np.diff(np.asarray(steps)).max()) if len(steps) > 1 else np.inf
