"""Record an animation as SVG: all of its first frame, and then only what changes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.animation import Animation
from matplotlib.artist import Artist
from matplotlib.backends.backend_mixed import MixedModeRenderer

from jaxfit.plot._player import borrowed
from jaxfit.plot._player.changes import Changes, outermost
from jaxfit.plot._player.sheets import Sheet, Sheets
from jaxfit.plot._player.studio import VectorCanvas, own_pixels, placed_on, settle

PREFIX = "jf@@"  # of every id in a film; a page puts its own in its place


@dataclasses.dataclass(frozen=True)
class Film:
    """A recorded animation.

    Attributes:
      size: width and height of the frames, in the units of the SVG.
      definitions: SVG to which the rest refers by ids.
      parts: the first frame: SVG that stays, and in its place the number of every slot.
      slots: for each slot its SVG by the frame from which on it is shown; the first is 0.
      sheets: the pictures that the slots show.
      number: how many frames there are.
    """

    size: tuple[float, float]
    definitions: str
    parts: list[str | int]
    slots: list[dict[int, str]]
    sheets: list[Sheet]
    number: int


_Mixed: Any = MixedModeRenderer  # whose types are not known


class _Stage(_Mixed):  # type: ignore[misc]
    """A renderer that notes the SVG of every unit of a figure apart from that around it.

    Attributes:
      versions: for each unit that was drawn, by frame: pieces of SVG, and units in their place.
    """

    def __init__(self, figure: Any, dpi: float, recorder: borrowed.Recorder) -> None:
        super().__init__(figure, *figure.get_size_inches(), dpi, recorder)
        self.versions: dict[Artist, dict[int, list[str | Artist]]] = {}
        self.frame = 0
        self._recorder = recorder

    def render(self, unit: Artist) -> None:
        """Draw a unit of the figure."""
        try:
            unit.draw(self)
        except borrowed.CannotFollow:
            raise
        except Exception as error:  # of private names that do something else than they did
            raise borrowed.CannotFollow(f"SVG of {type(unit).__name__} failed: {error}") from error

    @contextlib.contextmanager
    def watching(self, units: list[Artist]) -> Iterator[None]:
        """Note where each of some units begins and ends in what is drawn."""

        def noted(unit: Artist, draw: Callable[[Any], None]) -> Callable[[Any], None]:
            def note(renderer: Any) -> None:
                if renderer is not self or borrowed.is_in_pixels(self):  # of artists around it
                    draw(renderer)
                    return
                borrowed.finish_pixels(self)  # of artists before it
                writer = self._recorder.writer
                around, writer.out = writer.out, []
                with own_pixels([unit]):
                    draw(renderer)
                    borrowed.finish_pixels(self)
                self.versions.setdefault(unit, {})[self.frame] = writer.out
                writer.out = around
                around.append(unit)

            return note

        for unit in units:
            vars(unit)["draw"] = noted(unit, unit.draw)
        try:
            yield
        finally:
            for unit in units:
                del vars(unit)["draw"]


def record(animation: Animation, frames: list[Any], dpi: float) -> Film:
    """Record an animation, frame by frame.

    Raises:
      CannotFollow: if something in the figure cannot be drawn as SVG, or matplotlib has changed.
    """
    borrowed.require(borrowed.REEL)
    borrowed.require(borrowed.VECTOR)
    figure = borrowed.figure_of(animation)
    style: Any = {"svg.fonttype": "path", "image.composite_image": False, "svg.image_inline": True}
    with mpl.rc_context(style), placed_on(figure, VectorCanvas, 72):
        borrowed.start(animation, frames)
        settle(figure)
        width, height = figure.get_size_inches() * 72
        recorder = borrowed.Recorder(width, height, dpi, Sheets(PREFIX))
        changes = Changes(figure)
        stage = _Stage(figure, dpi, recorder)
        with changes, stage.watching(list(changes.units)):
            stage.render(figure)
            changes.forget()
            recorder.is_moving = True
            for stage.frame, frame in enumerate(frames[1:], start=1):
                returned = borrowed.draw(animation, frame)
                for unit in _drawn(changes.take(returned), stage, changes):
                    stage.render(unit)
                changes.forget()
    parts, slots = _cut(figure, stage, changes)
    definitions = recorder.definitions()
    sheets = recorder.sheets.sheets
    return Film((width, height), definitions, parts, slots, sheets, len(frames))


def _drawn(units: list[Artist], stage: _Stage, changes: Changes) -> list[Artist]:
    """Return the units that can be drawn alone, and contain the ones that have changed."""

    def drawn(unit: Artist) -> Artist:
        while unit not in stage.versions:
            unit = changes.units[unit]  # type: ignore[assignment]  # the figure was drawn
        return unit

    return outermost(map(drawn, units), changes.units)


def _cut(
    figure: Artist, stage: _Stage, changes: Changes
) -> tuple[list[str | int], list[dict[int, str]]]:
    """Return the first frame in parts, and the slots in it, as a `Film` has them."""
    changed = [unit for unit, versions in stage.versions.items() if set(versions) != {0}]
    tops = dict.fromkeys(outermost(changed, changes.units))
    parts: list[str | int] = []
    slots: list[dict[int, str]] = []

    def piece(part: str | Artist) -> None:
        if isinstance(part, str):
            parts.append(part)
        elif part in tops:
            parts.append(len(slots))
            slots.append(_texts(part, stage.versions))
        else:
            for one in stage.versions[part][0]:
                piece(one)

    piece(figure)
    return parts, slots


def _texts(unit: Artist, versions: dict[Artist, dict[int, list[str | Artist]]]) -> dict[int, str]:
    """Return the SVG of a unit and all in it, by the frame from which on it is shown."""

    def inside(unit: Artist) -> Iterator[Artist]:
        yield unit
        for pieces in versions[unit].values():
            for one in pieces:
                if not isinstance(one, str):
                    yield from inside(one)

    def text(unit: Artist, frame: int) -> str:
        known = versions[unit]
        latest = max((one for one in known if one <= frame), default=min(known))
        return "".join(one if isinstance(one, str) else text(one, frame) for one in known[latest])

    frames = sorted({frame for one in dict.fromkeys(inside(unit)) for frame in versions[one]})
    return {frame: text(unit, frame) for frame in {0: None} | dict.fromkeys(frames)}
