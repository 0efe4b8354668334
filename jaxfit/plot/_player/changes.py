"""Which artists of a figure change from one frame to the next, as the artists themselves tell."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cbook import flatten
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend

from jaxfit.plot._player.borrowed import is_best


class Changes:
    """Note the artists that change while a figure is redrawn by its owner.

    An artist calls its ``stale_callback`` whenever something about it is set. What is noted is the
    *unit* that has to be drawn again: the artist itself if it stands on its own in Axes or a
    figure; all of its Axes if it is part of an axis, was added, is of three dimensions, or has
    another ``zorder``.

    Attributes:
      units: every unit of the figure, and what it is part of.
    """

    def __init__(self, figure: Figure) -> None:
        self.units: dict[Artist, Artist | None] = {figure: None}
        self._figure = figure
        self._owners: dict[Artist, Artist] = {figure: figure}  # the unit that draws an artist
        self._noted: dict[Artist, None] = {}
        self._saved: list[tuple[Artist, Any]] = []
        self._walk(figure, figure, is_alone=True)
        self._heights = {unit: unit.get_zorder() for unit in self.units}

    def _walk(self, artist: Artist, owner: Artist, is_alone: bool) -> None:
        for child in artist.get_children():
            if child in self._owners:
                continue
            is_whole = isinstance(child, Axes | SubFigure)
            if is_whole or (is_alone and not isinstance(child, Axis)):
                self.units[child] = owner
                self._owners[child] = child
                self._walk(child, child, is_alone=is_whole and not hasattr(child, "get_proj"))
            else:
                self._owners[child] = owner
                self._walk(child, owner, is_alone=False)

    def __enter__(self) -> Changes:
        def note(artist: Artist, _: bool) -> None:
            self._noted[artist] = None

        for artist in self._owners:
            self._saved.append((artist, artist.stale_callback))
            artist.stale_callback = note
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for artist, callback in self._saved:
            artist.stale_callback = callback

    def forget(self) -> None:
        """Forget what has been noted, such as what drawing itself sets."""
        self._noted.clear()

    def take(self, returned: Iterable[Any] = ()) -> list[Artist]:
        """Return the units that have changed, and forget them; none is part of another.

        Args:
          returned: what the user's function says has changed, too: arrays that were edited in place
            are not noticed.
        """
        for ax in self._figure.axes:
            ax.viewLim  # noqa: B018 - scales what is yet to be scaled, which is noted
            if hasattr(ax, "get_proj"):  # a view from another side is not noted
                self._noted[ax] = None
        noted = [*self._noted, *(one for one in flatten(returned) if isinstance(one, Artist))]
        units = dict.fromkeys(map(self._unit, noted))
        moved = set(map(_axes_of, units))
        for unit in self.units:
            if isinstance(unit, Legend) and _axes_of(unit) in moved and is_best(unit):
                units[unit] = None
        self.forget()
        return outermost(units, self.units)

    def _unit(self, artist: Artist) -> Artist:
        unit = self._owners.get(artist) or _axes_of(artist) or self._figure
        if unit not in self.units:  # Axes that are new
            return self._figure
        outer = self.units[unit]
        return unit if outer is None or unit.get_zorder() == self._heights[unit] else outer


def _axes_of(artist: Artist) -> Axes | None:
    """Return the Axes that an artist is in or is."""
    axes = artist.axes  # of a figure, a list
    return axes if isinstance(axes, Axes) else None


def outermost(units: Iterable[Artist], parents: dict[Artist, Artist | None]) -> list[Artist]:
    """Return those units that are not part of others."""
    chosen = dict.fromkeys(units)

    def is_inside(unit: Artist) -> bool:
        outer = parents[unit]
        while outer is not None and outer not in chosen:
            outer = parents[outer]
        return outer is not None

    return [unit for unit in chosen if not is_inside(unit)]
