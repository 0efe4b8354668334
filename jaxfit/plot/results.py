"""What ``jaxfit.analysis`` returns: curvature, noise, landscapes, comparisons.

The results are taken by their attributes alone, so anything with the same names will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxfit.plot._common import (
    BLACK,
    BLUE,
    COLORS,
    axes_of,
    curve,
    finite,
    heights,
    say_gaps,
    set_scale,
)
from jaxfit.plot.curves import smoothed


def range_test(
    rates: Any,
    losses: Any,
    suggestions: Mapping[str, float] | Any = None,
    *,
    smooth: float = 0.98,
    ax: Axes | None = None,
) -> Axes:
    """Draw a range test: the loss while the rate grows, and the rates that it suggests.

    Args:
      rates: ``[steps]``, growing.
      losses: ``[steps]``, at these rates.
      suggestions: rates by name, such as ``jaxfit.analysis.suggest_rates`` finds: a mapping, or
        anything with attributes that are numbers.
      smooth: the weight of the past in the moving average, as in `loss`.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes. Losses beyond four times the lowest, smoothed, are cut off above.

    >>> import numpy as np, jaxfit.plot
    >>> rates = np.geomspace(1e-4, 1.0, 50)
    >>> ax = jaxfit.plot.range_test(rates, 1 - rates + 4 * rates**2, {"steep": 0.03})
    >>> ax.get_legend().get_texts()[-1].get_text()
    'steep: 0.03'
    """
    rates, values = np.asarray(rates, np.float64), finite(losses)
    mean = smoothed(values, smooth)
    ax = axes_of(ax)
    curve(ax, rates, values, color=BLUE, alpha=0.3, linewidth=0.8, label="of a batch")
    curve(ax, rates, mean, color=BLUE, label="smoothed")
    found = _numbers(suggestions)
    for k, (name, rate) in enumerate(found.items()):
        marker, color = "ovsD^P*"[k % 7], COLORS[1 + k % (len(COLORS) - 1)]
        height = np.interp(np.log(rate), np.log(rates), np.where(np.isnan(mean), 0, mean))
        text = f"{name.replace('_', ' ')}: {rate:.2g}"
        ax.plot(rate, height, marker, color=color, markersize=8, label=text, linestyle="")
    low, first = np.nanmin(mean), mean[np.isfinite(mean)][0]
    top = max(first, low + 4 * abs(low), np.nanmin(values)) + 0.05 * abs(first - low)
    ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
    ax.set_ylim(np.nanmin(values) - 0.05 * (top - low), min(top, np.nanmax(values) * 1.05))
    say_gaps(ax, values)
    ax.legend()
    return ax


def eigenvalues(
    steps: Any,
    eigenvalues: Any,
    threshold: Any = None,
    *,
    residuals: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the largest eigenvalues along a run, beside the threshold of stability.

    Args:
      steps: ``[rows]``.
      eigenvalues: ``[rows]`` or ``[rows, k]``, the largest first; or a result of
        ``jaxfit.analysis.curvature`` at every row, with its error bounds.
      threshold: where the optimizer becomes unstable, such as 2/η: a number, or ``[rows]``.
      residuals: an error bound for each eigenvalue, drawn as a band.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    >>> import jaxfit.plot
    >>> ax = jaxfit.plot.eigenvalues([0, 1, 2], [[1.0, 0.5], [3.0, 1.0], [4.1, 2.0]], 2 / 0.5)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['largest', '2nd', 'threshold, 4']
    """
    bounds = getattr(eigenvalues, "residuals", residuals)
    values = finite(getattr(eigenvalues, "eigenvalues", eigenvalues))
    values = values.reshape(len(values), -1)
    ax = axes_of(ax)
    for k, column in enumerate(values.T):
        name = ("largest", "2nd", "3rd")[k] if k < 3 else f"{k + 1}th"
        color = COLORS[k % len(COLORS)]
        curve(ax, steps, column, color=color, label=name, linewidth=1.2)
        if bounds is not None:
            bound = finite(bounds).reshape(len(values), -1)[:, k]
            ax.fill_between(steps, column - bound, column + bound, color=color, alpha=0.2)
    if threshold is not None:
        limit = np.broadcast_to(np.asarray(threshold, np.float64), len(values))
        text = f"threshold, {limit[0]:.4g}" if np.ptp(limit) == 0 else "threshold"
        curve(ax, steps, limit, color=BLACK, linestyle="--", linewidth=1, label=text)
    ax.set(xlabel="step", ylabel="eigenvalue of the Hessian")
    say_gaps(ax, values)
    ax.legend()
    return ax


