"""The weights of many units as tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxfit.plot._common import axes_of


def tiles(
    weights: Any,
    shape: tuple[int, int] | None = None,
    *,
    limit: float | None = None,
    ax: Axes | None = None,
    label: str = "weight",
) -> Axes:
    """Draw the weights of many units as tiles, on one scale of colours that is symmetric about 0.

    Args:
      weights: ``[inputs, units]``, as in ``jaxfit.models.mlp``.
      shape: the height and width of a tile, the inputs as a picture; a square by default, or a
        column.
      limit: the weight at the ends of the scale; by default the one that 0.5 % are beyond.
      ax: the axes to draw on; those of a new figure if None.
      label: that of the scale, with its unit.

    Returns:
      The axes.

    Raises:
      ValueError: if the tiles do not have as many cells as there are inputs.

    >>> import numpy as np, jaxfit.plot
    >>> jaxfit.plot.tiles(np.eye(4)).images[0].get_array().shape
    (5, 5)
    """
    picture, limit = tiled(np.asarray(weights), shape), tile_limit(weights, limit)
    ax = axes_of(ax)
    image = ax.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.axis("off")
    figure = ax.get_figure()
    assert figure is not None  # axes that were drawn on have one
    figure.colorbar(image, ax=ax, label=label, extend="both", shrink=0.85)
    return ax


def tile_limit(weights: Any, limit: float | None) -> float:
    """Return the weight at the ends of the scale of colours."""
    values = np.abs(np.asarray(weights, np.float64))
    values = values[np.isfinite(values)]
    return limit or (float(np.quantile(values, 0.995)) if values.size else 0.0) or 1.0


def tiled(weights: np.ndarray, shape: tuple[int, int] | None) -> np.ndarray:
    """Return a picture of weights ``[…, inputs, units]``, with gaps (NaN) between the tiles."""
    *lead, inputs, units = weights.shape
    if shape is None:
        side = round(inputs**0.5)
        shape = (side, side) if side * side == inputs else (inputs, 1)
    height, width = shape
    if height * width != inputs:
        raise ValueError(
            f"a tile of {height}×{width} has {height * width} cells, but there are {inputs} "
            f"inputs: give shape=(height, width) of that many."
        )
    columns = max(1, round((units * height / width) ** 0.5))
    rows = -(-units // columns)
    filled = np.full((*lead, inputs, rows * columns), np.nan, weights.dtype)
    filled[..., :units] = weights
    cells = np.moveaxis(filled.reshape(*lead, height, width, rows, columns), (-2, -1), (-4, -2))
    out = np.full((*lead, rows, height + 1, columns, width + 1), np.nan, weights.dtype)
    out[..., :, :height, :, :width] = cells
    return out.reshape(*lead, rows * (height + 1), columns * (width + 1))[..., :-1, :-1]
