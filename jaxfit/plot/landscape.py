"""The path of a large run on the plane of its principal components; comparisons of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxfit.plot._common import BLACK, BLUE, COLORS, ORANGE, axes_of, finite, thinned


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
    walk, too, two components hold some 76 % of the variance, so that alone is no finding.

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


def profiles(factors: Any, shares: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw performance profiles: the part of all problems that each contender solves in time.

    Args:
      factors: τ, ``[points]``: how many times as long as the fastest contender a problem may take.
      shares: for each contender, ``[points]``: the part of the problems that it solves by then.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    Dolan and Moré 2002, `Benchmarking optimization software with performance profiles
    <https://doi.org/10.1007/s101070100263>`_.

    >>> import jaxfit.plot
    >>> ax = jaxfit.plot.profiles([1, 2, 4], {"sgd": [0.3, 0.6, 1.0], "adam": [0.7, 0.7, 0.7]})
    >>> len(ax.lines)
    2
    """
    ax = axes_of(ax)
    factors = np.asarray(factors, np.float64)
    styles = ("-", "--", ":", "-.")
    for k, (name, values) in enumerate(shares.items()):
        style = styles[k // len(COLORS) % len(styles)]
        ax.step(
            factors, finite(values), style, where="post", color=COLORS[k % len(COLORS)], label=name
        )
    ax.set(xlabel="times as long as the fastest, τ", ylabel="part of the problems solved")
    ax.set(ylim=(0, 1.02), xlim=(factors.min(), factors.max()))
    if factors.min() > 0 and factors.max() > 8 * factors.min():
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    ax.legend()
    return ax


def intervals(
    names: Any,
    centers: Any,
    lows: Any,
    highs: Any,
    *,
    label: str = "final loss",
    ax: Axes | None = None,
) -> Axes:
    """Draw an estimate and its confidence interval for each contender, the best above.

    Args:
      names: ``[contenders]``.
      centers: the estimates, such as interquartile means, ``[contenders]``; less is better.
      lows: the lower ends of the intervals.
      highs: the upper ends.
      label: what is estimated, with its unit.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    >>> import jaxfit.plot
    >>> ax = jaxfit.plot.intervals(["sgd", "adam"], [2.0, 1.0], [1.5, 0.9], [2.5, 1.1])
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['adam', 'sgd']
    """
    middle, low, high = finite(centers), finite(lows), finite(highs)
    order = np.argsort(np.where(np.isnan(middle), np.inf, middle))
    ax = axes_of(ax)
    places = np.arange(len(order))
    away = np.stack([middle - low, high - middle])[:, order].clip(min=0)
    ax.errorbar(middle[order], places, xerr=away, fmt="o", color=BLUE, ecolor=BLUE, capsize=3)
    for place in np.flatnonzero(np.isnan(middle[order])):
        ax.text(0.5, float(place), "diverged", ha="center", va="center", color=ORANGE,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_yticks(places, [str(names[k]) for k in order])
    ax.set(xlabel=label, ylim=(len(order) - 0.5, -0.5))
    known = np.concatenate([low, middle, high])
    known = known[np.isfinite(known)]
    if known.size and known.min() > 0 and known.max() > 10 * known.min():
        ax.set_xscale("log")
    ax.grid(axis="x", alpha=0.3)
    return ax
