"""In a race the best go on, exactly, and nobody is lost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import halving as halving_function
from jaxfit._drive.rungs import share_out
from jaxfit.halving import halving
from jaxfit.search import log_uniform, samples
from tests.common import TILES, assert_close, assert_same_bits, compiled, guess, loss

KEYS = jax.random.split(jax.random.key(5), 2)
RATES = np.geomspace(1e-3, 0.5, 6).astype(np.float32)
AXES = {"momentum": {"no": None, "some": 0.9}, "lr": RATES, "key": KEYS}


def counted(state, num_steps, target, speed=1.0):
    """Count steps; the score is how far the count is from a target."""
    count = (0.0 if state is None else state) + num_steps * speed
    return count, jnp.abs(count - target)


def test_the_module_and_the_function_have_one_name():
    assert halving_function is halving is jaxfit.halving


# What a member is


def runs(line):
    def fn(state, num_steps, momentum, lr, key):
        # Momentum of None has no buffer: both kinds have a state of one shape.
        sgd = optax.sgd(lr, 0.0 if momentum is None else momentum)
        start = guess if state is None else state
        run = jaxfit.train(
            loss, start, sgd, num_steps, data=jaxfit.minibatches(line, 10, key), record_every=1
        )
        return run.state, {"held out": loss(run.state.params, line), "step": run.state.step}

    return fn


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_member_is_the_run_alone(line, batch_size):
    fn = runs(line)
    race = halving(fn, AXES, 18, by="held out", batch_size=batch_size, rungs=2)
    assert race.values["rung"].max() == 1 and race.values["scores"].shape == (2, 6, 2, 2)
    for name, momentum in AXES["momentum"].items():
        for steps in 6, 18:
            alone = jax.jit(
                lambda lr, key, momentum=momentum, steps=steps: fn(None, steps, momentum, lr, key)
            )
            where = race.values["steps"][list(AXES["momentum"]).index(name)] == steps
            for i, j in np.argwhere(where)[:5]:
                member = race.sel(momentum=name, lr=RATES[i], key=j).values
                state, result = jax.tree.map(np.asarray, alone(RATES[i], KEYS[j]))
                same = assert_same_bits if batch_size == 1 else assert_close
                same((member["state"], member["result"]), (state, result))
                assert member["result"]["step"] == steps


def test_what_was_let_go_is_taken_up_again_from_its_state(line):
    fn = runs(line)
    axes = {**AXES, "momentum": [0.9]}
    race = halving(fn, axes, 18, by="held out", batch_size=1, rungs=2, devices=jax.devices()[:1])
    i, j = np.argwhere(race.values["rung"][0] == 0)[0]
    lr, key = RATES[i], KEYS[j]
    left = race.sel(momentum=0.9, lr=lr, key=j).values["state"]
    further = jax.jit(lambda state: fn(state, 12, 0.9, lr, key))(left)
    alone = jax.jit(lambda lr, key: fn(None, 18, 0.9, lr, key))(lr, key)
    assert_same_bits(further, alone)


# Who goes on


def test_the_best_third_goes_on():
    targets = jnp.array([0.0, 9, 9, 9, 27, 27, 27, 3, 81])
    race = halving(counted, {"target": targets}, 27)
    # After 3 steps, 3 is there, 0 is 3 off and the first 9 is 6 off; after 9, it is there.
    assert race.values["steps"].tolist() == [9, 27, 3, 3, 3, 3, 3, 9, 3]


def test_ends_scores_and_rungs():
    race = halving(counted, {"target": jnp.arange(20.0)}, 18, keep=2, rungs=3)
    values = race.values
    begun = np.abs(4 - np.arange(20.0))
    np.testing.assert_array_equal(values["scores"][:, 0], begun)
    second = np.argsort(begun, kind="stable")[:10]
    assert set(np.flatnonzero(values["rung"] >= 1)) == set(second)
    third = second[np.argsort(np.abs(9 - second), kind="stable")[:5]]
    assert set(np.flatnonzero(values["rung"] == 2)) == set(third)
    assert np.isnan(values["scores"][:, 1]).sum() == 10
    np.testing.assert_array_equal(values["steps"], np.array([4, 9, 18])[values["rung"]])
    np.testing.assert_array_equal(values["state"], values["steps"])
    np.testing.assert_array_equal(values["result"], np.abs(values["steps"] - np.arange(20.0)))
    np.testing.assert_array_equal(values["score"], values["scores"][:, 2])
    assert race.best("score") == {"target": max(third)}
    assert {"scores", "rung", "steps"} < set(race.to_xarray().data_vars)


def test_seeds_go_on_together_and_are_averaged():
    axes = {"seed": jnp.array([0.0, 100.0]), "target": jnp.arange(9.0), "by": [1.0, 2.0]}

    def fn(state, num_steps, seed, target, by):
        state, score = counted(state, num_steps, target, by)
        return state, score + seed * (target == 1)

    race = halving(fn, axes, 9, over="seed")
    rung = race.values["rung"]
    assert (rung[0] == rung[1]).all() and (rung[0] == 2).sum() == 2
    assert rung[0, 1].tolist() == [0, 0]  # whom one of two seeds spoils
    spared = halving(fn, axes, 9, over="seed", average=np.min)
    assert spared.values["rung"][:, 1].min() > 0
    alone = halving(fn, axes, 9).values["rung"]
    assert alone[0, 1].max() > alone[1, 1].max() == 0


def test_who_scores_nan_does_not_go_on():
    def fn(state, num_steps, x):
        state, score = counted(state, num_steps, x)
        return state, jnp.where((x < 8) | (state > 5), jnp.nan, score)

    race = halving(fn, {"x": jnp.arange(9.0)}, 9)
    assert race.values["steps"].tolist() == [1] * 8 + [9]
    assert np.isnan(race.values["score"]).all()
    with pytest.raises(ValueError, match="all runs score NaN"):
        race.best("score")
    none = halving(lambda *_, x: (x, x * jnp.nan), {"x": jnp.arange(9.0)}, 9)
    assert none.values["steps"].tolist() == [1] * 9


def test_brackets_begin_later_and_cost_about_the_same():
    points = samples(jax.random.key(0), 143, {"target": log_uniform(1.0, 81.0)})
    fn = lambda state, num_steps, point: counted(state, num_steps, point["target"])
    race = halving(fn, {"point": points}, 81, rungs=5, brackets=5).values
    number = np.bincount(race["bracket"])
    # The table of Li et al. for R = 81 and η = 3 has 81, 34, 15, 8 and 5.
    assert number.tolist() == pytest.approx([81, 34, 15, 8, 5], abs=3)
    for bracket in range(5):
        its = race["bracket"] == bracket
        first = np.isfinite(race["scores"]).argmax(axis=1)[its]
        assert (first == bracket).all() and (race["rung"][its] == 4).sum() >= 1
    assert share_out(143, 5, 3, 1).max() == 0
    assert_same_bits(halving(fn, {"point": points}, 81, rungs=5, brackets=5).values, race)


# What it costs


def test_a_second_race_compiles_nothing():
    axes = {"target": jnp.arange(9.0)}
    first = halving(counted, axes, 9, batch_size=3)
    compiled.clear()
    assert_same_bits(halving(counted, axes, 9, batch_size=3).values, first.values)
    assert not compiled


def test_progress_counts_every_rung(capsys):
    halving(counted, {"target": jnp.arange(9.0)}, 9, progress=True)
    assert re.search(r"100%.* 13/13 .*runs/s", capsys.readouterr().err)


# Refusals

some = {"target": jnp.arange(9.0)}
grows = lambda state, n, target: (jnp.zeros(n), target)
BAD = {
    "no pair": (
        lambda: halving(lambda state, n, target: target, some, 9),
        r"fn returned float32\[\], but must return a pair: the state to go on from, and a result",
    ),
    "arguments": (
        lambda: halving(lambda target: target, some, 9),
        "fn takes .target., but is called with state, num_steps and one keyword for each axis, t",
    ),
    "shapes that grow": (
        lambda: halving(grows, some, 9),
        r"fn returns one shape after 1 steps and another after 2 more .*float32\[2\].*: return a",
    ),
    "no score": (
        lambda: halving(lambda s, n, target: (target, jnp.ones(2)), some, 9),
        r"by gives float32\[1, 2\], but a score is an array of real numbers of shape \[1\]",
    ),
    "rungs": (
        lambda: halving(counted, some, 9, rungs=4),
        "rungs is 4, but 9 points and 9 steps with keep=3 are enough for 3: give fewer, or more",
    ),
    "brackets": (
        lambda: halving(counted, some, 9, brackets=4),
        "brackets is 4, but each begins one rung later, and there are 3 rungs: give no more than",
    ),
    "keep": (lambda: halving(counted, some, 9, keep=1), "keep is 1, but must be at least 2"),
    "over": (
        lambda: halving(counted, some, 9, over="seed"),
        "over names 'seed', but the axes are target",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_a_sentence_and_before_anything_is_compiled(call, sentence):
    compiled.clear()
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        call()
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
    assert TILES not in compiled
