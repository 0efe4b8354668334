"""A run on batches that come from Python is the run on the same batches in memory, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit.fit import fit
from jaxfit.stop import loss_below
from tests.common import assert_same_bits, row

STEPS = 45
ADAM = optax.adam(0.1)
NUMBERS = np.random.default_rng(0).normal(size=1000).astype(np.float32)


def loss(a, batch):
    return jnp.mean((batch["x"] - a) ** 2)


def batch(step):
    rows = np.random.default_rng([0, step]).integers(0, 1000, 8)
    return {"x": NUMBERS[rows], "id": rows}  # int64, which JAX takes as int32


@pytest.fixture(scope="module")
def trained():
    """The run on all batches in memory."""
    stack = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *map(batch, range(STEPS)))

    @jax.jit
    def train(stack):
        return jaxfit.train(loss, 0.0, ADAM, STEPS, data=lambda step: row(stack, step))

    return train(stack)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("chunk_size", [1, 10, None])
def test_a_function_of_the_step_is_read_ahead(every, chunk_size, trained):
    options = {"record_every": every, "chunk_size": chunk_size}
    for data in jaxfit.host_batches(batch), map(batch, range(STEPS)):
        run = fit(loss, 0.0, ADAM, STEPS, data=data, **options)
        assert_same_bits(run.trajectory, row(trained.trajectory, slice(None, None, every)))
        assert_same_bits(run.state, trained.state)


def test_the_repr_of_batches_from_python_names_the_function_and_the_shapes():
    data = jaxfit.host_batches(batch)
    assert repr(data) == "HostBatches(batch: {'id': int32[8], 'x': float32[8]})"
    keys = jaxfit.host_batches(lambda step: (jax.random.key(step), np.ones(2, np.float32)))
    assert repr(keys) == "HostBatches(<lambda>: (key<fry>[], float32[2]))"


def test_train_and_replay_call_the_function_from_within_the_loop(trained):
    data = jaxfit.host_batches(batch)
    run = jax.jit(lambda: jaxfit.train(loss, 0.0, ADAM, STEPS, data=data, keyframe_every=20))()
    assert_same_bits(run.trajectory, trained.trajectory)
    step = jaxfit.at(loss, run, ADAM, 33, data=data)
    assert_same_bits(step.batch["x"], batch(33)["x"])
    assert step.batch["id"].dtype == np.int32
    assert_same_bits(data(7)["x"], batch(7)["x"])
    thrice = jax.vmap(data)(jnp.arange(3))
    assert_same_bits(thrice["x"], np.stack([batch(step)["x"] for step in range(3)]))


def test_batches_are_read_once_each_in_order_and_no_more_than_two_chunks_ahead():
    read, finished = [], []

    def watched(step):
        read.append((step, len(finished)))
        return batch(step)

    def record(step):
        return jax.pure_callback(lambda n: finished.append(n) or n, step.step, step.step)

    fit(loss, 0.0, ADAM, STEPS, data=jaxfit.host_batches(watched), record=record, chunk_size=5)
    steps = [step for step, _ in read]
    assert steps == [0, *range(STEPS)]  # the first for its shape
    assert all(step < made + 4 * 5 for step, made in read)


def test_a_loader_begins_its_next_epoch_and_a_generator_ends():
    class Loader:
        """Epochs of nine batches, as PyTorch's DataLoader has them."""

        epochs = 0

        def __iter__(self):
            self.epochs += 1
            return iter([batch(step) for step in range(9)])

    loader = Loader()
    run = fit(loss, 0.0, ADAM, STEPS, data=loader, chunk_size=10)
    assert loader.epochs == STEPS // 9  # none is begun for nothing
    again = fit(loss, 0.0, ADAM, STEPS, data=jaxfit.host_batches(lambda step: batch(step % 9)))
    assert_same_bits(run.trajectory, again.trajectory)
    assert run.stop_reason is None

    for every in 1, 4:
        options = {"chunk_size": 10, "record_every": every}
        run = fit(loss, 0.0, ADAM, STEPS, data=(batch(step) for step in range(23)), **options)
        assert run.stop_reason == "data ended before step 23"
        short = fit(loss, 0.0, ADAM, 23, data=jaxfit.host_batches(batch), **options)
        assert_same_bits((run.trajectory, run.state), (short.trajectory, short.state))


