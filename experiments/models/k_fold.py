"""Choose a penalty by k-fold cross-validation: penalties and folds are the axes of a sweep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxfit
from jaxfit.losses import l2, mse
from jaxfit.models import linear


def split(order: jax.Array, fold: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which examples to train on and to test on, by rows of ``order`` [folds, size]."""
    rolled = jnp.roll(order, -fold, axis=0)
    return rolled[1:].ravel(), rolled[0]


def cross_validate(
    data: tuple, penalties: jax.Array, folds: int, key: jax.Array, num_steps: int
) -> jaxfit.Sweep:
    """Return the errors on what each fold leaves out, [penalties, folds]."""
    x, y = data
    size = len(y) // folds
    order = jax.random.permutation(key, len(y))[: folds * size].reshape(folds, size)

    def error(penalty: jax.Array, fold: jax.Array) -> jax.Array:
        train, test = split(order, fold)
        loss = lambda a, batch: mse(linear(a, batch[0]), batch[1]) + penalty * l2(a)
        start = jnp.zeros(x.shape[1])
        run = jaxfit.train(loss, start, optax.sgd(0.1), num_steps, data=(x[train], y[train]))
        return mse(linear(run.state.params, x[test]), y[test])

    return jaxfit.sweep(error, {"penalty": penalties, "fold": jnp.arange(folds)}, progress=False)


def problem(key: jax.Array) -> tuple[jax.Array, Any]:
    """Draw 60 noisy examples of 40 features, which need a penalty."""
    x, y, _ = jaxfit.data.linear_problem(key, 60, 40, condition=10.0, noise=1.0)
    return x, y


def main() -> None:
    """Print the mean error at each penalty, and the best."""
    penalties = jnp.geomspace(1e-4, 10.0, 11)
    found = cross_validate(problem(jax.random.key(0)), penalties, 5, jax.random.key(1), 2000)
    errors = found.values.mean(axis=1)
    for penalty, error in zip(penalties, errors, strict=True):
        print(f"penalty {penalty:8.4f}   error {error:.3f}")
    print(f"best: {penalties[errors.argmin()]:.4f}")


if __name__ == "__main__":
    main()
