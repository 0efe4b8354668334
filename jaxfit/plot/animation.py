"""Animations of runs, which play in notebooks and are saved by `save`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from jaxfit._types import Params
from jaxfit.plot import static
from jaxfit.plot._common import ORANGE, check_one_run, recorded
from jaxfit.plot.player import Playable
from jaxfit.run import Run


def animate_fit(
    run: Run,
    model: Callable[[Params, Any], Any],
    data: tuple[Any, Any],
    *,
    interval: int = 20,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Animate the line that a model fits to data, with one frame for every recorded row.

    Args:
      run: a run whose recorder kept ``"params"`` and ``"loss"``.
      model: ``model(params, x) -> prediction [examples]``.
      data: ``(x, y)``, as in `fit`.
      interval: milliseconds from one frame to the next.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The animation. As with all of matplotlib's, keep a reference to it while it is shown.

    Raises:
      ValueError: if ``"params"`` or ``"loss"`` was not recorded, these are many runs made under
        ``jax.vmap``, or another column of x than the first varies.

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
    trajectory = recorded(run, "params", "plot.animate_fit")
    losses = np.asarray(recorded(run, "loss", "plot.animate_fit"))
    steps = np.asarray(run.steps)
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

    def draw(row: int) -> tuple[Line2D, Text]:
        line.set_ydata(lines[row])
        title.set_text(f"step {steps[row]:4d}   loss {losses[row]:.4f}")
        return line, title

    figure = ax.get_figure(root=True)
    assert figure is not None  # axes that were drawn on have one
    labels = [f"step {step}" for step in steps]
    return Playable(figure, draw, frames=len(steps), interval=interval, labels=labels)
