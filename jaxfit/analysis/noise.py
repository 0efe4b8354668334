"""The noise of a gradient: how much single examples differ from their mean."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check
from jaxfit._types import Batch, Loss, Params
from jaxfit.analysis._point import point_of
from jaxfit.run import State, Step

__all__ = ["GradientNoise", "gradient_noise"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientNoise:
    r"""The mean and the spread of the gradients of single examples, G and Σ, without bias.

    Average ``grad_sq`` and ``trace`` over steps before dividing them: the mean of quotients is
    biased, and far off where a gradient is small.

    Attributes:
      grad_sq: floating [], :math:`|G|^2`, the squared length of the expected gradient; below zero
        where it is lost in the noise of these examples.
      trace: floating [], :math:`\operatorname{tr}\Sigma`, the variance of one example's gradient,
        summed over all parameters.
      scale: floating [], the noise scale :math:`B = \operatorname{tr}\Sigma/|G|^2`, in examples:
        far below it, twice the batch halves the steps that are needed; far above, it is wasted.
      snr: floating [], the signal-to-noise ratio of one example, :math:`1/B`, which is zero, and
        not infinite, where there is no gradient; that of a batch of b is b times as large.
    """

    grad_sq: jax.Array
    trace: jax.Array
    scale: jax.Array
    snr: jax.Array


def gradient_noise(
    loss: Loss,
    params: Params | State | Step,
    *,
    data: Batch,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> GradientNoise:
    r"""Return how noisy the gradient is, from the gradients of all single examples.

    With :math:`g_i` the gradient on example i of n and :math:`\bar g` their mean,

    .. math::
      \operatorname{tr}\hat\Sigma = \frac{1}{n-1}\sum_i |g_i - \bar g|^2, \qquad
      |\hat G|^2 = |\bar g|^2 - \operatorname{tr}\hat\Sigma / n .

    Args:
      loss: the loss, as `jaxfit.train` takes it, a mean over examples.
      params: where: parameters, or a `State` or `Step`, whose carry the loss is then given.
      data: a tree of arrays ``[examples, …]`` of two examples or more: those of a step, or all.
      has_aux: whether the loss returns ``(scalar, aux)``.
      chunk_size: how many gradients are computed, and are in memory, at once; 32 by default.

    Returns:
      A `GradientNoise`. Under ``jax.jit`` and ``vmap``, where a loss that is not a mean cannot be
      refused, all numbers are NaN for it.

    Raises:
      TypeError, ValueError: if the arguments do not fit together, or if the loss on all examples is
        not the mean of those on each, as with batch normalisation.

    McCandlish et al. 2018, `An Empirical Model of Large-Batch Training
    <https://arxiv.org/abs/1812.06162>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit import analysis
    >>> loss = lambda a, x: jnp.mean((a - x) ** 2) / 2  # of gradients a - x
    >>> found = analysis.gradient_noise(loss, 0.0, data=jnp.array([1.0, 2.0, 3.0]))
    >>> float(found.trace), round(float(found.grad_sq), 4)  # 2² - 1/3
    (1.0, 3.6667)
    """
    data, number = _check.examples("data", data)
    if number < 2:
        raise ValueError(
            "data holds one example, but noise is the difference between two or more: give more."
        )
    size = 32 if chunk_size is None else _check.count("chunk_size", chunk_size)
    whole = point_of(loss, params, data, has_aux)
    value, mean = jax.value_and_grad(whole.loss)(whole.at)

    def single(example: Batch) -> tuple[jax.Array, jax.Array]:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        point = point_of(loss, params, alone, has_aux)
        value, grad = jax.value_and_grad(point.loss)(point.at)
        return value, jnp.sum((grad - mean) ** 2)

    values, deviations = lax.map(single, data, batch_size=min(size, number))
    is_mean = _is_mean(values, value)
    trace = jnp.where(is_mean, jnp.sum(deviations) / (number - 1), jnp.nan)
    grad_sq = jnp.sum(mean**2) - trace / number
    return GradientNoise(grad_sq, trace, trace / grad_sq, grad_sq / trace)


def _is_mean(values: jax.Array, whole: jax.Array) -> jax.Array:
    """Return whether a loss is the mean of its values on single examples; raise where it can."""
    mean, size = jnp.mean(values), jnp.mean(jnp.abs(values))
    tolerance = float(jnp.finfo(values.dtype).eps) ** 0.5
    # Not finite is not wrong: a run that diverged has noise that is not finite, either.
    close = ~(jnp.abs(mean - whole) > tolerance * size)
    if not isinstance(close, jax.core.Tracer) and not close:
        raise ValueError(
            f"the loss is {np.asarray(whole):.4g} on all examples and {np.asarray(mean):.4g} in "
            f"the mean over each alone, but gradients of single examples belong only to a loss "
            f"that is a mean over examples: divide by their number, and leave out what mixes them, "
            f"such as batch normalisation."
        )
    return close
