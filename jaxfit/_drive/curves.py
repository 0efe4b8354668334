"""Curves that are drawn again and again below a cell of a notebook."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from jaxfit._drive import notebooks

Curves: TypeAlias = Mapping[str, list[tuple[np.ndarray, np.ndarray]]]
"""By their names, curves in parts: steps and values, ``[points]`` each."""

_COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"  # Okabe and Ito's


def show(text: str, curves: Curves, handle: Any) -> Any:
    """Show curves in place of those of a handle, and return their handle; or print the text."""
    if notebooks.display() is None:
        print(text)
        return None
    return notebooks.replace({"text/plain": text, "image/png": _drawn(curves)}, handle)


def _drawn(curves: Curves) -> bytes:
    """Draw curves, and return the bytes of a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes, lowest = figure.subplots(), np.inf
    for color, (name, parts) in zip(itertools.cycle(_COLORS), curves.items(), strict=False):
        steps, values = (
            np.concatenate(arrays).astype(float) for arrays in zip(*parts, strict=True)
        )
        some = slice(None, None, 1 + len(steps) // 2000)
        marker = "." if name.startswith("evaluation") else None
        axes.plot(steps[some], values[some], color=color, marker=marker)
        axes.lines[-1].set_label(name)
        lowest = min(lowest, np.min(values, initial=np.inf, where=np.isfinite(values)))
    axes.set(xlabel="step", yscale="log" if 0 < lowest < np.inf else "linear")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
