"""Losses against the step, for one run and for many."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from mpl_toolkits.axes_grid1 import make_axes_locatable

from jaxfit.plot._common import (
    BLACK,
    BLUE,
    COLORS,
    axes_of,
    curve,
    finite,
    heights,
    labels_of,
    moved,
    recorded,
    say_gaps,
    set_scale,
    text_of,
)
from jaxfit.run import Run
from jaxfit.sweep import Sweep


def loss(
    runs: Run | Sweep,
    *,
    ax: Axes | None = None,
    label: Any = None,
    smooth: float | None = None,
    over: str | bool | None = None,
    rate: Any = None,
    **style: Any,
) -> Axes:
    """Draw the loss against the step, on a logarithmic scale if all losses are positive.

    If some are zero, the scale is linear around zero, and logarithmic from the smallest positive
    loss on; if some are negative, it is linear. A loss that is not finite leaves a gap, and their
    number is written below. Of a million rows, those that are extreme are drawn.

    Args:
      runs: a run whose recorder kept ``"loss"``; or many runs made under ``jax.vmap``, with losses
        ``[runs, rows]``, each of which is drawn as a line; or a sweep whose values are such runs,
        or losses ``[*axes, rows]``.
      ax: the axes to draw on; those of a new figure if None.
      label: the label in the legend; for many runs one label for each, such as its learning rate.
        A sweep's curves are labelled by its axes.
      smooth: from 0 to below 1, the weight of the past in a moving average, as in TensorBoard,
        corrected for its start; it is drawn over the losses themselves, which are then pale.
      over: the axis of a sweep, such as ``"seed"``, or True for all the runs made under
        ``jax.vmap``, over which to draw the median and the range of 80 % of the runs, besides
        each as a thin line.
      rate: the learning rate, an array ``[rows]`` or a function of the step, to be drawn below.
      **style: passed to ``Axes.plot``.

    Returns:
      The axes.

    Raises:
      ValueError: if no ``"loss"`` was recorded, there are more or fewer labels than runs, or the
        sweep has no such axis.

    >>> import optax, jaxfit.plot
    >>> run = jaxfit.train(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.1), 20)
    >>> jaxfit.plot.loss(run).get_yscale()
    'log'
    """
    steps, values, names = _curves(runs, over)
    labels = names if label is None else list(np.atleast_1d(label))
    if len(labels) != len(values):
        raise ValueError(
            f"plot.loss was given {len(labels)} labels for {len(values)} runs: give one for each."
        )
    ax = axes_of(ax)
    colors = _colors(ax, len(values), style)
    for color, group, text in zip(colors, values, map(text_of, labels), strict=True):
        _draw(ax, steps, group, {"color": color, "label": text} | style, smooth)
    ax.set(xlabel="step", ylabel="loss")
    set_scale(ax, heights(ax))
    say_gaps(ax, values)
    if any(text is not None for text in labels) or over is not None:
        ax.legend()
    if rate is not None:
        _draw_rate(ax, steps, rate)
    return ax


def _curves(
    runs: Run | Sweep, over: str | bool | None
) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
    """Return steps [rows], losses [curves, runs of each, rows], and a label for each curve."""
    if not isinstance(runs, Sweep):
        values = np.atleast_2d(recorded(runs, "loss", "plot.loss"))
        values = values.reshape(-1, values.shape[-1])
        steps = np.asarray(runs.steps).reshape(-1, values.shape[-1])[0]
        values = values[None] if over else values[:, None]
        return steps, finite(values), [None] * len(values)
    found = runs.values
    if isinstance(found, Run):
        steps, losses = np.asarray(found.steps), recorded(found, "loss", "plot.loss")
    else:
        losses = np.asarray(found["loss"] if isinstance(found, dict) else found)
        steps = np.arange(losses.shape[-1])
    steps = steps.reshape(-1, losses.shape[-1])[0]
    name = over if isinstance(over, str) else None
    values = moved(finite(losses), runs, [name], "plot.loss")
    return steps, values.reshape(-1, *values.shape[-2:]), sweep_labels(runs, name)


def sweep_labels(sweep: Sweep, without: str | None = None) -> list[str | None]:
    """Return a label for each run of a sweep, of its axes but one, in the order of the runs."""
    shape = np.shape(jax.tree.leaves(sweep.values)[0])
    choices = [
        labels_of(axis, size)
        for (name, axis), size in zip(sweep.axes.items(), shape, strict=False)
        if name != without
    ]
    texts = [", ".join(map(str, map(text_of, one))) for one in itertools.product(*choices)]
    return [text or None for text in texts]


def _colors(ax: Axes, number: int, style: dict[str, Any]) -> list[Any]:
    """Return a colour for each curve: from dark to light, in their order, where there are many."""
    if "color" in style:
        return [style["color"]] * number
    if number > len(COLORS):
        return list(plt.get_cmap("viridis")(np.linspace(0.0, 0.9, number)))
    if number == 1 and not ax.lines:
        return [BLUE]
    used = {line.get_color() for line in ax.lines}
    free = [color for color in COLORS if color not in used] or list(COLORS)
    return (free * number)[:number]


def _draw(
    ax: Axes, steps: np.ndarray, group: np.ndarray, style: dict[str, Any], smooth: float | None
) -> None:
    """Draw the runs of a curve, [runs, rows]."""
    shown = group if smooth is None else np.stack([smoothed(one, smooth) for one in group])
    pale = style | {"label": None, "linewidth": 0.6, "alpha": 0.35}
    if len(group) == 1:
        if smooth is not None:
            curve(ax, steps, group[0], **pale)
        curve(ax, steps, shown[0], **style)
        return
    for one in shown:
        curve(ax, steps, one, **pale)
    low, middle, high = quantiles(shown, (0.1, 0.5, 0.9))
    ax.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    text = f"median and 80 % of {len(group)}"
    text = text if style["label"] is None else f"{style['label']}: {text}"
    curve(ax, steps, middle, **{"linewidth": 1.8} | style | {"label": text})


def quantiles(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Return quantiles over the first axis that pass over NaN; NaN where there is nothing else.

    >>> quantiles(np.array([[1.0, np.nan], [3.0, np.nan]]), (0.5,))
    array([[ 2., nan]])
    """
    known = np.where(np.isnan(values).all(axis=0), 0.0, values)
    result: np.ndarray = np.nanquantile(known, levels, axis=0)
    return np.where(np.isnan(values).all(axis=0), np.nan, result)


