"""Compare optimizers, or anything else on an axis of a sweep, with paired seeds and intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxfit import _check
from jaxfit._drive.axes import Axis, read
from jaxfit._types import PRNGKey, PyTree
from jaxfit.sweep import Sweep

__all__ = ["Comparison", "compare"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, [items], on seeds, [seeds]. Lower is better; all are NumPy arrays.

    Attributes:
      score: floating [items, seeds], at the label that the other seeds chose. A run that diverged
        counts as its start or, where that is not known, as the worst that did not.
      iqm: floating [items], the interquartile mean of the scores: without the best and the worst
        quarter of the seeds.
      interval: floating [items, 2], 95 % limits of it.
      difference: floating [items, 2], 95 % limits of its difference from that of the item with the
        lowest, seed by seed. An item whose limits hold zero is tied with that.
      improvement: floating [items, items], the probability that a run of the first is better than
        one of the second; ties count half.
      sensitivity: floating [items, seeds], the mean over the tuned axis above its least: how much
        tuning matters; zero without an axis to tune.
      chosen: int [items, seeds], the position on the tuned axes, flattened, for each score.
      failed: bool [items, seeds], which of the scores are of runs that diverged.
      diverged: bool [items, *tuned, seeds], which of all runs did.
      axes: the name and the labels of each axis of ``diverged``.
    """

    score: np.ndarray
    iqm: np.ndarray
    interval: np.ndarray
    difference: np.ndarray
    improvement: np.ndarray
    sensitivity: np.ndarray
    chosen: np.ndarray
    failed: np.ndarray
    diverged: np.ndarray
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = dataclasses.field(metadata={"static": True})

    @property
    def best(self) -> Any:
        """The label of the item with the lowest interquartile mean."""
        return self._labels[int(np.argmin(self.iqm))]

    @property
    def tied(self) -> list[Any]:
        """The labels of the items that are tied with the best, itself included."""
        return [self._labels[i] for i in np.flatnonzero(self.difference[:, 0] <= 0)]

    @property
    def diverged_runs(self) -> list[dict[str, Any]]:
        """The labels of every run that diverged, by the names of their axes."""
        return [
            {name: labels[i] for (name, labels), i in zip(self.axes, place, strict=True)}
            for place in np.argwhere(self.diverged).tolist()
        ]

    @property
    def _labels(self) -> tuple[Any, ...]:
        return self.axes[0][1]

    def profile(self, ratios: Any) -> np.ndarray:
        """Return performance profiles: how often an item is within a ratio of the best.

        Args:
          ratios: floating [ratios], 1 and above.

        Returns:
          floating [items, ratios]: the part of the seeds on which the score is at most that many
          times the lowest of that seed. Scores have to be positive; those that failed never count.

        Raises:
          ValueError: if a score is not positive.

        Dolan and Moré 2002, `Benchmarking optimization software with performance profiles
        <https://doi.org/10.1007/s101070100263>`_.
        """
        if not (self.score > 0).all():
            raise ValueError(
                "some scores are not positive, but a profile is of ratios: give compare a value "
                "that is, such as a number of steps."
            )
        score = np.where(self.failed, np.inf, self.score)
        with np.errstate(invalid="ignore"):  # where all of them failed
            ratio = score / score.min(axis=0)
        return np.asarray((ratio[..., None] <= np.asarray(ratios)).mean(axis=1))

    def table(self) -> None:
        """Print a line for each item, the best first; = marks those tied with it."""
        width = max(len(str(label)) for label in self._labels)
        tuned = [self._tuned(i) for i in range(len(self._labels))]
        at = max(map(len, tuned))
        print(f"  {'':{width}}  {'tuned':{at}}  {'IQM [95 %]':28}  P(best)  sensitivity  diverged")
        first = int(np.argmin(self.iqm))
        for i in np.argsort(self.iqm, kind="stable"):
            low, high = self.interval[i]
            print(f"{'=' if self.difference[i, 0] <= 0 else ' '} ", end="")
            print(f"{self._labels[i]!s:{width}}  {tuned[i]:{at}}", end="  ")
            print(f"{f'{self.iqm[i]:.3e} [{low:.2e}, {high:.2e}]':28}", end="  ")
            print(f"{self.improvement[i, first]:7.2f}  ", end="")
            print(f"{np.median(self.sensitivity[i]):11.2e}  {self.diverged[i].mean():8.0%}")

    def _tuned(self, item: int) -> str:
        """Return the label that most seeds were judged at."""
        names = self.axes[1:-1]
        most = np.bincount(self.chosen[item]).argmax()
        place = np.unravel_index(most, [len(labels) for _, labels in names]) if names else ()
        found = [labels[i] for (_, labels), i in zip(names, place, strict=True)]
        texts = [f"{one:.3g}" if isinstance(one, float) else str(one) for one in found]
        return ", ".join(texts) or "–"

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset`` of all arrays, with the labels as coordinates.

        Raises:
          ImportError: if xarray is missing; the extra ``analysis`` installs it.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError(
                'to_xarray needs xarray: run pip install "jaxfit-train[analysis]".'
            ) from error
        names = [name for name, _ in self.axes]
        item, seed = names[0], names[-1]
        dims = {
            "score": (item, seed),
            "iqm": (item,),
            "interval": (item, "limit"),
            "difference": (item, "limit"),
            "improvement": (item, f"other_{item}"),
            "sensitivity": (item, seed),
            "chosen": (item, seed),
            "failed": (item, seed),
            "diverged": tuple(names),
        }
        coordinates = {name: list(labels) for name, labels in self.axes}
        coordinates |= {f"other_{item}": coordinates[item], "limit": ["low", "high"]}
        return xarray.Dataset({k: (dim, getattr(self, k)) for k, dim in dims.items()}, coordinates)


