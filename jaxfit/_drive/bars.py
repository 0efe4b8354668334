"""Progress bars: in a terminal or a file, and below the cell of a notebook.

In a notebook a bar is text, too, which its later states replace. A widget would need ipywidgets on
both sides, a warning where they are missing, and be gone from a saved or exported notebook.
"""

from __future__ import annotations

from typing import Any

import jax
from tqdm import tqdm

from jaxfit import _check
from jaxfit._drive import notebooks

_COLUMNS = 80  # of a bar in a notebook


def check_progress(progress: bool | str) -> None:
    """Check what `bar` is asked for."""
    if progress not in (True, False, "always"):
        raise ValueError(
            f'progress is {_check.show(progress)}, but must be True, False or "always".'
        )


def bar(progress: bool | str, unit: str, total: int | None = None, done: int = 0) -> Any:
    """Return tqdm's bar, which only the first process shows.

    Args:
      progress: True shows it in a terminal or a notebook, ``"always"`` anywhere, False nowhere.
      unit: what it counts.
      total: how many there are of these; None if that turns out later.
      done: how many are done.
    """
    options = {"total": total, "initial": done, "unit": f" {unit}"}
    if not progress or jax.process_index() != 0:
        return tqdm(disable=True, **options)
    if notebooks.display() is not None:
        return tqdm(file=_Cell(), ncols=_COLUMNS, **options)
    return tqdm(disable=False if progress == "always" else None, **options)


class _Cell:
    """What tqdm takes for a terminal: a line below a cell."""

    encoding = "utf-8"  # without which tqdm draws with # alone

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Show a text from the beginning of the line; moves between lines have no meaning here."""
        if text.startswith("\r"):
            self._handle = notebooks.replace({"text/plain": text.strip("\r")}, self._handle)

    def flush(self) -> None:
        """Do nothing: it has been shown."""