def test_the_batches_after_the_end_of_a_run_can_be_lost_but_not_those_of_a_function(tmp_path):
    data = jaxfit.host_batches(batch)
    whole = fit(loss, 0.0, ADAM, STEPS, data=data)
    options = {"data": data, "chunk_size": 6, "checkpoint_dir": tmp_path}
    fit(loss, 0.0, ADAM, 20, **options)
    assert_same_bits(fit(loss, 0.0, ADAM, STEPS, **options).state, whole.state)

    folder = tmp_path / "iterable"
    options = {"chunk_size": 6, "checkpoint_dir": folder}
    fit(loss, 0.0, ADAM, 20, data=map(batch, range(STEPS)), **options)
    with pytest.warns(UserWarning, match="no batch for a given step: step 20 sees"):
        run = fit(loss, 0.0, ADAM, STEPS, data=map(batch, range(20, STEPS)), **options)
    assert_same_bits(run.state, whole.state)  # if it is given what is left


def test_an_end_before_an_error_in_a_batch_that_was_read_ahead():
    def broken(step):
        if step == 12:
            raise OSError("the disk is gone")
        return batch(step)

    data = jaxfit.host_batches(broken)
    run = fit(loss, 0.0, ADAM, STEPS, data=data, chunk_size=5, stop=lambda step: step.step == 8)
    assert run.state.step == 8
    with pytest.raises(OSError, match="the disk is gone") as raised:
        fit(loss, 0.0, ADAM, STEPS, data=data, chunk_size=5, stop=loss_below(-1.0))
    assert raised.value.__notes__ == [
        "fit: raised by data, for step 12.",
        "fit: the steps before step 12 are lost, without a checkpoint_dir.",
    ]


@pytest.mark.parametrize("driver", [fit, jaxfit.train])
def test_a_function_that_stops_iterating_is_an_error_and_no_end(driver):
    def short(step):
        return next(iter([batch(step)] if step < 7 else []))

    data = jaxfit.host_batches(short)
    with pytest.raises(RuntimeError, match="raised StopIteration for step 7, but must have a bat"):
        jax.block_until_ready(driver(loss, 0.0, ADAM, STEPS, data=data))
    with pytest.raises(RuntimeError, match="raised StopIteration for step 9") as raised:
        data(9)
    assert isinstance(raised.value.__cause__, StopIteration)
    assert str(raised.value).count("\n") == 0 and str(raised.value).endswith(".")
    with pytest.raises(RuntimeError, match="raised StopIteration for step 0"):
        jaxfit.host_batches(lambda step: next(iter([])))


def test_keys_come_in_through_the_batch():
    def keyed(step):
        return {"x": NUMBERS[step : step + 4], "key": jax.random.fold_in(jax.random.key(0), step)}

    def noisy(a, batch):
        return loss(a + jax.random.normal(batch["key"]), batch)

    run = fit(noisy, 0.0, ADAM, 20, data=jaxfit.host_batches(keyed), chunk_size=6)

    def traced(step):
        rows = jnp.asarray(NUMBERS)[step + jnp.arange(4)]
        return {"x": rows, "key": jax.random.fold_in(jax.random.key(0), step)}

    expected = jaxfit.train(noisy, 0.0, ADAM, 20, data=traced)
    np.testing.assert_allclose(run.trajectory["loss"], expected.trajectory["loss"], rtol=1e-5)


REFUSED = {
    "no function": (lambda: jaxfit.host_batches(3), "host_batches was given 3, but needs a func"),
    "two arguments": (lambda: jaxfit.host_batches(lambda a, b: a), "needs a function of one arg"),
    "words": (lambda: jaxfit.host_batches(lambda step: "word"), "a batch holds 'word', but its le"),
    "nothing": (
        lambda: fit(loss, 0.0, ADAM, 9, data=iter([])),
        "data is an iterable without a batch",
    ),
    "train": (
        lambda: jaxfit.train(loss, 0.0, ADAM, 9, data=iter([])),
        "but only fit takes batches one after the other: give arrays, or a function",
    ),
    "shapes": (
        lambda: fit(loss, 0.0, ADAM, 9, data=iter([{"x": np.ones(8)}, {"x": np.ones(5)}])),
        r"the batch of step 1 is not like the first \(float32\[5\] in place of float32\[8\] at",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_stream_is_refused(call, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        call()
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
