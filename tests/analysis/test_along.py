"""What is computed after a run is what a recorder would have kept, wherever the run is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis
from tests.common import assert_same_bits, perceptron, row

STEPS = 24
loss, start, data = perceptron()
optimizer = optax.adam(0.01)


def everything(step):
    """A function of all that a step has."""
    return optax.tree.norm(step.updates), step.loss, step.opt_state[0].nu, step.batch[1][0]


def size(step):
    """A function of the parameters and the batch."""
    return optax.tree.norm(step.params), jnp.sum(step.batch[0]), step.step


def train(**options):
    return jax.jit(lambda: jaxfit.train(loss, start, optimizer, STEPS, data=data, **options))()


@pytest.fixture(scope="module")
def run():
    """Parameters at every other step, a keyframe at every eighth."""
    record = lambda step: step.params
    return train(record=record, record_every=2, keyframe_every=8)


@pytest.fixture(scope="module")
def known():
    """What a recorder would have kept of every step."""
    return train(record=lambda step: (everything(step), size(step))).trajectory


def picked(known, steps):
    return jax.tree.map(lambda leaf: leaf[np.asarray(steps)], known)


def test_rows_are_enough_for_what_needs_parameters_and_batch(run, known):
    found = analysis.along(size, loss, run, data=data)  # without the optimizer: no replay
    np.testing.assert_array_equal(found[2], run.steps)
    np.testing.assert_allclose(found[0], picked(known[1], run.steps)[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], picked(known[1], run.steps)[1], rtol=1e-5)
    some = analysis.along(size, loss, run, data=data, steps=[6, 2], batch_size=2)
    np.testing.assert_allclose(some[0], picked(known[1], [6, 2])[0], rtol=1e-6)


@pytest.mark.parametrize("steps", [range(3, 20, 4), [23, 0, 7, 7, 9], [0, 20], [5]])
def test_a_replay_has_the_bits_of_a_recorder(run, known, steps):
    found = analysis.along(everything, loss, run, optimizer, steps=steps, data=data)
    assert_same_bits(found, picked(known[0], list(steps)))


def test_by_default_it_is_every_row(run, known):
    found = analysis.along(everything, loss, run, optimizer, data=data)
    assert_same_bits(found, picked(known[0], run.steps))


def test_states_in_the_rows_are_keyframes(known):
    run = train(record=jaxfit.record.state, record_every=3)
    moments = analysis.along(lambda s: s.opt_state[0].nu, loss, run)
    assert_same_bits(moments, picked(known[0][2], run.steps))
    found = analysis.along(everything, loss, run, optimizer, data=data, steps=[4, 17])
    assert_same_bits(found, picked(known[0], [4, 17]))


def test_under_jit_and_vmap(run):
    expected = analysis.along(everything, loss, run, optimizer, data=data)
    inside = lambda run: analysis.along(everything, loss, run, optimizer, data=data)
    jitted = jax.jit(inside)(run)
    assert_same_bits(jitted, expected)
    shown = jax.jit(lambda run: analysis.along(size, loss, run, data=data))(run)
    np.testing.assert_array_equal(shown[2], run.steps)


def test_runs_on_disk(tmp_path, known):
    options = {"data": data, "record": lambda s: s.params, "record_every": 2}
    jaxfit.fit(
        loss, start, optimizer, STEPS, checkpoint_dir=tmp_path, chunk_size=8, progress=False,
        **options,
    )  # fmt: skip
    run = jaxfit.load(tmp_path)
    for batch_size in (None, 5):
        found = analysis.along(size, loss, run, data=data, batch_size=batch_size)
        np.testing.assert_allclose(found[0], picked(known[1], run.steps)[0], rtol=1e-6)
    for steps in ([9, 11], [23, 0]):
        found = analysis.along(everything, loss, run, optimizer, steps=steps, data=data)
        assert_same_bits(found, picked(known[0], steps))


def test_a_run_with_a_carry_is_replayed_and_its_states_bring_it():
    def fading(a, carry):  # of curvature 2, 1, 1/2, …
        return carry * jnp.sum(a**2), carry / 2

    sgd = optax.sgd(0.01)
    sharpness = lambda step: analysis.curvature(fading, step).eigenvalues[0]
    plain = jaxfit.train(fading, jnp.ones(2), sgd, 8, carry=1.0, keyframe_every=4)
    states = jaxfit.train(fading, jnp.ones(2), sgd, 8, carry=1.0, record=jaxfit.record.state)
    for run, given in (plain, sgd), (states, None):
        found = analysis.along(sharpness, fading, run, given, steps=[0, 3, 6])
        np.testing.assert_allclose(found, [2, 1 / 4, 1 / 32], rtol=1e-5)


def test_stacked_runs_and_sweeps():
    def one(scale):
        return jaxfit.train(
            lambda a: jnp.sum(a**4), scale * jnp.ones(2), optax.sgd(0.01), 6, keyframe_every=3
        )

    flat = lambda a: jnp.sum(a**4)
    scales = jnp.array([0.5, 1.0, 1.5])
    fn, other = lambda s: s.params[0] * 2, lambda s: s.updates
    runs = jax.vmap(one)(scales)
    swept = jaxfit.sweep(one, {"scale": scales}, batch_size=1)
    for many in (runs, swept.values, swept):
        found = analysis.along(fn, flat, many)
        np.testing.assert_allclose(found, 2 * runs.trajectory["params"][:, :, 0], rtol=1e-6)
        updates = analysis.along(other, flat, many, optax.sgd(0.01), steps=[1, 4])
        alone = jax.tree.map(lambda leaf: leaf[2], runs)
        expected = analysis.along(other, flat, alone, optax.sgd(0.01), steps=[1, 4])
        assert updates.shape == (3, 2, 2)
        np.testing.assert_allclose(updates[2], expected, rtol=1e-6)


def test_leaves_beside_the_trained_ones_come_along():
    params = {"w": jnp.ones(2), "power": 2, "act": jnp.tanh, "none": None}
    loss = lambda p: jnp.sum(p["act"](p["w"]) ** p["power"])
    run = jaxfit.train(loss, params, optax.sgd(0.1), 3)
    fn = lambda s: s.params["act"](s.params["w"]) * s.params["power"]
    found = analysis.along(fn, loss, run)
    np.testing.assert_allclose(found, 2 * jnp.tanh(run.trajectory["params"]["w"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "part"),
    [
        (lambda s: s.loss * 2, "loss"),
        (lambda s: 2 * s.loss, "loss"),
        (lambda s: jnp.sin(s.loss), "loss"),
        (lambda s: optax.tree.norm(s.grads), "grads"),
        (lambda s: s.opt_state[0].nu, "opt_state"),
        (lambda s: list(s.updates), "updates"),
        (lambda s: s, "opt_state"),
        (lambda s: s.state, "opt_state"),
        (lambda s: jnp.where(s.loss > 1, 0, 1), "loss"),
    ],
)
def test_what_the_rows_lack_is_named(fn, part):
    run = jaxfit.train(lambda a: jnp.sum(a**2), jnp.ones(2), optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match=rf"^fn needs step\.{part}, which the rows of the run do"):
        analysis.along(fn, lambda a: jnp.sum(a**2), run)


def test_bad_input_is_refused_in_a_sentence(run):
    with pytest.raises(ValueError, match=r"fn needs step\.batch, which"):
        analysis.along(size, loss, run)  # the data are missing
    with pytest.raises(TypeError, match="steps is 3, but must be whole numbers"):
        analysis.along(size, loss, run, steps=3)
    with pytest.raises(TypeError, match=r"steps is \[\], but must be whole numbers"):
        analysis.along(size, loss, run, steps=[])
    with pytest.raises(ValueError, match="the run goes from step 0 to 24"):
        analysis.along(everything, loss, run, optimizer, steps=[25], data=data)
    with pytest.raises(TypeError, match="run is a dict, but must be a Run"):
        analysis.along(size, loss, {}, data=data)
    with pytest.raises(TypeError, match="fn is 3, but must be a function"):
        analysis.along(3, loss, run, data=data)
    bare = train(record=lambda step: step.loss)
    with pytest.raises(ValueError, match="fn needs params, which"):
        analysis.along(size, loss, bare, data=data)


def test_memory_does_not_grow_with_the_number_of_rows():
    width = 1000
    square = lambda a: jnp.sum(a**2)
    fn = lambda s: jnp.sum(jnp.outer(s.params, s.params) ** 2)

    def temporary(steps):
        run = jax.eval_shape(lambda: jaxfit.train(square, jnp.ones(width), optax.sgd(0.1), steps))
        compiled = jax.jit(lambda run: analysis.along(fn, square, run)).lower(run).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(200) < 1.1 * temporary(20) + 10_000


def test_rows_are_those_of_the_run(run):
    found = analysis.along(lambda s: s.params, loss, run)
    assert_same_bits(row(found, 3), row(run.trajectory, 3))
