"""Ready-made recorders: the functions that decide what a run keeps of every step.

A recorder is any function of a `Step` that returns a pytree of arrays; ``train`` stacks these rows
along a leading axis [rows]. A lambda is enough; these are the common ones.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxfit import _tree
from jaxfit.run import State, Step

__all__ = ["metrics", "state", "whole"]


def whole(step: Step) -> dict[str, Any]:
    """Keep the step's number, parameters and loss, and aux if the loss returns one.

    Args:
      step: one step of a run.

    Returns:
      ``{"step": int32 [], "params": pytree, "loss": floating []}``, and ``"aux"`` with ``has_aux``.

    >>> import jax.numpy as jnp, optax, jaxfit
    >>> run = jaxfit.train(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.25), 3)
    >>> run.trajectory["params"]
    Array([0.  , 0.5 , 0.75], dtype=float32)
    """
    kept = {"step": step.step, "params": step.params, "loss": step.loss}
    return kept if step.aux is None else kept | {"aux": step.aux}


def metrics(step: Step) -> dict[str, jax.Array]:
    r"""Keep five numbers: step, loss, and the norms of gradient, update and parameters.

    Each norm is Euclidean, over all trained leaves together: :math:`\sqrt{\sum_i |v_i|^2}`.

    Args:
      step: one step of a run.

    Returns:
      ``{"step", "loss", "grad_norm", "update_norm", "param_norm"}``, each a scalar.

    >>> import optax, jaxfit
    >>> run = jaxfit.train(
    ...     lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.25), 3, record=jaxfit.record.metrics)
    >>> run.trajectory["grad_norm"]
    Array([2. , 1. , 0.5], dtype=float32)
    """
    return {
        "step": step.step,
        "loss": step.loss,
        "grad_norm": optax.tree.norm(step.grads),
        "update_norm": optax.tree.norm(step.updates),
        "param_norm": optax.tree.norm(_tree.partition(step.params)[0]),
    }


def state(step: Step) -> State:
    """Keep the `State` before the step's update, from which a run can go on.

    Args:
      step: one step of a run.

    Returns:
      A `State`. Row t of the trajectory can be given to ``train`` as its ``params``.

    >>> import jax, optax, jaxfit
    >>> loss = lambda a: (a - 1.0) ** 2
    >>> run = jaxfit.train(loss, 0.0, optax.sgd(0.25), 3, record=jaxfit.record.state)
    >>> second = jax.tree.map(lambda leaf: leaf[1], run.trajectory)
    >>> jaxfit.train(loss, second, optax.sgd(0.25), 2).state.params == run.state.params
    Array(True, dtype=bool)
    """
    return step.state
