"""Short texts about trees of arrays, for ``repr`` and notebooks."""

from __future__ import annotations

import html
import math
from typing import Any

import jax
import numpy as np

_MOST = 6  # leaves that are named in one line


def leaves(tree: Any) -> list[tuple[str, str, int]]:
    """List the name, the dtype and shape, and the bytes of each leaf.

    >>> leaves({"w": np.zeros((3, 2), np.float32), "degree": 2})
    [('degree', '2', 0), ('w', 'float32[3, 2]', 24)]
    """
    listed = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
            size = math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 0)
            listed.append((name, f"{leaf.dtype}{list(leaf.shape)}", size))
        else:
            text = getattr(leaf, "__name__", None) or " ".join(repr(leaf).split())
            listed.append((name, text if len(text) < 40 else f"{text[:39]}…", 0))
    return listed


def line(tree: Any) -> str:
    """Name the leaves of a tree in one line, or the first few if there are many.

    >>> line({"w": np.zeros((3, 2), np.float32), "degree": 2})
    'degree 2, w float32[3, 2]'
    """
    listed = leaves(tree)
    named = [f"{name} {text}".strip() for name, text, _ in listed[:_MOST]]
    more = [f"and {len(listed) - _MOST} more"] if len(listed) > _MOST else []
    return ", ".join(named + more) or "nothing"


def size(tree: Any) -> str:
    """Write how many bytes a tree has.

    >>> size(np.zeros(1000, np.float32))
    '4 kB'
    """
    number, unit = float(sum(one for _, _, one in leaves(tree))), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number >= 1000:
            number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


def known(numbers: Any, index: Any = ()) -> int | None:
    """Return one number of an array of integers; None if it is traced, or not one number."""
    try:
        number = np.asarray(numbers)[index]
        return None if np.ndim(number) else int(number)
    except (IndexError, TypeError, ValueError, RuntimeError):  # traced, or deleted
        return None


def table(title: str, fields: dict[str, Any]) -> str:
    """Write an HTML table of the leaves in some fields, for notebooks."""

    def cell(text: str, tag: str = "td") -> str:
        return f'<{tag} style="text-align:left">{html.escape(text)}</{tag}>'

    rows = [f"<tr>{''.join(cell(one, 'th') for one in ('', 'dtype[shape]', 'bytes'))}</tr>"]
    for field, tree in fields.items():
        for name, text, number in leaves(tree):
            cells = (f"{field}.{name}" if name else field, text, f"{number:,}" if number else "")
            rows.append(f"<tr>{''.join(map(cell, cells))}</tr>")
    return f"<table><caption>{html.escape(title)}</caption>{''.join(rows)}</table>"
