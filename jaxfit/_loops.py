"""The loops around a step. A step is a unit of compilation, so any of them gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxfit._step import Stepper
from jaxfit._types import PyTree, Row
from jaxfit.run import State

Carry = TypeVar("Carry")
Info = TypeVar("Info")

Steps: TypeAlias = Callable[[State, int], tuple[State, dict[str, PyTree]]]
"""Takes a number of steps; returns the State after them and, by name, what they leave, stacked."""


def repeat(
    take: Callable[[Carry], tuple[Carry, Any]], carry: Carry, number: int | jax.Array
) -> Carry:
    """Take steps without keeping anything of them, and return the carry after the last.

    Args:
      take: ``carry -> (carry, info)``, one step.
      carry: what the first step starts from.
      number: the number of steps, which may be traced.
    """
    after: Carry
    if isinstance(number, jax.Array):
        after = lax.fori_loop(0, number, lambda _, carry: take(carry)[0], carry)
    elif number == 0:
        after = carry
    else:
        after, _ = lax.scan(lambda carry, _: (take(carry)[0], None), carry, length=number)
    return after


def until(stepper: Stepper, stop: jax.Array | int) -> State:
    """Take steps up to the step ``stop``, which may be traced, and return the trained State there.

    Args:
      stepper: how steps are taken, and the state to start from.
      stop: int32 [], the step to stop before.
    """
    return lax.while_loop(
        lambda state: state.step < stop, lambda state: stepper.take(state)[0], stepper.state
    )


def blocks(
    body: Callable[[Carry, int], tuple[Carry, PyTree]], carry: Carry, total: int, every: int
) -> tuple[Carry, PyTree]:
    """Cut a number of steps into equal blocks and a remainder, and join what the blocks return.

    Args:
      body: ``(carry, steps) -> (carry, stacked)``, one block of a number of steps; ``stacked`` is
        a pytree of arrays with a leading axis.
      carry: what the first block starts from.
      total: the number of steps.
      every: the number of steps in a block; the last block has the remainder.

    Returns:
      The carry after the last block, and what the blocks returned, joined along the leading axis.
    """
    count, remainder = divmod(total, every)
    parts = []
    # A single block is the body of a loop as well: under vmap, its carry is then batched before the
    # first step, as it is in every other loop. A loop without blocks has the shapes of one.
    for length, number in ((count, every), (1, remainder)):
        if number and (length or not total):

            def block(carry: Carry, _: None, number: int = number) -> tuple[Carry, PyTree]:
                return body(carry, number)

            carry, stacked = lax.scan(block, carry, length=length)
            parts.append(jax.tree.map(_joined, stacked))
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)


def marked(body: Steps, every: int, name: str, show: Callable[[State], PyTree]) -> Steps:
    """Return a body that also shows the State before every few steps.

    Args:
      body: takes the steps between.
      every: the number of steps from one State that is shown to the next.
      name: the name of what is shown, among the names of what ``body`` leaves.
      show: what to keep of a State, a pytree of arrays.
    """

    def block(state: State, number: int) -> tuple[State, PyTree]:
        shown = show(state)
        after, kept = body(state, number)
        return after, {name: lead(shown), **kept}

    return lambda state, number: blocks(block, state, number, every)


def _joined(leaf: jax.Array) -> jax.Array:
    """Make one axis of the first two."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def recording(
    take: Callable[[Carry], tuple[Carry, Info]],
    row_of: Callable[[Carry, Info], Row],
    carry: Carry,
    num_rows: jax.Array | int,
    capacity: int,
    every: int | jax.Array,
) -> tuple[Carry, Row]:
    """Take steps, and keep a row of every few of them. The number of rows may be traced.

    Args:
      take: ``carry -> (carry, info)``, one step.
      row_of: ``(carry, info) -> row``, a pytree of arrays; the carry is that before the step.
      carry: what the first step starts from.
      num_rows: int32 [], the number of rows to fill, at most ``capacity``.
      capacity: the number of rows there is room for.
      every: the number of steps from one row to the next, which may be traced.

    Returns:
      The carry after the last step, and the rows [capacity, …], zeros where they are not filled.
    """

    def row(carry: Carry) -> tuple[Carry, Row]:
        after, info = take(carry)
        return repeat(take, after, every - 1), row_of(carry, info)

    def body(index: jax.Array, both: tuple[Carry, Row]) -> tuple[Carry, Row]:
        carry, rows = both
        carry, new = row(carry)
        return carry, jax.tree.map(lambda rows, new: rows.at[index].set(new), rows, new)

    _, shapes = jax.eval_shape(row, carry)
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)
    end: tuple[Carry, Row] = lax.fori_loop(0, num_rows, body, (carry, rows))
    return end


def lead(tree: PyTree) -> PyTree:
    """Give every leaf a leading axis of length 1."""
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)
