"""Train in epochs, validate after each, stop when it gets no better, and keep the best."""

from __future__ import annotations

from typing import Any

import jax
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy, objective
from jaxfit.models import mlp, mlp_init

loss, optimizer = objective(mlp, cross_entropy), optax.adam(0.01)


def train(
    params: Any, batches: jaxfit.data.Minibatches, held_out: Any, epochs: int, patience: int
) -> tuple[jaxfit.Run, jaxfit.State]:
    """Return the run, evaluated after each epoch, and its best State."""
    every = batches.steps_per_epoch
    run = jaxfit.fit(
        loss,
        params,
        optimizer,
        epochs * every,
        data=batches,
        record=jaxfit.record.state,  # one State per epoch, from which the best is reached again
        record_every=every,
        evaluate=lambda state: {"loss": loss(state.params, held_out)},
        evaluate_every=every,
        stop=jaxfit.stop.no_improvement(patience, of=lambda evaluation: evaluation["loss"]),
    )
    return run, jaxfit.best(loss, run, optimizer, "loss", data=batches)


def main() -> None:
    """Train on handwritten digits, and print the loss on the others after each epoch."""
    digits, held_out = split_digits(jax.random.key(0))
    batches = jaxfit.minibatches(digits, 64, jax.random.key(1))
    params = mlp_init(jax.random.key(2), (64, 64, 10))
    run, best = train(params, batches, held_out, epochs=100, patience=5)
    print("loss on held-out digits:", *run.evaluations["loss"].round(3).tolist())
    x, y = held_out
    print(f"{run.stop_reason}; the best State is that of step {int(best.step)},", end=" ")
    print(f"with accuracy {accuracy(mlp(best.params, x), y):.3f}")


if __name__ == "__main__":
    main()
