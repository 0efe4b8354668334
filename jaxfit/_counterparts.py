"""What the states of two optimizers have in common."""

from __future__ import annotations

from typing import Any

import jax

from jaxfit import _check, _tree
from jaxfit._types import OptState
from jaxfit.run import State


def with_counterparts(state: State, fresh: State) -> OptState:
    """Return the fresh optimizer state, with the parts it shares with the old one taken from it."""
    like_params = jax.tree.structure(_tree.partition(state.params)[0])

    def is_part(node: Any) -> bool:
        """Return whether a node is a state of optax's, and not a tree like the parameters."""
        fields = getattr(node, "_fields", None)
        # The rates in a state of inject_hyperparams belong to the optimizer: they are not gathered.
        if not isinstance(node, tuple) or fields is None or "hyperparams" in fields:
            return False
        structure: Any = jax.tree.structure(node)
        return bool(structure != like_params)

    def parts(node: Any) -> list[Any]:
        """List the parts in a node, outer ones first."""
        found = []
        for inner in jax.tree.leaves(list(node), is_leaf=is_part):
            if is_part(inner):
                found += [inner, *parts(inner)]
        return found

    unused: list[Any] = parts([state.opt_state])
    taken: dict[int, Any] = {}

    def pair(node: Any) -> None:
        """Find a counterpart for each part in a node, or for the parts in that part."""
        for inner in filter(is_part, jax.tree.leaves(list(node), is_leaf=is_part)):
            for index, other in enumerate(unused):
                if type(other) is type(inner) and not _check.difference(inner, other):
                    taken[id(inner)] = unused.pop(index)
                    break
            else:
                pair(inner)

    pair([fresh.opt_state])
    return jax.tree.map(
        lambda node: taken.get(id(node), node),
        fresh.opt_state,
        is_leaf=lambda node: id(node) in taken,
    )
