"""What is refused, in a sentence that says what was given and what to do, before compiling."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxfit
from tests.common import guess, loss

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
)

sgd = optax.sgd(0.1)
x, y = jnp.ones((5, 2)), jnp.ones(5)
data = {"data": (x, y)}
pair = {"w": jnp.ones(2), "b": jnp.ones(2)}
pair_loss = lambda params, batch: loss(params["w"] * params["b"], batch)
private = optax.GradientTransformation(
    lambda params: optax.contrib.DifferentiallyPrivateAggregateState(jax.random.key(0)),
    lambda grads, state, params=None: (grads, state),
)
growing = optax.GradientTransformation(
    lambda params: jnp.zeros(()), lambda grads, state, params=None: (grads, jnp.stack([state] * 2))
)


def train(loss=loss, params=guess, optimizer=sgd, num_steps=3, **options):
    return lambda: jaxfit.train(loss, params, optimizer, num_steps, **options)


def adam_state(params=guess):
    return jaxfit.init(params, optax.adam(0.1))


REFUSED = {
    # the loss
    "a loss that is no function": (train("mse", **data), TypeError, "loss is 'mse'"),
    "a loss that is not a scalar": (
        train(lambda a, b: b[0] @ a - b[1], **data),
        ValueError,
        "returned float32[5], but one scalar was expected: take its mean",
    ),
    "a loss that is a dict": (
        train(lambda a, b: {"loss": jnp.sum(a)}, **data),
        ValueError,
        "{'loss': float32[]}",
    ),
    "an integer loss": (
        train(lambda a, b: jnp.sum(a > 0), **data),
        TypeError,
        "a real floating number was expected",
    ),
    "a complex loss": (train(lambda a, b: jnp.sum(a) * 1j, **data), TypeError, "its real part"),
    "a loss without the parameters": (
        train(lambda a, b: jnp.mean(b[1]), **data),
        ValueError,
        "does not depend on the parameters",
    ),
    "aux without has_aux": (
        train(lambda a, b: (jnp.sum(a), a), **data),
        TypeError,
        "give has_aux=True",
    ),
    "has_aux without aux": (
        train(has_aux=True, **data),
        TypeError,
        "has_aux=True was given, but the loss returned float32[]",
    ),
    "data for a loss that takes none": (
        train(lambda a: jnp.sum(a), **data),
        TypeError,
        "data was given",
    ),
    "no data for a loss that takes some": (train(), TypeError, "no data was given"),
    # the parameters
    "no trainable leaf": (
        train(params=jnp.array([-1, 1]), **data),
        ValueError,
        "write 1.0 where 1 was meant",
    ),
    "no leaf at all": (train(params=None, **data), ValueError, "nothing to train"),
    # the lengths
    "no steps": (train(num_steps=0, **data), ValueError, "num_steps is 0"),
    "half a step": (train(num_steps=2.5, **data), TypeError, "num_steps is 2.5"),
    "steps as text": (train(num_steps="3", **data), TypeError, "num_steps is '3'"),
    "steps as a truth": (train(num_steps=True, **data), TypeError, "num_steps is True"),
    "too many steps": (train(num_steps=2**31, **data), ValueError, "below 2**31"),
    "record_every 0": (train(record_every=0, **data), ValueError, "record_every is 0"),
    "keyframe_every 0": (train(keyframe_every=0, **data), ValueError, "keyframe_every is 0"),
    "keyframes inside of rows": (
        train(record_every=2, keyframe_every=3, **data),
        ValueError,
        "make keyframe_every a multiple of record_every",
    ),
    # the data
    "ragged data": (train(data=(x, y[:3])), ValueError, "(5, 2) and (3,)"),
    "data without an axis": (train(data=3.0), ValueError, "share one leading axis"),
    "one leaf without an axis": (train(data=(x, 1.0)), ValueError, "(5, 2) and ()"),
    "no arrays in data": (train(data=()), ValueError, "arrays of shape none"),
    "text in data": (train(data=(x, "y")), TypeError, "jnp.asarray"),
    "a data function without step": (train(data=lambda: (x, y)), TypeError, "the step"),
    # the optimizer
    "a factory": (train(optimizer=optax.adam, **data), TypeError, "call a factory"),
    "a class": (train(optimizer=optax.GradientTransformation, **data), TypeError, "build one"),
    "a schedule": (
        train(optimizer=optax.cosine_decay_schedule(0.1, 3), **data),
        TypeError,
        "give a schedule to an optimizer as its learning rate",
    ),
    "a name": (train(optimizer="adam", **data), TypeError, "optimizer is 'adam'"),
    "a rate": (train(optimizer=0.1, **data), TypeError, "optimizer is 0.1"),
    "a rule of the wrong structure": (
        train(optimizer=lambda grads, params: (grads, grads), **data),
        ValueError,
        "one structure",
    ),
    "a rule that would broadcast": (
        train(optimizer=lambda grads, params: grads[:1], **data),
        ValueError,
        "returned float32[1] as updates of float32[2]",
    ),
    "a state that grows": (
        train(optimizer=growing, **data),
        ValueError,
        "float32[2] in the place of float32[]",
    ),
    "optax.monitor": (
        train(optimizer=optax.chain(sgd, optax.monitor({"norm": optax.tree.norm})), **data),
        ValueError,
        "record with record=",
    ),
    "a private optimizer": (train(optimizer=private, **data), ValueError, "per-example gradients"),
    "lookahead without its pair": (
        train(optimizer=optax.lookahead(sgd, 5, 0.5), **data),
        ValueError,
        "LookaheadParams.init_synced",
    ),
    "a masked line search": (
        train(pair_loss, pair, optax.masked(optax.lbfgs(), {"w": True, "b": False}), **data),
        ValueError,
        "let that be outermost",
    ),
    "sam in a chain": (
        train(optimizer=optax.chain(optax.clip(1.0), optax.contrib.sam(sgd, sgd)), **data),
        ValueError,
        "let that be outermost",
    ),
    # a State
    "the State of another optimizer": (
        train(params=adam_state(), **data),
        ValueError,
        "jaxfit.init(state.params, optimizer)",
    ),
    "the State of other parameters": (
        train(
            params=jaxfit.State(0, guess, adam_state(jnp.ones(3)).opt_state),
            optimizer=optax.adam(0.1),
            **data,
        ),
        ValueError,
        "float32[3] in the place of float32[2] at leaf '[0].mu'",
    ),
    # the recorder
    "a recorder of nothing": (
        train(record=lambda s: None, **data),
        ValueError,
        "record returned None",
    ),
    "a recorder of an empty dict": (
        train(record=lambda s: {}, **data),
        ValueError,
        "record returned {}",
    ),
    "a recorder that is no function": (
        train(record="loss", **data),
        TypeError,
        "record is 'loss'",
    ),
    "a recorder without a step": (train(record=lambda: 1, **data), TypeError, "record(step)"),
}


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_sentence_before_compiling(call, error, words):
    # The optimizer's init may make zeros, which JAX compiles once; the second time it has them.
    for _ in range(2):
        compiled.clear()
        with pytest.raises(error, match=re.escape(words)) as caught:
            call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert not compiled


def test_what_is_not_refused_is_compiled():
    compiled.clear()
    run = jaxfit.train(loss, guess, sgd, 3, data=(x, y))
    assert run.state.step == 3
    assert compiled


def test_init_refuses_what_train_refuses():
    with pytest.raises(TypeError, match="call a factory"):
        jaxfit.init(guess, optax.adam)
