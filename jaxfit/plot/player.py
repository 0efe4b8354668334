"""Show animations in notebooks and browsers, and save them."""

from __future__ import annotations

import contextlib
import io
import itertools
import pathlib
import tempfile
import warnings
import webbrowser
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import Animation, FuncAnimation
from PIL import Image

from jaxfit._drive import notebooks
from jaxfit.plot._player import borrowed, page
from jaxfit.plot._player.files import WRITERS
from jaxfit.plot._player.film import PREFIX, Film, record
from jaxfit.plot._player.pixels import pixels, saved
from jaxfit.plot._player.sheets import Sheets
from jaxfit.plot._player.studio import PixelCanvas, placed_on

_DPI = 100.0


class Playable(FuncAnimation):
    """An animation that plays where it is the last expression of a cell of a notebook.

    Attributes:
      labels: a text for each frame, which the player shows beside its slider.
    """

    def __init__(self, *args: Any, labels: list[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.labels = labels

    def __del__(self) -> None:
        """Say nothing where it was never drawn: matplotlib warns."""

    def _repr_html_(self) -> str:
        return _cell(self)


def save(
    animation: Animation, path: str | pathlib.Path, *, dpi: float = _DPI, frame: int = -1
) -> pathlib.Path:
    """Save any animation of matplotlib's in the format that its path ends in, fast.

    matplotlib draws the whole figure for every frame. Here all of it is drawn once, and for a frame
    only what its function has changed: artists say so themselves when they are set. If the function
    edits an array in place (``line.get_ydata()[0] = 1``), which no artist notices, it has to return
    the artist, as for ``blit=True``. The layout is that of the first frame.

    Args:
      animation: an animation, from `animate_fit` and its like or from matplotlib.
      path: the file to write.

        - ``.html``: a page with a player: sharp at any size, as small as a GIF or smaller, on its
          own, for browsers of 2023 and later. Space plays and pauses; the arrows, with Shift by
          ten, Home and End seek; + and - change the speed, L whether it repeats. It does not begin
          on its own for readers who asked their system for less motion.
        - ``.gif``, ``.webp``; and ``.mp4``, which needs the extra ``video``.
        - ``.png``: one frame.
      dpi: dots per inch; for ``.html``, how large the picture is at first.
      frame: which frame to save as ``.png``, the last by default.

    Returns:
      The path.

    Warns:
      UserWarning: if something in the figure cannot be followed, so that the frames of ``.html``
        are pixels, which makes a larger file.

    Raises:
      ValueError: if the path ends in anything else, or the animation has no frames or no end.
      ImportError: if it ends in ``.mp4`` and imageio-ffmpeg is not installed.

    >>> import tempfile, matplotlib.pyplot as plt, jaxfit.plot
    >>> from matplotlib.animation import FuncAnimation
    >>> figure, ax = plt.subplots()
    >>> animation = FuncAnimation(figure, lambda frame: ax.plot([0, frame]), frames=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jaxfit.plot.save(animation, f"{folder}/lines.html").name
    'lines.html'
    """
    path = pathlib.Path(path)
    if path.suffix != ".html" and path.suffix not in WRITERS:
        raise ValueError(
            f"the path {str(path)!r} ends in {path.suffix!r}, but an animation is saved as "
            f".html, .gif, .webp or .mp4, and one frame as .png: give it one of these endings."
        )
    frames = borrowed.frames_of(animation)
    if path.suffix == ".html":
        path.write_text(page.page(*_player(animation, frames, dpi)), encoding="utf-8")
        return path
    if path.suffix == ".png":
        frames = [frames[frame]]
    WRITERS[path.suffix](_rgba(animation, frames, dpi), borrowed.interval_of(animation), path)
    return path


def show(animation: Animation) -> None:
    """Play any animation of matplotlib's: in a notebook below the cell, elsewhere in a browser.

    In a notebook its figure is closed, so that it is not shown a second time, without motion. It
    can still be saved.

    Args:
      animation: an animation, as in `save`.

    Raises:
      ValueError: if the animation has no frames or no end.

    >>> import jaxfit.plot
    >>> jaxfit.plot.show(animation)  # doctest: +SKIP
    """
    if (notebook := notebooks.display()) is not None:
        notebook.display(notebook.HTML(_cell(animation)))
        return
    path = pathlib.Path(tempfile.mkdtemp(prefix="jaxfit-")) / "animation.html"
    webbrowser.open(save(animation, path).as_uri())


def _cell(animation: Animation) -> str:
    """Return the player as the output of a cell, and close the figure."""
    element, _ = _player(animation, borrowed.frames_of(animation), _DPI, has_still=True)
    with contextlib.suppress(borrowed.CannotFollow):
        plt.close(borrowed.figure_of(animation))
    return element


def _player(
    animation: Animation, frames: list[Any], dpi: float, has_still: bool = False
) -> tuple[str, str]:
    """Return the element that plays an animation, and the script in it."""
    try:
        film, dots = record(animation, frames, dpi), dpi / 72
    except borrowed.CannotFollow as reason:
        warnings.warn(
            f"the animation is shown as pixels, which makes a larger file, because {reason}.",
            stacklevel=3,
        )
        film, dots = _as_film(_rgba(animation, frames, dpi)), 1.0
    labels = getattr(animation, "labels", None)
    if labels is None or len(labels) != len(frames):
        numbers = int, float, str, np.number
        labels = [str(one) if isinstance(one, numbers) else str(k) for k, one in enumerate(frames)]
    return page.player(
        film,
        labels,
        borrowed.interval_of(animation),
        borrowed.is_repeated(animation),
        film.size[0] * dots,
        _still(animation, dpi) if has_still else None,
    )


def _rgba(animation: Animation, frames: list[Any], dpi: float) -> Iterator[np.ndarray]:
    """Return the frames of an animation as pixels, RGBA ``[height, width, 4]``."""
    drawn = pixels(animation, frames, dpi)
    try:
        first = next(drawn)
    except borrowed.CannotFollow:
        return iter(saved(animation, dpi))
    return itertools.chain([first], drawn)


def _as_film(frames: Iterator[np.ndarray]) -> Film:
    """Return pixels as a film."""
    sheets, slot, number, last, size = Sheets(PREFIX), {}, 0, "", (0, 0)
    for number, frame in enumerate(frames, start=1):
        size = frame.shape[1], frame.shape[0]
        if (shown := sheets.place(frame.copy(), is_sharp=False)) != last:
            slot[number - 1] = last = shown
    return Film(size, "", [0], [slot], sheets.sheets, number)


def _still(animation: Animation, dpi: float) -> bytes | None:
    """Return a figure as it stands, as a PNG file, if it can be told."""
    try:
        figure = borrowed.figure_of(animation)
    except borrowed.CannotFollow:
        return None
    file = io.BytesIO()
    with placed_on(figure, PixelCanvas, dpi) as canvas:
        figure.set_layout_engine("none")
        figure.draw(canvas.get_renderer())
        Image.fromarray(np.asarray(canvas.buffer_rgba())).save(file, format="png")
    return file.getvalue()
