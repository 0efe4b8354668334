"""What pictures share: colours, axes, gaps, scales, and long curves thinned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D

from jaxfit._disk.rows import DiskRows
from jaxfit._types import PyTree
from jaxfit.run import Run
from jaxfit.sweep import Sweep

# Okabe and Ito's palette, in an order in which neighbours differ in lightness, too.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
SKY, PINK, YELLOW = "#56B4E9", "#CC79A7", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
_MOST = 4000  # points of a curve: more than a screen has columns


def axes_of(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def recorded(run: Run, name: str, caller: str) -> PyTree:
    """Return what the recorder kept under a name, in memory, or raise if it kept nothing there."""
    rows = kept(run, name, caller)
    return jax.tree.map(lambda leaf: leaf[:] if isinstance(leaf, DiskRows) else leaf, rows)


def kept(run: Run, name: str, caller: str) -> PyTree:
    """Return what the recorder kept under a name, where it is, or raise likewise."""
    if not isinstance(run.trajectory, dict) or name not in run.trajectory:
        held = list(run.trajectory) if isinstance(run.trajectory, dict) else type(run.trajectory)
        raise ValueError(
            f"{caller} draws {name!r}, but the trajectory holds {held}: "
            f"record it, as jaxfit.record.whole does."
        )
    rows: PyTree = run.trajectory[name]
    return rows


def check_one_run(run: Run, caller: str) -> None:
    """Check that this is one run, and not many made under ``jax.vmap``."""
    if np.ndim(run.steps) != 1:
        raise ValueError(
            f"{caller} draws one run, but was given runs of shape {np.shape(run.steps)}: "
            f"pick one, as in jax.tree.map(lambda leaf: leaf[0], runs)."
        )


def thinned(values: np.ndarray, most: int = _MOST) -> np.ndarray:
    """Return which of many values to draw: in each stretch the extremes, the ends and a gap.

    >>> thinned(np.array([0, 5, 1, 0, 0, 0, -7, 0, 0, 0.0]), 5).tolist()
    [0, 1, 6, 9]
    """
    if len(values) <= most:
        return np.arange(len(values))
    size = math.ceil(len(values) / max(most // 5, 1))
    padded = np.full(math.ceil(len(values) / size) * size, np.nan)
    padded[: len(values)] = np.where(np.isfinite(values), values, np.nan)
    rows = padded.reshape(-1, size)
    starts = np.arange(len(rows)) * size
    missing = np.isnan(rows)
    chosen = [
        np.where(missing, np.inf, rows).argmin(axis=1),
        np.where(missing, -np.inf, rows).argmax(axis=1),
        missing.argmax(axis=1),
    ]
    ends = np.minimum(starts + size - 1, len(values) - 1)
    places = np.unique(np.concatenate([*(starts + one for one in chosen), starts[:1], ends[-1:]]))
    return places[places < len(values)]


def curve(ax: Axes, x: Any, y: Any, **style: Any) -> Line2D:
    """Draw a curve; values that are not finite leave a gap."""
    y = finite(y)
    places = thinned(y)
    (line,) = ax.plot(np.asarray(x)[places], y[places], **style)
    return line


def finite(values: Any) -> np.ndarray:
    """Return values as float64, with NaN for those that are not finite."""
    array = np.asarray(values).astype(np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def say_gaps(ax: Axes, *values: Any) -> None:
    """Say on the axes how many values were not finite, and so are not seen."""
    number = sum(int((~np.isfinite(np.asarray(one, np.float64))).sum()) for one in values)
    if number:
        whole = sum(np.size(one) for one in values)
        ax.annotate(
            f"{number:,} of {whole:,} not finite",
            (0.99, 0.01),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            fontsize="small",
            color="0.4",
        )


def set_scale(ax: Axes, values: np.ndarray) -> None:
    """Set the vertical scale that shows all values, some of which can be NaN."""
    if (values < 0).any() or not (positive := values[values > 0]).size:
        ax.set_yscale("linear")
    elif (values == 0).any():
        ax.set_yscale("symlog", linthresh=positive.min())
    else:
        ax.set_yscale("log")


def heights(ax: Axes) -> np.ndarray:
    """Return the vertical data of all lines but those in units of the axes, as ``axvline`` is."""
    values = [
        np.ravel(line.get_ydata())
        for line in ax.lines
        if line.get_transform().contains_branch_seperately(ax.transData)[1]
    ]
    return np.concatenate([np.zeros(0), *values]).astype(np.float64)


def norm_of(values: np.ndarray) -> Normalize:
    """Return a scale of colours: logarithmic for positive values over more than a decade."""
    low, high = np.nanmin(values), np.nanmax(values)
    return LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)


def text_of(label: Any) -> str | None:
    """Return the text of a label, numbers with three digits."""
    if label is None:
        return None
    is_number = isinstance(label, float | np.floating) or (
        np.ndim(label) == 0 and np.issubdtype(np.asarray(label).dtype, np.floating)
    )
    return f"{float(label):.3g}" if is_number else str(label)


def labels_of(axis: Any, number: int) -> Sequence[Any]:
    """Return a label for each item of a sweep's axis: its numbers, its names, or 0, 1, …."""
    if isinstance(axis, tuple):
        return axis
    if hasattr(axis, "dtype") and np.ndim(axis) == 1 and np.dtype(axis.dtype).kind in "iufb":
        return list(np.asarray(axis))
    return range(number)


def scores_of(sweep: Sweep, by: str | Callable[[PyTree], Any] | None, caller: str) -> np.ndarray:
    """Return one real number per run of a sweep, ``[*axes]``, NaN where it is not finite."""
    values = by(sweep.values) if callable(by) else sweep.values if by is None else sweep.values[by]
    names = list(sweep.axes)
    if not hasattr(values, "shape") or np.ndim(values) != len(names) or np.iscomplexobj(values):
        raise ValueError(
            f"{caller} draws one real number per run, over the axes {names}, but was given "
            f"{getattr(values, 'shape', type(values).__name__)}: give by=lambda values: …."
        )
    return finite(values)


def moved(values: np.ndarray, sweep: Sweep, last: Sequence[str | None], caller: str) -> np.ndarray:
    """Return values ``[*axes, …]`` with some axes after all others, missing ones of length 1."""
    names = list(sweep.axes)
    for name in last:
        if name is not None and name not in names:
            raise ValueError(
                f"{caller} was given the axis {name!r}, but the sweep has {names}: name one."
            )
    left = [name for name in names if name not in last]
    order = [names.index(name) for name in [*left, *(one for one in last if one is not None)]]
    rest = range(len(names), values.ndim)
    values = values.transpose([*order, *rest])
    for place, name in enumerate(last):
        if name is None:
            values = np.expand_dims(values, len(left) + place)
    return values