def smoothed(values: Any, weight: float) -> np.ndarray:
    """Return a moving average [rows] that forgets the past, and passes over NaN.

    >>> smoothed([4.0, np.nan, 1.0], 0.5).round(2)
    array([4., 4., 2.])
    """
    if not 0 <= weight < 1:
        raise ValueError(f"smooth is {weight}, but the weight of the past is from 0 to below 1.")
    mean, total = 0.0, 0.0
    out = np.empty(len(values))
    for row, value in enumerate(np.asarray(values, np.float64).tolist()):
        if np.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            total = weight * total + (1 - weight)
        out[row] = mean / total if total else np.nan
    return out


def _draw_rate(ax: Axes, steps: np.ndarray, rate: Any) -> None:
    """Draw a schedule in axes of its own below."""
    values = np.array([rate(step) for step in steps]) if callable(rate) else np.asarray(rate)
    if values.shape != steps.shape:
        raise ValueError(
            f"rate has the shape {list(values.shape)}, but there are {len(steps)} rows: "
            f"give one rate for each, or a function of the step."
        )
    below = _axes_below(ax)
    curve(below, steps, values, color=BLACK, linewidth=1)
    below.set(xlabel="step", ylabel="rate", ylim=(0, None))
    ax.tick_params(labelbottom=False)
    ax.set_xlabel("")


def _axes_below(ax: Axes) -> Axes:
    """Return axes that take the lower quarter of the place of others, over the same steps."""
    figure, place = ax.figure, ax.get_subplotspec()
    if place is None:  # axes that were put somewhere by hand
        divider: Any = make_axes_locatable(ax)
        below: Axes = divider.append_axes("bottom", size="33%", pad=0.1, sharex=ax)
        return below
    parts = place.subgridspec(2, 1, height_ratios=[3, 1], hspace=0.08)
    ax.set_subplotspec(parts[0])
    return figure.add_subplot(parts[1], sharex=ax)
