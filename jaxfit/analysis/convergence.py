"""How fast a run converges, and which rates a range test suggests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check
from jaxfit.analysis._range_test import minimum, slide, smoothed, steep, stop, valley

__all__ = ["Convergence", "SuggestedRates", "convergence", "suggest_rates"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Convergence:
    r"""The two laws by which losses fall to a limit, fitted to some of them.

    Attributes:
      factor: floating [], c of the geometric law :math:`L_\infty + a\,c^t`, per row.
      power: floating [], p of the power law :math:`L_\infty + a\,t^{-p}`.
      limit: floating [], :math:`L_\infty` of the law that fits better.
      is_geometric: bool [], whether that is the geometric one.
      errors: floating [2], the root mean square of what the geometric and the power law leave, as a
        part of how far the losses spread.
    """

    factor: jax.Array
    power: jax.Array
    limit: jax.Array
    is_geometric: jax.Array
    errors: jax.Array


def convergence(losses: jax.Array, *, window: int | None = None) -> Convergence:
    r"""Return how fast losses converge, to what, and by which of two laws.

    Each law is fitted by least squares to the last losses: the best limit and amplitude follow from
    c or p, which is searched for. Noise and ringing, such as momentum's, are averaged over.

    Args:
      losses: floating [rows], of evenly spaced steps, the first at the start of the run; pure and
        traceable, as for ``jax.jit``.
      window: how many of the last losses to use, at least 4; half of them by default. Leave those
        out where rounding is all that changes.

    Returns:
      A `Convergence`. All are NaN if losses in the window are not finite or all the same.

    Raises:
      TypeError, ValueError: if the losses are not [rows], or too few.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> found = analysis.convergence(3.0 + 0.9 ** jnp.arange(40))
    >>> print(f"{found.factor:.3f} {found.limit:.3f} {bool(found.is_geometric)}")
    0.900 3.000 True
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            f"losses are {_check.shapes(losses)}, but must be floating numbers [rows] of one run: "
            f"map over runs with jax.vmap."
        )
    rows = len(losses)
    window = max(rows // 2, 4) if window is None else _check.count("window", window)
    if not 4 <= window <= rows:
        raise ValueError(
            f"window is {window} of {rows} losses, but a law with a limit takes 4 or more: give "
            f"that many."
        )
    y = losses[rows - window :].astype(jnp.promote_types(losses.dtype, jnp.float32))
    t = jnp.arange(rows - window, rows, dtype=y.dtype)
    since = t - t[0]
    # By the logarithm of the half-life, and of the power, over all that a window can tell.
    lives = jnp.log(jnp.array([0.02, 100.0 * window], y.dtype))
    powers = jnp.log(jnp.array([0.02, 50.0], y.dtype))

    def geometric(log_life: jax.Array) -> jax.Array:
        return jnp.exp2(-since / jnp.exp(log_life))

    def power(log_power: jax.Array) -> jax.Array:
        return ((t + 1) / (t[0] + 1)) ** -jnp.exp(log_power)

    life, *first = _best(y, geometric, lives)
    exponent, *second = _best(y, power, powers)
    is_geometric = first[1] <= second[1]
    fine = jnp.where(jnp.isfinite(first[1] + second[1]), 1, jnp.nan)
    return Convergence(
        factor=fine * jnp.exp2(-1 / jnp.exp(life)),
        power=fine * jnp.exp(exponent),
        limit=fine * jnp.where(is_geometric, first[0], second[0]),
        is_geometric=is_geometric,
        errors=jnp.stack([first[1], second[1]]),
    )


def _best(
    y: jax.Array, shape: Callable[[jax.Array], jax.Array], ends: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the parameter of a law that fits best, the limit and the error with it."""

    def fit(parameter: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = shape(parameter)
        dx, dy = x - x.mean(), y - y.mean()
        amplitude = (dx @ dy) / (dx @ dx)
        left = dy - amplitude * dx
        return y.mean() - amplitude * x.mean(), jnp.sqrt((left @ left) / (dy @ dy))

    def narrow(ends: jax.Array, _: Any) -> tuple[jax.Array, None]:
        grid = jnp.linspace(ends[0], ends[1], 33)
        errors = jax.vmap(fit)(grid)[1]
        best = jnp.nanargmin(jnp.where(jnp.isfinite(errors), errors, jnp.inf))
        return jnp.stack([grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, 32)]]), None

    ends, _ = lax.scan(narrow, ends, length=6)
    middle = ends.mean()
    return (middle, *fit(middle))


@dataclasses.dataclass(frozen=True)
class SuggestedRates:
    """The four learning rates that fastai reads off a range test.

    Attributes:
      valley: halfway down the longest decreasing run of losses: a rate that is safe.
      slide: where an interval, sliding down from the end, begins to bend.
      minimum: a tenth of the rate of the least loss.
      steep: where the loss falls most steeply with the logarithm of the rate.
    """

    valley: float
    slide: float
    minimum: float
    steep: float


def suggest_rates(rates: Any, losses: Any) -> SuggestedRates:
    """Return the learning rates that a range test suggests.

    The losses are smoothed, cut off where they exceed four times the best, and the first tenth and
    the last five steps before that are ignored, as fastai does it: an early spike misleads none.

    Args:
      rates: the rate of every step, [steps], increasing; or the rates of a sweep.
      losses: the loss at every step, [steps]; or the final losses of the sweep.

    Returns:
      `SuggestedRates`, each one of the rates or a part of it.

    Raises:
      ValueError: if the shapes do not fit, or if too few losses come before the loss explodes.

    Smith 2015, `Cyclical Learning Rates for Training Neural Networks
    <https://arxiv.org/abs/1506.01186>`_; the rules are those of fastai 2.7's ``lr_find``.

    >>> import numpy as np
    >>> from jaxfit import analysis
    >>> rates = np.geomspace(1e-7, 10, 100)
    >>> found = analysis.suggest_rates(rates, 1 / (1 + 100 * rates) + rates**2)
    >>> bool(found.valley < found.minimum < 0.1)
    True
    """
    rates, losses = (np.asarray(one, np.float64) for one in (rates, losses))
    if rates.ndim != 1 or rates.shape != losses.shape or not (np.diff(rates) > 0).all():
        raise ValueError(
            f"rates have shape {list(rates.shape)} and losses {list(losses.shape)}, but must be an "
            f"increasing rate and a loss for each step: give those of one range test."
        )
    smooth = smoothed(losses)
    used = slice(len(losses) // 10, max(0, stop(smooth) + 1 - 5))
    rates, smooth = rates[used], smooth[used]
    if len(rates) < 3 or not np.isfinite(smooth).all():
        raise ValueError(
            f"the losses leave {len(rates)} steps between the first tenth and where they explode, "
            f"but rules need 3 of finite losses: begin at a lower rate, or take more steps."
        )
    return SuggestedRates(*(float(rule(rates, smooth)) for rule in (valley, slide, minimum, steep)))
