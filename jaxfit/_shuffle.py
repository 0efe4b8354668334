"""The order of examples: an endless stream of shuffled epochs, without a table of indices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfit import _check, _tree
from jaxfit._types import PRNGKey

_ROUNDS = 24


def check_key(key: Any, alternative: str = "") -> None:
    """Raise unless the key is one PRNG key, of either style.

    Args:
      key: what the user gave.
      alternative: what else can be done, for the end of the error.
    """
    typed = _tree.is_key(key)
    old = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim > 0
    if not typed and not old:
        given = _check.short(key) if hasattr(key, "dtype") else _check.show(key)
        raise TypeError(
            f"key is {given}, but must be a PRNG key: "
            f"give one, such as jax.random.key(0){alternative}."
        )
    if np.ndim(key) != (0 if typed else 1) or (old and key.shape[0] not in (2, 4)):
        raise ValueError(
            f"key is an array {_check.short(key)}, but must be one PRNG key: "
            f"pick one, or map over them with jax.vmap."
        )


def step_number(step: jax.Array | int) -> jax.Array:
    """Check the number of a step, and return it as uint32 []."""
    if isinstance(step, int | np.integer) and not 0 <= step < 2**31:
        raise ValueError(f"step is {step}, but steps are counted from 0 to 2**31 - 1.")
    number = jnp.asarray(step)
    if number.ndim or not jnp.issubdtype(number.dtype, jnp.integer):
        raise TypeError(
            f"step is {number.dtype}{list(number.shape)}, but must be one integer: "
            f"map over steps with jax.vmap."
        )
    return number.astype(np.uint32)


def position(step: jax.Array, batch_size: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Return the epoch and the place of a step's first example: ``divmod(step * batch_size, n)``.

    The product may need more than 32 bits, so it is never formed. This is long multiplication in
    base two, over the digits of the batch size: every partial product is kept as a quotient and a
    remainder by n, and the remainder, below 2**31, leaves one bit for the sum of two.

    Args:
      step: uint32, of any shape, below 2**31.
      batch_size: the number of examples in a batch, below 2**31.
      n: the number of examples in an epoch, below 2**31.

    Returns:
      The epoch and the place in it, both uint32 of the shape of ``step``.
    """
    quotient, remainder = step // np.uint32(n), step % np.uint32(n)
    epoch = place = jnp.zeros_like(step)
    for digit in f"{batch_size:b}":
        epoch, place = _carry(epoch + epoch, place + place, n)
        if digit == "1":
            epoch, place = _carry(epoch + quotient, place + remainder, n)
    return epoch, place


def _carry(epoch: jax.Array, place: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Return an epoch and a place below n, given a place below 2n."""
    over = place >= n
    return epoch + over.astype(np.uint32), jnp.where(over, place - np.uint32(n), place)


def indices(key: PRNGKey | None, step: jax.Array, batch_size: int, n: int) -> jax.Array:
    """Return the examples that a step sees.

    Args:
      key: the PRNG key of the order; None for the order of the examples themselves.
      step: uint32 [], below 2**31.
      batch_size: the number of examples in a batch, at most ``n``.
      n: the number of examples in an epoch, below 2**31.

    Returns:
      uint32 [batch_size], below n.
    """
    epoch, first = position(step, batch_size, n)
    place = first + np.arange(batch_size, dtype=np.uint32)
    in_next = place >= n
    place = jnp.where(in_next, place - np.uint32(n), place)
    return place if key is None else _shuffled(key, epoch, in_next, place, n)


def _shuffled(
    key: PRNGKey, epoch: jax.Array, in_next: jax.Array, place: jax.Array, n: int
) -> jax.Array:
    """Return the examples at some places of an epoch and the one after it.

    This is the swap-or-not shuffle: in every round, a place and its mirror image about a pivot are
    swapped or not, as decided by one bit of a hash that both share. The pivot belongs to the round.

    Args:
      key: the PRNG key of the order.
      epoch: uint32 [].
      in_next: boolean [places], whether a place is in ``epoch + 1`` instead of ``epoch``.
      place: uint32 [places], below n.
      n: the number of examples in an epoch.

    Returns:
      uint32 [places], below n.
    """
    words = jax.random.key_data(key) if _tree.is_key(key) else jnp.asarray(key)
    seeds = jnp.stack([epoch, epoch + np.uint32(1)])
    for word in words:
        seeds = _mixed(seeds ^ word)
    odd = np.arange(1, _ROUNDS + 1, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B9)
    # The keys of all rounds at once, [rounds, 2], which leaves so little for the loop that XLA
    # makes one kernel of it. Unrolled, the rounds would take minutes to compile on jax 0.12.
    keys = _mixed(seeds + odd)
    pivots = keys % np.uint32(n)

    def swap_or_not(
        place: jax.Array, of_round: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        key, pivot = (jnp.where(in_next, two[1], two[0]) for two in of_round)
        # (pivot - place) mod n in unsigned arithmetic: only the smaller of the two is below n.
        mirror = jnp.minimum(pivot - place, pivot - place + np.uint32(n))
        swap = _mixed(jnp.maximum(place, mirror) ^ key) >> 31 == 1
        return jnp.where(swap, mirror, place), None

    place, _ = lax.scan(swap_or_not, place, (keys, pivots))
    return place


def _mixed(word: jax.Array) -> jax.Array:
    """Mix 32 bits so that each depends on all: Wellons 2018, hash-prospector's lowbias32."""
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)
