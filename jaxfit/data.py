"""Data as pure functions of a key: problems to try things on, and minibatches of any arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfit import _check, _shuffle
from jaxfit._types import Batch, PRNGKey, PyTree

__all__ = [
    "Minibatches",
    "line",
    "linear_problem",
    "minibatches",
    "standardize",
    "train_test_split",
]


def line(
    key: PRNGKey, n: int = 100, coefficients: Sequence[float] | jax.Array = (3.0, 2.0)
) -> tuple[jax.Array, jax.Array]:
    r"""Draw noisy points on a line, the textbook example of gradient descent.

    .. math:: y_i = c_1 x_i + c_2 + u_i, \qquad x_i \sim U(-1, 1), \quad u_i \sim U(0, 1).

    The noise has mean 1/2, so the best intercept is :math:`c_2 + 1/2`; its variance, 1/12, is the
    least mean squared error that any line can reach.

    Args:
      key: a PRNG key.
      n: the number of points.
      coefficients: [2], slope and intercept.

    Returns:
      x [n, 2], whose second column is ones, and y [n].

    >>> import jax, jaxfit
    >>> x, y = jaxfit.data.line(jax.random.key(0))
    >>> x.shape, y.shape
    ((100, 2), (100,))
    """
    place, noise = jax.random.split(key)
    x = jnp.stack([jax.random.uniform(place, (n,), minval=-1.0, maxval=1.0), jnp.ones(n)], axis=1)
    return x, x @ jnp.asarray(coefficients, x.dtype) + jax.random.uniform(noise, (n,))


def linear_problem(
    key: PRNGKey, n: int, features: int, *, condition: float = 1.0, noise: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Draw a least-squares problem with a given condition number.

    The singular values of :math:`x/\sqrt{n}` are spaced geometrically, so that the eigenvalues of
    the Hessian of half the mean squared error, :math:`x^\top x / n`, run from 1 down to exactly
    :math:`1/\kappa`; its eigenvectors are random.

    Args:
      key: a PRNG key.
      n: the number of examples, at least ``features``.
      features: the number of columns of x.
      condition: :math:`\kappa \ge 1`, the largest eigenvalue of the Hessian over its smallest.
      noise: the standard deviation of the Gaussian noise in y.

    Returns:
      x [n, features], y [n] and the coefficients [features], drawn from N(0, 1), with
      ``y = x @ coefficients + noise * N(0, 1)``.

    Raises:
      ValueError: if ``n < features``, or if no such matrix has this condition number.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> x, y, a = jaxfit.data.linear_problem(jax.random.key(0), 50, 3, condition=100.0)
    >>> print(f"{jnp.linalg.cond(x) ** 2:.1f}")
    100.0
    """
    if n < features or features < 1:
        raise ValueError(
            f"n is {n} and features {features}, but a problem with a condition number needs at "
            f"least as many examples as features, and one feature: raise n."
        )
    if not condition >= 1:
        raise ValueError(
            f"condition is {condition}, but a condition number is at least 1: give κ, not 1/κ."
        )
    if features == 1 and condition > 1:
        raise ValueError(
            f"condition is {condition}, but with one feature it can only be 1: give two features."
        )
    left, right, truth, error = jax.random.split(key, 4)
    u, _ = jnp.linalg.qr(jax.random.normal(left, (n, features)))
    v, _ = jnp.linalg.qr(jax.random.normal(right, (features, features)))
    eigenvalues = jnp.geomspace(1.0, 1.0 / condition, features)
    x = (u * jnp.sqrt(n * eigenvalues)) @ v.T
    coefficients = jax.random.normal(truth, (features,))
    return x, x @ coefficients + noise * jax.random.normal(error, (n,)), coefficients


