"""Animations of a fit and of a path, which play in notebooks and are saved by `save`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from jaxfit._types import Batch, Loss, Params
from jaxfit.plot import static
from jaxfit.plot._common import (
    BLACK,
    BLUE,
    ORANGE,
    check_one_run,
    curve,
    finite,
    kept,
    recorded,
    say_gaps,
    set_scale,
    thinned,
)
from jaxfit.plot._frames import caption, frame_rows, picked, playable
from jaxfit.plot.player import Playable
from jaxfit.run import Run


def animate_fit(
    run: Run,
    model: Callable[[Params, Any], Any],
    data: tuple[Any, Any],
    *,
    interval: int = 20,
    most: int = 200,
    ax: Axes | None = None,
) -> Playable:
    """Animate the line that a model fits to data, with one frame for every recorded row.

    As the last expression of a notebook's cell, an animation plays there.

    Args:
      run: a run whose recorder kept ``"params"`` and ``"loss"``.
      model: ``model(params, x) -> prediction [examples]``.
      data: ``(x, y)``, as in `fit`.
      interval: milliseconds from one frame to the next.
      most: the most frames. Of more rows, this number is drawn, evenly spaced; no others are read
        from disk.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The animation. As with all of matplotlib's, keep a reference to it while it is shown.

    Raises:
      ValueError: if ``"params"`` or ``"loss"`` was not recorded, these are many runs made under
        ``jax.vmap``, or a column of x other than the first varies.

    >>> import tempfile, jax.numpy as jnp, optax, jaxfit.plot
    >>> data = jnp.array([[0.0, 1.0], [1.0, 1.0]]), jnp.array([2.0, 5.0])
    >>> loss = jaxfit.losses.objective(jaxfit.models.linear, jaxfit.losses.mse)
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.1), 3, data=data)
    >>> animation = jaxfit.plot.animate_fit(run, jaxfit.models.linear, data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxfit.plot.save(animation, f"{folder}/fit.html").name
    'fit.html'
    """
    check_one_run(run, "plot.animate_fit")
    rows = frame_rows(run.steps, most)
    trajectory = picked(kept(run, "params", "plot.animate_fit"), rows)
    losses = np.asarray(kept(run, "loss", "plot.animate_fit")[rows])
    steps = np.asarray(run.steps)[rows]
    positions, inputs = static.line_inputs(data[0])
    lines = np.asarray(jax.jit(jax.vmap(lambda params: model(params, inputs)))(trajectory))

    ax = static.fit(model, None, data, ax=ax)
    (line,) = ax.plot(positions, lines[0], color=ORANGE, linewidth=2, label="fit")
    # All lines are in view, except what lies far off in a run that diverges.
    low, high = np.min(data[1]), np.max(data[1])
    margin = 2 * (high - low) or 1.0
    near = lines[(lines > low - margin) & (lines < high + margin)]
    low, high = min(low, near.min(initial=low)), max(high, near.max(initial=high))
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.legend(loc="upper left")
    title = ax.set_title(" ")

    def draw(k: int) -> tuple[Line2D, Text]:
        line.set_ydata(lines[k])
        title.set_text(caption(steps[k], losses[k]))
        return line, title

    return playable(ax, draw, steps, interval)


def animate_path(
    run: Run,
    loss: Loss,
    data: Batch = None,
    *,
    interval: int = 20,
    most: int = 200,
    axes: Any = None,
    names: tuple[str, str] = ("$a_0$", "$a_1$"),
) -> Playable:
    """Animate the path of two parameters over the contours of the loss, beside the loss curve.

    Args:
      run: a run of two parameters whose recorder kept ``"params"`` and ``"loss"``.
      loss: the loss of the run, as in `path`.
      data: the data on which the contours of the loss are computed.
      interval: milliseconds from one frame to the next.
      most: the number of frames at most, as in `animate_fit`.
      axes: two axes to draw on; those of a new figure if None.
      names: the labels of the two parameters.

    Returns:
      The animation.

    Raises:
      ValueError: as in `path`.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> bowl = lambda a: a[0] ** 2 + 3.0 * a[1] ** 2
    >>> run = jaxfit.train(bowl, jnp.array([1.0, 1.0]), optax.sgd(0.1), 20)
    >>> jaxfit.plot.animate_path(run, bowl).labels[-1]
    'step 19'
    """
    points, height = static.path_of(run, loss, data, "plot.animate_path")
    losses = finite(recorded(run, "loss", "plot.animate_path"))
    rows, steps = frame_rows(run.steps, most), np.asarray(run.steps)
    rows = rows[rows < len(points)]  # of a run that diverged
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")[1]
    left, right = axes
    static.draw_contours(left, height, points)
    (way,) = left.plot([], [], ".-", color=ORANGE, markersize=3, linewidth=1, label="path")
    (head,) = left.plot([], [], "o", color=BLACK, label="now")
    left.set(xlabel=names[0], ylabel=names[1])
    left.legend(loc="upper right")
    title = left.set_title(" ")
    curve(right, steps, losses, color=BLUE, linewidth=1, alpha=0.3)
    (grown,) = right.plot([], [], color=BLUE, linewidth=1)
    (dot,) = right.plot([], [], "o", color=BLACK)
    right.set(xlabel="step", ylabel="loss")
    set_scale(right, losses)
    say_gaps(right, losses)

    def draw(k: int) -> tuple[Any, ...]:
        row = rows[k]
        way.set_data(*points[: row + 1].T)
        head.set_data(*points[row : row + 1].T)
        shown = thinned(losses[: row + 1])
        grown.set_data(steps[shown], losses[shown])
        dot.set_data(steps[row : row + 1], losses[row : row + 1])
        title.set_text(caption(steps[row], losses[row]))
        return way, head, grown, dot, title

    return playable(left, draw, steps[rows], interval)
