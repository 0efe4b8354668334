"""A race between many runs: all begin, the best go on, and few are trained to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxfit import _check
from jaxfit._drive import bars, tiles
from jaxfit._drive.axes import Axis, arrange, parse
from jaxfit._drive.race import Race
from jaxfit._drive.rungs import Field, ends_of, share_out
from jaxfit._drive.scores import Average, By, positions_of
from jaxfit._drive.table import Sweep
from jaxfit._drive.variant import restore, variants_of
from jaxfit._types import PyTree

__all__ = ["halving"]


def halving(
    fn: Callable[..., tuple[PyTree, PyTree]],
    axes: Mapping[str, PyTree],
    num_steps: int,
    *,
    by: By = None,
    keep: int = 3,
    rungs: int | None = None,
    brackets: int = 1,
    over: str | Sequence[str] = (),
    average: Average = np.mean,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Sweep:
    """Train all combinations of labelled values a little, and the best of them on, in rungs.

    This is successive halving. All members of a rung train together, as in ``jaxfit.sweep``; then
    the best of every ``keep`` go on from their own states for about ``keep`` times the steps. N
    members cost at most N/keep^(rungs-1)·rungs full runs instead of N: four rungs of 27 cost three.
    What makes a good end but a bad beginning is lost: with several ``brackets``, as in Hyperband,
    some of the members begin at a later rung, after more steps.

    Args:
      fn: ``fn(state, num_steps, **point) -> (state, result)``, with a keyword for each axis: it
        trains from a state, or from the start if that is None, and returns the state after these
        steps, a `State` or any other pytree, and a result, such as a loss on held-out data. Pure
        and traceable; ``num_steps`` is a Python int. Shapes must not depend on it.
      axes: what to vary, as in `sweep`; or points from ``jaxfit.search.samples`` as one axis.
        Python objects must have states of the same shapes.
      num_steps: how many steps the members that reach the end take, in all.
      by: the score to minimise: a function of the results of the members of a rung, arrays
        ``[members, …]``, that returns one real number for each, ``[members]``; or its key in the
        result; or None if the result is the score itself. NaN never goes on.
      keep: one of how many goes on.
      rungs: how many there are; by default as many as the members and steps allow. The last ends
        after ``num_steps`` steps, the one before it after ``num_steps // keep``, and so on.
      brackets: how many races to run, each beginning one rung later than the one before. They share
        the members at random, so that each costs about the same. 1 is successive halving, and as
        many as there are rungs is Hyperband.
      over: axes over which scores are averaged, such as seeds: their runs go on together.
      average: how, as in ``Sweep.best``.
      batch_size: as in `sweep`.
      devices: as in `sweep`.
      progress: whether to show a bar with runs per second; a run is counted once on each rung.

    Returns:
      A `Sweep` of all members, whose values are a dict:

      - ``"score"``: ``[*axes]``, that of the members that reached the end; NaN for all others.
        ``best("score")`` is the winner.
      - ``"scores"``: ``[*axes, rungs]``, those after every rung; NaN where a member did not train.
      - ``"rung"``: int32 ``[*axes]``, the last on which a member trained, from 0.
      - ``"steps"``: int32 ``[*axes]``, how many steps it has taken.
      - ``"bracket"``: int32 ``[*axes]``, in which race it was, from 0.
      - ``"state"``: the state after its last rung, ``[*axes, …]``, from which ``fn`` can take it up
        again, whether it reached the end or not.
      - ``"result"``: the result after its last rung, ``[*axes, …]``.

      Each member equals ``fn`` called alone for its legs, one after the other, up to rounding, and
      on the CPU bit for bit with ``batch_size=1``. If ``fn`` trains with ``jaxfit.train``, whose
      runs are resumed exactly, that is the run alone from start to end.

    Raises:
      TypeError, ValueError: before anything is compiled, as `sweep` does, and if shapes depend on
        the number of steps, or if there are too few members or steps for that number of rungs.

    References:
      Jamieson and Talwalkar, *Non-stochastic best arm identification and hyperparameter
      optimization*, AISTATS 2016; Li et al., *Hyperband: a novel bandit-based approach to
      hyperparameter optimization*, JMLR 18 (2018).

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> loss = lambda a: jnp.sum((a - 1.0) ** 2 * jnp.array([1.0, 0.01]))
    >>> def fn(state, num_steps, lr):
    ...     start = jnp.zeros(2) if state is None else state
    ...     run = jaxfit.train(loss, start, optax.sgd(lr), num_steps)
    ...     return run.state, loss(run.state.params)
    >>> race = jaxfit.halving(fn, {"lr": jnp.geomspace(1e-3, 10, 27)}, 90)
    >>> round(float(race.best("score")["lr"]), 3)
    0.838
    >>> race.values["steps"][12:].tolist()
    [10, 10, 10, 10, 10, 30, 30, 90, 3, 3, 3, 3, 3, 3, 3]
    """
    parsed = parse(axes)
    variants = variants_of(fn, parsed, ("state", "num_steps"))
    num_steps, keep = _check.count("num_steps", num_steps), _check.count("keep", keep, 2)
    points = _points(parsed, over)
    rungs = None if rungs is None else _check.count("rungs", rungs)
    ends = ends_of(num_steps, keep, rungs, len(points))
    if (brackets := _check.count("brackets", brackets)) > len(ends):
        raise ValueError(
            f"brackets is {brackets}, but each begins one rung later, and there are {len(ends)} "
            f"rungs: give no more than these."
        )
    if batch_size is not None:
        batch_size = _check.count("batch_size", batch_size)
    devices = jax.devices() if devices is None else tiles.check_devices(devices)

    field = Field(variants, [axis for axis in parsed if axis.inside], batch_size, devices)
    like = field.check(ends[:brackets], np.diff(ends).tolist())
    race = Race(points, ends, share_out(len(points), len(ends), keep, brackets), keep, by, average)
    with bars.bar(progress and "always", "runs") as bar:
        table = race.run(field, like, bar)
    values = {name: arrange(parsed, leaf) for name, leaf in table.numbers.items()}
    arrays = [arrange(parsed, leaf) for leaf in jax.tree.leaves(table.members)]
    return Sweep({axis.name: axis.kept for axis in parsed}, values | restore(like, arrays))


def _points(axes: Sequence[Axis], over: str | Sequence[str]) -> np.ndarray:
    """Return the positions of all members, ``[points, *over]``: who goes on together is a point."""
    together = positions_of(over, axes)
    ids = arrange(axes, np.arange(math.prod(map(len, axes))))
    last = range(len(axes) - len(together), len(axes))
    return np.moveaxis(ids, together, last).reshape(-1, *(len(axes[i]) for i in together))
