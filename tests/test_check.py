"""What is refused, in a sentence that says what was given and what to do, before compiling."""

import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from tests.common import assert_same_bits, compiled, guess, loss

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
    "no steps": (train(num_steps=-1, **data), ValueError, "num_steps is -1"),
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
    "a key as data": (train(data=jax.random.key(0)), TypeError, "give a key to minibatches"),
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
        "float32[2] in place of float32[]",
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
        "float32[3] in place of float32[2] at leaf '[0].mu'",
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


class Squares:
    """A loss as an object, a method and a function of a class."""

    scale = 2.0

    def __call__(self, a):
        return self.scale * jnp.sum(a**2)

    def method(self, a):
        return self(a)

    @staticmethod
    def static(a):
        return jnp.sum(a**2)


def scaled(a, *, scale):
    return scale * jnp.sum(a**2)


norm = lambda a: jnp.sum(a**2)
beside = lambda aux: {"loss": lambda a: (norm(a), aux()), "has_aux": True}
kept = lambda row: {"loss": norm, "record": lambda step: (step.loss, row(step))}
state = jaxfit.State(5, np.ones(2, np.float32), ())
at = lambda step: {"loss": norm, "params": jaxfit.State(step, guess, ())}
odd = (
    "may return only arrays and numbers of JAX's dtypes, and objects found in the parameters: leave"
)

REFUSED_BY_TRAIN_AND_FIT = {
    # what is no number, or not the same at every call
    "text in aux": (
        beside(lambda: f"{3}"),
        TypeError,
        f"the loss returned '3' at leaf '[1]', but {odd}",
    ),
    "a function in aux": (
        beside(lambda: lambda: 0),
        TypeError,
        "returned <lambda> at leaf '[1]', but",
    ),
    "objects in aux": (beside(lambda: np.array([None])), TypeError, "array([None], dtype=object)"),
    "float0 in aux": (beside(lambda: np.zeros(2, jax.dtypes.float0)), TypeError, odd),
    "records in aux": (beside(lambda: np.zeros(2, [("a", float)])), TypeError, odd),
    "an int too large in aux": (beside(lambda: 2**40), TypeError, "returned 1099511627776 at leaf"),
    "text recorded": (
        kept(lambda step: f"{3}"),
        TypeError,
        f"record returned '3' at leaf '[1]', but {odd}",
    ),
    "a function recorded": (kept(lambda step: lambda: 0), TypeError, "record returned <lambda> at"),
    "a set recorded": (kept(lambda step: {1}), TypeError, "record returned {1} at leaf '[1]', but"),
    "NumPy's text recorded": (
        kept(lambda step: np.array("a")),
        TypeError,
        "array('a', dtype='<U1')",
    ),
    "float0 recorded": (kept(lambda step: np.zeros(2, jax.dtypes.float0)), TypeError, odd),
    "text of the parameters alone": (
        {
            "loss": lambda params: norm(params["w"]),
            "params": {"w": guess, "name": "a"},
            "record": lambda step: step.params["name"],
        },
        ValueError,
        "record returned 'a', but a row needs at least one array",
    ),
    # what a loss returns
    "a Python number": ({"loss": lambda a: 1.0}, ValueError, "does not depend on the parameters"),
    "a NumPy number": (
        {"loss": lambda a: np.float32(1)},
        ValueError,
        "does not depend on the param",
    ),
    "a Python integer": ({"loss": lambda a: 1}, TypeError, "the loss returned int32[], but a real"),
    "text": ({"loss": lambda a: "1"}, TypeError, f"the loss returned '1', but {odd}"),
    "float(…)": ({"loss": lambda a: float(norm(a))}, TypeError, "a number before there is one"),
    "if": (
        {"loss": lambda a: norm(a) if a[0] > 0 else 0.0},
        TypeError,
        "with jnp.where in place",
    ),
    "NumPy's functions": ({"loss": np.linalg.norm}, TypeError, "compute with jax.numpy alone"),
    "a builtin that compares": (
        {"loss": max},
        TypeError,
        "a number before there is one (Attempted b",
    ),
    "a builtin that counts": ({"loss": len}, TypeError, "the loss returned int32[], but a real"),
    "a loss and two more": (
        {"loss": lambda a: (norm(a), 1, 2), "has_aux": True},
        TypeError,
        "True was given, but the loss returned (float32[], int32[], int32[]): return the pair",
    ),
    "one in a tuple": (
        {"loss": lambda a: (norm(a),), "has_aux": True},
        TypeError,
        "has_aux=True was given, but the loss returned (float32[],)",
    ),
    "a keyword that is missing": ({"loss": scaled}, TypeError, "loss scaled takes other arguments"),
    "a class": ({"loss": Squares}, TypeError, "loss Squares takes other arguments"),
    # where a State is expected
    "a Run": (
        {"loss": norm, "params": jaxfit.Run(None, None, None, state)},
        TypeError,
        "params is a Run, but must be parameters or a State: give run.state to go on from there.",
    ),
    "a Step": (
        {"loss": norm, "params": jaxfit.Step(*8 * [None])},
        TypeError,
        "params is a Step, but must be parameters or a State: give step.state to go on from there.",
    ),
    "States": (
        at(jnp.arange(2)),
        ValueError,
        "of shape (2,), but a run goes on from one: pick one",
    ),
    "a State without a step": (at(None), TypeError, "a State whose step is None, but a step is a"),
    "a State at half a step": (
        at(0.5),
        TypeError,
        "a State whose step is 0.5, but a step is a whole",
    ),
    "a State without a state": (
        {
            "loss": norm,
            "params": jaxfit.State(0, guess, None),
            "optimizer": optax.adam(0.1),
        },
        ValueError,
        "the given State does not belong to this optimizer (None in place of (ScaleByAdam",
    ),
    "a State of text": (
        {
            "loss": norm,
            "params": jaxfit.State(
                0, guess, (optax.TraceState(np.array(["a", "b"])), optax.EmptyState())
            ),
            "optimizer": optax.sgd(0.1, 0.9),
        },
        ValueError,
        "<U1[2] in place of float32[2] at leaf",
    ),
    # steps that int32 cannot count
    "a step too far": (
        at(2**31 - 3),
        ValueError,
        "at step 2147483645 and num_steps is 3, but steps",
    ),
    "a step too large": (
        at(2**31),
        ValueError,
        "counted from 0 to 2**31 - 1: take fewer, or count",
    ),
    "NumPy's too large": (at(np.int64(2**31)), ValueError, "is a State at step 2147483648 and"),
    "a step too far in JAX": (at(jnp.int32(2**31 - 1)), ValueError, "at step 2147483647 and"),
    "a step below 0": (
        at(-1),
        ValueError,
        "is a State at step -1 and num_steps is 3, but steps are",
    ),
}