def spectrum(
    spectrum: Any, *, width: float | None = None, ax: Axes | None = None, **style: Any
) -> Axes:
    """Draw the density of the Hessian's eigenvalues, on a logarithmic scale.

    Args:
      spectrum: a result of ``jaxfit.analysis.spectrum``: ``nodes`` and ``density(x, width)``.
      width: the standard deviation to which each node is smeared, in units of eigenvalues; a
        hundredth of their range by default.
      ax: the axes to draw on; those of a new figure if None.
      **style: passed to ``Axes.plot``.

    Returns:
      The axes.

    >>> import jax.numpy as jnp, jaxfit.plot
    >>> class Flat:
    ...     nodes = jnp.array([[0.0, 1.0]])
    ...     def density(self, x, width):
    ...         return jnp.ones_like(x)
    >>> jaxfit.plot.spectrum(Flat()).get_yscale()
    'log'
    """
    x, width = spectrum_places(spectrum, width)
    density = finite(spectrum.density(x, width))
    ax = axes_of(ax)
    curve(ax, x, density, **({"color": BLUE} | style))
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
    top = max(ax.get_ylim()[1] if len(ax.lines) > 1 else 0.0, 3 * float(np.nanmax(density)))
    ax.set_ylim(1e-6 * top, top)
    if "label" in style:
        ax.legend()
    return ax


def spectrum_places(spectrum: Any, width: float | None) -> tuple[np.ndarray, float]:
    """Return where to draw a density, and how far to smear its nodes."""
    nodes = np.asarray(spectrum.nodes, np.float64)
    low, high = nodes.min(), nodes.max()
    width = width or max((high - low) / 100, 1e-12)
    return np.linspace(low - 4 * width, high + 4 * width, 1000), width


def noise(
    steps: Any, noise: Any, batch_size: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the scale of the gradient's noise along a run: batches far beyond it are wasted.

    Args:
      steps: ``[rows]``.
      noise: a result of ``jaxfit.analysis.gradient_noise`` at every row: ``grad_sq`` and
        ``trace``, ``[rows]``, whose moving averages are divided.
      batch_size: that of the run.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    >>> import types, numpy as np, jaxfit.plot
    >>> found = types.SimpleNamespace(grad_sq=np.ones(5), trace=np.full(5, 32.0))
    >>> jaxfit.plot.noise(np.arange(5), found, 16).lines[0].get_ydata().tolist()
    [32.0, 32.0, 32.0, 32.0, 32.0]
    """
    square, trace = finite(noise.grad_sq), finite(noise.trace)
    weight = max(0.0, 1 - 20 / max(len(square), 20))
    length = smoothed(square, weight)
    scale = np.where(length > 0, smoothed(trace, weight) / length, np.nan)
    ax = axes_of(ax)
    curve(ax, steps, scale, color=BLUE, label="noise scale, tr Σ / |G|²")
    single = np.where(square > 0, trace / np.where(square > 0, square, 1), np.nan)
    ax.plot(steps, single, ".", color=BLUE, alpha=0.25, markersize=3, label="at one step")
    if batch_size is not None:
        ax.axhline(batch_size, color=BLACK, linestyle="--", linewidth=1, label="batch size")
    ax.set(xlabel="step", ylabel="examples", yscale="log")
    say_gaps(ax, scale)
    ax.legend()
    return ax


def line(line: Any, *, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Draw the loss on the straight line between two points, and the barrier on it.

    Args:
      line: a result of ``jaxfit.analysis.line``: ``at`` and ``loss``, ``[num]``, and ``barrier``.
      ax: the axes to draw on; those of a new figure if None.
      label: the label of the line in the legend.

    Returns:
      The axes.

    >>> import types, numpy as np, jaxfit.plot
    >>> at = np.linspace(0, 1, 5)
    >>> found = types.SimpleNamespace(at=at, loss=((2 * at - 1) ** 2 - 1) ** 2, barrier=1.0)
    >>> jaxfit.plot.line(found).get_xlabel()
    'from one (0) to the other (1)'
    """
    at, values = np.asarray(line.at, np.float64), finite(line.loss)
    ax = axes_of(ax)
    used = sum(one.get_linestyle() == "-" for one in ax.lines)
    color, barrier = COLORS[used % len(COLORS)], float(line.barrier)
    text = f"barrier {barrier:.3g}" if label is None else f"{label}: barrier {barrier:.3g}"
    curve(ax, at, values, color=color, label=text)
    ends = np.interp([0.0, 1.0], at, values)
    ax.plot([0, 1], ends, color=color, linestyle=":", linewidth=1)
    above = values - (ends[0] + (ends[1] - ends[0]) * at)
    within = (at >= 0) & (at <= 1) & np.isfinite(values)
    if barrier > 0 and within.any():
        top = np.flatnonzero(within)[above[within].argmax()]
        foot = values[top] - above[top]
        ax.plot([at[top]] * 2, [foot, values[top]], color=color, linewidth=1, linestyle="--")
    ax.set(xlabel="from one (0) to the other (1)", ylabel="loss")
    set_scale(ax, heights(ax))
    say_gaps(ax, values)
    ax.legend()
    return ax


def _numbers(found: Any) -> dict[str, float]:
    """Return what there is of names and finite, positive numbers in a mapping or an object."""
    if found is None:
        return {}
    if hasattr(found, "_asdict"):
        found = found._asdict()
    items = found.items() if isinstance(found, Mapping) else vars(found).items()
    numbers = {name: float(value) for name, value in items if np.ndim(value) == 0}
    return {name: value for name, value in numbers.items() if 0 < value < np.inf}
