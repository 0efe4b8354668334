"""Data as pure functions of a key: problems to try things on, and minibatches of any arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check, _tree

__all__ = [
    "Minibatches",
    "line",
    "linear_problem",
    "minibatches",
    "standardize",
    "train_test_split",
]


def line(
    key: jax.Array, n: int = 100, coefficients: Sequence[float] | jax.Array = (3.0, 2.0)
) -> tuple[jax.Array, jax.Array]:
    r"""Draw noisy points on a line: the data of the lesson on gradient descent.

    .. math:: y_i = c_1 x_i + c_2 + u_i, \qquad x_i \sim U(-1, 1), \quad u_i \sim U(0, 1).

    The noise has mean 1/2, so the best intercept is :math:`c_2 + 1/2`, and variance 1/12, which is
    the least mean squared error.

    Args:
      key: a PRNG key.
      n: how many points.
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
    key: jax.Array, n: int, features: int, *, condition: float = 1.0, noise: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Draw a least-squares problem of a given condition number.

    The singular values of :math:`x/\sqrt{n}` are spaced geometrically, so that the eigenvalues of
    the Hessian of half the mean squared error, :math:`x^\top x / n`, run from 1 down to exactly
    :math:`1/\kappa`; its eigenvectors are random.

    Args:
      key: a PRNG key.
      n: how many examples, at least ``features``.
      features: how many columns x has.
      condition: :math:`\kappa \ge 1`, the largest eigenvalue of the Hessian over its smallest.
      noise: the standard deviation of the Gaussian noise in y.

    Returns:
      x [n, features], y [n] and the coefficients [features], drawn from N(0, 1), with
      ``y = x @ coefficients + noise * N(0, 1)``.

    Raises:
      ValueError: if ``n < features``, or no such matrix has this condition number.

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

    Args:
      x: [examples, …], finite.

    Returns:
      z [examples, …], the means […] and the standard deviations […], to be applied to other
      examples as ``(x - mean) / deviation``, all of the floating dtype of x. The deviation of a
      column that is constant is given as 1, so that it becomes zero.

      Sums are taken in float32 or wider, of columns scaled by powers of two, so that neither large
      numbers nor small ones leave the range of the dtype when they are squared.

    >>> import jax.numpy as jnp, jaxfit
    >>> z, mean, deviation = jaxfit.data.standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> z.tolist(), mean.tolist(), deviation.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [2.0, 5.0], [1.0, 1.0])
    """
    dtype = jnp.result_type(x, float)
    x = jnp.asarray(x, dtype if jnp.finfo(dtype).bits > 16 else np.float32)
    constant = jnp.max(x, axis=0) == jnp.min(x, axis=0)
    # Powers of two change no digit, and need no derivative. XLA divides by their reciprocals, which
    # must not be too small for the dtype.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(lax.stop_gradient(x)), axis=0))
    least = jnp.finfo(x.dtype).minexp
    scale = jnp.ldexp(jnp.ones_like(x[0].real), jnp.clip(exponent, least, -least))
    x = x / scale
    # The mean of equal numbers can be rounded, and the deviation is then not quite zero.
    mean = jnp.where(constant, x[0], jnp.mean(x, axis=0))
    deviation = jnp.sqrt(jnp.where(constant, 1, jnp.var(x, axis=0)))
    z = (x - mean) / deviation
    deviation = jnp.where(constant, 1, deviation * scale)
    return z.astype(dtype), (mean * scale).astype(dtype), deviation.astype(jnp.finfo(dtype).dtype)


def train_test_split(arrays: Any, fraction: float, key: jax.Array) -> tuple[Any, Any]:
    """Divide examples at random into those to train on and those to test on.

    Args:
      arrays: a pytree of arrays that share a leading axis [examples, …].
      fraction: the part of the examples to test on, between 0 and 1; rounded to whole examples.
      key: a PRNG key.

    Returns:
      Two pytrees like ``arrays``: to train on, and to test on.

    Raises:
      TypeError, ValueError: if the arrays do not share a leading axis, the key is not one, or
        either part would be empty.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> train, test = jaxfit.data.train_test_split(jnp.arange(10), 0.2, jax.random.key(0))
    >>> train.shape, test.shape, sorted([*train.tolist(), *test.tolist()]) == list(range(10))
    ((8,), (2,), True)
    """
    arrays, n = _check.examples("arrays", arrays)
    _check.key(key)
    held_out = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < held_out < n:
        raise ValueError(
            f"fraction is {fraction} of {n} examples, but both parts need at least one: "
            f"give a part between 0 and 1, such as 0.2 to test on a fifth."
        )
    order = jax.random.permutation(key, n)
    part = lambda rows: jax.tree.map(lambda leaf: leaf[rows], arrays)
    return part(order[held_out:]), part(order[:held_out])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """What `minibatches` returns: a function of the step, and a pytree of its arrays and its key.

    ``batches(step)`` is a pytree like ``arrays``, [batch_size, …]; ``len(batches)`` is the number
    of examples.

    Attributes:
      arrays: the examples, a pytree of arrays [examples, …].
      key: the PRNG key of the order; None if there is nothing random in it.
      batch_size: how many examples a step sees.
      shuffle: whether every epoch has an order of its own.
      replace: whether examples are drawn independently of each other.
    """

    arrays: Any
    key: Any
    batch_size: int = dataclasses.field(metadata={"static": True})
    shuffle: bool = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, step: jax.Array | int) -> Any:
        rows = self.indices(step).astype(np.uint32)  # without a sign, for there is none to mend
        return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="promise_in_bounds"), self.arrays)

    def __len__(self) -> int:
        return jax.tree.leaves(self.arrays)[0].shape[0]

    @property
    def steps_per_epoch(self) -> int:
        """The fewest steps that see every example; the last of them may begin the next epoch."""
        return -(-len(self) // self.batch_size)

    def epoch(self, step: jax.Array | int) -> jax.Array:
        """Return the epoch of the first example of a step's batch, counted from 0: int32 []."""
        epoch, _ = _position(_step(step), self.batch_size, len(self))
        return epoch.astype(np.int32)

    def indices(self, step: jax.Array | int) -> jax.Array:
        """Return which examples a step sees: int32 [batch_size]."""
        n, step = len(self), _step(step)
        if self.replace:
            key = jax.random.fold_in(self.key, step)
            return jax.random.randint(key, (self.batch_size,), 0, n, np.int32)
        epoch, first = _position(step, self.batch_size, n)
        place = first + np.arange(self.batch_size, dtype=np.uint32)
        after = place >= n  # those of the next epoch
        place = jnp.where(after, place - np.uint32(n), place)
        if self.shuffle:
            place = _shuffled(self.key, epoch, after, place, n)
        return place.astype(np.int32)


