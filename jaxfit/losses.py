"""Losses: pure functions of (prediction, target) that return one number.

Losses to train on take a weight for each example as a third argument, which an `objective` passes
on from the third part of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfit import _tree
from jaxfit._types import Batch, Params

__all__ = [
    "accuracy",
    "binary_cross_entropy",
    "cross_entropy",
    "huber",
    "l2",
    "mse",
    "objective",
]


def mse(prediction: jax.Array, target: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    r"""Return the mean squared error, :math:`\frac{1}{n}\sum_i (p_i - t_i)^2`.

    Args:
      prediction: p, an array of any shape.
      target: t, an array of the same shape. Nothing is broadcast: [n, 1] against [n] would silently
        give n² differences and a wrong mean.
      weights: [examples], not negative and not all zero, for a weighted mean,
        :math:`\sum_i w_i e_i / \sum_i w_i`; None for equal weights.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not fit.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import mse
    >>> mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
    Array(2., dtype=float32)
    """
    _same_shape("mse", prediction, target)
    return _mean(jnp.square(prediction - target), weights)


def huber(
    prediction: jax.Array,
    target: jax.Array,
    weights: jax.Array | None = None,
    *,
    delta: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Return Huber's loss: the mean of half the squared errors, linear beyond an error of δ.

    .. math::
      h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\
        \delta (|e| - \delta / 2) & |e| > \delta \end{cases}

    Args:
      prediction: an array of any shape.
      target: an array of the same shape.
      weights: [examples], for a weighted mean, as in `mse`.
      delta: δ > 0, the error beyond which the loss is linear, in the units of the target.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not fit.

    Huber 1964, `Robust Estimation of a Location Parameter
    <https://doi.org/10.1214/aoms/1177703732>`_.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import huber
    >>> huber(jnp.array([0.0, 5.0]), jnp.array([1.0, 0.0]))
    Array(2.5, dtype=float32)
    """
    _same_shape("huber", prediction, target)
    return _mean(optax.losses.huber_loss(prediction, target, delta=delta), weights)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    r"""Return the mean negative log-likelihood of the labels under softmax probabilities.

    .. math:: -\frac{1}{n} \sum_i \log \frac{e^{z_{i y_i}}}{\sum_k e^{z_{ik}}}

    Args:
      logits: z, [..., classes], any real numbers.
      labels: y, integers from 0 to classes - 1, [...]; or a probability for each class, one-hot in
        the simplest case, [..., classes]. Integers are indices: negative ones count from the last
        class, and those out of range give NaN.
      weights: [examples], for a weighted mean, as in `mse`.

    Returns:
      A scalar.

    Raises:
      ValueError, TypeError: if the shapes do not fit, or labels [...] are not integers.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import cross_entropy
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    >>> print(f"{cross_entropy(logits, jnp.array([0, 2])):.3f}")  # (log 2 - log 0.6) / 2
    0.602
    """
    if _integer_labels("cross_entropy", logits, labels):
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        labels = jnp.asarray(labels, jnp.result_type(logits))
        losses = optax.losses.softmax_cross_entropy(logits, labels)
    return _mean(losses, weights)


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    r"""Return the mean negative log-likelihood of two classes, the loss of logistic regression.

    .. math:: -\frac{1}{n} \sum_i y_i \log \sigma(z_i) + (1 - y_i) \log (1 - \sigma(z_i)), \qquad
      \sigma(z) = \frac{1}{1 + e^{-z}}

    Args:
      logits: z, any real numbers, of any shape.
      labels: y of the same shape: 0 and 1, or False and True, or probabilities of 1.
      weights: [examples], for a weighted mean, as in `mse`.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not fit.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import binary_cross_entropy
    >>> print(f"{binary_cross_entropy(jnp.array([0.0, 1e4]), jnp.array([1, 1])):.4f}")
    0.3466
    """
    _same_shape("binary_cross_entropy", logits, labels)
    logits = jnp.asarray(logits)
    labels = jnp.asarray(labels, jnp.result_type(logits))
    return _mean(optax.losses.sigmoid_binary_cross_entropy(logits, labels), weights)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the fraction of examples whose largest logit is that of their label.

    Args:
      logits: [..., classes].
      labels: integers [...], or one-hot [..., classes].

    Returns:
      A scalar from 0 to 1. Its gradient is zero: report it, and train on `cross_entropy`.

    Raises:
      ValueError, TypeError: as in `cross_entropy`.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import accuracy
    >>> accuracy(jnp.array([[1.0, 3.0], [2.0, 0.0]]), jnp.array([1, 1]))
    Array(0.5, dtype=float32)
    """
    if not _integer_labels("accuracy", logits, labels):
        labels = jnp.argmax(labels, axis=-1)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def l2(params: Params) -> jax.Array:
    r"""Return half the squared norm of the trained leaves, :math:`\frac{1}{2}\sum_i |p_i|^2`.

    This is a penalty to add to a loss; its gradient is the parameters themselves. Ridge regression,
    :math:`\min \frac{1}{n}\|xa - y\|^2 + \frac{\lambda}{2}\|a\|^2`, takes one line::

      ridge = lambda a, batch: objective(linear, mse)(a, batch) + λ * l2(a)

    scikit-learn's ``Ridge(alpha)`` is this with λ = 2 alpha / n. Its ``LogisticRegression(C)`` is
    `cross_entropy`, or `binary_cross_entropy` for two classes, with λ = 1 / (C n). To leave out a
    part such as an intercept, pass the rest: ``l2(params["w"])``.

    Args:
      params: a pytree, whose floating and complex leaves count.

    Returns:
      A scalar.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import l2
    >>> l2({"w": jnp.array([3.0, 4.0]), "degree": 2})
    Array(12.5, dtype=float32)
    """
    trained, _ = _tree.partition(_tree.as_arrays(params))
    half: jax.Array = optax.tree.norm(trained, squared=True) / 2
    return half


def objective(
    model: Callable[[Params, Any], jax.Array], loss: Callable[..., jax.Array]
) -> Callable[[Params, Batch], jax.Array]:
    """Compose a model and a loss into a loss of (params, batch), as ``train`` takes it.

    Args:
      model: ``model(params, x) -> prediction``.
      loss: ``loss(prediction, target) -> scalar``, or ``loss(prediction, target, weights)``.

    Returns:
      ``objective(params, (x, y)) -> scalar``, or ``objective(params, (x, y, weights))``.

    >>> import jax.numpy as jnp
    >>> from jaxfit.losses import mse, objective
    >>> from jaxfit.models import linear
    >>> objective(linear, mse)(jnp.array([2.0]), (jnp.array([[1.0], [2.0]]), jnp.array([2.0, 6.0])))
    Array(2., dtype=float32)
    """

    def objective(params: Params, batch: Batch) -> jax.Array:
        x, *targets = batch
        return loss(model(params, x), *targets)

    return objective


def _mean(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Return the mean over examples of the mean over their other axes.

    The axes of the weights are those of the examples: the first, or the first few.
    """
    if weights is None:
        return jnp.mean(losses)
    axes = jnp.ndim(weights)
    if jnp.shape(losses)[:axes] != jnp.shape(weights):
        raise ValueError(
            f"weights have shape {jnp.shape(weights)} and the losses {jnp.shape(losses)}, but "
            f"there must be one weight for each example: reshape the weights."
        )
    losses = jnp.mean(losses, axis=tuple(range(axes, losses.ndim)))
    return jnp.sum(weights * losses) / jnp.sum(weights)


def _same_shape(name: str, prediction: jax.Array, target: jax.Array) -> None:
    """Raise unless a prediction and a target have the same shape."""
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(
            f"{name} was given predictions of shape {jnp.shape(prediction)} and targets of shape "
            f"{jnp.shape(target)}, but both must have the same shape: reshape one of them."
        )


def _integer_labels(name: str, logits: jax.Array, labels: jax.Array) -> bool:
    """Return whether labels are integers [...], not a number for each class [..., classes]."""
    if jnp.ndim(logits) and jnp.shape(labels) == jnp.shape(logits)[:-1]:
        if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
            raise TypeError(
                f"{name} was given labels of dtype {jnp.result_type(labels)}, but one label for "
                f"each example must be an integer: convert them with labels.astype(int)."
            )
        return True
    if jnp.ndim(logits) and jnp.shape(labels) == jnp.shape(logits):
        return False
    raise ValueError(
        f"{name} was given logits of shape {jnp.shape(logits)} and labels of shape "
        f"{jnp.shape(labels)}, but takes [..., classes], and integers [...] or one-hot "
        f"[..., classes]: reshape one of them."
    )
