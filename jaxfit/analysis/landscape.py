"""The loss between and around points, and the plane that a run moves in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxfit import _check, _tree
from jaxfit._types import Batch, Loss, Params, PRNGKey, PyTree
from jaxfit.analysis._directions import as_vector, extents, normalized
from jaxfit.analysis._point import Space, on_data, parts_of, point_of
from jaxfit.analysis._rows import like_one, recorded
from jaxfit.run import Run, State, Step

__all__ = ["PCA", "Line", "Plane", "line", "pca", "plane"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Line:
    """The loss on a straight line between two points.

    Attributes:
      at: floating [num], the places, from 0 at the first point to 1 at the second.
      loss: floating [num].
      barrier: floating [], how far the loss rises above the straight line between its ends, at the
        highest of these places; 0 where it nowhere does.
    """

    at: jax.Array
    loss: jax.Array
    barrier: jax.Array


def line(
    loss: Loss,
    a: Params | State | Step,
    b: Params | State | Step,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    num: int = 25,
) -> Line:
    r"""Return the loss on the straight line from a to b, and its barrier.

    That is :math:`\max_t L(t) - (1-t) L(0) - t L(1)`. With states, their carries are interpolated
    as the parameters are; batch statistics that were gathered at the ends do not fit in between.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      a: parameters, a `State` or a `Step`.
      b: likewise, of the same structure and shapes. Its leaves that are not trained are not used.
      data: the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      num: how many places, the ends included; odd for one in the middle.

    Returns:
      A `Line`.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.

    Frankle et al. 2020, `Linear Mode Connectivity and the Lottery Ticket Hypothesis
    <https://arxiv.org/abs/1912.05671>`_.

    >>> from jaxfit import analysis
    >>> float(analysis.line(lambda x: (x**2 - 1) ** 2, -1.0, 1.0).barrier)
    1.0
    """
    if _check.count("num", num) < 2:
        raise ValueError("num is 1, but a line has two ends: give 2 or more.")
    point_of(loss, a, data, has_aux, "a")
    ends = [parts_of(name, one) for name, one in (("a", a), ("b", b))]
    if found := _check.difference(*(_tree.partition(end)[0] for end in ends)):
        raise ValueError(f"b is not of the shapes of a ({found}): compare runs of one model.")
    (first, rest), (second, _) = (_tree.partition(end) for end in ends)

    value, is_pair = on_data(loss, data), has_aux or ends[0][1] is not None

    def height(place: jax.Array) -> Any:
        between = jax.tree.map(lambda x, y: _between(x, y, place), first, second)
        out = value(*_tree.combine(between, rest))
        return out[0] if is_pair else out

    at = jnp.linspace(0, 1, num)
    heights = lax.map(height, at)
    straight = (1 - at) * heights[0] + at * heights[-1]
    # At its ends, it is zero but for rounding.
    above = jnp.where((at > 0) & (at < 1), heights - straight, 0)
    return Line(at, heights, jnp.max(above))


def _between(x: jax.Array, y: jax.Array, place: jax.Array) -> jax.Array:
    """Return a point between two, which at both ends is the end."""
    place = place.astype(jnp.finfo(x.dtype).dtype)
    return (1 - place) * x + place * y


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plane:
    """The loss on a plane through a point.

    Attributes:
      x: floating [num], the places along the first direction, in multiples of it; the point is 0.
      y: floating [num], those along the second.
      loss: floating [num, num], the loss at ``(x[j], y[i])`` in ``loss[i, j]``, as contours take
        it.
      directions: a pair of trees like the trained parameters.
    """

    x: jax.Array
    y: jax.Array
    loss: jax.Array
    directions: tuple[PyTree, PyTree]


def plane(
    loss: Loss,
    center: Params | State | Step,
    directions: tuple[PyTree, PyTree] | None = None,
    *,
    data: Batch | None = None,
    has_aux: bool = False,
    key: PRNGKey | None = None,
    normalize: str | None = "filter",
    filter_axis: int = -1,
    num: int = 31,
    extent: Any = 1.0,
) -> Plane:
    """Return the loss on a plane, through random directions of the size of the parameters.

    Without normalisation, a network with larger weights looks flatter. With it, pictures of
    networks whose filters differ in scale as a whole, such as 10 W₁ and W₂/10, agree.

    Args:
      loss: the loss, as `jaxfit.train` takes it.
      center: parameters, a `State` or a `Step`.
      directions: two trees like the trained parameters, taken as they are, such as two rows of
        ``pca(run).directions``; by default two random ones, normalised.
      data: the batch.
      has_aux: whether the loss returns ``(scalar, aux)``.
      key: draws the directions; ``jax.random.key(0)`` by default.
      normalize: ``"filter"``, so that each filter of a direction has the length of the same filter
        of the parameters; ``"leaf"``, likewise for whole leaves; or None. Either way a direction
        is zero in leaves of one axis or none, such as biases.
      filter_axis: the axis of a leaf that counts its filters: the last in jaxfit and Flax, the
        first (0) in Equinox.
      num: how many places along each direction.
      extent: how far to go to either side; or a pair (lowest, highest); or such a pair for each
        direction.

    Returns:
      A `Plane`.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.

    Li et al. 2018, `Visualizing the Loss Landscape of Neural Nets
    <https://arxiv.org/abs/1712.09913>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> axes = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> found = analysis.plane(lambda a: a[0] + 10 * a[1], jnp.zeros(2), axes, num=3)
    >>> found.loss[2, 0]  # at x = -1, y = 1
    Array(9., dtype=float32)
    """
    point = point_of(loss, center, data, has_aux, "center")
    space = point.space
    _check.count("num", num)
    if normalize not in ("filter", "leaf", None):
        raise ValueError(
            f'normalize is {_check.show(normalize)}, but must be "filter", "leaf" or None.'
        )
    if directions is None:
        key = jax.random.key(0) if key is None else key
        drawn = jax.random.normal(key, (2, point.size), space.dtype)
        like = space.tree(point.at)
        one, other = (normalized(space.tree(one), like, normalize, filter_axis) for one in drawn)
        directions = one, other
    first, second = (as_vector(space, one) for one in directions)
    x, y = (jnp.linspace(low, high, num, dtype=space.dtype) for low, high in extents(extent))

    def height(place: jax.Array) -> jax.Array:
        return point.loss(point.at + place[0] * first + place[1] * second)

    places = jnp.stack([jnp.tile(x, num), jnp.repeat(y, num)], axis=1)
    return Plane(x, y, lax.map(height, places).reshape(num, num), directions)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PCA:
    """The directions in which some points spread most.

    A walk at random has 61 % of its variance about the mean in the first direction and 15 % in the
    second; about its last point, 81 % and 9 %. So a high ratio alone says nothing about a run.

    Attributes:
      coordinates: floating [rows, k], of the points along the directions, from the centre.
      directions: a tree like the trained parameters with a leading axis [k], orthonormal, of
        either sign.
      ratio: floating [k], the part of the squared distances from the centre that is along each.
      off_plane: floating [rows], how far each point is from the plane through the centre.
    """

    coordinates: jax.Array
    directions: PyTree
    ratio: jax.Array
    off_plane: jax.Array


def pca(run_or_params: Run | Params, *, k: int = 2, center: str = "last") -> PCA:
    """Return the principal components of the path of a run.

    For the loss on the plane of the first two, give ``plane`` the last parameters, the directions
    ``[jax.tree.map(lambda leaf: leaf[i], found.directions) for i in (0, 1)]`` and an extent that
    holds the coordinates. It is the loss on the path only where ``off_plane`` is small.

    Args:
      run_or_params: a `Run` that recorded its parameters, or parameters stacked [rows, …].
      k: how many directions, at most as many as there are rows and trained numbers.
      center: ``"last"``, the last row, as Li et al. have it, or ``"mean"``.

    Returns:
      A `PCA`.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.

    Li et al. 2018 (see `plane`); Antognini and Sohl-Dickstein 2018, `PCA of high dimensional random
    walks with comparison to neural network training <https://arxiv.org/abs/1806.08805>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> path = jnp.array([[3.0, 4.0, 0.0], [1.5, 2.0, 1.0], [0.0, 0.0, 0.0]])
    >>> found = analysis.pca(path, k=1)
    >>> found.off_plane.shape, bool(found.ratio[0] > 0.9)
    ((3,), True)
    """
    params = run_or_params
    if isinstance(run_or_params, Run):
        held = recorded(run_or_params)
        if held is None:
            raise ValueError(
                "the run has not recorded its parameters, or is several that are stacked: record "
                "step.params, and map over runs with jax.vmap."
            )
        params = held["params"]
    if center not in ("last", "mean"):
        raise ValueError(f'center is {_check.show(center)}, but must be "last" or "mean".')
    trained = _tree.partition(jax.tree.map(_as_array, params))[0]
    trained, rows = _check.examples("run_or_params", trained)
    space = Space(like_one(trained))
    size = sum(space.sizes())
    if not _check.count("k", k) <= min(rows, size):
        raise ValueError(
            f"k is {k}, but {rows} rows of {size} trained numbers have {min(rows, size)} "
            f"directions: ask for at most these."
        )
    points = jax.vmap(space.vector)(trained)
    points = points - (points[-1] if center == "last" else points.mean(axis=0))
    _, lengths, axes = jnp.linalg.svd(points, full_matrices=False)
    coordinates = points @ axes[:k].T
    away = jnp.linalg.norm(points - coordinates @ axes[:k], axis=1)
    ratio = lengths[:k] ** 2 / jnp.sum(lengths**2)
    return PCA(coordinates, jax.vmap(space.tree)(axes[:k]), ratio, away)


def _as_array(leaf: Any) -> Any:
    """Return rows on disk or on the host as an array of JAX's."""
    return jnp.asarray(leaf) if hasattr(leaf, "dtype") else leaf
