"""The words of the signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import optax

from jaxfit.run import State, Step

PyTree: TypeAlias = Any

PRNGKey: TypeAlias = jax.Array
"""One PRNG key, of either style: ``key<fry>[]`` or ``uint32[2]``."""

Params: TypeAlias = PyTree
"""What is trained: floating and complex arrays, among leaves that ride along."""

OptState: TypeAlias = PyTree
"""What an optimizer remembers."""

Updates: TypeAlias = PyTree
"""Gradients, or what is added to the parameters; None in place of leaves that are not trained."""

Batch: TypeAlias = PyTree
"""What the loss sees at one step: a tree of arrays ``[examples, …]``."""

Row: TypeAlias = PyTree
"""What a recorder returns: a tree of arrays and numbers."""

Data: TypeAlias = Batch | Callable[[jax.Array], Batch]
"""What all steps see, or a function of the step (int32 []) that returns what it sees."""

Loss: TypeAlias = Callable[..., Any]
"""``loss(params) -> scalar`` or ``loss(params, batch) -> scalar``; or a pair of that and aux."""

Recorder: TypeAlias = Callable[[Step], Row]
"""What to keep of a step."""


Evaluate: TypeAlias = Callable[[State], PyTree]
"""What to compute of a State once in a while: a tree of arrays and numbers."""


Callback: TypeAlias = Callable[[State, Row, PyTree], bool | None]
"""``(state, rows, evaluation) -> whether to end the run there``, on the host."""


class HasInitAndUpdate(Protocol):
    """What optax calls a gradient transformation, such as ``optax.MultiSteps``."""

    init: Callable[..., OptState]
    update: Callable[..., Any]


Optimizer: TypeAlias = (
    optax.GradientTransformation | HasInitAndUpdate | Callable[[Updates, Params], Updates]
)
"""An optax optimizer, or a rule (gradients, parameters) → updates."""
