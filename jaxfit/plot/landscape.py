"""The path of a large run on the plane of its principal components; comparisons of runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxfit.plot._common import BLACK, BLUE, COLORS, axes_of, finite, thinned


def plane(
    pca: Any = None,
    plane: Any = None,
    *,
    ax: Axes | None = None,
    names: tuple[str, str] = ("first direction", "second direction"),
) -> Axes:
    """Draw a run on the plane of its two principal components, and the loss on that plane.

    The contours are the loss on the plane, and the path is as far off it as the colours of its
    points say: the loss at a point of the path is not that of the contour below it. Of a random
    walk, too, two components hold 90 % of the variance about its last point and 76 % of that about
    its mean, so a high part alone is no finding.

    Args:
      pca: a result of ``jaxfit.analysis.pca``: ``coordinates [rows, k]``, ``ratio [k]``, the
        parts of the variance, and ``off_plane [rows]``, the distances from the plane; None to
        draw the contours alone.
      plane: a result of ``jaxfit.analysis.plane``: ``x [columns]``, ``y [rows]`` and
        ``loss [rows, columns]``; None to draw the path alone.
      ax: the axes to draw on; those of a new figure if None.
      names: the labels of the two axes, without ``pca``.

    Returns:
      The axes.

    >>> import types, numpy as np, jaxfit.plot
    >>> found = types.SimpleNamespace(
    ...     coordinates=np.eye(3)[:, :2], ratio=np.array([0.6, 0.3]), off_plane=np.array([0, 0, 1]))
    >>> jaxfit.plot.plane(found).get_xlabel()
    'first component, 60 % of the variance'
    """
    ax = axes_of(ax)
    figure = ax.get_figure()
    assert figure is not None  # axes that were drawn on have one
    if plane is not None:
        x, y, values = (np.asarray(getattr(plane, name)) for name in ("x", "y", "loss"))
        values = np.ma.masked_invalid(finite(values))
        if values.count() and values.max() > (low := values.min()):
            levels = low + (values.max() - low) * np.linspace(0.01, 1.0, 16) ** 2
            drawn = ax.contour(x, y, values, levels=levels, cmap="viridis", linewidths=0.8)
            ax.clabel(drawn, levels[::3], fontsize=7, fmt="%.3g")
    if pca is not None:
        points, off = finite(pca.coordinates)[:, :2], finite(pca.off_plane)
        rows = np.unique(np.concatenate([thinned(column) for column in points.T]))
        ax.plot(*points[rows].T, color="0.6", linewidth=0.8, zorder=1.8)
        x, y = points[rows].T
        marks = ax.scatter(x, y, c=off[rows], cmap="cividis", s=9, zorder=2)
        figure.colorbar(marks, ax=ax, label="distance from the plane")
        ax.plot(*points[0], "o", color=BLACK, label="start")
        ax.plot(*points[-1], "*", color=BLACK, markersize=11, label="end")
        names = tuple(  # type: ignore[assignment]
            f"{which} component, {100 * float(part):.0f} % of the variance"
            for which, part in zip(("first", "second"), pca.ratio, strict=False)
        )
        ax.legend()
    ax.set(xlabel=names[0], ylabel=names[1])
    return ax


def profiles(comparison: Any, ratios: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw performance profiles: how often each contender is within a ratio of the best.

    Args:
      comparison: a result of ``jaxfit.analysis.compare``: ``profile(ratios)``, of shape
        ``[items, ratios]``, and ``axes``, whose first are the names of the items.
      ratios: 1 and above, ``[ratios]``; up to 32 by default.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    Dolan and Moré 2002, `Benchmarking optimization software with performance profiles
    <https://doi.org/10.1007/s101070100263>`_.

    >>> import types, jaxfit.plot
    >>> found = types.SimpleNamespace(
    ...     profile=lambda ratios: [0 * ratios, 0 * ratios + 1],
    ...     axes=(("optimizer", ("sgd", "adam")), ("seed", (0, 1))))
    >>> [line.get_label() for line in jaxfit.plot.profiles(found).lines]
    ['sgd', 'adam']
    """
    ax = axes_of(ax)
    places = np.geomspace(1, 32, 400) if ratios is None else np.asarray(ratios, np.float64)
    styles = ("-", "--", ":", "-.")
    for k, values in enumerate(finite(comparison.profile(places))):
        name, style = comparison.axes[0][1][k], styles[k // len(COLORS) % len(styles)]
        ax.step(places, values, style, where="post", color=COLORS[k % len(COLORS)], label=str(name))
    ax.set(xlabel="times the lowest loss of a seed", ylabel="part of the seeds")
    ax.set(ylim=(0, 1.02), xlim=(places.min(), places.max()))
    if places.max() > 8 * places.min():
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.legend()
    return ax


def intervals(comparison: Any, *, label: str = "final loss", ax: Axes | None = None) -> Axes:
    """Draw the interquartile mean of each contender and its confidence interval, the best above.

    Args:
      comparison: a result of ``jaxfit.analysis.compare``: ``iqm [items]``, ``interval
        [items, 2]``, ``diverged [items, …]``, and ``axes``, whose first are the names.
      label: what is compared, with its unit.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes. Behind a name stands how many of its runs diverged, at any rate that was tried.

    >>> import types, numpy as np, jaxfit.plot
    >>> found = types.SimpleNamespace(
    ...     iqm=np.array([2.0, 1.0]), interval=np.array([[1.5, 2.5], [0.9, 1.1]]),
    ...     diverged=np.array([[True, False], [False, False]]),
    ...     axes=(("optimizer", ("sgd", "adam")), ("seed", (0, 1))))
    >>> [text.get_text() for text in jaxfit.plot.intervals(found).get_yticklabels()]
    ['adam', 'sgd (50 % diverged)']
    """
    middle, limits = finite(comparison.iqm), finite(comparison.interval)
    names = comparison.axes[0][1]
    lost = np.asarray(comparison.diverged).reshape(len(middle), -1).mean(axis=1)
    order = np.argsort(np.where(np.isnan(middle), np.inf, middle), kind="stable")
    texts = [f"{names[k]} ({lost[k]:.0%} diverged)" if lost[k] else str(names[k]) for k in order]
    ax = axes_of(ax)
    places = np.arange(len(order))
    away = np.abs(limits - middle[:, None]).T[:, order]
    ax.errorbar(middle[order], places, xerr=away, fmt="o", color=BLUE, ecolor=BLUE, capsize=3)
    ax.set_yticks(places, [text.replace("%", " %") for text in texts])
    ax.set(xlabel=f"{label}, interquartile mean and 95 %", ylim=(len(order) - 0.5, -0.5))
    known = limits[np.isfinite(limits)]
    if known.size and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_xscale("log")
    ax.grid(axis="x", alpha=0.3)
    return ax
