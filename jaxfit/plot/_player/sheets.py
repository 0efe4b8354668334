"""Pictures that change, as numbers of colours, packed by what differs from frame to frame."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

_EDGE = 4096  # pixels: browsers show no larger pictures everywhere
_COLORS = 1024  # of a palette at most


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Some pictures of one size, side by side in rows.

    Attributes:
      name: the id of the sheet.
      pictures: RGBA, ``[height, width, 4]`` each.
      is_sharp: whether a browser that enlarges them shows their pixels as squares.
    """

    name: str
    pictures: list[np.ndarray]
    is_sharp: bool


class Sheets:
    """All the pictures of an animation but those that stay, each different one once.

    Attributes:
      sheets: where they are.
      prefix: what every id begins with.
    """

    def __init__(self, prefix: str) -> None:
        self.sheets: list[Sheet] = []
        self.prefix = prefix
        self._open: dict[tuple[int, int, bool], Sheet] = {}
        self._known: dict[tuple[int, int, bool, bytes], str] = {}

    def place(self, picture: np.ndarray, is_sharp: bool) -> str:
        """Add a picture, RGBA ``[height, width, 4]``, and return the SVG that shows it."""
        height, width = picture.shape[:2]
        key = height, width, is_sharp
        picture = np.ascontiguousarray(picture)
        known = (*key, hashlib.blake2b(picture.data, digest_size=16).digest())
        if known not in self._known:
            columns, rows = columns_of(width), max(1, _EDGE // height)
            sheet = self._open.get(key)
            if sheet is None or len(sheet.pictures) == columns * rows:
                sheet = Sheet(f"{self.prefix}s{len(self.sheets)}", [], is_sharp)
                self.sheets.append(sheet)
                self._open[key] = sheet
            row, column = divmod(len(sheet.pictures), columns)
            sheet.pictures.append(picture)
            self._known[known] = (
                f'<svg width="{width}" height="{height}" overflow="hidden">'
                f'<use href="#{sheet.name}" x="{-column * width}" y="{-row * height}"/></svg>'
            )
        return self._known[known]


def columns_of(width: int) -> int:
    """Return how many pictures of a width are side by side in a sheet."""
    return max(1, _EDGE // width)


def packed(sheet: Sheet) -> tuple[list[int], list[bytes]]:
    """Return what the player has to know of a sheet, and its pixels.

    With few colours, a pixel is its number in a palette, in which similar colours are neighbours,
    minus its number in the picture before; the palette comes first. With many, the bytes of RGBA
    are subtracted. Each byte of a pixel is in a plane of its own, so that they deflate well.
    """
    stack = np.stack(sheet.pictures)
    count, height, width, _ = stack.shape
    colors = stack.view(np.uint32)[..., 0]
    palette = np.zeros(0, np.uint32)
    if len(np.unique(colors[:: max(1, count // 4)])) <= _COLORS:  # a look before the whole
        palette, numbers = np.unique(colors, return_inverse=True)
    if 0 < len(palette) <= _COLORS:
        order = _chain(palette)
        rank = np.argsort(order).astype(np.int16)
        steps = np.diff(rank[numbers].reshape(colors.shape), axis=0, prepend=np.int16(0))
        steps = ((steps << 1) ^ (steps >> 15)).astype(np.uint16)  # 0, -1, 1, … as 0, 1, 2, …
        palette = palette[order]
        planes = [steps.astype(np.uint8), (steps >> 8).astype(np.uint8)]
    else:
        palette = palette[:0]
        steps = np.diff(stack, axis=0, prepend=np.uint8(0))
        planes = [np.ascontiguousarray(steps[..., channel]) for channel in range(4)]
    head = [width, height, count, columns_of(width), len(palette), len(planes)]
    head.append(int(sheet.is_sharp))
    return head, [palette.astype("<u4").tobytes(), *(plane.tobytes() for plane in planes)]


def _chain(palette: np.ndarray) -> np.ndarray:
    """Return an order of colours in which each is followed by the nearest of those left."""
    places = palette.view(np.uint8).reshape(-1, 4).astype(np.int64)
    places[places[:, 3] == 0] = -999  # nothing at all is far from every colour
    order = [int(places.sum(axis=1).argmin())]
    left = np.ones(len(places), bool)
    for _ in range(len(places) - 1):
        left[order[-1]] = False
        distances = ((places - places[order[-1]]) ** 2).sum(axis=1)
        order.append(int(np.where(left, distances, 1 << 40).argmin()))
    return np.array(order)
