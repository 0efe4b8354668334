"""Search with Optuna: ask for 64 points at a time, run them as one sweep, and tell the results."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna

import jaxfit
from jaxfit.losses import cross_entropy, l2, objective
from jaxfit.models import mlp, mlp_init

AT_ONCE, ROUNDS, STEPS = 64, 3, 300
SPACE = {
    "lr": optuna.distributions.FloatDistribution(1e-4, 10.0, log=True),
    "momentum": optuna.distributions.FloatDistribution(0.0, 0.99),
    "penalty": optuna.distributions.FloatDistribution(1e-6, 1e-1, log=True),
}


def rings(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Draw points [n, 2] of three rings around each other, and which ring each belongs to, [n]."""
    ring, angle, off = jax.random.split(key, 3)
    y = jax.random.randint(ring, (n,), 0, 3)
    angle = jax.random.uniform(angle, (n,), maxval=2 * jnp.pi)
    radius = 1.0 + y + 0.3 * jax.random.normal(off, (n,))
    return radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1), y


def held_out_loss(point: dict[str, jax.Array]) -> jax.Array:
    """Train a perceptron at a point of the space, and return its loss on other data."""
    train, test = rings(jax.random.key(0), 256), rings(jax.random.key(1), 256)
    loss = objective(mlp, cross_entropy)
    penalised = lambda params, batch: loss(params, batch) + point["penalty"] * l2(params)
    optimizer = optax.sgd(point["lr"], point["momentum"])
    batches = jaxfit.minibatches(train, 32, jax.random.key(2))
    params = mlp_init(jax.random.key(3), (2, 16, 3))
    record = lambda step: step.loss
    run = jaxfit.train(penalised, params, optimizer, STEPS, data=batches, record=record)
    return loss(run.state.params, test)


def search(seed: int, at_once: int = AT_ONCE, rounds: int = ROUNDS) -> Any:
    """Return Optuna's study after some rounds of trials."""
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    for _ in range(rounds):
        trials = [study.ask(SPACE) for _ in range(at_once)]
        points = {name: np.float32([trial.params[name] for trial in trials]) for name in SPACE}
        losses = jaxfit.sweep(held_out_loss, {"point": points}).values
        for trial, loss in zip(trials, losses.tolist(), strict=True):
            failed = optuna.trial.TrialState.FAIL
            study.tell(trial, loss) if np.isfinite(loss) else study.tell(trial, state=failed)
    return study


def main() -> None:
    """Print the best point."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = search(0)
    print(f"{len(study.trials)} trials in {ROUNDS} sweeps: {study.best_value:.4f} at")
    print(", ".join(f"{name} {value:.3g}" for name, value in study.best_params.items()))


if __name__ == "__main__":
    main()
