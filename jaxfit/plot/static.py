"""Static plots: a fit, a loss curve, a path over the contours of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxfit import _tree
from jaxfit._disk.rows import DiskRows
from jaxfit._types import Batch, Loss, Params, PyTree
from jaxfit.run import Run

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def fit(
    model: Callable[[Params, Any], Any],
    params: Params | None,
    data: tuple[Any, Any],
    *,
    ax: Axes | None = None,
    label: str | None = None,
) -> Axes:
    """Draw the points of a data set and the line that a model fits to them.

    Args:
      model: ``model(params, x) -> prediction [examples]``.
      params: the parameters of the model; None to draw the points alone.
      data: ``(x, y)``. x is ``[examples]``, or ``[examples, features]`` with all columns but the
        first constant, such as a column of ones; the first is drawn. y is ``[examples]``.
      ax: the axes to draw on; those of a new figure if None.
      label: the label of the line in the legend.

    Returns:
      The axes.

    Raises:
      ValueError: if a column of x other than the first varies.

    >>> import jax.numpy as jnp, jaxfit.plot
    >>> data = jnp.array([[0.0, 1.0], [1.0, 1.0]]), jnp.array([2.0, 5.0])
    >>> len(jaxfit.plot.fit(jaxfit.models.linear, jnp.array([3.0, 2.0]), data).lines)
    1
    """
    ax = _axes(ax)
    x, y = data
    positions, inputs = line_inputs(x)
    ax.scatter(_first_column(x), y, s=14, color=BLUE, label="data")
    if params is not None:
        ax.plot(positions, model(params, inputs), color=ORANGE, linewidth=2, label=label or "fit")
        ax.legend()
    ax.set(xlabel="x", ylabel="y")
    return ax


def loss(run: Run, *, ax: Axes | None = None, label: Any = None, **style: Any) -> Axes:
    """Draw the loss against the step, on a logarithmic scale if all losses are positive.

    If some are zero, the scale is linear around zero, and logarithmic from the smallest positive
    loss on; if some are negative, it is linear. A loss that is not finite leaves a gap.

    Args:
      run: a run whose recorder kept ``"loss"``; or many runs made under ``jax.vmap``, with losses
        ``[runs, rows]``, each of which is drawn as a line.
      ax: the axes to draw on; those of a new figure if None.
      label: the label in the legend; for many runs one label for each, such as its learning rate.
      **style: passed to ``Axes.plot``.

    Returns:
      The axes.

    Raises:
      ValueError: if no ``"loss"`` was recorded, or there are more or fewer labels than runs.

    >>> import optax, jaxfit.plot
    >>> run = jaxfit.train(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.1), 20)
    >>> jaxfit.plot.loss(run).get_yscale()
    'log'
    """
    values = np.atleast_2d(recorded(run, "loss", "plot.loss"))
    steps = np.broadcast_to(np.asarray(run.steps), values.shape)
    labels = [None] * len(values) if label is None else list(np.atleast_1d(label))
    if len(labels) != len(values):
        raise ValueError(
            f"plot.loss was given {len(labels)} labels for {len(values)} runs: give one for each."
        )
    ax = _axes(ax)
    if len(values) > 1 and "color" not in style:  # from dark to light, in the order of the runs
        ax.set_prop_cycle(color=plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(values))))
    elif "color" not in style and not ax.lines:
        style = style | {"color": BLUE}
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    for line_steps, line_values, line_label in zip(steps, values, labels, strict=True):
        ax.plot(line_steps, line_values, label=_label_text(line_label), **style)
    ax.set(xlabel="step", ylabel="loss")
    _set_scale(ax, np.concatenate([_heights(ax, line) for line in ax.lines]))
    if label is not None:
        ax.legend()
    return ax


def path(
    run: Run,
    loss: Loss,
    data: Batch = None,
    *,
    ax: Axes | None = None,
    names: tuple[str, str] = ("$a_0$", "$a_1$"),
    label: str = "path",
) -> Axes:
    """Draw the path of two parameters over the contours of the loss.

    Args:
      run: a run of two parameters whose recorder kept ``"params"``.
      loss: the loss of the run, ``loss(params, data)``, or ``loss(params)`` if ``data`` is None.
      data: the data on which the contours of the loss are computed.
      ax: the axes to draw on; those of a new figure if None.
      names: the labels of the two axes.
      label: the label of the path in the legend.

    Returns:
      The axes.

    Raises:
      ValueError: if ``"params"`` was not recorded, the parameters are not two real numbers, or
        these are many runs made under ``jax.vmap``.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> bowl = lambda a: a[0] ** 2 + 3.0 * a[1] ** 2
    >>> run = jaxfit.train(bowl, jnp.array([1.0, 1.0]), optax.sgd(0.1), 20)
    >>> jaxfit.plot.path(run, bowl).get_xlabel()
    '$a_0$'
    """
    check_one_run(run, "plot.path")
    trained = jax.tree.leaves(_tree.partition(recorded(run, "params", "plot.path"))[0])
    last, rest = _tree.partition(run.state.params)
    points = np.concatenate([np.reshape(leaf, (len(run.steps), -1)) for leaf in trained], axis=1)
    if points.shape[1] != 2 or np.iscomplexobj(points):
        raise ValueError(
            f"plot.path draws two real parameters, but the run has {points.shape[1]} of dtype "
            f"{points.dtype}: draw a loss curve with plot.loss, or train two of them."
        )
    end, unravel = jax.flatten_util.ravel_pytree(last)
    points = np.concatenate([points, np.asarray(end)[None]]).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]  # of a run that diverged

    def height(point: jax.Array) -> Any:
        params = _tree.combine(unravel(point), rest)
        return loss(params) if data is None else loss(params, data)

    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.25 * np.maximum(high - low, 1e-6 + 0.1 * np.abs(high))
    a, b = (np.linspace(low[i] - margin[i], high[i] + margin[i], 60) for i in (0, 1))
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(a), jnp.asarray(b)), axis=-1).astype(end.dtype)
    heights = np.asarray(jax.jit(jax.vmap(jax.vmap(height)))(grid), np.float64)
    finite = heights[np.isfinite(heights)]

    ax = _axes(ax)
    if finite.size and finite.max() > (lowest := finite.min()):
        # Quadratic spacing of the levels keeps lines from crowding where the loss is steep.
        levels = lowest + (finite.max() - lowest) * np.linspace(0.02, 1.0, 14) ** 2
        drawn = ax.contour(
            a, b, np.ma.masked_invalid(heights), levels=levels, cmap="viridis", linewidths=0.8
        )
        ax.clabel(drawn, levels[::3], fontsize=7, fmt="%.3g")
    ax.plot(*points.T, ".-", color=ORANGE, markersize=3, linewidth=1, label=label)
    ax.plot(*points[0], "o", color=BLACK, label="start")
    ax.plot(*points[-1], "*", color=BLACK, markersize=10, label="end")
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend()
    return ax


def line_inputs(x: Any) -> tuple[np.ndarray, jax.Array]:
    """Return 200 positions along the horizontal axis, and the x of the model at each of them.

    Args:
      x: ``[examples]`` or ``[examples, features]``, as in `fit`.

    Returns:
      The positions ``[200]``, and x ``[200]`` or ``[200, features]``.

    Raises:
      ValueError: if a column of x other than the first varies.
    """
    dtype = jnp.result_type(x, float)
    drawn = _first_column(x)
    positions = np.linspace(drawn.min(), drawn.max(), 200)
    if np.ndim(x) == 1:
        return positions, jnp.asarray(positions, dtype)
    others = np.asarray(x)[:, 1:]
    if np.ptp(others, axis=0).any():
        raise ValueError(
            f"a fit is drawn over one variable, but x of shape {np.shape(x)} has a second column "
            f"that varies: draw one column, with the others constant."
        )
    columns = [positions, *np.broadcast_to(others[0], (200, others.shape[1])).T]
    return positions, jnp.asarray(np.stack(columns, axis=1), dtype)


def recorded(run: Run, name: str, caller: str) -> PyTree:
    """Return what the recorder kept under a name, in memory, or raise if it kept nothing there."""
    if not isinstance(run.trajectory, dict) or name not in run.trajectory:
        held = list(run.trajectory) if isinstance(run.trajectory, dict) else type(run.trajectory)
        raise ValueError(
            f"{caller} draws {name!r}, but the trajectory holds {held}: "
            f"record it, as jaxfit.record.whole does."
        )
    rows: PyTree = run.trajectory[name]
    return jax.tree.map(lambda leaf: leaf[:] if isinstance(leaf, DiskRows) else leaf, rows)


def check_one_run(run: Run, caller: str) -> None:
    """Check that this is one run, and not many made under ``jax.vmap``."""
    if np.ndim(run.steps) != 1:
        raise ValueError(
            f"{caller} draws one run, but was given runs of shape {np.shape(run.steps)}: "
            f"pick one, as in jax.tree.map(lambda leaf: leaf[0], runs)."
        )


def _first_column(x: Any) -> np.ndarray:
    """Return the part of x that is drawn: [examples]."""
    return np.asarray(x) if np.ndim(x) == 1 else np.asarray(x)[:, 0]


def _heights(ax: Axes, line: Line2D) -> np.ndarray:
    """Return a line's vertical data; none if it is in units of the axes, as ``axvline`` is."""
    is_data = line.get_transform().contains_branch_seperately(ax.transData)[1]
    return np.ravel(line.get_ydata()) if is_data else np.zeros(0)


def _set_scale(ax: Axes, values: np.ndarray) -> None:
    """Set the vertical scale that shows all values, some of which can be NaN."""
    if (values < 0).any() or not (positive := values[values > 0]).size:
        ax.set_yscale("linear")
    elif (values == 0).any():
        ax.set_yscale("symlog", linthresh=positive.min())
    else:
        ax.set_yscale("log")


def _label_text(label: Any) -> str | None:
    """Return the text of a label, floats with three digits."""
    if label is None:
        return None
    return f"{label:.3g}" if isinstance(label, float | np.floating) else str(label)


def _axes(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax
