"""Loops whose loss changes something beside the parameters end where the originals do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import jaxfit
from experiments.models import (
    batch_norm_equinox,
    batch_norm_nnx,
    loss_scale,
    parameter_average,
    ppo,
    random_state,
)
from jaxfit.losses import cross_entropy, objective
from jaxfit.models import mlp, mlp_init
from tests.common import assert_close, assert_same_bits

X = jax.random.normal(jax.random.key(0), (96, 64))
Y = jax.random.randint(jax.random.key(1), (96,), 0, 10)
BATCHES = jaxfit.minibatches((X, Y), 16, jax.random.key(2))
SIZES = 64, 10  # one layer compiles fastest
batch = jax.jit(lambda step: BATCHES(step))


def test_batch_normalisation_and_dropout_in_nnx_are_the_loop_of_its_tutorial():
    net, run = batch_norm_nnx.train(batch_norm_nnx.Net(nnx.Rngs(3)), BATCHES, 12)

    by_hand = batch_norm_nnx.Net(nnx.Rngs(3))
    optimizer = nnx.Optimizer(by_hand, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, batch):
        loss, grads = nnx.value_and_grad(lambda net: cross_entropy(net(batch[0]), batch[1]))(net)
        optimizer.update(net, grads)
        return loss

    losses = [step(by_hand, optimizer, batch(t)) for t in range(12)]
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-4)
    found, expected = (nnx.state(model, nnx.Not(nnx.RngState)) for model in (net, by_hand))
    assert_close(found, expected, rtol=1e-3, atol=1e-4)
    found, expected = (nnx.state(model, nnx.RngState) for model in (net, by_hand))
    assert_same_bits(found, expected)
    assert net.dropout.rngs.count[...] == 12
    net.eval(), by_hand.eval()
    np.testing.assert_allclose(net(X), by_hand(X), rtol=1e-2, atol=1e-3)


def test_batch_normalisation_in_equinox_is_the_loop_of_its_example():
    net, state = eqx.nn.make_with_state(batch_norm_equinox.Net)(jax.random.key(3))
    run = batch_norm_equinox.train(net, state, BATCHES, 12)

    optimizer = optax.adam(0.01)
    opt_state = optimizer.init(eqx.filter(net, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(net, state, opt_state, batch):
        def objective(net):
            logits, after = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
                batch[0], state
            )
            return cross_entropy(logits, batch[1]), after

        (loss, state), grads = eqx.filter_value_and_grad(objective, has_aux=True)(net)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(net, eqx.is_array))
        return loss, eqx.apply_updates(net, updates), state, opt_state

    losses = []
    for t in range(12):
        loss, net, state, opt_state = step(net, state, opt_state, batch(t))
        losses.append(loss)
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-4)
    arrays = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    assert_close(arrays(run.state.params), arrays(net), rtol=1e-3, atol=1e-4)
    assert_close(arrays(run.state.carry), arrays(state), rtol=1e-3, atol=1e-4)


def test_the_loss_scale_is_the_one_of_flax():
    params = mlp_init(jax.random.key(3), SIZES)
    train = jax.jit(loss_scale.train, static_argnums=(2, 3))
    run = train(params, BATCHES, 60, 5)

    optimizer = optax.adam(0.01)
    opt_state = optimizer.init(params)
    scale = DynamicScale(growth_interval=5, scale=jnp.float32(2**20), minimum_scale=1.0)

    @jax.jit
    def step(scale, params, opt_state, batch):
        def objective(params):
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
            return loss_scale.classification(half, batch)

        scale, finite, loss, grads = scale.value_and_grad(objective)(params)
        updates, after = optimizer.update(grads, opt_state, params)
        keep = lambda new, old: jnp.where(finite, new, old)
        moved = jax.tree.map(keep, optax.apply_updates(params, updates), params)
        return scale, moved, jax.tree.map(keep, after, opt_state), loss, finite

    for t in range(60):
        seen = jax.tree.map(lambda leaf, t=t: leaf[t], run.trajectory)
        assert seen["scale"] == scale.scale
        assert_close(seen["params"], params, rtol=1e-2, atol=1e-3)
        scale, params, opt_state, loss, _ = step(scale, params, opt_state, batch(t))
        np.testing.assert_allclose(seen["loss"], loss, rtol=1e-2)
    changes = np.sign(np.diff(run.trajectory["scale"]))
    assert {*changes} == {-1, 0, 1}  # it has overflowed, and grown again


def test_the_average_of_the_parameters_is_the_one_that_a_loop_keeps():
    params = mlp_init(jax.random.key(3), SIZES)
    run = jax.jit(parameter_average.train, static_argnums=3)(params, BATCHES, (X, Y), 100)

    optimizer, loss = optax.adam(0.03), objective(mlp, cross_entropy)
    opt_state, average = optimizer.init(params), params

    @jax.jit
    def step(params, opt_state, average, batch):
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = parameter_average.DECAY
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return params, opt_state, average

    for t in range(100):
        params, opt_state, average = step(params, opt_state, average, batch(t))
    assert_close(parameter_average.average(run.state), average, rtol=1e-3, atol=1e-4)
    found = run.evaluations["average"]
    np.testing.assert_array_equal(run.evaluated_steps, [0, 50, 100])
    np.testing.assert_allclose(found[-1], jnp.mean(mlp(average, X).argmax(1) == Y), atol=0.011)
    assert found[0] == run.evaluations["last"][0] < found[1]


def test_a_key_that_is_split_from_step_to_step_gives_the_numbers_of_its_loop():
    params, key = mlp_init(jax.random.key(3), SIZES), jax.random.key(4)
    run = jax.jit(random_state.train, static_argnums=3)(params, key, (X, Y), 20)

    optimizer = optax.adam(0.01)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(objective(mlp, cross_entropy))(params, (x, y))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state

    losses = []
    for _ in range(20):
        key, pick, noise = jax.random.split(key, 3)
        rows = jax.random.choice(pick, 96, (64,), replace=False)
        noisy = X[rows] + 0.1 * jax.random.normal(noise, (64, 64))
        loss, params, opt_state = step(params, opt_state, noisy, Y[rows])
        losses.append(loss)
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-4)
    assert_same_bits(run.state.carry, key)


@pytest.mark.slow
def test_ppo_plays_and_learns_in_turn_as_nested_loops_do():
    params, play = ppo.init(jax.random.key(3))
    run = jax.jit(ppo.train, static_argnums=2)(params, play, 12)

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-3, eps=1e-5))
    opt_state = optimizer.init(params)
    collect = jax.jit(ppo.collect)

    @jax.jit
    def step(params, opt_state, rollout):
        loss, grads = jax.value_and_grad(ppo.surrogate)(params, rollout)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state

    losses, fell = [], []
    for _ in range(3):
        play = collect(params, play)
        fell.append(play.rollout["fell"].sum())
        for _ in range(ppo.EPOCHS):
            loss, params, opt_state = step(params, opt_state, play.rollout)
            losses.append(loss)
    np.testing.assert_allclose(run.trajectory["loss"], losses, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(run.trajectory["fell"][1 :: ppo.EPOCHS], fell)
    np.testing.assert_allclose(run.state.carry.poles, play.poles, rtol=1e-3, atol=1e-4)
    assert_same_bits(run.state.carry.key, play.key)
    assert_close(run.state.params, params, rtol=1e-3, atol=1e-4)


def test_a_pole_falls_as_in_the_equations_of_barto_sutton_and_anderson():
    pole = np.array([0.1, -0.4, 0.15, 0.9])
    force, gravity, cart, mass, length = -10.0, 9.8, 1.0, 0.1, 0.5
    _, speed, angle, turning = pole
    sine, cosine = np.sin(angle), np.cos(angle)
    pull = (-force - mass * length * turning**2 * sine) / (cart + mass)
    twist = gravity * sine + cosine * pull
    twist /= length * (4 / 3 - mass * cosine**2 / (cart + mass))
    push = force + mass * length * (turning**2 * sine - twist * cosine)
    rates = np.array([speed, push / (cart + mass), turning, twist])
    after, fell = ppo.push(jnp.asarray(pole), False, jnp.zeros(4))
    np.testing.assert_allclose(after, pole + 0.02 * rates, rtol=1e-5)
    assert not fell
    after, fell = ppo.push(jnp.array([2.39, 1.0, 0.0, 0.0]), True, jnp.full(4, 7.0))
    assert fell and (after == 7.0).all()
