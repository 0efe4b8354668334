"""Train an Equinox model with batch normalisation: its ``eqx.nn.State`` is the carry."""

from __future__ import annotations

import equinox as eqx
import jax
import optax

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy


class Net(eqx.Module):
    """A perceptron that normalises its hidden layer."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 32, use_bias=False, key=first)
        self.norm = eqx.nn.BatchNorm(32, axis_name="batch", mode="batch")
        self.out = eqx.nn.Linear(32, 10, key=second)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.hidden(x), state)
        return self.out(jax.nn.relu(x)), state


def apply(net: Net, state: eqx.nn.State, x: jax.Array) -> tuple[jax.Array, eqx.nn.State]:
    """Return the logits of many examples [examples, 10], and the state after them."""
    return jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def loss(net: Net, state: eqx.nn.State, batch: tuple) -> tuple[jax.Array, eqx.nn.State]:
    """Return the cross entropy of a batch, and the state after it."""
    x, y = batch
    logits, state = apply(net, state, x)
    return cross_entropy(logits, y), state


@eqx.filter_jit
def train(
    net: Net, state: eqx.nn.State, batches: jaxfit.data.Minibatches, num_steps: int
) -> jaxfit.Run:
    """Return the run, whose state has the trained model as params and its state as carry."""
    return jaxfit.train(loss, net, optax.adam(0.01), num_steps, data=batches, carry=state)


def main() -> None:
    """Train on handwritten digits, and print how many of the others the model reads."""
    digits, (x, y) = split_digits(jax.random.key(0))
    net, state = eqx.nn.make_with_state(Net)(jax.random.key(2))
    run = train(net, state, jaxfit.minibatches(digits, 64, jax.random.key(1)), 500)
    net = eqx.nn.inference_mode(run.state.params)  # normalise by the running statistics
    logits, _ = apply(net, run.state.carry, x)
    print(f"{run}\naccuracy {accuracy(logits, y):.3f}")


if __name__ == "__main__":
    main()
