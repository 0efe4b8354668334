"""What networks do: decisions, mistakes, and how their numbers spread over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from jaxfit._types import Params
from jaxfit.plot._common import BLUE, COLORS, axes_of, check_one_run, kept
from jaxfit.run import Run

_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_ROWS = 400  # that quantiles are computed of: more than a picture shows


def bands(
    run: Run,
    name: str = "params",
    leaf: str | None = None,
    *,
    ax: Axes | Sequence[Axes] | None = None,
) -> Any:
    """Draw quantiles of weights, gradients or updates over the steps, one picture for each leaf.

    A line is the median; the bands hold 50 %, 90 % and all of a leaf's numbers. Those that are
    not finite are passed over.

    Args:
      run: a run whose recorder kept the tree, such as ``{"grads": step.grads}``; on disk, only the
        rows that are drawn are read.
      name: the key of the tree in the trajectory.
      leaf: the path of a leaf, such as ``"0.w"``, to draw it alone, on ``ax``.
      ax: with ``leaf``, the axes to draw on; without, one for each leaf; those of a new figure if
        None.

    Returns:
      The axes with ``leaf``, and an array of them without.

    Raises:
      ValueError: if nothing was recorded under that name, or it has no such leaf.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> loss, start = lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.arange(9.0)}
    >>> run = jaxfit.train(loss, start, optax.sgd(0.1), 9)
    >>> jaxfit.plot.bands(run, leaf="w").get_title()
    'w'
    """
    check_one_run(run, "plot.bands")
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): one
        for path, one in jax.tree_util.tree_leaves_with_path(kept(run, name, "plot.bands"))
        if jnp.issubdtype(one.dtype, jnp.floating)
    }
    if leaf is not None:
        if leaf not in leaves:
            raise ValueError(f"{name} has no leaf {leaf!r}: it has {', '.join(map(repr, leaves))}.")
        one_ax: Axes = axes_of(ax)  # type: ignore[arg-type]
        return _band(one_ax, run, leaves[leaf], leaf, name)
    if ax is None:
        columns = min(3, len(leaves))
        rows = -(-len(leaves) // columns)
        size = (4 * columns, 2.7 * rows)
        grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")[1]
        for spare in grid.ravel()[len(leaves) :]:
            spare.remove()
        ax = list(grid.ravel()[: len(leaves)])
    places: Any = np.ravel(np.asarray(ax, object))
    if len(places) != len(leaves):
        raise ValueError(
            f"plot.bands was given {len(places)} axes for {len(leaves)} leaves: give one for each."
        )
    for one, (text, values) in zip(places, leaves.items(), strict=True):
        _band(one, run, values, text, name)
    return places


def _band(ax: Axes, run: Run, values: Any, leaf: str, name: str) -> Axes:
    rows = np.unique(np.linspace(0, len(run.steps) - 1, _ROWS).round().astype(int))
    numbers = np.asarray(values[rows], np.float64).reshape(len(rows), -1)
    steps = np.asarray(run.steps)[rows]
    finite = np.where(np.isfinite(numbers), numbers, np.nan)
    known = np.where(np.isnan(finite).all(axis=1, keepdims=True), 0.0, finite)
    levels = np.nanquantile(known, _LEVELS, axis=1)
    levels = np.where(np.isnan(finite).all(axis=1), np.nan, levels)
    for k, (alpha, part) in enumerate(((0.15, "all"), (0.25, "90 %"), (0.4, "50 %"))):
        ax.fill_between(
            steps, levels[k], levels[-1 - k], color=BLUE, alpha=alpha, linewidth=0, label=part
        )
    ax.plot(steps, levels[3], color=BLUE, linewidth=1.2, label="median")
    ax.set(xlabel="step", ylabel=name, title=leaf)
    ax.legend(fontsize="small", ncols=2)
    return ax


def confusion(
    predicted: Any,
    expected: Any,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often each class is taken for each: a row for what it is, in per cent of the row.

    Args:
      predicted: the classes that a model says, integers ``[examples]``, or its logits
        ``[examples, classes]``.
      expected: the classes, integers ``[examples]``.
      names: the names of the classes; their numbers if None.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    >>> import jaxfit.plot
    >>> ax = jaxfit.plot.confusion([0, 1, 1], [0, 0, 1])
    >>> [text.get_text() for text in ax.texts]
    ['50', '50', '100']
    """
    predicted, expected = np.asarray(predicted), np.asarray(expected)
    if predicted.ndim == 2:
        number = predicted.shape[1]
        predicted = predicted.argmax(axis=1)
    else:
        number = int(max(predicted.max(), expected.max())) + 1
    counts = np.zeros((number, number))
    np.add.at(counts, (expected, predicted), 1)
    parts = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax = axes_of(ax)
    image = ax.imshow(parts, cmap="Blues", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(counts), strict=True):
        value = parts[row, column]
        text = f"{value:.0f}" if value >= 1 else "<1"
        color = "white" if value > 50 else "black"
        size = max(5.0, min(10.0, 80 / number))
        ax.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
    labels = [str(k) for k in range(number)] if names is None else list(names)
    ax.set_xticks(range(number), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
    ax.set_yticks(range(number), labels)
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    ax.set(xlabel="predicted", ylabel="is", title=f"{right:.1f} % of {len(expected):,} right")
    figure = ax.get_figure()
    assert figure is not None  # axes that were drawn on have one
    figure.colorbar(image, ax=ax, label="% of the row")
    return ax


def boundary(
    model: Callable[[Params, Any], Any],
    params: Params,
    data: tuple[Any, Any],
    *,
    names: tuple[str, str] = ("$x_0$", "$x_1$"),
    ax: Axes | None = None,
) -> Axes:
    """Draw how a classifier of two features divides the plane, and the examples on it.

    Args:
      model: ``model(params, x) -> logits``, ``[examples, classes]``, or ``[examples]`` for two
        classes.
      params: its parameters.
      data: ``(x, y)``, ``[examples, 2]`` and integers ``[examples]``.
      names: the labels of the two axes.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The axes.

    Raises:
      ValueError: if there are not two features.

    >>> import jax.numpy as jnp, jaxfit.plot
    >>> data = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([0, 1])
    >>> ax = jaxfit.plot.boundary(lambda w, x: x @ w - 1, jnp.ones(2), data)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['0', '1']
    """
    grid, extent, shape = boundary_grid(data[0])
    classes = np.asarray(boundary_classes(model, params, grid)).reshape(shape)
    x, y = np.asarray(data[0]), np.asarray(data[1])
    ax = axes_of(ax)
    boundary_image(ax, classes, extent, max(int(y.max()), int(classes.max())))
    for k in np.unique(y):
        color = COLORS[int(k) % len(COLORS)]
        marker = "osD^vP*"[int(k) % 7]
        ax.plot(*x[y == k].T, marker, color=color, markersize=4, markeredgecolor="white",
                markeredgewidth=0.4, linestyle="", label=str(k))  # fmt: skip
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend(title="class")
    return ax


def boundary_grid(x: Any, number: int = 120) -> tuple[jax.Array, tuple[float, ...], Any]:
    """Return places in the plane ``[number², 2]``, the box that they fill, and their shape."""
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(
            f"a boundary is drawn over two features, but x has the shape {list(x.shape)}: "
            f"give [examples, 2]."
        )
    low, high = x.min(axis=0), x.max(axis=0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    middles = [
        np.linspace(a, b, number, endpoint=False) + (b - a) / number / 2
        for a, b in zip(low, high, strict=True)
    ]
    grid = np.stack(np.meshgrid(*middles), axis=-1).reshape(-1, 2)
    dtype = jnp.result_type(x, float)
    return jnp.asarray(grid, dtype), (low[0], high[0], low[1], high[1]), (number, number)


def boundary_classes(model: Callable[..., Any], params: Params, grid: jax.Array) -> jax.Array:
    """Return the class that a model chooses at every place."""
    logits = jnp.asarray(model(params, grid))
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits.argmax(axis=1)
    return (logits.reshape(-1) > 0).astype(int)


def boundary_image(ax: Axes, classes: np.ndarray, extent: Any, most: int) -> Any:
    """Draw classes as pale colours."""
    style: Any = {"alpha": 0.3, "interpolation": "nearest", "origin": "lower", "aspect": "auto"}
    image = ax.imshow(classes, extent=extent, **style)
    recolor(image, most)
    return image


def recolor(image: Any, most: int) -> None:
    """Give an image of classes, the last of which is most, the colours of their examples."""
    image.set_cmap(ListedColormap([COLORS[k % len(COLORS)] for k in range(most + 1)]))
    image.set_clim(-0.5, most + 0.5)
