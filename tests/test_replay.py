"""A replayed stretch is the original, bit for bit; a fork keeps what it should."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import record
from jaxfit.losses import cross_entropy
from jaxfit.models import mlp, mlp_init
from tests.common import assert_close, assert_same_bits, guess, loss, row
from tests.test_train import CURVATURES, OPTIMIZERS, everything, quadratic

adam = OPTIMIZERS["adam"]


def rows(tree, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], tree)


def dropout():
    """A classifier on shuffled minibatches, with a key for each step: loss, parameters, data."""
    x = jax.random.normal(jax.random.key(1), (50, 8))
    y = jax.random.randint(jax.random.key(2), (50,), 0, 3)
    batches = jaxfit.minibatches((x, y), 16, jax.random.key(5))

    def loss(params, batch):
        (x, y), key = batch
        kept = x * jax.random.bernoulli(key, 0.8, x.shape) / 0.8
        return cross_entropy(mlp(params, kept), y)

    def at_step(batches):
        return lambda step: (batches(step), jax.random.fold_in(jax.random.key(6), step))

    return loss, mlp_init(jax.random.key(4), (8, 3)), batches, at_step


def run_and_parts(loss, params, optimizer, data, start, stop, step, make=lambda data: data):
    """A run of 30 steps that kept everything, a replay of it, and one step of it, all jitted."""

    def train(params, data):
        return jaxfit.train(
            loss, params, optimizer, 30, data=make(data), record=everything, keyframe_every=7
        )

    def again(run, data):
        return jaxfit.replay(loss, run, optimizer, start, stop, data=make(data), record=everything)

    def one(run, data, step):
        return jaxfit.at(loss, run, optimizer, step, data=make(data))

    run = jax.jit(train)(params, data)
    return run, jax.jit(again)(run, data), jax.jit(one)(run, data, step)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "nesterov")])
def test_a_replay_is_the_run_bit_for_bit(line, name):
    problem = (quadratic, jnp.array([1.0, -2.0, 3.0]), CURVATURES)
    if name in ("adam", "clip, momentum"):
        problem = (loss, guess, line)
    objective, params, data = problem
    run, part, step = run_and_parts(objective, params, OPTIMIZERS[name], data, 12, 24, 23)
    assert_same_bits(part.trajectory, rows(run.trajectory, 12, 24))
    assert_same_bits(part.steps, run.steps[12:24])
    assert_same_bits(part.state, row(run.trajectory, 24).state)
    assert_same_bits(step, row(run.trajectory, 23))


def test_a_replay_of_minibatches_with_dropout_is_the_run_bit_for_bit():
    objective, params, data, make = dropout()
    run, part, step = run_and_parts(objective, params, adam, data, 12, 24, 23, make)
    assert_same_bits(part.trajectory, rows(run.trajectory, 12, 24))
    assert_same_bits(step, row(run.trajectory, 23))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_replay_keeps_dtypes_and_bits(line, dtype):
    with jax.enable_x64(dtype == "float64"):
        cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
        run, part, step = run_and_parts(loss, cast(guess), adam, cast(line), 12, 24, 23)
        assert part.state.params.dtype == dtype
        assert_same_bits(part.trajectory, rows(run.trajectory, 12, 24))
        assert_same_bits(step, row(run.trajectory, 23))


def test_what_nobody_recorded_is_what_would_have_been_recorded(line):
    def errors(params, batch):
        x, y = batch
        errors = (jnp.tanh(x @ params) - y) ** 2
        return errors.mean(), errors

    def curious(step):
        gradient = lambda params: jax.grad(lambda a: errors(a, step.batch)[0])(params)
        _, curvature = jax.jvp(gradient, (step.params,), (step.grads,))
        return step.aux, step.grads, step.updates, step.opt_state, curvature

    options = {"data": line, "has_aux": True}
    run = jaxfit.train(errors, guess, adam, 40, **options, keyframe_every=10)
    full = jaxfit.train(errors, guess, adam, 40, **options, record=curious)
    part = jaxfit.replay(errors, run, adam, 17, 23, **options, record=curious)
    assert part.trajectory[0].shape == (6, 100)
    assert_same_bits(part.trajectory, rows(full.trajectory, 17, 23))
    sparse = jaxfit.replay(errors, run, adam, 17, 23, **options, record_every=4)
    assert_same_bits(sparse.steps, jnp.array([17, 21]))
    kept = jax.tree.map(lambda leaf: leaf[17:23:4], run.trajectory)
    assert_same_bits(sparse.trajectory["params"], kept["params"])


def test_many_runs_are_replayed_at_once():
    # The batches are shared by all runs, which is what a replay must not lose sight of.
    objective, params, data, make = dropout()
    scales = jnp.array([1.0, 0.5, 2.0])

    def train(scale, data):
        start = jax.tree.map(lambda leaf: scale * leaf, params)
        return jaxfit.train(
            objective, start, adam, 30, data=make(data), record=everything, keyframe_every=7
        )

    def again(run, data):
        return jaxfit.replay(objective, run, adam, 12, 24, data=make(data), record=everything)

    runs = jax.jit(jax.vmap(train, (0, None)))(scales, data)
    parts = jax.jit(jax.vmap(again, (0, None)))(runs, data)
    kept = jax.tree.map(lambda leaf: leaf[:, 12:24], runs.trajectory)
    assert_same_bits(parts.trajectory, kept)


def test_a_run_that_was_resumed_is_replayed_by_its_own_steps(line):
    first = jaxfit.train(loss, guess, adam, 11, data=line)
    run = jaxfit.train(loss, first.state, adam, 30, data=line, keyframe_every=6)
    part = jaxfit.replay(loss, run, adam, 20, 33, data=line)
    assert_same_bits(part.steps, jnp.arange(20, 33))
    assert_same_bits(part.trajectory, rows(run.trajectory, 9, 22))
    with pytest.raises(ValueError, match="goes from step 11 to 41"):
        jaxfit.replay(loss, run, adam, 10, 12, data=line)


def test_recorded_states_are_keyframes(line):
    whole = jaxfit.train(loss, guess, adam, 30, data=line)
    run = jaxfit.train(loss, guess, adam, 30, data=line, record=record.state, record_every=10)
    part = jaxfit.replay(loss, run, adam, 13, 17, data=line)
    assert_same_bits(part.trajectory, rows(whole.trajectory, 13, 17))


def test_keyframes_that_were_thinned_out_are_found_by_their_steps(line):
    run = jaxfit.train(loss, guess, adam, 30, data=line, keyframe_every=5)
    few = dataclasses.replace(run, keyframes=jax.tree.map(lambda leaf: leaf[1::3], run.keyframes))
    part = jaxfit.replay(loss, few, adam, 13, 17, data=line)
    assert_same_bits(part.trajectory, rows(run.trajectory, 13, 17))
    with pytest.raises(ValueError, match="goes from step 5 to 30"):
        jaxfit.replay(loss, few, adam, 3, 4, data=line)


@pytest.mark.parametrize("step", [0, 7, 12, 30])
def test_a_replay_of_no_steps_is_the_state(line, step):
    run = jaxfit.train(loss, guess, adam, 30, data=line, record=record.state, keyframe_every=7)
    none = jaxfit.replay(loss, run, adam, step, step, data=line)
    assert none.steps.shape == (0,) and none.trajectory["params"].shape == (0, 2)
    expected = run.state if step == 30 else row(run.trajectory, step)
    assert_same_bits(none.state, expected)


def test_leaves_that_are_not_trained_come_back(line):
    model = eqx.nn.MLP(2, "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    objective = lambda model, batch: jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)
    run = jaxfit.train(objective, model, optax.sgd(0.1), 6, data=line, keyframe_every=3)
    step = jaxfit.at(objective, run, optax.sgd(0.1), 5, data=line)
    assert step.params.activation is model.activation
    assert_same_bits(step.params.layers[0].weight, run.trajectory["params"].layers[0].weight[5])


def test_one_program_looks_at_every_step(line):
    run = jaxfit.train(loss, guess, adam, 30, data=line, keyframe_every=10)
    look = jax.jit(
        chex.assert_max_traces(lambda run, t: jaxfit.at(loss, run, adam, t, data=line), n=1)
    )
    for step in (0, 9, 10, 29):
        seen = look(run, step)
        assert int(seen.step) == step
        assert_close(seen.params, run.trajectory["params"][step])


@pytest.mark.slow
def test_a_replay_on_eight_devices_is_the_run_bit_for_bit():
    code = """
        import jax, jax.numpy as jnp, optax, jaxfit
        from jax.sharding import NamedSharding, PartitionSpec
        from jaxfit.losses import mse, objective
        from jaxfit.models import linear
        from tests.common import assert_same_bits

        mesh = jax.sharding.Mesh(jax.devices(), "examples")
        x, y = jaxfit.data.line(jax.random.key(0), 96)
        data = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("examples")))
        loss, adam = objective(linear, mse), optax.adam(0.01)
        run = jax.jit(lambda data: jaxfit.train(
            loss, jnp.zeros(2), adam, 40, data=data, keyframe_every=9))(data)
        part = jax.jit(lambda run, data: jaxfit.replay(loss, run, adam, 12, 24, data=data))(
            run, data)
        assert len(data[0].sharding.device_set) == 8
        assert_same_bits(part.trajectory, jax.tree.map(lambda leaf: leaf[12:24], run.trajectory))
    """
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True)


def test_what_cannot_be_replayed_is_refused(line):
    run = jaxfit.train(loss, guess, adam, 30, data=line, keyframe_every=10)
    replay = lambda *stretch, run=run, loss=loss, optimizer=adam, data=line: jaxfit.replay(
        loss, run, optimizer, *stretch, data=data
    )
    bare = jaxfit.train(loss, guess, adam, 30, data=line)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run)
    for call, kind, sentence in [
        (
            lambda: replay(5, 40),
            ValueError,
            "start is 5 and stop 40, but the run goes from",
        ),
        (lambda: replay(-1, 4), ValueError, "start is -1 and stop 4, but the run goes from"),
        (lambda: replay(8, 4), ValueError, "start is 8 and stop 4, but start comes first: swap"),
        (lambda: replay(1.0, 4), TypeError, "start is 1.0, but must be the number of a step"),
        (lambda: replay(1, True), TypeError, "stop is True, but must be the number of a step"),
        (lambda: replay(1, 4, run=bare), ValueError, "the run has no keyframes .* keyframe_every"),
        (lambda: replay(1, 4, run=many), ValueError, r"runs of shape \(2,\), .* jax.vmap"),
        (
            lambda: replay(1, 4, optimizer=optax.sgd(0.1)),
            ValueError,
            "the given State does not belong to this optimizer",
        ),
        (
            lambda: replay(1, 4, loss=lambda params, batch: params["w"]),
            ValueError,
            "the loss cannot be computed from the parameters of the run and this data .*: replay",
        ),
        (
            lambda: replay(1, 4, data=(line[0][:, :1], line[1])),
            ValueError,
            "the loss cannot be computed from the parameters of the run and this data .*: replay",
        ),
        (lambda: replay(1, 4, run=run.state), TypeError, "run is a State, but must be a Run: give"),
        (lambda: jaxfit.fork(run, adam), TypeError, "state is a Run, but .*: give run.state, or"),
        (
            lambda: jaxfit.at(loss, run, adam, 30, data=line),
            ValueError,
            "start is 30 and stop 31, but the run goes from step 0 to 30",
        ),
    ]:
        with pytest.raises(kind, match=sentence):
            call()


# Forks.


def test_a_fork_keeps_step_and_parameters_and_starts_its_optimizer(line):
    run = jaxfit.train(loss, guess, optax.sgd(0.1, momentum=0.9), 10, data=line)
    fork = jaxfit.fork(run.state, adam)
    assert_same_bits((fork.step, fork.params), (run.state.step, run.state.params))
    assert_same_bits(fork.opt_state, adam.init(run.state.params))
    assert jaxfit.train(loss, fork, adam, 5, data=line).steps[0] == 10


def test_a_fork_can_carry_what_has_the_same_type_and_shape(line):
    end = jaxfit.train(loss, guess, adam, 10, data=line).state
    moments = end.opt_state[0]

    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    carried = jaxfit.fork(end, clipped, carry_over=True).opt_state
    assert_same_bits(carried[1][0], moments)
    fresh = jaxfit.fork(end, clipped).opt_state
    assert_same_bits(fresh[1][0], adam.init(guess)[0])

    often = optax.MultiSteps(adam, 4)
    assert_same_bits(jaxfit.fork(end, often, carry_over=True).opt_state.inner_opt_state[0], moments)

    # Its rates are its own.
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.5)
    before = jaxfit.train(loss, guess, optax.inject_hyperparams(optax.adam)(0.1), 10, data=line)
    state = jaxfit.fork(before.state, injected, carry_over=True).opt_state
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.5)
    assert_same_bits(state.inner_state[0], before.state.opt_state.inner_state[0])

    # Nothing of this one fits.
    momentum = optax.sgd(0.1, momentum=0.9)
    assert_same_bits(jaxfit.fork(end, momentum, carry_over=True).opt_state, momentum.init(guess))


def test_parts_are_carried_in_their_order(line):
    twice = optax.chain(optax.trace(0.9), optax.scale(-0.1), optax.trace(0.5))
    end = jaxfit.train(loss, guess, twice, 10, data=line).state
    carried = jaxfit.fork(end, optax.chain(optax.trace(0.1), optax.trace(0.2)), carry_over=True)
    assert_same_bits(carried.opt_state[0], end.opt_state[0])
    assert_same_bits(carried.opt_state[1], end.opt_state[2])


def test_a_fork_with_the_same_optimizer_that_carries_all_is_the_run(line):
    run = jaxfit.train(loss, guess, adam, 30, data=line, keyframe_every=10)
    middle = jaxfit.replay(loss, run, adam, 17, 17, data=line).state
    on = jaxfit.train(loss, jaxfit.fork(middle, adam, carry_over=True), adam, 13, data=line)
    assert_same_bits(on.state, run.state)
