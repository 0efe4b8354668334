"""Train in float16 with a dynamic loss scale, which is the carry.

Gradients in float16 lose what is below 6e-8 and overflow above 65504. So the loss is multiplied by
a scale before it is differentiated, and the gradient divided by it in float32. Where the gradient
overflows, the step is skipped and the scale halved; after a number of finite steps, it is doubled
(Micikevicius et al. 2018, `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_).

What the scale becomes depends on the gradient, so the loss computes the gradient by itself and
hands it on; ``optax.apply_if_finite`` skips the steps that overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy
from jaxfit.models import mlp, mlp_init


class Scale(NamedTuple):
    """The scale, float32 [], and how many steps in a row were finite, int32 []."""

    scale: jax.Array
    finite: jax.Array

    def after(self, finite: jax.Array, patience: int) -> Scale:
        """Return what becomes of the scale after a step that was finite or was not."""
        grows = self.finite == patience
        grown = jnp.where(grows, 2 * self.scale, self.scale)
        scale = jnp.where(finite, grown, jnp.maximum(self.scale / 2, 1.0))
        return Scale(scale, jnp.where(finite & ~grows, self.finite + 1, 0))


@jax.custom_vjp
def with_gradient(params: Any, value: jax.Array, gradient: Any) -> jax.Array:
    """Return the value, and say that its gradient with respect to params is this one."""
    return value


with_gradient.defvjp(
    lambda params, value, gradient: (value, gradient),
    lambda gradient, by: (jax.tree.map(lambda leaf: by * leaf, gradient), None, None),
)


def scaled(loss: Callable[[Any, Any], jax.Array], patience: int) -> Callable[..., Any]:
    """Return a loss with a `Scale` as its carry, which computes another one in float16."""

    def half(params: Any, batch: Any, scale: jax.Array) -> jax.Array:
        return loss(jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params), batch) * scale

    def with_scale(params: Any, carry: Scale, batch: Any) -> tuple[jax.Array, Scale]:
        value, gradient = jax.value_and_grad(half)(params, batch, carry.scale)
        gradient = jax.tree.map(lambda leaf: leaf / carry.scale, gradient)
        finite = jnp.isfinite(optax.tree.norm(gradient))
        value = with_gradient(params, value / carry.scale, gradient)
        return value, carry.after(finite, patience)

    return with_scale


def classification(params: Any, batch: tuple) -> jax.Array:
    """Return the cross entropy, float32 [], of a network that computes as its parameters do."""
    x, y = batch
    return cross_entropy(mlp(params, x.astype(jnp.float16)).astype(jnp.float32), y)


def train(
    params: Any, batches: jaxfit.data.Minibatches, num_steps: int, patience: int = 100
) -> jaxfit.Run:
    """Return the run, which also keeps the scale of every step."""
    optimizer = optax.apply_if_finite(optax.adam(0.01), max_consecutive_errors=100)
    kept = lambda step: {"loss": step.loss, "params": step.params, "scale": step.carry.scale}
    start = Scale(jnp.float32(2**20), jnp.int32(0))
    options = {"data": batches, "carry": start, "record": kept}
    return jaxfit.train(scaled(classification, patience), params, optimizer, num_steps, **options)


def main() -> None:
    """Train on handwritten digits; print the scale and how many of the others are read."""
    digits, (x, y) = split_digits(jax.random.key(0))
    batches = jaxfit.minibatches(digits, 64, jax.random.key(1))
    run = jax.jit(train, static_argnums=2)(mlp_init(jax.random.key(2), (64, 32, 10)), batches, 500)
    print("scale", *(f"2**{jnp.log2(scale):.0f}" for scale in run.trajectory["scale"][::50]))
    print(f"{run}\naccuracy {accuracy(mlp(run.state.params, x), y):.3f}")


if __name__ == "__main__":
    main()
