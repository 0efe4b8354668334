"""A film as HTML: its first frame, what changes, and the player of it."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import pathlib
import zlib
from collections.abc import Sequence

from jaxfit.plot._player.film import PREFIX, Film
from jaxfit.plot._player.sheets import packed
from jaxfit.plot._player.writer import number

_SPEEDS = (0.1, 0.25, 0.5, 1, 2, 4)
_BAR = (
    '<div class="jaxfit-bar" hidden><button type="button" aria-label="play">▶</button>'
    '<input type="range" min="0" value="0" aria-label="frame"><output></output>'
    '<select aria-label="speed">'
    + "".join(
        f'<option value="{speed:g}"{" selected" if speed == 1 else ""}>{speed:g}×</option>'
        for speed in _SPEEDS
    )
    + '</select><button type="button" aria-label="loop" aria-pressed="true">↻</button></div>'
)


def player(
    film: Film,
    labels: Sequence[str],
    interval: float,
    repeat: bool,
    width: float,
    still: bytes | None = None,
) -> tuple[str, str]:
    """Return the element that plays a film, and the script in it.

    Args:
      film: what to play.
      labels: a text for each frame, beside the slider.
      interval: milliseconds from one frame to the next.
      repeat: whether it begins again.
      width: of the picture, in pixels.
      still: a PNG file that is seen where scripts and styles are taken out, as in a notebook that
        is not trusted.
    """
    drawn = "".join([f"<defs>{film.definitions}</defs>", *map(str, film.parts)])
    # Ids depend on what is shown, so that two players on one page do not share them, and the same
    # animation gives the same file.
    digest = hashlib.sha256(drawn.encode())
    for slot in film.slots:
        digest.update("".join(slot.values()).encode())
    name = "jf" + digest.hexdigest()[:8]

    slots = [{k: text.replace(PREFIX, name) for k, text in slot.items()} for slot in film.slots]
    drawn = "".join(
        part.replace(PREFIX, name)
        if isinstance(part, str)
        else f'<g class="jaxfit-slot">{slots[part][0]}</g>'
        for part in [f"<defs>{film.definitions}</defs>", *film.parts]
    )
    heads, planes = [], []
    for sheet in film.sheets:
        head, pixels = packed(sheet)
        heads.append([sheet.name.replace(PREFIX, name), *head])
        planes += pixels
    meta = {
        "n": film.number,
        "interval": interval,
        "repeat": repeat,
        "labels": list(labels),
        "slots": [edits(slot, film.number) for slot in slots],
        "sheets": heads,
    }
    text = json.dumps(meta, separators=(",", ":"))
    body = text.encode()
    data = zlib.compress(len(body).to_bytes(4, "little") + body + b"".join(planes), 6)
    find = f'document.currentScript?.closest(".jaxfit-player")??document.getElementById("{name}")'
    script = f'{_source("player.js")}({find},"{base64.b64encode(data).decode()}")'
    title = f"animation of {film.number} frames"
    sizes = " ".join(map(number, film.size))
    image = "" if still is None else _image(still, title)
    element = (
        f'<div id="{name}" class="jaxfit-player" tabindex="0" role="group" '
        f'aria-label="{title}" data-lm-suppress-shortcuts="true">'
        f"<style>{_source('player.css')}</style>{image}"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sizes}" '
        f'style="width:{number(width)}px" role="img" aria-label="{title}">{drawn}</svg>'
        f"{_BAR}<script>{script}</script></div>"
    )
    return element, script


def page(element: str, script: str, title: str = "Animation") -> str:
    """Return a whole page with a player in it, which allows its own script and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title></head><body>{element}</body></html>\n"
    )


def edits(slot: dict[int, str], number: int) -> list[int | str | list[int | str]]:
    """Return the frames of a slot as the player reads them.

    Each is 0 if it is like the frame before, a text if its markup is new, or a list of place,
    characters kept at the beginning, characters kept at the end and the text between them, for
    each value between quotes that differs.

    >>> edits({0: '<path d="M0 1L2 3"/>', 2: '<path d="M0 1L2 4"/>'}, 3)
    ['<path d="M0 1L2 3"/>', 0, [1, 7, 0, '4']]
    """
    packed: list[int | str | list[int | str]] = []
    old: list[str] = []
    for frame in range(number):
        if frame not in slot:
            packed.append(0)
            continue
        new = slot[frame].split('"')
        if len(new) != len(old) or new[::2] != old[::2]:
            packed.append(slot[frame])
        else:
            changed: list[int | str] = []
            for place in range(1, len(new), 2):
                was, now = old[place], new[place]
                if was != now:
                    most = min(len(was), len(now))
                    head = _shared(was, now, most)
                    tail = _shared(was[::-1], now[::-1], most - head)
                    changed += [place, head, tail, now[head : len(now) - tail]]
            packed.append(changed or 0)
        old = new
    return packed


def _shared(one: str, other: str, most: int) -> int:
    """Return how many characters two texts share at their beginnings, up to a number."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _image(still: bytes, title: str) -> str:
    data = base64.b64encode(still).decode()
    return f'<img alt="{title}" src="data:image/png;base64,{data}">'


@functools.cache
def _source(name: str) -> str:
    return (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8")