def minibatches(
    arrays: Any,
    batch_size: int,
    key: jax.Array | None = None,
    *,
    shuffle: bool = True,
    replace: bool = False,
) -> Minibatches:
    r"""Make a function of the step that returns a few examples, for ``train(…, data=…)``.

    The examples go by in an endless stream of epochs, each a permutation of its own, of which step
    t takes the positions :math:`tB, …, tB + B - 1`. So every epoch has every example exactly once,
    none is dropped, and a batch may end one epoch and begin the next.

    The batch at a step is a function of the key and the step alone, in time and memory of the
    batch, whatever the number of examples: nothing is sorted, and there is no table of indices.
    It can be used inside ``jax.jit``, with the step traced, and ``jax.vmap``, over keys. To keep
    the arrays from being baked into a compiled program, pass what this returns into the jitted
    function; it is a pytree.

    Args:
      arrays: a pytree of arrays that share a leading axis [examples, …], fewer than 2**31.
      batch_size: how many examples a step sees, B; at most all, unless ``replace``.
      key: a PRNG key, of either style; needed unless ``shuffle=False``.
      shuffle: whether every epoch has a random order; otherwise all have the order of the arrays.
      replace: draw every example independently and uniformly, with no regard to epochs.

    Returns:
      A `Minibatches`: a function ``step -> batch``, whose batches are pytrees like ``arrays`` with
      leaves [batch_size, …]. ``len`` of it is the number of examples; ``steps_per_epoch``,
      ``epoch(step)`` and ``indices(step)`` say what their names do.

    Raises:
      TypeError, ValueError: if the arrays do not share a leading axis, the batch size does not
        fit, or a key is missing or is not one.

    The permutation is the swap-or-not shuffle of Hoang, Morris and Rogaway 2012, `An Enciphering
    Scheme Based on a Card Shuffle <https://arxiv.org/abs/1208.1176>`_, with 24 rounds and a mixing
    function of 32 bits: a shuffle with good statistics, not a cipher.

    >>> import jax, jax.numpy as jnp, jaxfit
    >>> batches = jaxfit.minibatches({"x": jnp.arange(6.0)}, 2, jax.random.key(0))
    >>> epoch = jnp.concatenate([batches(step)["x"] for step in range(batches.steps_per_epoch)])
    >>> sorted(epoch.tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    arrays, n = _check.examples("arrays", arrays)
    batch_size = _check.count("batch_size", batch_size)
    if n >= 2**31:
        raise ValueError(
            f"arrays have {n} examples, but their indices are kept in 32 bits: "
            f"give fewer than 2**31."
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
        _check.key(key, ", or shuffle=False")
    return Minibatches(arrays, key if shuffle else None, batch_size, bool(shuffle), bool(replace))


def _step(step: jax.Array | int) -> jax.Array:
    """Return the number of a step, as 32 bits without a sign."""
    if isinstance(step, int | np.integer) and not 0 <= step < 2**31:
        raise ValueError(f"step is {step}, but steps are counted from 0 to 2**31 - 1.")
    number = jnp.asarray(step)
    if number.ndim or not jnp.issubdtype(number.dtype, jnp.integer):
        raise TypeError(
            f"step is {number.dtype}{list(number.shape)}, but must be one integer: "
            f"map over steps with jax.vmap."
        )
    return number.astype(np.uint32)


def _position(step: jax.Array, batch_size: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Return the epoch and place of ``step * batch_size``, which itself may take more than 32 bits.

    Long multiplication in base two, over the digits of the batch size: every partial product is
    kept as (quotient, remainder) by n, and the remainder, below 2**31, has a bit to spare.
    """
    whole, part = step // np.uint32(n), step % np.uint32(n)
    epoch = place = jnp.zeros_like(step)
    for digit in f"{batch_size:b}":
        epoch, place = _carry(epoch + epoch, place + place, n)
        if digit == "1":
            epoch, place = _carry(epoch + whole, place + part, n)
    return epoch, place


