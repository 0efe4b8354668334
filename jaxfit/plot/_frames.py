"""What animations of runs share: which rows are drawn, and what is written above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from jaxfit._disk.rows import DiskRows
from jaxfit._types import PyTree
from jaxfit.plot.player import Playable
from jaxfit.run import Run


def frame_rows(steps: Any, most: int) -> np.ndarray:
    """Return at most some of the rows, evenly spaced, the first and the last among them.

    >>> frame_rows(range(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if most < 1:
        raise ValueError(f"most is {most}, but an animation has at least one frame.")
    number = len(steps)
    if most == 1:
        return np.array([number - 1])
    return np.unique(np.linspace(0, number - 1, min(most, number)).round().astype(int))


def picked(tree: PyTree, rows: np.ndarray) -> PyTree:
    """Return some rows of a tree of arrays, read by need where they are on disk."""
    return jax.tree.map(
        lambda leaf: leaf[rows] if isinstance(leaf, DiskRows) else np.asarray(leaf)[rows], tree
    )


def losses_of(run: Run) -> np.ndarray | None:
    """Return the losses of a run, ``[rows]``, if it has recorded them."""
    if isinstance(run.trajectory, dict) and "loss" in run.trajectory:
        return np.asarray(run.trajectory["loss"], np.float64)
    return None


def caption(step: Any, loss: Any = None) -> str:
    """Return what stands above a frame.

    >>> caption(7, 0.25)
    'step    7   loss 0.2500'
    """
    text = f"step {int(step):4d}"
    if loss is None:
        return text
    number = f"{loss:.4f}" if 1e-3 <= abs(loss) < 1e5 or loss == 0 else f"{loss:.3g}"
    return f"{text}   loss {number}"


def playable(
    ax: Axes, draw: Callable[[int], Sequence[Any]], steps: np.ndarray, interval: int
) -> Playable:
    """Return an animation of a figure whose frames are those of some steps."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes that were drawn on have one
    labels = [f"step {step}" for step in steps]
    return Playable(figure, draw, frames=len(steps), interval=interval, labels=labels)
