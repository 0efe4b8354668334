"""What a sweep found: final losses against a rate, and over two axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxfit._types import PyTree
from jaxfit.plot._common import (
    COLORS,
    axes_of,
    finite,
    labels_of,
    moved,
    norm_of,
    scores_of,
    set_scale,
    text_of,
)
from jaxfit.plot.curves import quantiles
from jaxfit.sweep import Sweep


def rates(
    sweep: Sweep,
    rate: str = "lr",
    *,
    over: str | None = None,
    by: str | Callable[[PyTree], Any] | None = None,
    defaults: Mapping[Any, float] | float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the final loss against the learning rate: how much the choice of it matters.

    Each combination of the other axes, such as each optimizer, is a curve: the median over seeds,
    and a band from the lowest to the highest. A cross above stands for rates at which runs
    diverged; how pale it is says how few.

    Args:
      sweep: a sweep with one number for each run, such as its final loss.
      rate: the axis of the rates.
      over: the axis of the seeds.
      by: the number of a run, as in `Sweep.best`.
      defaults: the rate that an optimizer has by default, marked by a ring; for several curves by
        the label of each.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    Raises:
      ValueError: if there is not one real number per run, or no such axis.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> def final(lr):
    ...     loss = lambda a: 0.5 * jnp.sum(a**2)
    ...     return loss(jaxfit.train(loss, jnp.ones(2), optax.sgd(lr), 10).state.params)
    >>> table = jaxfit.sweep(final, {"lr": jnp.geomspace(0.01, 3.0, 9)})
    >>> jaxfit.plot.rates(table).get_xscale()
    'log'
    """
    values = moved(scores_of(sweep, by, "plot.rates"), sweep, [over, rate], "plot.rates")
    places = finite(labels_of(sweep.axes[rate], values.shape[-1]))
    left = [name for name in sweep.axes if name not in (over, rate)]
    sizes = zip(left, values.shape, strict=False)
    names = itertools.product(*(labels_of(sweep.axes[name], size) for name, size in sizes))
    groups = values.reshape(-1, *values.shape[-2:])
    ax = axes_of(ax)
    styles = itertools.cycle(("-", "--", ":", "-."))
    for k, (name, group) in enumerate(zip(names, groups, strict=True)):
        text = ", ".join(str(text_of(one)) for one in name)
        color = COLORS[k % len(COLORS)]
        style = next(styles) if k % len(COLORS) == 0 and k else "-"
        low, middle, high = quantiles(group, (0.0, 0.5, 1.0))
        if len(group) > 1:
            ax.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        ax.plot(places, middle, style, marker=".", color=color, label=text or None)
        lost = np.isnan(group).mean(axis=0)
        height = 0.98 - 0.035 * (k % 12)
        for place in np.flatnonzero(lost):
            ax.plot(
                places[place],
                height,
                "x",
                color=color,
                alpha=max(lost[place], 0.3),
                transform=ax.get_xaxis_transform(),
            )
        usual = defaults.get(text) if isinstance(defaults, Mapping) else defaults
        if usual is not None:
            at = np.interp(np.log(usual), np.log(places), middle)
            ax.plot(usual, at, "o", markersize=10, fillstyle="none", color=color)
    ax.set(xlabel="learning rate", ylabel="final loss", xscale="log")
    set_scale(ax, groups)
    _explain(ax, groups, defaults is not None)
    return ax


def _explain(ax: Axes, groups: np.ndarray, has_defaults: bool) -> None:
    """Add what crosses and rings mean to the legend."""
    if np.isnan(groups).any():
        ax.plot([], [], "x", color="0.4", label="diverged")
    if has_defaults:
        ax.plot([], [], "o", markersize=8, fillstyle="none", color="0.4", label="default rate")
    if ax.get_legend_handles_labels()[1]:
        ax.legend()


def heatmap(
    sweep: Sweep,
    x: str | None = None,
    y: str | None = None,
    *,
    by: str | Callable[[PyTree], Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one number for each run of a sweep as colours over two of its axes.

    Over all other axes, such as seeds, the median is drawn. A star marks the best cell; a cross
    those in which a run diverged, which are grey where all did.

    Args:
      sweep: a sweep with one number for each run, such as its final loss; less is better.
      x: the horizontal axis; the last of the sweep by default.
      y: the vertical axis; the one before it by default.
      by: the number of a run, as in `Sweep.best`.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    Raises:
      ValueError: if there is not one real number per run, or there are not two such axes.

    >>> import jax.numpy as jnp, jaxfit.plot
    >>> axes = {"a": jnp.arange(3.0), "b": jnp.arange(4.0)}
    >>> ax = jaxfit.plot.heatmap(jaxfit.sweep(lambda a, b: (a - 1) ** 2 + b, axes))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('b', 'a')
    """
    names = list(sweep.axes)
    if len(names) < 2:
        raise ValueError(
            f"plot.heatmap draws two axes of a sweep, but this one has {names}: use plot.rates."
        )
    x = names[-1] if x is None else x
    y = next(name for name in reversed(names) if name != x) if y is None else y
    values = moved(scores_of(sweep, by, "plot.heatmap"), sweep, [y, x], "plot.heatmap")
    values = values.reshape(-1, *values.shape[-2:])
    (shown,) = quantiles(values, (0.5,))
    ax = axes_of(ax)
    ax.set_facecolor("0.8")
    norm = norm_of(shown) if np.isfinite(shown).any() else None
    mesh = ax.imshow(shown, norm=norm, cmap="viridis_r", aspect="auto", origin="lower")
    figure = ax.get_figure()
    assert figure is not None  # axes that were drawn on have one
    text = "loss" if len(values) == 1 else f"median loss of {len(values)}"
    figure.colorbar(mesh, ax=ax, label=text)
    down, across = np.nonzero(np.isnan(values).any(axis=0))
    if len(down):
        ax.plot(across, down, "x", color="black", markersize=5, linestyle="", label="diverged")
    if np.isfinite(shown).any():
        best = np.unravel_index(np.nanargmin(shown), shown.shape)
        style: Any = {"markeredgecolor": "black", "markersize": 13, "linestyle": ""}
        ax.plot(best[1], best[0], "*", color="white", label="best", **style)
    _ticks(ax, "x", labels_of(sweep.axes[x], shown.shape[1]))
    _ticks(ax, "y", labels_of(sweep.axes[y], shown.shape[0]))
    ax.set(xlabel=x, ylabel=y)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
    return ax


def _ticks(ax: Axes, which: str, labels: Any) -> None:
    """Label as many of the cells of an axis as there is room for."""
    step = -(-len(labels) // (5 if which == "x" else 12))
    places = list(range(0, len(labels), step))
    texts = [str(text_of(labels[place])) for place in places]
    if which == "x":
        ax.set_xticks(places, texts)
    else:
        ax.set_yticks(places, texts)
