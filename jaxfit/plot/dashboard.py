"""One run at a glance: what there is to see of it, over one axis of steps; and as text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from jaxfit import _summary
from jaxfit._types import PyTree
from jaxfit.plot._common import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    check_one_run,
    curve,
    finite,
    heights,
    kept,
    say_gaps,
    set_scale,
)
from jaxfit.run import Run

_ROWS = 1000  # of trees of arrays, whose norms are computed


def dashboard(
    run: Run,
    *,
    rate: Any = None,
    sharpness: tuple[Any, Any] | None = None,
    threshold: Any = None,
    axes: Any = None,
) -> np.ndarray:
    """Draw one run at a glance, over one axis of steps.

    There is a picture for each of these that the run has recorded: the loss; the norm of the
    gradient (``"grad_norm"``, or of ``"grads"``); the norm of the update (``"update_norm"``, or of
    ``"updates"``); the distance from the start (of ``"params"``); and the learning rate
    (``"rate"``, ``"lr"`` or ``"learning_rate"``).

    Args:
      run: a run whose recorder kept a dict. Of trees on disk, at most a thousand rows are read.
      rate: the learning rate, if it was not recorded: an array ``[rows]`` or a function of the
        step.
      sharpness: the steps and the largest eigenvalues at them, as ``jaxfit.analysis`` finds them.
      threshold: that of stability, such as 2/η, drawn beside the sharpness.
      axes: as many axes as there are pictures; those of a new figure if None.

    Returns:
      The axes, from the top down.

    Raises:
      ValueError: if nothing of these was recorded, or there are more or fewer axes than pictures.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> loss, metrics = lambda a: jnp.sum(a**2), jaxfit.record.metrics
    >>> run = jaxfit.train(loss, jnp.ones(2), optax.sgd(0.1), 20, record=metrics)
    >>> [ax.get_ylabel() for ax in jaxfit.plot.dashboard(run, rate=lambda step: 0.1)]
    ['loss', 'gradient', 'update', 'rate']
    """
    check_one_run(run, "plot.dashboard")
    panels = gauges(run, rate)
    if sharpness is not None:
        panels["sharpness"] = np.asarray(sharpness[0]), finite(sharpness[1])
    if not panels:
        held = list(run.trajectory) if isinstance(run.trajectory, dict) else type(run.trajectory)
        raise ValueError(
            f"plot.dashboard draws losses, norms and rates, but the trajectory holds {held}: "
            f"record=jaxfit.record.metrics keeps them."
        )
    if axes is None:
        height = 1.5 * len(panels) + 0.8
        style: Any = {"sharex": True, "squeeze": False, "layout": "constrained"}
        axes = plt.subplots(len(panels), 1, figsize=(6.4, height), **style)[1]
    axes = np.ravel(np.asarray(axes, object))
    if len(axes) != len(panels):
        raise ValueError(
            f"plot.dashboard was given {len(axes)} axes for {len(panels)} pictures "
            f"({', '.join(panels)}): give one for each."
        )
    colors = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, YELLOW)
    for ax, color, (name, (steps, values)) in zip(axes, colors, panels.items(), strict=False):
        curve(ax, steps, values, color=color, linewidth=1.2)
        if name == "sharpness" and threshold is not None:
            limit = np.broadcast_to(np.asarray(threshold, np.float64), np.shape(steps))
            curve(ax, steps, limit, color=BLACK, linestyle="--", linewidth=1, label="threshold")
            ax.legend()
        known = values[np.isfinite(values)]
        if name in ("loss", "gradient", "update"):
            if known.size and known.max() > 10 * known.min():  # or a logarithm has no numbers
                set_scale(ax, heights(ax))
                ax.yaxis.set_minor_formatter(NullFormatter())  # there is no room for more
        elif known.size and known.min() >= 0:
            ax.set_ylim(bottom=0)
        ax.set_ylabel(name)
        say_gaps(ax, values)
    axes[-1].set_xlabel("step")
    return axes  # type: ignore[no-any-return]


def gauges(run: Run, rate: Any = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what a run has recorded of itself, by name: steps and values, ``[rows]`` each."""
    rows = run.trajectory if isinstance(run.trajectory, dict) else {}
    steps = np.asarray(run.steps)
    some = np.unique(np.linspace(0, max(len(steps) - 1, 0), _ROWS).round().astype(int))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if "loss" in rows:
        found["loss"] = steps, finite(rows["loss"])
    for name, norm, tree in (
        ("gradient", "grad_norm", "grads"),
        ("update", "update_norm", "updates"),
    ):
        if norm in rows:
            found[name] = steps, finite(rows[norm])
        elif tree in rows:
            found[name] = steps[some], _norms(kept(run, tree, "plot.dashboard"), some)
    if "params" in rows:
        found["distance"] = steps[some], _norms(rows["params"], some, from_first=True)
    recorded = next((rows[name] for name in ("rate", "lr", "learning_rate") if name in rows), None)
    rate = recorded if rate is None else rate
    if callable(rate):
        found["rate"] = steps[some], finite([rate(step) for step in steps[some]])
    elif rate is not None:
        found["rate"] = steps, finite(rate)
    return found


def _norms(tree: PyTree, rows: np.ndarray, from_first: bool = False) -> np.ndarray:
    """Return the Euclidean norm of a tree at some rows, or of its change since the first."""
    total = np.zeros(len(rows))
    for leaf in jax.tree.leaves(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf[rows])
        values = values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
        values = values.reshape(len(rows), -1)
        total += (np.abs(values - values[0] if from_first else values) ** 2).sum(axis=1)
    return finite(np.sqrt(total))


def summary(run: Run) -> str:
    """Return a run in a few lines of text: how far it went, and what became of its gauges.

    Args:
      run: a run, in memory or on disk.

    >>> import optax, jaxfit
    >>> from jaxfit.plot.dashboard import summary
    >>> run = jaxfit.train(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.5), 100)
    >>> print(summary(run))
    100 steps, 100 rows: loss float32[100], params float32[100], step int32[100]
                   first         last       lowest  at step   not finite
    loss               1            0            0        1            0
    distance           0            1            0        0            0
    """
    first, end = _summary.known(run.steps, 0), _summary.known(run.state.step)
    taken = "" if first is None or end is None else f"{end - first:,} steps, "
    lines = [f"{taken}{len(run.steps):,} rows: {_summary.line(run.trajectory)}"]
    if run.stop_reason is not None:
        lines.append(f"stopped: {run.stop_reason}")
    found = gauges(run)
    if found:
        lines.append(
            f"{'':10}{'first':>10}{'last':>13}{'lowest':>13}{'at step':>9}{'not finite':>13}"
        )
    for name, (steps, values) in found.items():
        known = np.flatnonzero(np.isfinite(values))
        if not len(known):
            lines.append(f"{name:10}{'':45}{len(values):13,}")
            continue
        low = known[values[known].argmin()]
        numbers = f"{values[0]:10.4g}{values[-1]:13.4g}{values[low]:13.4g}"
        lines.append(f"{name:10}{numbers}{int(steps[low]):9}{len(values) - len(known):13,}")
    return "\n".join(lines)