def compare(
    sweep: Sweep,
    value: str | Callable[[PyTree], Any] | None = None,
    *,
    over: str,
    tune: str | Sequence[str] | None = None,
    seeds: str = "seed",
    resamples: int = 4000,
    key: PRNGKey | None = None,
) -> Comparison:
    """Compare the items of an axis of a sweep: tuned on other seeds, with intervals.

    Each seed of an item is judged at the label of the tuned axes whose median over the *other*
    seeds is lowest, so that none is tuned on what it reports. Seeds are paired: the same are drawn
    for all items in every resample of the bootstrap.

    Args:
      sweep: the sweep. Its axes are those named here, and no others: select labels of those first.
      value: the score, lower being better: a function that computes it from ``sweep.values``, or a
        key of these, or None if they are the score. Either one number per run, ``[*axes]``; or the
        losses on its way, ``[*axes, rows]``, the first of which is its start and the last its
        score. A run has diverged if its score is not finite, or not below its start.
      over: the name of the axis to compare, such as the optimizer.
      tune: the names of the axes to choose from, such as the learning rate; None for nothing.
      seeds: the name of the axis of seeds, of two or more.
      resamples: how often the bootstrap draws seeds.
      key: draws them; ``jax.random.key(0)`` by default.

    Returns:
      A `Comparison`. Intervals of few seeds are too narrow: give ten or more.

    Raises:
      TypeError, ValueError: if the arguments do not fit together.

    Agarwal et al. 2021, `Deep Reinforcement Learning at the Edge of the Statistical Precipice
    <https://arxiv.org/abs/2108.13264>`_; for the sensitivity, Wortsman et al. 2023, `Small-scale
    proxies for large-scale Transformer training instabilities <https://arxiv.org/abs/2309.14322>`_.

    >>> import jax, jax.numpy as jnp, optax, jaxfit
    >>> from jaxfit import analysis
    >>> def losses(optimizer, lr, seed):
    ...     loss, start = lambda a: jnp.sum(a**2), jax.random.normal(seed, (3,))
    ...     return jaxfit.train(loss, start, optimizer(lr), 20).trajectory["loss"]
    >>> axes = {"optimizer": {"sgd": optax.sgd, "adam": optax.adam}, "lr": jnp.logspace(-3, 0, 4)}
    >>> table = jaxfit.sweep(losses, axes | {"seed": jax.random.split(jax.random.key(0), 10)})
    >>> found = analysis.compare(table, over="optimizer", tune="lr")
    >>> found.best, found.tied, int(found.diverged.sum())
    ('sgd', ['sgd'], 10)
    """
    _check.kind("sweep", sweep, Sweep, "what jaxfit.sweep returned")
    tuned = () if tune is None else (tune,) if isinstance(tune, str) else tuple(tune)
    axes = _ordered(sweep, (over, *tuned, seeds))
    if isinstance(value, str):
        values = sweep.values[value]
    else:
        values = sweep.values if value is None else value(sweep.values)
    scores, diverged = _scores(values, list(sweep.axes), axes)
    items, number = len(axes[0]), len(axes[-1])
    flat, failed = (one.reshape(items, -1, number) for one in (scores, diverged))
    chosen = np.stack([_chosen(one) for one in flat])
    place = np.arange(items)[:, None], chosen, np.arange(number)
    score = flat[place]

    seed = np.asarray(jax.random.key_data(jax.random.key(0) if key is None else key))
    draws = np.random.default_rng(seed).integers(
        number, size=(_check.count("resamples", resamples), number)
    )
    iqm, drawn = _iqm(score), _iqm(score[:, draws])

    def limits(drawn: np.ndarray) -> np.ndarray:
        return np.stack([np.quantile(drawn, part, axis=-1) for part in (0.025, 0.975)], axis=1)

    return Comparison(
        score=score,
        iqm=iqm,
        interval=limits(drawn),
        difference=limits(drawn - drawn[iqm.argmin()]),
        improvement=_improvement(score),
        sensitivity=flat.mean(axis=1) - flat.min(axis=1),
        chosen=chosen,
        failed=failed[place],
        diverged=diverged,
        axes=tuple((axis.name, _labels(axis)) for axis in axes),
    )


