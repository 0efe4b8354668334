"""Train a Flax NNX model with batch normalisation and dropout: what it changes is the carry.

``nnx.split`` takes a model apart into its graph, its parameters, and all that it changes on the
way: running means and variances, and the counters that dropout's keys are made of.
"""

from __future__ import annotations

from functools import partial

import jax
import optax
from flax import nnx

import jaxfit
from experiments._command import split_digits
from jaxfit.losses import accuracy, cross_entropy


class Net(nnx.Module):
    """A perceptron that normalises its hidden layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 32, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def train(net: Net, batches: jaxfit.data.Minibatches, num_steps: int) -> tuple[Net, jaxfit.Run]:
    """Return the trained model, and its run."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def loss(params: nnx.State, rest: nnx.State, batch: tuple) -> tuple[jax.Array, nnx.State]:
        x, y = batch
        net = nnx.merge(graph, params, rest)
        value = cross_entropy(net(x), y)
        return value, nnx.split(net, nnx.Param, ...)[2]

    run = jax.jit(partial(jaxfit.train, loss, optimizer=optax.adam(0.01), num_steps=num_steps))
    found = run(params, data=batches, carry=rest)
    return nnx.merge(graph, found.state.params, found.state.carry), found


def main() -> None:
    """Train on handwritten digits, and print how many of the others the model reads."""
    digits, (x, y) = split_digits(jax.random.key(0))
    net, run = train(Net(nnx.Rngs(2)), jaxfit.minibatches(digits, 64, jax.random.key(1)), 500)
    net.eval()  # normalise by the running statistics
    print(f"{run}\naccuracy {accuracy(net(x), y):.3f}")


if __name__ == "__main__":
    main()
