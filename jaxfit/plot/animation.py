"""Animate a fit over its run, and save animations."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.animation import Animation, FuncAnimation
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from jaxfit._types import Params
from jaxfit.plot import static
from jaxfit.run import Run

# The icons on matplotlib's buttons come from a font that the page would download; every font has
# these signs.
_BUTTONS = {
    "minus": "−",
    "fast-backward": "|◀",
    "step-backward": "‹",
    "play fa-flip-horizontal": "◀",
    "pause": "||",
    "play": "▶",
    "step-forward": "›",
    "fast-forward": "▶|",
    "plus": "+",
}


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
    static.check_one_run(run, "plot.animate_fit")
    trajectory = static.recorded(run, "params", "plot.animate_fit")
    losses = np.asarray(static.recorded(run, "loss", "plot.animate_fit"))
    steps = np.asarray(run.steps)
    positions, inputs = static.line_inputs(data[0])
    lines = np.asarray(jax.jit(jax.vmap(lambda params: model(params, inputs)))(trajectory))

    ax = static.fit(model, None, data, ax=ax)
    (line,) = ax.plot(positions, lines[0], color=static.ORANGE, linewidth=2, label="fit")
    # Show all lines, except what lies far off in a run that diverges.
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
    return FuncAnimation(figure, draw, frames=len(steps), interval=interval)


def save(animation: Animation, path: str | pathlib.Path, *, dpi: float = 100) -> pathlib.Path:
    """Save an animation in the format that its path ends in.

    Args:
      animation: an animation from `animate_fit` or from matplotlib.
      path: the file to write. ``.html`` is a page that holds the frames and buttons to play them;
        ``.gif`` needs nothing else; ``.mp4`` needs the extra ``video``.
      dpi: dots per inch.

    Returns:
      The path.

    Raises:
      ValueError: if the path ends in anything else.
      ImportError: if it ends in ``.mp4`` and imageio-ffmpeg is not installed.

    >>> import tempfile, matplotlib.pyplot as plt, jaxfit.plot
    >>> from matplotlib.animation import FuncAnimation
    >>> figure, ax = plt.subplots()
    >>> animation = FuncAnimation(figure, lambda frame: ax.plot([0, frame]), frames=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxfit.plot.save(animation, f"{folder}/lines.gif").name
    'lines.gif'
    """
    path = pathlib.Path(path)
    if path.suffix == ".html":
        with mpl.rc_context({"savefig.dpi": dpi, "figure.dpi": dpi, "animation.embed_limit": 1e4}):
            page = animation.to_jshtml()
        path.write_text(_standalone(page), encoding="utf-8")
    elif path.suffix == ".gif":
        animation.save(path, writer="pillow", dpi=dpi)
    elif path.suffix == ".mp4":
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise ImportError(
                "saving .mp4 needs imageio-ffmpeg, which is not installed: "
                'run pip install "jaxfit-train[video]", or save .gif or .html.'
            ) from error
        with mpl.rc_context({"animation.ffmpeg_path": imageio_ffmpeg.get_ffmpeg_exe()}):
            animation.save(path, writer="ffmpeg", dpi=dpi)
    else:
        raise ValueError(
            f"the path {str(path)!r} ends in {path.suffix!r}, but an animation is saved as "
            f".html, .gif or .mp4: give it one of these endings."
        )
    return path


def _standalone(page: str) -> str:
    """Return matplotlib's player as a whole page, without the icon font it would download."""
    body = re.sub(r"<link[^>]*https?://[^>]*>", "", page)
    for icon, sign in _BUTTONS.items():
        body = re.sub(rf'<i class="fa fa-{icon}"></i>', sign, body)
    return f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><body>{body}</body></html>\n'
