"""Animations: a fit that moves through its run, and how to save one."""

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

from jaxfit.plot import static
from jaxfit.train import Run

# What stands on matplotlib's buttons, in the place of an icon font from a content network: signs
# that every font has.
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
    model: Callable[[Any, Any], Any],
    data: tuple[Any, Any],
    *,
    interval: int = 20,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Let the fitted line move through a run: one frame for every recorded row.

    Args:
      run: a run whose recorder kept ``"params"`` and ``"loss"``.
      model: ``model(params, x) -> prediction [examples]``.
      data: x and y, as `fit` takes them.
      interval: milliseconds for each frame.
      ax: where to draw; a new figure if None.

    Returns:
      The animation. As everywhere in matplotlib, keep a reference to it while it is shown.

    Raises:
      ValueError: if the run did not record what is drawn, or these are many runs.
    """
    static.one_run(run, "plot.animate_fit")
    trajectory = static.kept(run, "params", "plot.animate_fit")
    losses = np.asarray(static.kept(run, "loss", "plot.animate_fit"))
    steps = np.asarray(run.steps)
    places, inputs = static.grid(data[0])
    lines = np.asarray(jax.jit(jax.vmap(lambda params: model(params, inputs)))(trajectory))

    ax = static.fit(model, None, data, ax=ax)
    (line,) = ax.plot(places, lines[0], color=static.ORANGE, linewidth=2, label="fit")
    # All lines are in view, but for those of a run on its way to infinity.
    low, high = np.min(data[1]), np.max(data[1])
    margin = 2 * (high - low) or 1.0
    near = lines[(lines > low - margin) & (lines < high + margin)]
    low, high = min(low, near.min(initial=low)), max(high, near.max(initial=high))
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.legend(loc="upper left")
    title = ax.set_title(" ")

    def draw(row: int):
        line.set_ydata(lines[row])
        title.set_text(f"step {steps[row]:4d}   loss {losses[row]:.4f}")
        return line, title

    figure = ax.get_figure(root=True)
    assert figure is not None  # axes that were drawn on have one
    return FuncAnimation(figure, draw, frames=len(steps), interval=interval)


def save(animation: Animation, path: str | pathlib.Path, *, dpi: float = 100) -> pathlib.Path:
    """Save an animation in the format that the ending of its path names.

    Args:
      animation: what `animate_fit` or matplotlib returned.
      path: where to; ``.html`` is one file with the frames in it and buttons to play them,
        ``.gif`` needs nothing more, ``.mp4`` needs the extra ``video``.
      dpi: dots per inch.

    Returns:
      The path.

    Raises:
      ValueError: for any other ending.
      ImportError: for ``.mp4`` where imageio-ffmpeg is not installed.
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
    """Make matplotlib's player a page of its own, without the icon font it fetches."""
    body = re.sub(r"<link[^>]*https?://[^>]*>", "", page)
    for icon, sign in _BUTTONS.items():
        body = re.sub(rf'<i class="fa fa-{icon}"></i>', sign, body)
    return f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><body>{body}</body></html>\n'
