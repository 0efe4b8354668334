"""SVG as a list of pieces."""

from __future__ import annotations

import html
import itertools
from typing import Any

import numpy as np
from matplotlib.path import Path


class Writer:
    """A list of pieces of SVG, with the interface of matplotlib's own writer.

    Attributes:
      out: the pieces.
      defs: the pieces of definitions, to which others refer by id; they are kept apart, and an
        element that is defined again, once.
    """

    def __init__(self) -> None:
        self.out: list[Any] = []
        self.defs: list[str] = []
        self._defined: set[str] = set()
        self._tags: list[str] = []

    def _put(self, text: str) -> None:
        (self.defs if "defs" in self._tags else self.out).append(text)

    def start(self, tag: str, attrib: dict[str, str] | None = None, **more: str) -> int:
        if tag != "defs":
            self._put(f"<{tag}{_attributes(attrib, more)}>")
        self._tags.append(tag)
        return len(self._tags) - 1

    def end(self, tag: str | None = None, indent: bool = True) -> None:
        tag = self._tags.pop()
        if tag != "defs":
            self._put(f"</{tag}>")

    def element(
        self, tag: str, text: str | None = None, attrib: dict[str, str] | None = None, **more: str
    ) -> None:
        attributes = _attributes(attrib, more)
        inner = "" if text is None else html.escape(text)
        written = f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"
        if self._tags[-1:] == ["defs"]:
            if written in self._defined:
                return
            self._defined.add(written)
        self._put(written)

    def comment(self, text: str) -> None:
        """Write no comments."""


def _attributes(attrib: dict[str, str] | None, more: dict[str, str]) -> str:
    texts = []
    for name, value in itertools.chain((attrib or {}).items(), more.items()):
        if value != "":
            name = "href" if name == "xlink:href" else name
            value = str(value)
            plain = '"' not in value and "&" not in value and "<" not in value
            texts.append(f' {name}="{value if plain else html.escape(value)}"')
    return "".join(texts)


def number(value: float) -> str:
    """Write a number with two digits after the point, and none that are zero."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def relative(path: Path) -> tuple[np.ndarray, str]:
    """Return where a path starts, and the rest of it relative to there, as SVG writes it."""
    letters = {Path.MOVETO: "m", Path.LINETO: "l", Path.CURVE3: "q", Path.CURVE4: "c"}
    texts: list[str] = []
    start = at = None
    for points, code in path.iter_segments(simplify=False):
        if code == Path.CLOSEPOLY:
            texts.append("z")
        elif start is None or at is None:
            start = at = points
        else:
            steps = points - np.tile(at, len(points) // 2)
            texts.append(letters[code] + " ".join(map(number, steps)))
            at = points[-2:]
    return np.zeros(2) if start is None else start, "".join(texts)