@pytest.mark.parametrize("driver", [jaxfit.train, jaxfit.fit])
@pytest.mark.parametrize(
    ("given", "error", "words"), REFUSED_BY_TRAIN_AND_FIT.values(), ids=REFUSED_BY_TRAIN_AND_FIT
)
def test_train_and_fit_refuse_alike(given, error, words, driver):
    test_refused_in_one_sentence_before_compiling(
        lambda: driver(**({"params": guess, "optimizer": sgd, "num_steps": 3} | given)),
        error,
        words,
    )


LOSSES = {
    "of JAX": jnp.sum,
    "of NumPy": np.sum,
    "builtin": sum,
    "itemgetter": operator.itemgetter(0),
    "methodcaller": operator.methodcaller("sum"),
    "ufunc": jnp.add.reduce,
    "jitted": jax.jit(norm),
    "partial": functools.partial(scaled, scale=2.0),
    "jitted partial": jax.jit(functools.partial(scaled, scale=2.0)),
    "partial of jitted": functools.partial(jax.jit(scaled, static_argnames="scale"), scale=2.0),
    "object": Squares(),
    "method": Squares().method,
    "static method": Squares.static,
    "float of a constant": lambda a: norm(a) + float(np.sum(np.ones(3))),
    "times a NumPy number": lambda a: np.float64(2.0) * norm(a),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_whatever_can_be_called_is_a_loss(loss):
    run = jaxfit.fit(loss, guess, sgd, 2)
    assert run.state.step == 2
    assert_same_bits(run, jax.jit(lambda: jaxfit.train(loss, guess, sgd, 2))())


def test_numbers_are_recorded_and_are_aux_and_what_is_in_the_parameters_rides_along():
    def objective(params):
        aux = {"one": 1, "half": 0.5, "numpy": np.float32(2), "act": params["act"], "none": None}
        return norm(params["act"](params["w"])), aux

    text, things = np.array(["a", "b"]), {1, 2}
    start = {"w": guess, "act": jnp.tanh, "name": f"{3}", "text": text, "set": things}
    record = lambda step: (step.params, step.aux, True, 3, 1j)
    options = {"has_aux": True, "record": record, "record_every": 2}
    for run in (
        jaxfit.fit(objective, start, sgd, 5, **options),
        jaxfit.train(objective, start, sgd, 5, keyframe_every=4, **options),
    ):
        params, aux, *numbers = run.trajectory
        for kept in params, run.state.params, (run.keyframes or run.state).params:
            assert all(kept[name] is start[name] for name in ("act", "name", "text", "set"))
        assert aux["act"] is jnp.tanh and aux["none"] is None
        np.testing.assert_array_equal(
            [aux["one"], aux["half"], aux["numpy"]], np.full((3, 3), [[1], [0.5], [2]])
        )
        assert [number[-1] for number in numbers] == [True, 3, 1j]


def test_what_is_not_refused_is_compiled():
    compiled.clear()
    run = jaxfit.train(loss, guess, sgd, 3, data=(x, y))
    assert run.state.step == 3
    assert compiled


def test_init_refuses_what_train_refuses():
    with pytest.raises(TypeError, match="call a factory"):
        jaxfit.init(guess, optax.adam)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_loss_that_fails_on_a_list_of_batches_is_told_of_iter(kind):
    batches = kind([(jnp.ones((4, 2)), jnp.ones(4))] * 3)
    note = f"data is a {kind.__name__}, of which every step sees the whole; to take one batch"
    for run in jaxfit.train, jaxfit.fit:
        with pytest.raises(ValueError, match="too many values to unpack") as raised:
            run(
                lambda a, b: (lambda x, y: jnp.mean(x @ a - y))(*unpack_two(b)),
                jnp.zeros(2),
                optax.sgd(0.1),
                3,
                data=batches,
            )
        assert any(note in one for one in raised.value.__notes__)
    fitted = jaxfit.fit(
        lambda a, b: jnp.mean((b[0] @ a - b[1]) ** 2),
        jnp.zeros(2),
        optax.sgd(0.1),
        3,
        data=iter(batches),
        progress=False,
    )
    assert fitted.state.step == 3


def unpack_two(batch):
    x, y = batch
    return x, y
