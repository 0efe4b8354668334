"""Animations of many runs on one landscape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from jaxfit import _tree
from jaxfit._types import Batch, Loss, Params
from jaxfit.plot import static
from jaxfit.plot._common import (
    COLORS,
    axes_of,
    finite,
    text_of,
)
from jaxfit.plot._frames import caption, frame_rows, playable
from jaxfit.plot.curves import sweep_labels
from jaxfit.plot.player import Playable
from jaxfit.run import Run
from jaxfit.sweep import Sweep


def animate_race(
    runs: Run | Sweep,
    loss: Loss,
    data: Batch = None,
    *,
    labels: Sequence[Any] | None = None,
    trail: int = 30,
    interval: int = 20,
    most: int = 200,
    ax: Axes | None = None,
    names: tuple[str, str] = ("$a_0$", "$a_1$"),
) -> Playable:
    """Animate many runs of two parameters on one landscape, each a head with a trail.

    Tune the rates first: a race of default rates is a race of defaults.

    Args:
      runs: a sweep whose values are runs, or what their recorder kept with ``"params"`` in it
        (optimizers have states of different shapes, so that a sweep of them returns
        ``run.trajectory``); or runs made under ``jax.vmap``.
      loss: the loss that is the landscape, as in `path`.
      data: the data on which it is computed.
      labels: a label for each run; those of the sweep's axes by default.
      trail: how many frames a trail is long.
      interval: milliseconds from one frame to the next.
      most: the number of frames at most, as in `animate_fit`.
      ax: the axes to draw on; those of a new figure if None.
      names: the labels of the two parameters.

    Returns:
      The animation. Runs that leave the landscape, or are not finite, are not seen from there on.

    Raises:
      ValueError: if ``"params"`` was not recorded, or there are not two of them.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> bowl = lambda a: a[0] ** 2 + 3.0 * a[1] ** 2
    >>> run = lambda lr: jaxfit.train(bowl, jnp.ones(2), optax.sgd(lr), 20)
    >>> race = jaxfit.plot.animate_race(jaxfit.sweep(run, {"lr": jnp.array([0.1, 0.3])}), bowl)
    >>> [text.get_text() for text in race._fig.axes[0].get_legend().get_texts()]
    ['0.1', '0.3']
    """
    steps, ways, params = _ways(runs)
    height = static.height_of(params, loss, data)
    known = sweep_labels(runs) if labels is None and isinstance(runs, Sweep) else labels
    texts = [f"run {k}" for k in range(len(ways))] if known is None else list(map(text_of, known))
    if len(texts) != len(ways):
        raise ValueError(
            f"plot.animate_race was given {len(texts)} labels for {len(ways)} runs: one for each."
        )
    return _race(
        axes_of(ax), ways, texts, height, (steps, frame_rows(steps, most)), trail, interval, names
    )


def _race(
    ax: Axes,
    ways: np.ndarray,
    labels: Sequence[Any],
    height: Callable[[jax.Array], Any],
    when: tuple[np.ndarray, np.ndarray],
    trail: int,
    interval: int,
    names: tuple[str, str],
) -> Playable:
    """Animate the ways of many runs, ``[runs, rows, 2]``."""
    steps, rows = when
    # Where a run goes that diverges is not part of the picture.
    middle = np.nanquantile(ways.reshape(-1, 2), (0.05, 0.95), axis=0)
    box = middle + 2 * np.array([[-1.0], [1.0]]) * np.ptp(middle, axis=0)
    points = ways.reshape(-1, 2)
    inside = ((points >= box[0]) & (points <= box[1])).all(axis=1)
    static.draw_contours(ax, height, points[inside])
    trails, heads = [], []
    for k, label in enumerate(labels):
        color, marker = COLORS[k % len(COLORS)], "osD^vP*X"[k // len(COLORS) % 8]
        trails += ax.plot([], [], color=color, linewidth=1.5, alpha=0.8)
        heads += ax.plot([], [], marker, color=color, label=label, markeredgecolor="white")
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend(loc="upper left", fontsize="small", ncols=1 + len(labels) // 12)
    title = ax.set_title(" ")

    def draw(k: int) -> tuple[Any, ...]:
        begin = rows[max(0, k - trail)]
        for way, line, head in zip(ways, trails, heads, strict=True):
            line.set_data(*way[begin : rows[k] + 1].T)
            head.set_data(*way[rows[k] : rows[k] + 1].T)
        title.set_text(caption(steps[rows[k]]))
        return *trails, *heads, title

    return playable(ax, draw, steps[rows], interval)


def _ways(runs: Run | Sweep) -> tuple[np.ndarray, np.ndarray, Params]:
    """Return steps [rows], points [runs, rows, 2], and the parameters of some row."""
    values = runs.values if isinstance(runs, Sweep) else runs
    kept_rows = values.trajectory if isinstance(values, Run) else values
    if not isinstance(kept_rows, dict) or "params" not in kept_rows:
        raise ValueError(
            "plot.animate_race draws 'params', but they were not recorded: return a run, or its "
            "trajectory, from what is swept."
        )
    params = jax.tree.map(np.asarray, kept_rows["params"])
    every = values.steps if isinstance(values, Run) else kept_rows.get("step")
    trained = jax.tree.leaves(_tree.partition(params)[0])
    lead = len(runs.axes) if isinstance(runs, Sweep) else np.ndim(np.asarray(every)) - 1
    shape: tuple[int, ...] = trained[0].shape[: lead + 1] if trained else ()
    ways = [np.reshape(leaf, (*shape, -1)) for leaf in trained]
    number = sum(way.shape[-1] for way in ways)
    if lead < 1 or number != 2 or any(map(np.iscomplexobj, ways)):
        raise ValueError(
            f"plot.animate_race draws many runs of two real parameters, but was given "
            f"{'many' if lead else 'one'} of {number}: give a sweep, or runs made under jax.vmap."
        )
    points = finite(np.concatenate(ways, axis=-1)).reshape(-1, shape[-1], 2)
    steps = np.arange(shape[-1]) if every is None else np.asarray(every).reshape(-1, shape[-1])[0]
    return steps, points, jax.tree.map(lambda leaf: leaf[(0,) * (lead + 1)], params)
