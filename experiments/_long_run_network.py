"""Define the character-level language model of ``long_run``: its loss, samples and evaluation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments._command import require
from experiments._long_run_text import CODES, CONTEXT, encode

PROMPT, TEMPERATURE = "\n    def ", 0.7


def network(key: jax.Array, width: int) -> dict[str, Any]:
    """Return a recurrent network made of Equinox modules, which are parameters as they are."""
    nn, keys = require("equinox", "Equinox").nn, jax.random.split(key, 3)
    return {
        "embed": nn.Embedding(CODES, 64, key=keys[0]),
        "cell": nn.GRUCell(64, width, key=keys[1]),
        "out": nn.Linear(width, CODES, key=keys[2]),
    }


def advance(model: Any, hidden: jax.Array, code: jax.Array) -> jax.Array:
    """Return the network's state after one more character."""
    return model["cell"](model["embed"](code), hidden)


def nats(model: Any, codes: jax.Array) -> jax.Array:
    """Return minus the log-likelihood of each character but the first, given those before it."""
    codes = codes.astype(jnp.int32)
    step = lambda hidden, code: (advance(model, hidden, code),) * 2
    _, hidden = lax.scan(step, jnp.zeros(model["cell"].hidden_size), codes[:-1])
    logits = jax.vmap(model["out"])(hidden)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, codes[1:])


def loss(model: Any, windows: jax.Array) -> jax.Array:
    """Return the mean loss of all characters in a batch of windows, in nats."""
    return jnp.mean(jax.vmap(functools.partial(nats, model))(windows))


@jax.jit
def sample(model: Any, key: jax.Array) -> jax.Array:
    """Return the codes of the prompt and of 200 characters that the network writes after it."""
    given = jnp.concatenate([encode(PROMPT).astype(np.int32), jnp.full(200, -1)])

    def write(carry, place):
        hidden, code = carry
        hidden = advance(model, hidden, code)
        drawn = jax.random.categorical(
            jax.random.fold_in(key, place), model["out"](hidden) / TEMPERATURE
        )
        code = jnp.where(given[place] < 0, drawn, given[place])
        return (hidden, code), code

    start = jnp.zeros(model["cell"].hidden_size), jnp.int32(0)
    return lax.scan(write, start, jnp.arange(len(given)))[1]


def restore_modules(model: Any, loaded: Any) -> Any:
    """Return the model with leaves from ``jaxfit.load``, which reads modules as dicts."""
    name = lambda key: getattr(key, "name", None) or key.key
    find = lambda path, _: functools.reduce(lambda node, key: node[name(key)], path, loaded)
    return jax.tree.map_with_path(find, model)


def held_out_bits(model: Any, text: np.ndarray) -> float:
    """Return bits per character, given the 64 to 127 before it; blank lines precede the text."""
    blank = np.zeros(CONTEXT, np.uint8)
    padded = np.concatenate([blank, text, blank])
    number = -(-len(text) // CONTEXT)
    windows = padded[CONTEXT * np.arange(number)[:, None] + np.arange(2 * CONTEXT)]
    one = lambda window: nats(model, window)[-CONTEXT:]
    losses = jax.jit(lambda windows: lax.map(one, windows, batch_size=256))(windows)
    return float(np.mean(np.asarray(losses, np.float64).ravel()[: len(text)]) / np.log(2))
