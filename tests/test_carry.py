"""What the loss takes from step to step beside the parameters."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import record
from tests.common import assert_close, assert_same_bits, guess, loss, row

ADAM = optax.adam(0.1)


def noisy(a, carry, batch):
    """Train on noisy targets, with a key, a count, a switch and an average in the carry."""
    key, now = jax.random.split(carry["key"])
    x, y = batch
    value = loss(a, (x, y + 0.1 * jax.random.normal(now, y.shape)))
    mean = 0.9 * carry["mean"] + 0.1 * a
    return value, {"key": key, "mean": mean, "odd": ~carry["odd"], "count": carry["count"] + 1}


START = {"key": jax.random.key(5), "mean": jnp.zeros(2), "odd": False, "count": 0}


def by_hand(data, steps):
    """Take the steps of `noisy` in a Python loop; return losses, parameters and the carry."""
    a, opt_state, carry, losses = guess, ADAM.init(guess), START, []
    carry = {**carry, "odd": jnp.array(False), "count": jnp.int32(0)}

    @jax.jit
    def step(a, opt_state, carry):
        (value, carry), grads = jax.value_and_grad(noisy, has_aux=True)(a, carry, data)
        updates, opt_state = ADAM.update(grads, opt_state, a)
        return optax.apply_updates(a, updates), opt_state, carry, value

    for _ in range(steps):
        a, opt_state, carry, value = step(a, opt_state, carry)
        losses.append(value)
    return jnp.array(losses), a, carry


def test_a_run_with_carry_is_the_loop_by_hand(line):
    losses, a, carry = by_hand(line, 12)
    run = jaxfit.train(noisy, guess, ADAM, 12, data=line, carry=START, record=lambda s: s)
    assert_close((run.trajectory.loss, run.state.params), (losses, a), rtol=1e-5)
    assert_close(run.state.carry["mean"], carry["mean"], rtol=1e-5)
    assert_same_bits(run.state.carry["key"], carry["key"])
    assert int(run.state.carry["count"]) == 12 and not run.state.carry["odd"]
    # The carry in a row is the one that the loss was given.
    np.testing.assert_array_equal(run.trajectory.carry["count"], np.arange(12))
    assert run.trajectory.carry["odd"].dtype == bool
    assert_same_bits(row(run.trajectory, 0).state, jaxfit.init(guess, ADAM, START))


def test_carry_stands_before_the_batch_and_aux_behind_it(line):
    def both(a, carry, batch):
        value, after = noisy(a, carry, batch)
        return value, (after, {"twice": 2 * value})

    plain = jaxfit.train(noisy, guess, ADAM, 6, data=line, carry=START)
    run = jaxfit.train(both, guess, ADAM, 6, data=line, carry=START, has_aux=True)
    assert_same_bits(run.state, plain.state)
    assert_same_bits(run.trajectory["aux"]["twice"], 2 * run.trajectory["loss"])
    alone = lambda a, carry: noisy(a, carry, line)
    assert_close(jaxfit.train(alone, guess, ADAM, 6, carry=START).state.params, run.state.params)


def test_a_carry_goes_wherever_a_run_goes(line, tmp_path):
    options = {"data": line, "record": record.state}
    whole = jaxfit.train(noisy, guess, ADAM, 20, carry=START, keyframe_every=6, **options)
    half = jaxfit.train(noisy, guess, ADAM, 8, carry=START, **options)
    assert_same_bits(jaxfit.train(noisy, half.state, ADAM, 12, **options).state, whole.state)
    part = jaxfit.replay(noisy, whole, ADAM, 9, 13, **options)
    assert_same_bits(part.trajectory, row(whole.trajectory, slice(9, 13)))
    step = jaxfit.at(noisy, whole, ADAM, 9, data=line)
    assert_same_bits(step.state, row(whole.trajectory, 9))
    fork = jaxfit.fork(half.state, optax.sgd(0.1))
    assert_same_bits(fork.carry, half.state.carry)
    assert jaxfit.train(noisy, fork, optax.sgd(0.1), 2, data=line).state.carry["count"] == 10
    kept = {"carry": START, "chunk_size": 7, "progress": False, **options}
    for directory in None, tmp_path:
        run = jaxfit.fit(noisy, guess, ADAM, 20, checkpoint_dir=directory, **kept)
        assert_same_bits(run.state, whole.state)
        rows = jax.tree.map(lambda leaf: leaf[:], run.trajectory)
        assert_same_bits(rows, whole.trajectory)
    loaded = jaxfit.load(tmp_path)
    assert_same_bits(loaded.state, whole.state)
    part = jaxfit.replay(noisy, loaded, ADAM, 15, 16, **options)
    assert_same_bits(part.trajectory, row(whole.trajectory, slice(15, 16)))
    more = jaxfit.fit(noisy, guess, ADAM, 23, checkpoint_dir=tmp_path, **kept)
    assert more.state.carry["count"] == 23
    other = {**START, "count": 1}
    with pytest.raises(ValueError, match=r"another run \(carry\['count'\] has other values"):
        jaxfit.fit(noisy, guess, ADAM, 23, checkpoint_dir=tmp_path, **{**kept, "carry": other})


def test_members_of_a_sweep_have_carries_of_their_own(line):
    def final(seed):
        carry = {**START, "key": jax.random.key(seed)}
        return jaxfit.train(noisy, guess, ADAM, 5, data=line, carry=carry).state

    swept = jaxfit.sweep(final, {"seed": jnp.arange(3)}, batch_size=1).values
    for seed in range(3):
        assert_same_bits(row(swept, seed), jax.jit(final)(seed))


@pytest.mark.slow
def test_derivatives_go_through_a_carry():
    # m ← m/2 + p, and p ← p - r (m + p), the derivative of p m.
    def averaged(p, carry):
        mean = 0.5 * carry + p
        return p * mean, mean

    def final(start, **options):
        run = jaxfit.train(averaged, start, optax.sgd(0.1), 8, carry=jnp.float32(1.0), **options)
        return run.state.params + run.state.carry

    def closed_form(start):
        p, m = start, 1.0
        for _ in range(8):
            m = 0.5 * m + p
            p = p - 0.1 * (m + p)
        return p + m

    expected = jax.jacfwd(closed_form)(2.0)
    for options in {}, {"keyframe_every": 3}:
        assert_close(final(2.0, **options), closed_form(2.0))
        for derivative in jax.jacfwd, jax.jacrev, jax.grad:
            assert_close(derivative(lambda start, o=options: final(start, **o))(2.0), expected)


def test_objects_in_a_carry_ride_along(line):
    module = eqx.nn.MLP(2, 1, 4, 1, activation=jax.nn.tanh, key=jax.random.key(0))

    def averaging(model, mean, batch):
        x, y = batch
        value = jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)
        blend = lambda one, other: 0.9 * one + 0.1 * other if eqx.is_array(one) else one
        return value, jax.tree.map(blend, mean, model)

    run = jaxfit.train(averaging, module, ADAM, 4, data=line, carry=module, keyframe_every=2)
    assert run.state.carry(line[0][0]).shape == (1,)
    assert run.state.carry.activation is run.keyframes.carry.activation is jax.nn.tanh
    fitted = jaxfit.fit(averaging, module, ADAM, 4, data=line, carry=module, progress=False)
    assert_same_bits(eqx.filter(fitted.state, eqx.is_array), eqx.filter(run.state, eqx.is_array))


def test_a_bad_number_in_a_carry_is_blamed(line):
    def fading(a, carry, batch):
        return loss(a, batch) * carry, jnp.log(carry)

    stop = jaxfit.stop.not_finite
    run = jaxfit.fit(fading, guess, ADAM, 9, data=line, carry=2.0, stop=stop, progress=False)
    blame = jaxfit.blame(fading, run.state, ADAM, data=line)
    assert (blame.leaf, blame.value) == ("carry", "nan") and blame.primitive is None
    # 2, 0.69, -0.37, nan: the step before made it.
    before = jaxfit.train(fading, guess, ADAM, 2, data=line, carry=2.0).state
    blame = jaxfit.blame(fading, before, ADAM, data=line)
    assert (blame.leaf, blame.primitive, blame.made) == ("next carry", "log", "nan")
    assert "test_carry.py" in blame.where and "(fading)" in blame.where
    kept = jaxfit.init(guess, ADAM, {"best": jnp.inf})
    unharmed = lambda a, carry, batch: (loss(a, batch), carry)
    assert jaxfit.blame(unharmed, kept, ADAM, data=line).leaf is None


@pytest.mark.parametrize(
    ("returned", "given", "sentence"),
    {
        "no pair": (
            lambda v, c: v,
            {},
            r"carry was given, but the loss returned float32\[\]: return the pair \(loss, carry\)",
        ),
        "no pair in it": (
            lambda v, c: (v, c),
            {"has_aux": True},
            r"carry and has_aux=True were given, .* return the pair \(loss, \(carry, aux\)\)",
        ),
        "another shape": (
            lambda v, c: (v, {"n": jnp.zeros(2)}),
            {},
            r"another carry than it was given \(float32\[2\] in place of float32\[\] at leaf",
        ),
        "another dtype": (lambda v, c: (v, {"n": 3}), {}, r"int32\[\] in place of float32\[\]"),
        "another structure": (lambda v, c: (v, c["n"]), {}, "return the same structure, shapes"),
        "beside a State": (
            lambda v, c: (v, c),
            {"params": jaxfit.init(guess, ADAM)},
            "carry was given beside a State, which has its own",
        ),
    }.values(),
)
def test_what_no_loop_can_carry_is_refused(line, returned, given, sentence):
    def objective(a, carry, batch):
        return returned(loss(a, batch), carry)

    arguments = {"params": guess, "data": line, "carry": {"n": 1.0}, **given}
    for run in jaxfit.train, jaxfit.fit:
        with pytest.raises((TypeError, ValueError), match=sentence):
            run(objective, optimizer=ADAM, num_steps=3, **arguments)


def test_a_loss_that_takes_no_carry_is_refused(line):
    with pytest.raises(TypeError, match=r"carry and data were given, so it is called as loss\(p"):
        jaxfit.train(loss, guess, ADAM, 3, data=line, carry=0.0)
    state = dataclasses.replace(jaxfit.init(guess, ADAM), carry=jnp.float32(0))
    with pytest.raises(TypeError, match=r"called as loss\(params, carry, batch\)"):
        jaxfit.train(loss, state, ADAM, 3, data=line)


def test_a_sharded_run_with_carry_is_the_run(line):
    mesh = jax.sharding.Mesh(jax.devices(), "devices")
    put = lambda tree, *axes: jax.device_put(
        tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    )

    @jax.jit
    def run(start, batch, carry):
        return jaxfit.train(noisy, start, ADAM, 12, data=batch, carry=carry)

    start = jaxfit.init(guess, ADAM, START).carry
    sharded = run(put(guess), put(line, "devices"), put(start))
    assert len(sharded.trajectory["loss"].sharding.device_set) == 2
    kept = lambda run: (run.trajectory, run.state.params, run.state.carry["mean"])
    alone = run(guess, line, start)
    assert_close(kept(sharded), kept(alone), rtol=1e-4)
    assert_same_bits(sharded.state.carry["key"], alone.state.carry["key"])