def _carry(epoch: jax.Array, place: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    over = place >= n
    return epoch + over.astype(np.uint32), jnp.where(over, place - np.uint32(n), place)


def _shuffled(
    key: jax.Array, epoch: jax.Array, after: jax.Array, place: jax.Array, n: int, rounds: int = 24
) -> jax.Array:
    """Return the examples at some places of an epoch, or of the next where ``after`` says so.

    The swap-or-not shuffle: in every round a place and its mirror image, both from a pivot that
    belongs to the round, change places or do not, by a bit of a hash that both share.
    """
    words = jax.random.key_data(key) if _tree.is_key(key) else jnp.asarray(key)
    seeds = jnp.stack([epoch, epoch + np.uint32(1)])
    for word in words:
        seeds = _mixed(seeds ^ word)
    odd = np.arange(1, rounds + 1, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B9)
    # All rounds' keys at once, [rounds, 2]: what is left for the loop is small, and XLA makes one
    # kernel of it. Unrolled, the rounds take minutes to compile on jax 0.12.
    keys = _mixed(seeds + odd)
    pivots = keys % np.uint32(n)

    def round_(place, of_round):
        key, pivot = (jnp.where(after, two[1], two[0]) for two in of_round)
        # (pivot - place) mod n: one of the two has wrapped around 2**32, and is the larger one.
        mirror = jnp.minimum(pivot - place, pivot - place + np.uint32(n))
        swap = _mixed(jnp.maximum(place, mirror) ^ key) >> 31 == 1
        return jnp.where(swap, mirror, place), None

    place, _ = lax.scan(round_, place, (keys, pivots))
    return place


def _mixed(word: jax.Array) -> jax.Array:
    """Mix 32 bits so that each depends on all: Wellons 2018, hash-prospector's lowbias32."""
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)
