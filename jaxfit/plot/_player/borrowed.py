"""All private names of matplotlib that the player uses, and what is done where one is missing.

Vector frames need all of `VECTOR`, pixel frames at the speed of blitting those of `REEL`. Without
them, frames come from ``Animation.save``, which is public and slow.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.animation import Animation
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from jaxfit.plot._player.sheets import Sheets
from jaxfit.plot._player.writer import Writer, number, relative

try:
    from matplotlib import _path
except ImportError:
    _path: Any = None  # type: ignore[no-redef]

convert_to_string: Any = getattr(_path, "convert_to_string", None)

REEL: dict[Any, str] = {Animation: "_init_draw _pre_draw _draw_frame"}
VECTOR: dict[Any, str] = {
    RendererSVG: "_make_id _make_flip_transform _get_style_dict _get_style _get_clip_attrs "
    "_convert_path _adjust_glyph_repr _draw_text_as_path _update_glyph_map_defs "
    "_write_clips _write_hatches",
}

_MOST = 10_000  # frames: one that counts on for ever would never be saved


class CannotFollow(Exception):
    """Why what moves in an animation cannot be told from what does not."""


def require(names: dict[Any, str]) -> None:
    """Raise `CannotFollow` if this version of matplotlib lacks one of these names."""
    missing = [f"{o.__name__}.{n}" for o in names for n in names[o].split() if not hasattr(o, n)]
    if names is VECTOR and not hasattr(RendererBase(), "_raster_depth"):
        missing.append("RendererBase._raster_depth")
    if names is VECTOR and not hasattr(text_to_path, "_get_font"):
        missing.append("TextToPath._get_font")
    if names is VECTOR and convert_to_string is None:
        missing.append("_path.convert_to_string")
    if missing:
        raise CannotFollow(f"matplotlib {mpl.__version__} has no {missing[0]}")


def frames_of(animation: Animation) -> list[Any]:
    """Return what an animation gives its function for each frame.

    Raises:
      ValueError: if there are none, or no end of them.
    """
    # What it has drawn so far, which matplotlib would take for all of its frames.
    getattr(animation, "_save_seq", []).clear()
    frames = list(itertools.islice(animation.new_saved_frame_seq(), _MOST + 1))
    if not frames or len(frames) > _MOST:
        raise ValueError(
            f"the animation has {f'more than {_MOST:,}' if frames else 'no'} frames, but one to "
            f"{_MOST:,} are saved: give it frames=, a number or a list, or save_count=."
        )
    return frames


def figure_of(animation: Animation) -> Figure:
    """Return the figure of an animation."""
    figure: Figure | None = getattr(animation, "_fig", None)
    if figure is None:
        raise CannotFollow(f"matplotlib {mpl.__version__} has no Animation._fig")
    return figure.get_figure(root=True) or figure


def interval_of(animation: Animation) -> float:
    """Return the milliseconds from one frame of an animation to the next."""
    return max(float(getattr(animation, "_interval", 200)), 1.0)


def is_repeated(animation: Animation) -> bool:
    """Return whether an animation begins again after its last frame."""
    return bool(getattr(animation, "_repeat", True))


def is_best(legend: Legend) -> bool:
    """Return whether a legend may move when the lines do, as one at the best place does."""
    return getattr(legend, "_loc_real", 0) == 0


def start(animation: Any, frames: list[Any]) -> None:
    """Draw the first frame of an animation, as ``Animation.save`` does."""
    require(REEL)
    with warnings.catch_warnings():  # of an iterator that came to its end in `frames_of`
        warnings.filterwarnings("ignore", "Can not start iterating")
        animation._init_draw()
    draw(animation, frames[0])


def draw(animation: Any, frame: Any) -> Iterable[Any]:
    """Draw a frame of an animation; return the artists that its function says have changed."""
    animation._pre_draw(frame, False)
    animation._draw_frame(frame)
    drawn = getattr(animation, "_drawn_artists", None)
    return drawn if np.iterable(drawn) else () if drawn is None else (drawn,)


def is_in_pixels(renderer: Any) -> bool:
    """Return whether what is drawn is part of an artist that is rasterized as a whole."""
    return bool(renderer._raster_depth)


def finish_pixels(renderer: Any) -> None:
    """Write the pixels of rasterized artists, which waits until others are drawn."""
    if renderer._rasterizing and not renderer._raster_depth:
        renderer.stop_rasterizing()
        renderer._rasterizing = False


# Types of matplotlib's private names are not known.
_Renderer: Any = RendererSVG
_fonts: Any = text_to_path


class Recorder(_Renderer):  # type: ignore[misc]
    """matplotlib's renderer of SVG, with shorter texts, and pictures in sheets.

    Attributes:
      writer: what it has drawn.
      sheets: the pictures of frames after the first.
      is_moving: whether these are frames after the first.
    """

    def __init__(self, width: float, height: float, dpi: float, sheets: Sheets) -> None:
        super().__init__(width, height, io.StringIO(), image_dpi=dpi)
        self.writer = Writer()
        self.sheets, self.is_moving = sheets, False
        self._ids: dict[tuple[str, str], int] = {}
        self._shapes: dict[tuple[bytes, bytes | None], tuple[np.ndarray, str]] = {}  # of markers

    def definitions(self) -> str:
        """Return all that has been defined so far, clips and hatches included."""
        self._write_clips()
        self._write_hatches()
        return "".join(self.writer.defs)

    def open_group(self, s: str, gid: str | None = None) -> None:
        """Write no groups: they only carry ids, which would collide among figures."""

    def close_group(self, s: str) -> None:
        """Write no groups."""

    def _make_id(self, type: str, content: Any) -> str:
        number = self._ids.setdefault((type, str(content)), len(self._ids))
        return f"{self.sheets.prefix}{type}{number}"

    def _adjust_glyph_repr(self, glyph_repr: str) -> str:
        return self._make_id("g", glyph_repr)

    def _get_style_dict(self, gc: Any, rgbFace: Any) -> dict[str, str]:
        style: dict[str, str] = super()._get_style_dict(gc, rgbFace)
        if not gc.get_antialiased():  # without it, there are seams between the cells of a mesh
            style["shape-rendering"] = "crispEdges"
        return style

    def _convert_path(
        self,
        path: Path,
        transform: Any = None,
        clip: Any = None,
        simplify: Any = None,
        sketch: Any = None,
    ) -> str:
        box = (0.0, 0.0, self.width, self.height) if clip else None
        codes = [b"M", b"L", b"Q", b"C", b"z"]
        text = convert_to_string(path, transform, box, simplify, sketch, 2, codes, False)
        return str(text.decode("ascii").replace("\n", ""))

    def draw_markers(
        self,
        gc: Any,
        marker_path: Path,
        marker_trans: Any,
        path: Path,
        trans: Any,
        rgbFace: Any = None,
    ) -> None:
        # Markers of one opaque colour look the same as one path.
        color = tuple(gc.get_rgb()[:3])
        if (
            not np.size(path.vertices)
            or rgbFace is None
            or tuple(rgbFace[:3]) != color
            or (len(rgbFace) > 3 and rgbFace[3] != 1)
            or gc.get_alpha() not in (None, 1.0)
            or gc.get_hatch()
            or gc.get_url()
        ):
            super().draw_markers(gc, marker_path, marker_trans, path, trans, rgbFace)
            return
        shape = (marker_trans + Affine2D().scale(1, -1)).transform_path(marker_path)
        key = shape.vertices.tobytes(), None if shape.codes is None else shape.codes.tobytes()
        if key not in self._shapes:
            self._shapes[key] = relative(shape)
        start, steps = self._shapes[key]
        moved = self._make_flip_transform(trans) + Affine2D().translate(*start)
        places = self._convert_path(path, moved, simplify=False).replace("L", "M").split("M")[1:]
        self.writer.element(
            "path",
            d=f"M{f'{steps}M'.join(places)}{steps}" if places else "",
            style=self._get_style(gc, rgbFace),
            **self._get_clip_attrs(gc),
        )

    def draw_path_collection(self, *arguments: Any, **options: Any) -> None:
        self._path_collection_id = 0  # so that the same shapes have the same ids in every frame
        super().draw_path_collection(*arguments, **options)

    def draw_gouraud_triangles(self, *_: Any) -> None:
        raise CannotFollow("SVG has no shading='gouraud'")

    def _draw_text_as_path(
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any,
        mtext: Any = None,
    ) -> None:
        if ismath:
            super()._draw_text_as_path(gc, x, y, s, prop, angle, ismath, mtext)
            return
        features = mtext.get_fontfeatures() if mtext is not None else None
        language = mtext.get_language() if mtext is not None else None
        glyphs, new, _ = _fonts.get_glyphs_with_font(
            _fonts._get_font(prop),
            s,
            glyph_map=self._glyph_map,
            return_new_glyphs_only=True,
            features=features,
            language=language,
        )
        self._update_glyph_map_defs(new)
        color, alpha = to_hex(gc.get_rgb()), gc.get_rgb()[3]
        style = "" if color == "#000000" else f"fill:{color};"
        if gc.get_forced_alpha():
            alpha = gc.get_alpha()
        if alpha != 1:
            style += f"opacity:{number(alpha)}"
        turn = f" rotate({number(-angle)})" if angle else ""
        scale = prop.get_size_in_points() / _fonts.FONT_SCALE
        transform = f"translate({number(x)} {number(y)}){turn} scale({scale:.5g} {-scale:.5g})"
        self.writer.start("g", {"style": style, "transform": transform})
        for name, right, up, _ in glyphs:
            place = {"x": number(right), "y": number(up) if up else ""}
            self.writer.element("use", attrib={"href": f"#{self._adjust_glyph_repr(name)}"} | place)
        self.writer.end()

    def draw_image(
        self, gc: Any, x: float, y: float, im: np.ndarray, transform: Any = None
    ) -> None:
        height, width = im.shape[:2]
        if not self.is_moving or not (width and height):
            super().draw_image(gc, x, y, im, transform)
            return
        if transform is None:
            k = 72 / self.image_dpi
            matrix: tuple[float, ...] = (k, 0, 0, -k, x, self.height - y)
        else:
            unit = Affine2D().scale(1 / width, 1 / height) + transform
            flipped = unit + Affine2D().translate(x, y).scale(1, -1).translate(0, self.height)
            matrix = flipped.frozen().to_values()
        place = {"transform": f"matrix({' '.join(f'{one:.6g}' for one in matrix)})"}
        if transform is not None and gc.get_alpha() not in (None, 1.0):
            place["opacity"] = number(gc.get_alpha())
        self.writer.start("g", self._get_clip_attrs(gc))
        self.writer.start("g", place)
        self.writer.out.append(self.sheets.place(im, is_sharp=transform is not None))
        self.writer.end()
        self.writer.end()
