"""Whether the code runs in a notebook, and outputs of a cell that later ones replace."""

from __future__ import annotations

import importlib
import sys
import uuid
from typing import Any


def display() -> Any:
    """Return the module ``IPython.display`` in a notebook, and None elsewhere."""
    # Whoever is in a notebook has imported IPython, and in a terminal it has no kernel.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return importlib.import_module("IPython.display") if hasattr(shell, "kernel") else None


def replace(shown: dict[str, Any], handle: Any) -> Any:
    """Show data, by MIME type, in place of what a handle shows; return the handle.

    Args:
      shown: the data.
      handle: what the last call returned; None to show it below the cell, in a place of its own.
    """
    if handle is None:
        return display().display(shown, raw=True, display_id=uuid.uuid4().hex)
    handle.update(shown, raw=True)
    return handle
