"""Keep an exponential moving average of the parameters, which is the carry.

The loss is given the parameters before each update, so the carry of a `State` lacks its own
parameters; `average` adds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init

DECAY = 0.98


def averaging(loss: Callable[[Any, Any], jax.Array]) -> Callable[..., Any]:
    """Return a loss that averages the parameters that it is given, in its carry."""

    def with_average(params: Any, average: Any, batch: Any) -> tuple[jax.Array, Any]:
        return loss(params, batch), optax.incremental_update(params, average, 1 - DECAY)

    return with_average


def average(state: jaxfit.State) -> Any:
    """Return the average over all parameters up to those of a State."""
    return optax.incremental_update(state.params, state.carry, 1 - DECAY)


def train(
    params: Any, batches: jaxfit.data.Minibatches, held_out: Any, num_steps: int
) -> jaxfit.Run:
    """Return the run, evaluated on other data at the parameters and at their average."""
    x, y = held_out

    def evaluate(state: jaxfit.State) -> dict[str, jax.Array]:
        points = {"last": state.params, "average": average(state)}
        return {name: accuracy(mlp(point, x), y) for name, point in points.items()}

    loss = averaging(objective(mlp, cross_entropy))
    options = {"data": batches, "carry": params, "evaluate": evaluate, "evaluate_every": 50}
    return jaxfit.train(loss, params, optax.adam(0.03), num_steps, **options)


def main() -> None:
    """Train on handwritten digits, and print how many of the others are read on the way."""
    digits, held_out = split_digits(jax.random.key(0))
    batches = jaxfit.minibatches(digits, 16, jax.random.key(1))
    params = mlp_init(jax.random.key(2), (64, 32, 10))
    run = jax.jit(train, static_argnums=3)(params, batches, held_out, 500)
    print("step   accuracy: of the last parameters, of their average")
    found = run.evaluations["last"], run.evaluations["average"]
    for step, last, mean in zip(run.evaluated_steps, *found, strict=True):
        print(f"{step:4}{last:26.3f}{mean:18.3f}")


if __name__ == "__main__":
    main()
