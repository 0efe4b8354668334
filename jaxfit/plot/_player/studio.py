"""A figure under the conditions in which its frames are drawn, and put back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from matplotlib.artist import Artist
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import AxesImage


class VectorCanvas(FigureCanvasSVG):
    """A canvas that measures text as SVG does, and is never drawn."""

    def is_saving(self) -> bool:
        """Say that a file is written, so that artists of a blitted animation are drawn as well."""
        return True

    def draw_idle(self, *_: Any, **__: Any) -> None:
        """Draw nothing, which an animation asks for after every frame."""


class PixelCanvas(FigureCanvasAgg):
    """A canvas of pixels, likewise."""

    def is_saving(self) -> bool:
        return True

    def draw_idle(self, *_: Any, **__: Any) -> None:
        pass


@contextlib.contextmanager
def placed_on(figure: Figure, canvas: type[FigureCanvasBase], dpi: float) -> Iterator[Any]:
    """Give a figure another canvas and resolution for a while; what a window shows stays.

    A layout engine that the block sets to ``"none"`` is put back, too.
    """
    screen, engine, before = figure.canvas, figure.get_layout_engine(), figure.dpi
    try:
        placed = canvas(figure)
        figure.dpi = dpi
        yield placed
    finally:
        figure.dpi = before  # while the canvas has no window that would be resized
        if engine is not None:
            figure.set_layout_engine(engine)
        figure.set_canvas(screen)


def settle(figure: Figure) -> None:
    """Lay a figure out and keep the layout, which is most of the work of drawing a figure."""
    engine = figure.get_layout_engine()
    figure.draw_without_rendering()
    if engine is not None:
        engine.execute(figure)  # constrained layout has settled only after two passes
        figure.set_layout_engine("none")


@contextlib.contextmanager
def own_pixels(artists: list[Artist]) -> Iterator[None]:
    """Let images among artists draw their own pixels, for a browser to enlarge as squares."""
    images = [one for one in artists if isinstance(one, AxesImage) and _is_enlarged(one)]
    before = [image.get_interpolation() for image in images]
    try:
        for image in images:
            image.set_interpolation("none")
        yield
    finally:
        for image, interpolation in zip(images, before, strict=True):
            image.set_interpolation(interpolation)


def _is_enlarged(image: AxesImage) -> bool:
    """Return whether matplotlib shows each of an image's pixels as a rectangle of one colour."""
    values, interpolation = image.get_array(), image.get_interpolation()
    if values is None or not image.get_transform().is_affine or interpolation == "none":
        return False
    if interpolation == "nearest":
        return True
    box = image.get_window_extent()
    return interpolation in ("auto", "antialiased") and all(
        shown > 3 * number or shown in (number, 2 * number)
        for shown, number in zip((box.height, box.width), values.shape[:2], strict=True)
    )
