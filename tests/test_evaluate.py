"""Validation at its own pace, and the rules and the choice that look at it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import record, stop
from tests.common import assert_same_bits, guess, loss, row

ADAM = optax.adam(0.1)


@pytest.fixture(scope="module")
def held_out():
    return jaxfit.data.line(jax.random.key(9), 30)


@pytest.fixture(scope="module")
def evaluate(held_out):
    return lambda state: {"loss": loss(state.params, held_out), "step": state.step}


def train(data, evaluate, steps=23, optimizer=ADAM, **options):
    every = {"evaluate": evaluate, "evaluate_every": 5}
    return jaxfit.train(loss, guess, optimizer, steps, data=data, **{**every, **options})


def test_evaluations_are_of_the_states_at_their_steps(line, evaluate):
    plain = jaxfit.train(loss, guess, ADAM, 24, data=line, record=record.state)
    run = jax.jit(lambda: train(line, evaluate))()
    np.testing.assert_array_equal(run.evaluated_steps, [0, 5, 10, 15, 20, 23])
    np.testing.assert_array_equal(run.evaluations["step"], run.evaluated_steps)
    states = row(plain.trajectory, run.evaluated_steps)
    alone = jnp.array([evaluate(row(states, i))["loss"] for i in range(6)])
    np.testing.assert_allclose(run.evaluations["loss"], alone, rtol=1e-5)
    whole = jax.jit(lambda: train(line, evaluate, 20))()
    np.testing.assert_array_equal(whole.evaluated_steps, [0, 5, 10, 15, 20])
    assert jaxfit.train(loss, guess, ADAM, 3, data=line).evaluations is None


@pytest.mark.parametrize(
    "options",
    [
        {"evaluate_every": 1},
        {"evaluate_every": 6, "record_every": 3},
        {"evaluate_every": 4, "keyframe_every": 8, "record_every": 2},
        {"evaluate_every": 8, "keyframe_every": 4},
        {"evaluate_every": 40, "keyframe_every": 10},
    ],
    ids=str,
)
def test_evaluating_changes_no_bit(line, evaluate, options):
    plain = jaxfit.train(loss, guess, ADAM, 23, data=line, record=record.state)
    run = train(line, evaluate, record=record.state, **options)
    assert_same_bits(run.state, plain.state)
    every = options.get("record_every", 1)
    assert_same_bits(run.trajectory, row(plain.trajectory, slice(None, None, every)))
    if "keyframe_every" in options:
        frames = row(plain.trajectory, slice(None, None, options["keyframe_every"]))
        assert_same_bits(run.keyframes, frames)
    expected = [*range(0, 23, options["evaluate_every"]), 23]
    np.testing.assert_array_equal(run.evaluations["step"], expected)


def test_evaluations_cost_nothing_between(line):
    calls = []

    def counted(state):
        jax.debug.callback(lambda step: calls.append(int(step)), state.step)
        return state.step

    jaxfit.train(loss, guess, ADAM, 12, data=line, evaluate=counted, evaluate_every=5)
    jax.effects_barrier()
    assert sorted(calls) == [0, 5, 10, 12]


@pytest.mark.slow
def test_derivatives_go_past_evaluations(line, evaluate):
    def final(rate, **options):
        return loss(train(line, evaluate, optimizer=optax.sgd(rate), **options).state.params, line)

    plain = jax.grad(
        lambda rate: loss(
            jaxfit.train(loss, guess, optax.sgd(rate), 23, data=line).state.params, line
        )
    )(0.01)
    for options in {}, {"keyframe_every": 5}:
        found = jax.grad(lambda rate, options=options: final(rate, **options))(0.01)
        np.testing.assert_allclose(found, plain, rtol=1e-5)
    summed = lambda rate: train(line, evaluate, optimizer=optax.sgd(rate)).evaluations["loss"].sum()
    forward, reverse = jax.jacfwd(summed)(0.01), jax.grad(summed)(0.01)
    np.testing.assert_allclose(forward, reverse, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_fit_evaluates_as_train_does(line, evaluate, chunk_size, tmp_path):
    wanted = train(line, evaluate)
    options = {"data": line, "evaluate": evaluate, "evaluate_every": 5, "progress": False}
    for directory in None, tmp_path:
        run = jaxfit.fit(
            loss, guess, ADAM, 23, checkpoint_dir=directory, chunk_size=chunk_size, **options
        )
        assert_same_bits(run.state, wanted.state)
        assert_same_bits(run.evaluated_steps, wanted.evaluated_steps)
        assert_same_bits(row(run.evaluations, slice(None)), wanted.evaluations)
    loaded = jaxfit.load(tmp_path)
    assert_same_bits(row(loaded.evaluations, slice(None)), wanted.evaluations)
    # A run that goes on forgets the evaluation at what was its end.
    more = jaxfit.fit(loss, guess, ADAM, 31, checkpoint_dir=tmp_path, **options)
    longer = train(line, evaluate, 31)
    assert_same_bits(more.evaluated_steps, longer.evaluated_steps)
    assert_same_bits(row(more.evaluations, slice(None)), longer.evaluations)
    other = {**options, "evaluate_every": 10}
    with pytest.raises(ValueError, match="evaluate_every is 5 there and 10 here"):
        jaxfit.fit(loss, guess, ADAM, 31, checkpoint_dir=tmp_path, **other)


def test_a_sweep_has_the_evaluations_of_its_members(line, evaluate):
    member = lambda rate: train(line, evaluate, optimizer=optax.sgd(rate))
    swept = jaxfit.sweep(member, {"rate": jnp.array([0.01, 0.1])}, batch_size=1).values
    for index, rate in enumerate((0.01, 0.1)):
        alone = jax.jit(member)(jnp.float32(rate))
        assert_same_bits(row(swept.evaluations, index), alone.evaluations)
    table = jaxfit.sweep(member, {"rate": jnp.array([0.01, 0.1])}).to_xarray()
    assert table["trajectory.loss"].dims == ("rate", "step")
    assert table["evaluations.loss"].dims == ("rate", "evaluated_step")
    np.testing.assert_array_equal(table.evaluated_step, [0, 5, 10, 15, 20, 23])


def test_the_best_state_is_reached_from_keyframes(line):
    heavy = optax.sgd(0.1, momentum=0.9)
    whole = jaxfit.train(loss, guess, heavy, 40, data=line, record=record.state)
    aim = whole.trajectory.params[15]  # so that the best is not the last
    evaluate = lambda state: {"loss": jnp.sum((state.params - aim) ** 2), "step": state.step}
    for options in {"keyframe_every": 5}, {"keyframe_every": 20}, {"record": record.state}:
        run = train(line, evaluate, 40, heavy, **options)
        index = int(np.argmin(run.evaluations["loss"]))
        step = int(run.evaluated_steps[index])
        assert step == 15
        for by in "loss", lambda found: found["loss"]:
            found = jaxfit.best(loss, run, heavy, by, data=line)
            assert_same_bits(found, row(whole.trajectory, step))
        traced = jax.jit(lambda run: jaxfit.best(loss, run, heavy, "loss", data=line))(run)
        assert_same_bits(traced, found)
    last = jaxfit.best(loss, run, heavy, lambda found: -found["step"].astype(float), data=line)
    assert_same_bits(last, run.state)


def test_best_says_what_it_lacks(line, evaluate):
    plain = jaxfit.train(loss, guess, ADAM, 3, data=line, keyframe_every=1)
    with pytest.raises(ValueError, match="no evaluations to choose by: make it with train"):
        jaxfit.best(loss, plain, ADAM, data=line)
    run = train(line, evaluate)
    with pytest.raises(ValueError, match=r"by gives \{'loss': .*, but the best State is that of"):
        jaxfit.best(loss, run, ADAM, data=line)
    with pytest.raises(ValueError, match="no keyframes to replay it from"):
        jaxfit.best(loss, run, ADAM, lambda found: found["step"], data=line)
    nothing = lambda found: found["loss"] * jnp.nan
    with pytest.raises(ValueError, match="all evaluations score NaN"):
        jaxfit.best(loss, run, ADAM, nothing, data=line)


REFUSED = {
    "alone": ({"evaluate": lambda state: 0.0}, "evaluate was given alone: give evaluate_every=100"),
    "no function": ({"evaluate_every": 5}, "evaluate_every was given alone: give evaluate=lambda"),
    "no row": (
        {"evaluate": lambda state: 0.0, "evaluate_every": 5, "record_every": 2},
        "evaluate_every is 5 and record_every 2, but each begins with a row",
    ),
    "no argument": (
        {"evaluate": lambda: 0.0, "evaluate_every": 5},
        r"evaluate <lambda> takes other arguments, but it is called as evaluate\(state\)",
    ),
    "nothing": (
        {"evaluate": lambda state: None, "evaluate_every": 5},
        "evaluate returned None, but an evaluation needs at least one array",
    ),
    "text": (
        {"evaluate": lambda state: "good", "evaluate_every": 5},
        "evaluate returned 'good', but may return only arrays and numbers",
    ),
}


@pytest.mark.parametrize(("given", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_evaluations_are_refused(line, given, sentence):
    for run in jaxfit.train, jaxfit.fit:
        with pytest.raises((TypeError, ValueError), match=sentence):
            run(loss, guess, ADAM, 20, data=line, **given)


def test_periods_that_do_not_nest_are_refused(line, evaluate):
    with pytest.raises(ValueError, match="keyframe_every is 4 and evaluate_every 6, but one loop"):
        train(line, evaluate, keyframe_every=4, evaluate_every=6)


# Rules that look at evaluations, and rules that go on.


def watched(data, rule, steps=60, start=guess, **options):
    return jaxfit.fit(
        loss, start, optax.sgd(0.1), steps, data=data, stop=rule, progress=False, **options
    )


def test_patience_counts_evaluations(line, held_out):
    score = lambda state: jnp.abs(state.step - 17.0)  # the best at step 15 or 20
    every = {"evaluate": score, "evaluate_every": 5}
    run = watched(line, stop.no_improvement(3, of=lambda value: value), **every)
    assert run.stop_reason == "no_improvement(3, of=…) was true at step 30"
    np.testing.assert_array_equal(run.evaluations, [17, 12, 7, 2, 3, 8, 13])
    plain = jaxfit.train(loss, guess, optax.sgd(0.1), 30, data=line, **every)
    assert_same_bits(run.state, plain.state)
    assert_same_bits(run.evaluations, plain.evaluations)
    assert_same_bits(run.trajectory, plain.trajectory)
    with pytest.raises(ValueError, match="looks at evaluations, but there are none: give evaluate"):
        watched(line, stop.no_improvement(3, of=lambda value: value))


@pytest.mark.parametrize("of", [pytest.param(None, marks=pytest.mark.slow), lambda value: value])
def test_a_run_in_two_parts_stops_where_the_whole_does(line, of, tmp_path):
    every = {"evaluate": lambda state: loss(state.params, line), "evaluate_every": 2}
    rule = lambda: stop.no_improvement(4, 0.02, of)
    whole = watched(line, rule(), **every)
    end = int(whole.state.step)
    assert 8 < end < 60
    for first in 6, end - 2:
        one = watched(line, rule(), first, **every)
        two = watched(line, rule(), start=one.state, **every)
        assert (int(two.state.step), two.stop_reason) == (end, whole.stop_reason)
        assert_same_bits(two.state, whole.state)
    watched(line, rule(), 6, checkpoint_dir=tmp_path, **every)
    again = watched(line, rule(), checkpoint_dir=tmp_path, **every)
    assert (int(again.state.step), again.stop_reason) == (end, whole.stop_reason)
    fresh = watched(line, rule(), start=jax.tree.map(jnp.asarray, one.state), **every)
    assert int(fresh.state.step) > end  # a copy has not seen what came before
    other = watched(line, stop.no_improvement(5, 0.02, of), start=one.state, **every)
    assert int(other.state.step) > end  # another rule begins afresh


def test_any_of_some_rules_ends_a_run(line):
    every = {"evaluate": lambda state: state.step, "evaluate_every": 4}
    at = lambda step: stop.Rule(tuple, evaluated=lambda seen, memory: (seen >= step, memory))
    late = stop.Rule(lambda: jnp.int32(0), lambda step, seen: (seen == 9, seen + 1))
    cases = [
        (stop.any(stop.loss_below(-1.0), late), 9),
        (stop.any(late, at(8)), 8),
        (stop.any(late, at(12), stop.not_finite), 9),
        (stop.any(stop.any(at(8)), late), 8),
    ]
    for rule, end in cases:
        run = watched(line, rule, **every)
        assert int(run.state.step) == end and run.stop_reason.startswith("any(")
        assert run.evaluated_steps[-1] == end
    with pytest.raises(ValueError, match="any was given no rule"):
        stop.any()


def test_gradient_below_ends_where_the_norms_say(line):
    norms = jaxfit.train(
        loss, guess, optax.sgd(0.1), 60, data=line, record=lambda s: optax.tree.norm(s.grads)
    ).trajectory
    bound = float(norms[20] + norms[21]) / 2
    run = watched(line, stop.gradient_below(bound))
    assert int(run.state.step) == 21
    assert run.stop_reason == f"gradient_below({bound}) was true at step 21"


def test_reasons_name_rules_and_never_lambdas(line):
    def small(step):
        return step.loss < 1e9

    rule = stop.Rule(lambda: (), lambda step, memory: (step.step == 0, memory))
    named = stop.Rule(lambda: (), rule.update, name="mine")
    for given, name in (small, "small"), (lambda s: s.loss < 1e9, "stop"), (rule, "stop"):
        assert watched(line, given).stop_reason == f"{name} was true at step 0"
    assert watched(line, named).stop_reason == "mine was true at step 0"
