"""Animations of boundaries, of weights, and of spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes

from jaxfit._types import Params, PyTree
from jaxfit.plot import networks, results
from jaxfit.plot._common import BLUE, axes_of, check_one_run, finite, kept
from jaxfit.plot._frames import caption, frame_rows, losses_of, picked, playable
from jaxfit.plot.player import Playable
from jaxfit.plot.weights import tile_limit, tiled, tiles
from jaxfit.run import Run


def animate_boundary(
    run: Run,
    model: Callable[[Params, Any], Any],
    data: tuple[Any, Any],
    *,
    interval: int = 50,
    most: int = 100,
    names: tuple[str, str] = ("$x_0$", "$x_1$"),
    ax: Axes | None = None,
) -> Playable:
    """Animate how a classifier of two features divides the plane, from step to step.

    Args:
      run: a run whose recorder kept ``"params"``.
      model: the classifier, as in `boundary`.
      data: ``(x, y)``, as in `boundary`.
      interval: milliseconds from one frame to the next.
      most: the number of frames at most, as in `animate_fit`.
      names: the labels of the two axes.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The animation.

    Raises:
      ValueError: if ``"params"`` was not recorded, or there are not two features.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> data = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([0, 1])
    >>> model = lambda w, x: x @ w - 1
    >>> loss = lambda w: jnp.sum((model(w, data[0]) - data[1]) ** 2)
    >>> run = jaxfit.train(loss, jnp.zeros(2), optax.sgd(0.1), 5)
    >>> jaxfit.plot.animate_boundary(run, model, data).labels[0]
    'step 0'
    """
    check_one_run(run, "plot.animate_boundary")
    rows, losses = frame_rows(run.steps, most), losses_of(run)
    steps = np.asarray(run.steps)[rows]
    trajectory = picked(kept(run, "params", "plot.animate_boundary"), rows)
    grid, _, shape = networks.boundary_grid(data[0])
    decide = jax.jit(lambda params: networks.boundary_classes(model, params, grid))
    classes = [np.asarray(decide(_row(trajectory, k))).reshape(shape) for k in range(len(rows))]
    ax = networks.boundary(model, _row(trajectory, 0), data, names=names, ax=ax)
    image, title = ax.images[-1], ax.set_title(" ")
    most_class = max(int(np.max(data[1])), *(int(one.max()) for one in classes))
    networks.recolor(image, most_class)

    def draw(k: int) -> tuple[Any, ...]:
        image.set_data(classes[k])
        title.set_text(caption(steps[k], None if losses is None else losses[rows[k]]))
        return image, title

    return playable(ax, draw, steps, interval)


def animate_tiles(
    run: Run,
    weights: Callable[[Params], Any],
    shape: tuple[int, int] | None = None,
    *,
    limit: float | None = None,
    interval: int = 50,
    most: int = 200,
    label: str = "weight",
    ax: Axes | None = None,
) -> Playable:
    """Animate the weights of many units as tiles, on one scale of colours.

    Args:
      run: a run whose recorder kept ``"params"``.
      weights: a function of the parameters that returns ``[inputs, units]``, such as
        ``lambda params: params[0]["w"]``.
      shape: the height and width of a tile, as in `tiles`.
      limit: the weight at the ends of the scale, as in `tiles`.
      interval: milliseconds from one frame to the next.
      most: the number of frames at most, as in `animate_fit`.
      label: that of the scale, with its unit.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The animation.

    Raises:
      ValueError: if ``"params"`` was not recorded, or as in `tiles`.

    >>> import jax.numpy as jnp, optax, jaxfit.plot
    >>> run = jaxfit.train(lambda w: jnp.sum(w**2), jnp.ones((4, 3)), optax.sgd(0.1), 5)
    >>> len(jaxfit.plot.animate_tiles(run, lambda w: w).labels)
    5
    """
    check_one_run(run, "plot.animate_tiles")
    rows, losses = frame_rows(run.steps, most), losses_of(run)
    steps = np.asarray(run.steps)[rows]
    trajectory = picked(kept(run, "params", "plot.animate_tiles"), rows)
    values = np.stack([np.asarray(weights(_row(trajectory, k))) for k in range(len(rows))])
    limit = tile_limit(values, limit)
    ax = tiles(values[0], shape, limit=limit, ax=ax, label=label)
    pictures = tiled(values, shape)
    image, title = ax.images[-1], ax.set_title(" ", loc="left")

    def draw(k: int) -> tuple[Any, ...]:
        image.set_data(pictures[k])
        title.set_text(caption(steps[k], None if losses is None else losses[rows[k]]))
        return image, title

    return playable(ax, draw, steps, interval)


def animate_spectrum(
    steps: Any,
    spectra: Any,
    *,
    width: float | None = None,
    threshold: float | None = None,
    interval: int = 100,
    ax: Axes | None = None,
) -> Playable:
    """Animate the density of the Hessian's eigenvalues along a run.

    Args:
      steps: ``[rows]``.
      spectra: results of ``jaxfit.analysis.spectrum``, a list of them or stacked as ``along``
        returns them.
      width: as in `spectrum`; the same for all.
      threshold: that of stability, such as 2/η, drawn as a line.
      interval: milliseconds from one frame to the next.
      ax: the axes to draw on; those of a new figure if None.

    Returns:
      The animation.

    >>> import jax.numpy as jnp, jaxfit.plot
    >>> class Flat:
    ...     nodes = jnp.array([[0.0, 1.0]])
    ...     def density(self, x, width):
    ...         return jnp.ones_like(x)
    >>> jaxfit.plot.animate_spectrum([0, 10], [Flat(), Flat()]).labels
    ['step 0', 'step 10']
    """
    steps = np.asarray(steps)
    if not isinstance(spectra, Sequence):
        spectra = [_row(spectra, k) for k in range(len(steps))]
    boxes = [results.spectrum_places(one, width) for one in spectra]
    width = max(one for _, one in boxes)
    x = np.linspace(min(one[0] for one, _ in boxes), max(one[-1] for one, _ in boxes), 600)
    densities = [finite(one.density(x, width)) for one in spectra]
    ax = axes_of(ax)
    (line,) = ax.plot(x, densities[0], color=BLUE)
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        ax.legend(loc="upper right")
    top = 3 * max(float(np.nanmax(one)) for one in densities)
    ax.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
    ax.set_ylim(1e-6 * top, top)
    title = ax.set_title(" ")

    def draw(k: int) -> tuple[Any, ...]:
        line.set_ydata(densities[k])
        title.set_text(caption(steps[k]))
        return line, title

    return playable(ax, draw, steps, interval)


def _row(tree: PyTree, k: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[k], tree)