def _ordered(sweep: Sweep, names: tuple[str, ...]) -> list[Axis]:
    """Return the axes of a sweep in an order, which must be all of them."""
    known = {axis.name: axis for axis in read(sweep.axes)}
    if len(set(names)) < len(names) or set(names) != set(known):
        raise ValueError(
            f"over, tune and seeds name {', '.join(map(repr, names))}, but the sweep has the axes "
            f"{', '.join(map(repr, known))}: name each once, or select a label with sweep.sel."
        )
    if len(known[names[-1]]) < 2:
        raise ValueError(
            f"axis {names[-1]!r} has one seed, but a comparison needs two or more: sweep over more."
        )
    return [known[name] for name in names]


def _labels(axis: Axis) -> tuple[Any, ...]:
    return tuple(axis.labels.tolist()) if isinstance(axis.labels, np.ndarray) else axis.labels


def _scores(values: Any, given: list[str], axes: list[Axis]) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of every run, and whether it diverged: [*axes]."""
    known = {axis.name: len(axis) for axis in axes}
    shape = tuple(known[name] for name in given)
    values = np.asarray(values) if hasattr(values, "dtype") else values
    is_fine = isinstance(values, np.ndarray) and values.dtype.kind in "fiu"
    if not is_fine or values.shape[: len(shape)] != shape or values.ndim > len(shape) + 1:
        raise ValueError(
            f"value gives {_check.shapes(values)}, but must be a number per run, {list(shape)}, or "
            f"its losses, with one more axis: give value=lambda values: … that computes them."
        )
    values = np.moveaxis(
        values.astype(np.float64), [given.index(axis.name) for axis in axes], range(len(axes))
    )
    if values.ndim == len(axes):
        diverged = ~np.isfinite(values)
        worst = np.max(values, where=~diverged, initial=-np.inf)
        return np.where(diverged, worst, values), diverged
    start, end = values[..., 0], values[..., -1]
    diverged = ~(np.isfinite(end) & (end < start))
    return np.where(diverged, start, end), diverged


def _chosen(scores: np.ndarray) -> np.ndarray:
    """Return the row of [labels, seeds] at which each seed is judged: [seeds]."""
    seeds = range(scores.shape[1])
    return np.array([np.median(np.delete(scores, one, 1), axis=1).argmin() for one in seeds])


def _iqm(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the last axis."""
    from scipy import stats  # which takes longer to import than all else here

    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1))


def _improvement(scores: np.ndarray) -> np.ndarray:
    """Return the probability that a score of one is below one of another: [items, items]."""
    one, other = scores[:, None, :, None], scores[None, :, None, :]
    return np.asarray(np.mean(one < other, axis=(2, 3)) + np.mean(one == other, axis=(2, 3)) / 2)