def standardize(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Shift and scale every column to mean zero and variance one.

    .. math:: z_{ij} = (x_{ij} - \mu_j) / \sigma_j

    Sums are computed in float32 or wider, of columns scaled by powers of two, so that squares
    neither overflow nor underflow.

    Args:
      x: [examples, …], finite.

    Returns:
      z [examples, …], the means […] and the standard deviations […], to be applied to other
      examples as ``(x - mean) / deviation``. All have the floating dtype of x. A constant column
      becomes zero, and its deviation is given as 1.

    >>> import jax.numpy as jnp, jaxfit
    >>> z, mean, deviation = jaxfit.data.standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> z.tolist(), mean.tolist(), deviation.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [2.0, 5.0], [1.0, 1.0])
    """
    dtype = jnp.result_type(x, float)
    x = jnp.asarray(x, dtype if jnp.finfo(dtype).bits > 16 else np.float32)
    constant = jnp.max(x, axis=0) == jnp.min(x, axis=0)
    # Scaling by a power of two is exact, and needs no derivative. XLA may multiply by the
    # reciprocal instead of dividing, so the reciprocal must be a normal number too.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=0))
    least = jnp.finfo(x.dtype).minexp
    scale = jnp.ldexp(jnp.ones_like(x[0].real), jnp.clip(exponent, least, -least))
    x = x / scale
    # The computed mean of equal numbers can differ from them, which leaves a tiny deviation.
    mean = jnp.where(constant, x[0], jnp.mean(x, axis=0))
    deviation = jnp.sqrt(jnp.where(constant, 1, jnp.var(x, axis=0)))
    z = (x - mean) / deviation
    deviation = jnp.where(constant, 1, deviation * scale)
    return z.astype(dtype), (mean * scale).astype(dtype), deviation.astype(jnp.finfo(dtype).dtype)


def train_test_split(arrays: PyTree, fraction: float, key: PRNGKey) -> tuple[PyTree, PyTree]:
    """Divide examples at random into those to train on and those to test on.

    Args:
      arrays: a pytree of arrays that share a leading axis [examples, …].
      fraction: the part of the examples to test on, between 0 and 1; rounded to whole examples.
      key: a PRNG key.

    Returns:
      Two pytrees like ``arrays``: to train on, and to test on.

    Raises:
      TypeError, ValueError: if the arrays share no leading axis, ``key`` is not a PRNG key, or
        either part would be empty.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> train, test = jaxfit.data.train_test_split(jnp.arange(10), 0.2, jax.random.key(0))
    >>> train.shape, test.shape, sorted([*train.tolist(), *test.tolist()]) == list(range(10))
    ((8,), (2,), True)
    """
    arrays, n = _check.examples("arrays", arrays)
    _shuffle.check_key(key)
    held_out = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < held_out < n:
        raise ValueError(
            f"fraction is {fraction} of {n} examples, but both parts need at least one: "
            f"give a part between 0 and 1, such as 0.2 to test on a fifth."
        )
    order = jax.random.permutation(key, n)

    def part(rows: jax.Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[rows], arrays)

    return part(order[held_out:]), part(order[:held_out])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """Batches as a function of the step, and a pytree of its arrays and key; see `minibatches`.

    Attributes:
      arrays: the examples, a pytree of arrays [examples, …].
      key: the PRNG key of the order or the draws; None with ``shuffle=False``.
      batch_size: the number of examples in a batch.
      shuffle: whether every epoch has an order of its own.
      replace: whether examples are drawn independently of each other.
    """

    arrays: PyTree
    key: Any
    batch_size: int = dataclasses.field(metadata={"static": True})
    shuffle: bool = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, step: jax.Array | int) -> Batch:
        """Return the batch of a step: a pytree like ``arrays`` with leaves [batch_size, …]."""
        # Unsigned, so that JAX adds no operation to wrap negative indices.
        rows = self.indices(step).astype(np.uint32)
        return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), self.arrays)

    def __len__(self) -> int:
        """Return the number of examples."""
        n: int = jax.tree.leaves(self.arrays)[0].shape[0]
        return n

    def __repr__(self) -> str:
        order = "with replacement" if self.replace else "shuffled" if self.shuffle else "in order"
        try:
            of = f"of {len(self)} examples, {order}, {self.steps_per_epoch} steps per epoch"
        except (AttributeError, IndexError, TypeError):  # after a jax.tree.map to other leaves
            of = f"examples, {order}"
        return f"Minibatches({self.batch_size} {of}: {_check.shapes(self.arrays)})"

    @property
    def steps_per_epoch(self) -> int:
        """Return the fewest steps that see every example; the last may begin the next epoch."""
        return -(-len(self) // self.batch_size)

    def epoch(self, step: jax.Array | int) -> jax.Array:
        """Return the epoch of the first example of a step's batch, counted from 0: int32 []."""
        epoch, _ = _shuffle.position(_shuffle.step_number(step), self.batch_size, len(self))
        return epoch.astype(np.int32)

    def indices(self, step: jax.Array | int) -> jax.Array:
        """Return the indices of the examples that a step sees: int32 [batch_size]."""
        n, step = len(self), _shuffle.step_number(step)
        if self.replace:
            key = jax.random.fold_in(self.key, step)
            return jax.random.randint(key, (self.batch_size,), 0, n, np.int32)
        return _shuffle.indices(self.key, step, self.batch_size, n).astype(np.int32)


