"""A fit over its data, and a path over the contours of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxfit import _tree
from jaxfit._types import Batch, Loss, Params
from jaxfit.plot._common import BLACK, BLUE, GREEN, ORANGE, axes_of, check_one_run, recorded
from jaxfit.run import Run

__all__ = ["BLACK", "BLUE", "GREEN", "ORANGE", "fit", "path"]


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
    ax = axes_of(ax)
    x, y = data
    positions, inputs = line_inputs(x)
    ax.scatter(_first_column(x), y, s=14, color=BLUE, label="data")
    if params is not None:
        ax.plot(positions, model(params, inputs), color=ORANGE, linewidth=2, label=label or "fit")
        ax.legend()
    ax.set(xlabel="x", ylabel="y")
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
    points, height = path_of(run, loss, data, "plot.path")
    ax = axes_of(ax)
    draw_contours(ax, height, points)
    ax.plot(*points.T, ".-", color=ORANGE, markersize=3, linewidth=1, label=label)
    ax.plot(*points[0], "o", color=BLACK, label="start")
    ax.plot(*points[-1], "*", color=BLACK, markersize=10, label="end")
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend()
    return ax


def path_of(
    run: Run, loss: Loss, data: Batch, caller: str
) -> tuple[np.ndarray, Callable[[jax.Array], Any]]:
    """Return where two parameters went, and the loss as a function of a point.

    Args:
      run: one run.
      loss: its loss.
      data: the data of the loss.
      caller: the function that a refusal names.

    Returns:
      The points that are finite, the end included, ``[points, 2]``; and the loss of one of them.

    Raises:
      ValueError: as `path`.
    """
    check_one_run(run, caller)
    trained = jax.tree.leaves(_tree.partition(recorded(run, "params", caller))[0])
    last, _ = _tree.partition(run.state.params)
    points = np.concatenate([np.reshape(leaf, (len(run.steps), -1)) for leaf in trained], axis=1)
    if points.shape[1] != 2 or np.iscomplexobj(points):
        raise ValueError(
            f"{caller} draws two real parameters, but the run has {points.shape[1]} of dtype "
            f"{points.dtype}: draw a loss curve with plot.loss, or train two of them."
        )
    end, _ = jax.flatten_util.ravel_pytree(last)
    points = np.concatenate([points, np.asarray(end)[None]]).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]  # of a run that diverged
    return points, height_of(run.state.params, loss, data)


def height_of(params: Params, loss: Loss, data: Batch) -> Callable[[jax.Array], Any]:
    """Return the loss as a function of the trained numbers of some parameters, in one array."""
    trained, rest = _tree.partition(params)
    like, unravel = jax.flatten_util.ravel_pytree(trained)

    def height(point: jax.Array) -> Any:
        params = _tree.combine(unravel(point.astype(like.dtype)), rest)
        return loss(params) if data is None else loss(params, data)

    return height


def draw_contours(ax: Axes, height: Callable[[jax.Array], Any], points: np.ndarray) -> None:
    """Draw contours of a function of two numbers around some points ``[points, 2]``."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.25 * np.maximum(high - low, 1e-6 + 0.1 * np.abs(high))
    a, b = (np.linspace(low[i] - margin[i], high[i] + margin[i], 60) for i in (0, 1))
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(a), jnp.asarray(b)), axis=-1)
    heights = np.asarray(jax.jit(jax.vmap(jax.vmap(height)))(grid), np.float64)
    finite = heights[np.isfinite(heights)]
    if finite.size and finite.max() > (lowest := finite.min()):
        # Quadratic spacing of the levels keeps lines from crowding where the loss is steep.
        levels = lowest + (finite.max() - lowest) * np.linspace(0.02, 1.0, 14) ** 2
        drawn = ax.contour(
            a, b, np.ma.masked_invalid(heights), levels=levels, cmap="viridis", linewidths=0.8
        )
        ax.clabel(drawn, levels[::3], fontsize=7, fmt="%.3g")
    ax.set(xlim=(a[0], a[-1]), ylim=(b[0], b[-1]))


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


def _first_column(x: Any) -> np.ndarray:
    """Return the part of x that is drawn: [examples]."""
    return np.asarray(x) if np.ndim(x) == 1 else np.asarray(x)[:, 0]
