"""The loops around a step. A step is a unit of compilation, so any of them makes the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxfit._step import Stepper
from jaxfit.run import State


def repeat(take: Callable, carry: Any, number: int) -> Any:
    """Take steps, keep nothing of them, and return the carry after them."""
    if number == 0:
        return carry
    return lax.scan(lambda carry, _: (take(carry)[0], None), carry, length=number)[0]


def until(stepper: Stepper, stop: jax.Array | int) -> State:
    """Take steps until a step, whose number may be traced; return the trained state there."""
    return lax.while_loop(
        lambda state: state.step < stop, lambda state: stepper.take(state)[0], stepper.state
    )


def blocks(body: Callable, carry: Any, total: int, every: int) -> tuple[Any, Any]:
    """Run ``body(carry, n)`` for n = every, every, … and the remainder; join what it returns."""
    count, remainder = divmod(total, every)
    parts = []
    # A single block is the body of a loop as well: under vmap, what is carried is then batched
    # before the first step as it is after it.
    for length, number in ((count, every), (1, remainder)):
        if length and number:
            turn = lambda carry, _, number=number: body(carry, number)
            carry, stacked = lax.scan(turn, carry, length=length)
            join = lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
            parts.append(jax.tree.map(join, stacked))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)


def recording(
    take: Callable,
    row_of: Callable,
    carry: Any,
    num_rows: jax.Array | int,
    capacity: int,
    every: int,
) -> tuple[Any, Any]:
    """Take the steps that leave rows, whose number may be traced.

    Args:
      take: ``carry -> (carry, info)``, one step.
      row_of: ``(carry, info) -> row``, a pytree of arrays.
      carry: what the first step starts from.
      num_rows: how many rows to fill, at most ``capacity``.
      capacity: how many rows there is room for.
      every: how many steps there are from one row to the next.

    Returns:
      The carry after the last step, and the rows [capacity, …].
    """

    def row(carry):
        after, info = take(carry)
        return repeat(take, after, every - 1), row_of(carry, info)

    def body(index, both):
        carry, rows = both
        carry, new = row(carry)
        return carry, jax.tree.map(lambda rows, new: rows.at[index].set(new), rows, new)

    _, shapes = jax.eval_shape(row, carry)
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    return lax.fori_loop(0, num_rows, body, (carry, rows))


def lead(tree: Any) -> Any:
    """Give every leaf a leading axis of length 1."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)