def minibatches(
    arrays: PyTree,
    batch_size: int,
    key: PRNGKey | None = None,
    *,
    shuffle: bool = True,
    replace: bool = False,
) -> Minibatches:
    r"""Make a function of the step that returns a few examples, for ``train(…, data=…)``.

    The examples form an endless stream of epochs, each in an order of its own, and step t takes
    the positions :math:`tB, …, tB + B - 1` of the stream. So every epoch has every example exactly
    once, none is dropped, and a batch may end one epoch and begin the next.

    The batch of a step is a function of the key and the step alone, which may be traced. It takes
    the time and memory of the batch, whatever the number of examples: nothing is sorted, and there
    is no table of indices. The function is a pytree: pass it into a jitted function as an argument,
    so that the arrays are not compiled into the program as constants.

    Args:
      arrays: a pytree of arrays that share a leading axis [examples, …], fewer than 2**31.
      batch_size: B, the number of examples in a batch; at most that of all, unless ``replace``.
      key: a PRNG key, of either style; not needed with ``shuffle=False``.
      shuffle: whether every epoch has a random order; if not, all have the order of the arrays.
      replace: draw every example independently and uniformly, without epochs.

    Returns:
      A `Minibatches`: ``step -> batch``, a pytree like ``arrays`` with leaves [batch_size, …].

    Raises:
      TypeError, ValueError: if the arrays do not share a leading axis, the batch size does not
        fit, or ``key`` is missing or not a PRNG key.

    The permutation is the swap-or-not shuffle (Hoang, Morris and Rogaway 2012, `An Enciphering
    Scheme Based on a Card Shuffle <https://arxiv.org/abs/1208.1176>`_) of 24 rounds with a hash of
    32 bits, which has good statistics, but is no cipher.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> batches = jaxfit.minibatches({"x": jnp.arange(6.0)}, 2, jax.random.key(0))
    >>> batches
    Minibatches(2 of 6 examples, shuffled, 3 steps per epoch: {'x': float32[6]})
    >>> epoch = jnp.concatenate([batches(step)["x"] for step in range(batches.steps_per_epoch)])
    >>> sorted(epoch.tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    arrays, n = _check.examples("arrays", arrays)
    batch_size = _check.count("batch_size", batch_size)
    if n >= 2**31:
        raise ValueError(
            f"arrays have {n} examples, but their indices have 32 bits: give fewer than 2**31."
        )
    if replace and not shuffle:
        raise ValueError(
            "replace=True was given with shuffle=False, but examples drawn with replacement have "
            "no order to keep: leave one of them out."
        )
    if batch_size > n and not replace:
        raise ValueError(
            f"batch_size is {batch_size}, but there are only {n} examples: "
            f"give at most {n}, or replace=True."
        )
    if shuffle:
        _shuffle.check_key(key, ", or shuffle=False")
    return Minibatches(arrays, key if shuffle else None, batch_size, bool(shuffle), bool(replace))
