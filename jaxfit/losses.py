"""Losses: pure functions of (prediction, target) that return one number.

Those to train on take weights per example; with an `objective` they are a third part of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfit import _tree

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
    r"""Mean squared error, :math:`\frac{1}{n}\sum_i (p_i - t_i)^2`.

    Args:
      prediction: an array of any shape.
      target: an array of the same shape: nothing is broadcast, for [n, 1] against [n] would give
        n² differences and a wrong answer without a word.
      weights: [examples], not negative and not all zero, for a weighted mean,
        :math:`\sum_i w_i e_i / \sum_i w_i`; None for equal ones.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not fit.

    >>> import jax.numpy as jnp
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
    r"""Huber's loss: the mean of half the squared errors, linear beyond an error of δ.

    .. math::
      h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\
        \delta (|e| - \delta / 2) & |e| > \delta \end{cases}

    Args:
      prediction: an array of any shape.
      target: an array of the same shape.
      weights: [examples], for a weighted mean, as in `mse`.
      delta: δ > 0, from where errors count linearly, in the units of the target.

    Returns:
      A scalar.

    Raises:
      ValueError: if the shapes do not fit.

    Huber 1964, `Robust Estimation of a Location Parameter
    <https://doi.org/10.1214/aoms/1177703732>`_.

    >>> import jax.numpy as jnp
    >>> huber(jnp.array([0.0, 5.0]), jnp.array([1.0, 0.0]))
    Array(2.5, dtype=float32)
    """
    _same_shape("huber", prediction, target)
    return _mean(optax.losses.huber_loss(prediction, target, delta=delta), weights)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    r"""Mean negative log likelihood of the labels under softmax probabilities.

    .. math:: -\frac{1}{n} \sum_i \log \frac{e^{z_{i y_i}}}{\sum_k e^{z_{ik}}}

    Args:
      logits: z, [..., classes], any real numbers.
      labels: y, integers from 0 to classes - 1, [...]; or a probability for each class, one-hot in
        the simplest case, [..., classes]. An integer out of that range gives NaN or, if negative,
        counts from the last class, as indices do.
      weights: [examples], for a weighted mean, as in `mse`.

    Returns:
      A scalar.

    Raises:
      ValueError, TypeError: if the shapes do not fit, or labels [...] are not integers.

    >>> import jax.numpy as jnp
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
    r"""Mean negative log likelihood of two classes: the loss of logistic regression.

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
    >>> print(f"{binary_cross_entropy(jnp.array([0.0, 1e4]), jnp.array([1, 1])):.4f}")
    0.3466
    """
    _same_shape("binary_cross_entropy", logits, labels)
    logits = jnp.asarray(logits)
    labels = jnp.asarray(labels, jnp.result_type(logits))
    return _mean(optax.losses.sigmoid_binary_cross_entropy(logits, labels), weights)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The part of the examples whose largest logit is that of their label.

    Args:
      logits: [..., classes].
      labels: integers [...], or one-hot [..., classes].

    Returns:
      A scalar from 0 to 1. It has no useful gradient: report it, train on `cross_entropy`.

    Raises:
      ValueError, TypeError: as in `cross_entropy`.

    >>> import jax.numpy as jnp
    >>> accuracy(jnp.array([[1.0, 3.0], [2.0, 0.0]]), jnp.array([1, 1]))
    Array(0.5, dtype=float32)
    """
    if not _integer_labels("accuracy", logits, labels):
        labels = jnp.argmax(labels, axis=-1)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def l2(params: Any) -> jax.Array:
    r"""Half the squared Euclidean norm of all trained leaves, :math:`\frac{1}{2}\sum_i |p_i|^2`.

    To be added to a loss; its gradient is the parameters themselves. Ridge regression,
    :math:`\min \frac{1}{n}\|xa - y\|^2 + \frac{\lambda}{2}\|a\|^2`, is a line::

      ridge = lambda a, batch: objective(linear, mse)(a, batch) + 0.1 * l2(a)

    scikit-learn's ``Ridge(alpha)`` is λ = 2 alpha / n of that, and its ``LogisticRegression(C)`` is
    `cross_entropy` with λ = 1 / (C n), or for two classes `binary_cross_entropy`. To leave a part
    alone, an intercept say, give the rest.

    Args:
      params: a pytree; its floating and complex leaves count.

    Returns:
      A scalar.

    >>> import jax.numpy as jnp
    >>> l2({"w": jnp.array([3.0, 4.0]), "degree": 2})
    Array(12.5, dtype=float32)
    """
    return optax.tree.norm(_tree.partition(params)[0], squared=True) / 2


def objective(
    model: Callable[[Any, Any], jax.Array], loss: Callable[..., jax.Array]
) -> Callable[[Any, tuple[Any, ...]], jax.Array]:
    """Compose a model and a loss into what ``train`` takes.

    Args:
      model: ``model(params, x) -> prediction``.
      loss: ``loss(prediction, target) -> scalar``, or ``loss(prediction, target, weights)``.

    Returns:
      ``objective(params, (x, y)) -> scalar``, or ``objective(params, (x, y, weights))``.

    >>> import jax.numpy as jnp
    >>> from jaxfit.models import linear
    >>> objective(linear, mse)(jnp.array([2.0]), (jnp.array([[1.0], [2.0]]), jnp.array([2.0, 6.0])))
    Array(2., dtype=float32)
    """

    def objective(params: Any, batch: tuple[Any, ...]) -> jax.Array:
        x, *targets = batch
        return loss(model(params, x), *targets)

    return objective


def _mean(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The mean over examples, which are the axes that the weights have, of the mean over others."""
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
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(
            f"{name} was given predictions of shape {jnp.shape(prediction)} and targets of shape "
            f"{jnp.shape(target)}, but both must have one shape: reshape one of them."
        )


def _integer_labels(name: str, logits: jax.Array, labels: jax.Array) -> bool:
    """Whether labels are integers [...] rather than numbers for each class [..., classes]."""
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
