"""Frames of an animation as pixels: what stays is kept in layers, and what moves drawn between."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.animation import AbstractMovieWriter, Animation
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from jaxfit.plot._player import borrowed
from jaxfit.plot._player.changes import Changes, outermost
from jaxfit.plot._player.studio import PixelCanvas, placed_on, settle


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Pixels that stay, RGBA ``[height, width, 4]``, from the bottom up, and their corner."""

    left: int
    bottom: int
    pixels: np.ndarray


def pixels(animation: Animation, frames: list[Any], dpi: float) -> Iterator[np.ndarray]:
    """Yield the frames of an animation, RGBA ``[height, width, 4]``, all in the same memory.

    Raises:
      CannotFollow: before the first frame, if matplotlib lacks what this needs.
    """
    borrowed.require(borrowed.REEL)
    figure = borrowed.figure_of(animation)
    with placed_on(figure, PixelCanvas, dpi) as canvas:
        borrowed.start(animation, frames)
        settle(figure)
        renderer = canvas.get_renderer()
        view, context = np.asarray(renderer.buffer_rgba()), renderer.new_gc()
        moving: list[Artist] = []
        layers = _layers(figure, renderer, view, moving)
        with Changes(figure) as changes:
            for k, frame in enumerate(frames):
                if k:
                    units = changes.take(borrowed.draw(animation, frame))
                    if any(unit not in moving for unit in units):
                        moving = outermost([*moving, *units], changes.units)
                        layers = _layers(figure, renderer, view, moving)
                view[:] = layers[0].pixels[::-1]
                for layer in layers[1:]:
                    if isinstance(layer, _Layer):
                        renderer.draw_image(context, layer.left, layer.bottom, layer.pixels)
                    else:
                        layer.draw(renderer)
                changes.forget()
                yield view


def _layers(figure: Figure, renderer: Any, view: np.ndarray, moving: list[Artist]) -> list[Any]:
    """Draw a figure as layers of pixels, with the artists that move between them."""
    drawn: list[Any] = []

    def cut(artist: Artist) -> Callable[[Any], None]:
        def draw(_: Any) -> None:
            drawn.extend([view.copy(), artist])
            renderer.clear()

        return draw

    renderer.clear()
    with contextlib.ExitStack() as stack:
        for artist in moving:
            vars(artist)["draw"] = cut(artist)
            stack.callback(delattr, artist, "draw")
        figure.draw(renderer)
    drawn.append(view.copy())
    kept = [_Layer(0, 0, drawn[0][::-1]), *map(_cropped, drawn[1:])]
    return [layer for layer in kept if layer is not None]


def _cropped(drawn: Any) -> Any:
    """Return a layer without the transparent pixels around it; None if it is empty."""
    if not isinstance(drawn, np.ndarray):
        return drawn
    rows, columns = (np.flatnonzero(drawn[..., 3].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = np.ascontiguousarray(drawn[top:bottom, left:right][::-1])
    return _Layer(int(left), len(drawn) - int(bottom), part)


class _Frames(AbstractMovieWriter):
    """A writer that keeps the frames that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[np.ndarray] = []

    def setup(self, fig: Figure, outfile: Any, dpi: float | None = None) -> None:
        self.fig, self.outfile, self.dpi = fig, outfile, dpi or fig.dpi

    def grab_frame(self, **options: Any) -> None:
        file = io.BytesIO()
        self.fig.savefig(file, format="rgba", dpi=self.dpi, **options)
        width, height = self.frame_size
        self.frames.append(np.frombuffer(file.getbuffer(), np.uint8).reshape(height, width, 4))

    def finish(self) -> None:
        """Leave the frames where they are."""


def saved(animation: Animation, dpi: float) -> list[np.ndarray]:
    """Return the frames of an animation as matplotlib itself saves them, which is slow."""
    writer = _Frames()
    animation.save("frames", writer=writer, dpi=dpi)
    return writer.frames
