"""The result of a sweep: the values of many runs, with the labels of their axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxfit import _check, _tree
from jaxfit._disk.rows import DiskArray
from jaxfit._drive.axes import read, summary
from jaxfit._drive.dataset import dataset
from jaxfit._drive.labels import position
from jaxfit._drive.scores import Average, By, averaged, labels_at, order, scores_of
from jaxfit._types import PyTree


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep:
    """The results of many runs, with the labels of their axes.

    Attributes:
      axes: the labels of every axis by its name, in the order of the leading axes of ``values``:
        the array ``[items, …]`` or the pytree of arrays that was given, or a tuple of strings for
        an axis of Python objects.
      values: what the function returned for each point of the product, as NumPy arrays
        ``[*axes, …]`` in host memory.
    """

    axes: dict[str, PyTree]
    values: PyTree

    def sel(
        self,
        labels: Mapping[str, Any] | None = None,
        /,
        *,
        method: str | None = None,
        **more: Any,
    ) -> Sweep:
        """Select one label of some axes, and drop these axes.

        Items that are neither names nor single numbers (PRNG keys, vectors, zipped trees) are
        selected by their positions 0, 1, …, or by an item like them, as `best` returns it.

        Args:
          labels: labels by the names of their axes, for names that are not Python identifiers.
          method: None to select the label itself, or ``"nearest"`` to select, on an axis of
            numbers, the number nearest to it, and never NaN. On a floating axis the label is
            rounded to the precision of the axis before it is looked up; on any other, the numbers
            must be equal.
          **more: labels by the names of their axes.

        Returns:
          A `Sweep` of the remaining axes.

        Raises:
          KeyError: if there is no such axis or label.
          ValueError: if ``method`` is neither None nor ``"nearest"``.

        >>> import jax.numpy as jnp, jaxfit
        >>> table = jaxfit.sweep(lambda a, b: a * b, {"a": jnp.arange(3), "b": jnp.arange(4.0)})
        >>> table.sel(a=2)
        Sweep({b: 4 (0 … 3)}, float32[4])
        >>> table.sel(a=2, b=2.9, method="nearest").values
        np.float32(6.0)
        """
        wanted = {**(labels or {}), **more}
        if unknown := [name for name in wanted if name not in self.axes]:
            raise KeyError(f"there is no axis {unknown[0]!r}: the axes are {', '.join(self.axes)}.")
        if method not in (None, "nearest"):
            raise ValueError(f'method is {method!r}, but must be None or "nearest".')
        index = tuple(
            position(axis, wanted[axis.name], method) if axis.name in wanted else slice(None)
            for axis in read(self.axes)
        )
        axes = {name: axis for name, axis in self.axes.items() if name not in wanted}

        def pick(leaf: Any) -> Any:
            return leaf[index] if _tree.is_array(leaf) or isinstance(leaf, DiskArray) else leaf

        return Sweep(axes, jax.tree.map(pick, self.values))

    def best(
        self, by: By = None, *, over: str | Sequence[str] = (), average: Average = np.mean
    ) -> dict[str, Any]:
        """Find the run with the lowest score; ``sweep.sel(sweep.best(…))`` is its result.

        Args:
          by: the score to minimise, an array ``[*axes]`` of one real number per run: a function
            that computes it from ``values``; or its key in ``values``; or None if ``values`` is
            the score itself. Runs that score NaN are passed over.
          over: axes to average the scores over first, such as seeds: a name or several.
          average: how, a function of the scores and of the positions of these axes:
            ``np.mean``, for which one NaN makes a point score NaN, ``np.nanmean``, ``np.median``,
            ``np.max``, or your own.

        Returns:
          For every axis that is not averaged over, what `sel` takes: the label of a Python object,
          or the item of any other axis, a pytree for a zipped one.

        Raises:
          ValueError: if there is not one real number per run, if all are NaN, or if there is no
            such axis.

        >>> import jax.numpy as jnp, optax, jaxfit
        >>> def final(lr):
        ...     loss = lambda a: 0.5 * jnp.sum(a**2)
        ...     return loss(jaxfit.train(loss, jnp.ones(2), optax.sgd(lr), 10).state.params)
        >>> jaxfit.sweep(final, {"lr": jnp.array([0.1, 1.1, 3.0])}).best()
        {'lr': np.float32(1.1)}
        """
        return self.top(1, by, over=over, average=average)[0]

    def top(
        self, n: int, by: By = None, *, over: str | Sequence[str] = (), average: Average = np.mean
    ) -> list[dict[str, Any]]:
        """Find the runs with the lowest scores, the lowest first.

        Args:
          n: how many; there are fewer if other runs score NaN.
          by: as in `best`.
          over: as in `best`.
          average: as in `best`.

        Returns:
          A list of what `best` returns.

        Raises:
          ValueError: as `best` does.

        >>> import jax.numpy as jnp, jaxfit
        >>> axes = {"a": jnp.arange(4), "b": jnp.arange(3)}
        >>> table = jaxfit.sweep(lambda a, b: (a - b) ** 2, axes)
        >>> table.top(2, over="b")
        [{'a': np.int32(1)}, {'a': np.int32(0)}]
        """
        n, axes = _check.count("n", n), read(self.axes)
        scores = scores_of(by, self.values, tuple(map(len, axes)))
        axes, scores = averaged(scores, axes, over, average)
        if not len(positions := order(scores)):
            raise ValueError(
                "all runs score NaN, so none is best: score something that is a number."
            )
        return [labels_at(axes, position) for position in positions[:n].tolist()]

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset``, for NetCDF, Zarr, plots and pandas.

        The axes are its dimensions. Each array of ``values`` is a variable, named by its path
        (``loss``, ``params.w``); a lone array is called ``value``. Rows of a `Run`, or of what
        ``jaxfit.record.whole`` keeps, have the dimension ``step``, with the steps as its
        coordinate, if all runs have the same steps, and the dimension ``row`` if not. A zipped
        axis has a coordinate for every array ``[items]`` in it, such as ``axis.lr``.

        Names are given in this order: to axes, the dimension of rows, coordinates of zipped axes,
        variables and further dimensions. A name that is taken gets an underscore at its end: if an
        axis is called ``loss``, a loss is the variable ``loss_``.

        Returns:
          The ``xarray.Dataset``.

        Raises:
          ImportError: if xarray is missing; the extra ``analysis`` installs it.

        >>> import jax.numpy as jnp, jaxfit
        >>> table = jaxfit.sweep(lambda a: {"square": a * a}, {"a": jnp.arange(3.0)})
        >>> table.to_xarray().square.sel(a=2).item()
        4.0
        """
        return dataset(read(self.axes), self.values)

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis.name}: {summary(axis)}" for axis in read(self.axes))
        return f"Sweep({{{axes}}}, {_check.shapes(self.values)})"
