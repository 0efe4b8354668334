"""The promises of `train`, each by a test that fails where the promise is broken."""

import dataclasses
import functools
import re
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
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import record
from jaxfit.models import linear
from tests.common import (
    assert_close,
    assert_same_bits,
    concatenate,
    guess,
    loss,
    perceptron,
    row,
)

everything = lambda step: step

OPTIMIZERS = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.05, momentum=0.9),
    "nesterov": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw, cosine": optax.adamw(optax.cosine_decay_schedule(0.05, 30)),
    "clip, momentum": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
    "MultiSteps": optax.MultiSteps(optax.adam(0.01), 4),
    "lbfgs": optax.lbfgs(),
}


def quadratic(params, batch):
    return 0.5 * jnp.sum(batch * params * params)


CURVATURES = jnp.array([1.0, 0.1, 0.013])
PROBLEMS = {
    # A product that goes into a sum at every turn: where XLA is most tempted to merge the two.
    "quadratic": lambda line: (quadratic, jnp.array([1.0, -2.0, 3.0]), CURVATURES),
    "line": lambda line: (loss, guess, line),
    "perceptron": lambda line: perceptron(),
}


@pytest.fixture(params=PROBLEMS)
def problem(request, line):
    return PROBLEMS[request.param](line)


def jitted(problem, optimizer):
    """`train` under jit, with the data as an argument where it is arrays."""
    objective, start, data = problem

    def run(start=start, num_steps=30, **options):
        if callable(data):
            program = lambda start: jaxfit.train(
                objective, start, optimizer, num_steps, data=data, **options
            )
            return jax.jit(program)(start)
        program = lambda start, data: jaxfit.train(
            objective, start, optimizer, num_steps, data=data, **options
        )
        return jax.jit(program)(start, data)

    return run


# 1. Row t is consistent.


@pytest.mark.parametrize("name", ["momentum", "adam", "lbfgs"])
def test_everything_in_a_row_belongs_to_the_parameters_before_its_update(line, name):
    optimizer = OPTIMIZERS[name]
    run = jitted((loss, guess, line), optimizer)(record=everything, num_steps=12)
    rows = run.trajectory
    np.testing.assert_array_equal(rows.step, np.arange(12))
    np.testing.assert_array_equal(run.steps, np.arange(12))
    state = jaxfit.init(guess, optimizer)
    assert_same_bits(row(rows, 0).state, state)

    @jax.jit
    def update(step, value, grads):
        extra = {"value": value, "grad": grads, "value_fn": functools.partial(loss, batch=line)}
        extra = extra if name == "lbfgs" else {}
        return optimizer.update(step.grads, step.opt_state, step.params, **extra)

    for t in range(12):
        step = row(rows, t)
        value, grads = jax.value_and_grad(loss)(step.params, line)
        assert_close((step.loss, step.grads), (value, grads), rtol=1e-4)
        updates, opt_state = update(step, value, grads)
        following = row(rows, t + 1).state if t < 11 else run.state
        assert_close(step.updates, updates, rtol=1e-3)
        assert_close(following.opt_state, opt_state, rtol=1e-3, atol=1e-5)
        assert_close(following.params, optax.apply_updates(step.params, step.updates))


def test_the_last_state_is_the_row_after_the_last(line):
    run = jitted((loss, guess, line), OPTIMIZERS["adam"])
    assert_same_bits(
        run(num_steps=12).state, row(run(num_steps=13, record=record.state).trajectory, 12)
    )


def test_the_batch_in_a_row_is_the_one_the_loss_saw():
    objective, start, data = perceptron()
    run = jitted((objective, start, data), optax.sgd(0.1))(record=everything, num_steps=5)
    for t in range(5):
        step = row(run.trajectory, t)
        assert_close(step.batch, data(t))
        assert_close(step.loss, objective(step.params, step.batch))


def test_constant_data_is_in_every_row(line):
    run = jaxfit.train(
        loss, guess, optax.sgd(0.1), 4, data=line, record=lambda s: s.batch[1], record_every=2
    )
    np.testing.assert_array_equal(run.trajectory, np.stack([line[1]] * 2))


# 2. Recording never changes the run. For all optimizers and dtypes, see test_bits.py.


def test_states_and_rows_are_the_same_whatever_is_recorded_and_however_sparsely(problem):
    run = jitted(problem, OPTIMIZERS["adam"])
    whole = run(record=everything)
    assert_same_bits(run(record=record.metrics).state, whole.state)
    sparse = run(record=everything, record_every=7)  # which leaves a shorter last stretch
    np.testing.assert_array_equal(sparse.steps, np.arange(0, 30, 7))
    assert_same_bits(sparse.trajectory, row(whole.trajectory, slice(None, None, 7)))
    assert_same_bits(sparse.state, whole.state)


@pytest.mark.slow
def test_keyframes_are_the_states_of_their_steps(problem):
    run = jitted(problem, OPTIMIZERS["adam"])
    plain = run(record=record.state)
    assert plain.keyframes is None
    for k in (6, 7):
        framed = run(keyframe_every=k)
        assert_same_bits(framed.keyframes, row(plain.trajectory, slice(None, None, k)))
        assert_same_bits(framed.trajectory["params"], plain.trajectory.params)


# 3. Resuming is exact. For more, see test_bits.py.


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        ("quadratic", "nesterov"),
        ("quadratic", "lbfgs"),
        ("line", "adamw, cosine"),
        ("perceptron", "clip, momentum"),
    ],
    indirect=["problem"],
)
def test_two_halves_are_the_whole(problem, name):
    run = jitted(problem, OPTIMIZERS[name])
    keep = lambda step: (step.state, step.loss)
    whole = run(record=keep)
    one = run(num_steps=17, record=keep)
    two = run(one.state, num_steps=13, record=keep)
    assert_same_bits(two.state, whole.state)
    assert_same_bits(concatenate(one.trajectory, two.trajectory), whole.trajectory)
    assert_same_bits(concatenate(one.steps, two.steps), whole.steps)


def test_a_python_loop_over_single_steps_is_the_run(problem):
    objective, start, data = problem
    optimizer = OPTIMIZERS["momentum"]
    batch = (lambda arrays: data) if callable(data) else (lambda arrays: arrays)
    step = jax.jit(
        lambda state, arrays: jaxfit.train(objective, state, optimizer, 1, data=batch(arrays)).state
    )
    state = jaxfit.init(start, optimizer)
    for _ in range(30):
        state = step(state, None if callable(data) else data)
    assert_same_bits(state, jitted(problem, optimizer)().state)


# Parameters: any pytree.


def test_python_floats_are_taken_as_arrays_and_other_leaves_ride_along():
    def objective(params):
        assert params["name"] == "a" and params["none"] is None
        return (params["f"](params["x"]) - params["k"]) ** 2

    start = {"x": 1.0, "k": 4, "f": jnp.square, "none": None, "name": "a"}
    begun = jaxfit.init(start, optax.adam(0.05)).params["x"]
    assert isinstance(begun, jax.Array) and not begun.weak_type
    run = jaxfit.train(objective, start, optax.adam(0.05), 200)
    end = run.state.params
    assert end["f"] is jnp.square and end["k"] == 4 and end["name"] == "a" and end["none"] is None
    assert end["x"].dtype == jnp.float32 and abs(end["x"] - 2.0) < 1e-3
    assert run.trajectory["params"]["f"] is jnp.square
    np.testing.assert_array_equal(run.trajectory["params"]["k"], np.full(200, 4))


def test_leaves_that_are_not_trained_ride_along_in_keyframes():
    table, start = jnp.array([2, 0, 1]), jnp.arange(3.0)
    objective = lambda params: jnp.sum((params[0][params[1]] - jnp.array([5.0, 6.0, 7.0])) ** 2)
    run = jaxfit.train(objective, (start, table), optax.sgd(0.1), 10, keyframe_every=5)
    assert run.keyframes.params[1].shape == (2, 3)
    again = jaxfit.train(objective, row(run.keyframes, 1), optax.sgd(0.1), 5)
    assert_same_bits(again.state, run.state)
    np.testing.assert_array_equal(run.state.params[1], table)


def test_numpy_parameters_and_data(line):
    arrays = jax.tree.map(np.asarray, line)
    one = jaxfit.train(loss, np.asarray(guess), optax.sgd(0.1), 5, data=arrays)
    assert_same_bits(one.state, jaxfit.train(loss, guess, optax.sgd(0.1), 5, data=line).state)


def test_complex_parameters_go_down_hill():
    target = jnp.array([1.0 + 2.0j, -3.0j])
    objective = lambda z: jnp.sum(jnp.abs(z - target) ** 2)
    start = jnp.array([2.0 - 1.0j, 1.0 + 1.0j])
    run = jaxfit.train(objective, start, optax.sgd(0.1), 20)
    # The gradient of |z - c|² as ascent is 2 (z - c): every step takes 0.8 of the distance.
    expected = target + (start - target) * 0.8 ** np.arange(20)[:, None]
    np.testing.assert_allclose(run.trajectory["params"], expected, rtol=1e-5)
    for optimizer in (optax.lbfgs(), optax.contrib.split_real_and_imaginary(optax.adam(0.3))):
        end = jaxfit.train(objective, start, optimizer, 100).state.params
        np.testing.assert_allclose(end, target, atol=2e-2)


def test_lookahead_trains_its_fast_half(line):
    start = optax.LookaheadParams.init_synced(guess)
    optimizer = optax.lookahead(optax.sgd(0.1), sync_period=1, slow_step_size=1.0)
    run = jaxfit.train(loss, start, optimizer, 20, data=line)
    plain = jaxfit.train(loss, guess, optax.sgd(0.1), 20, data=line)
    assert_close(run.state.params.slow, plain.state.params)


# Models of others.


def test_an_equinox_module_trains_as_it_is(line):
    x, y = line
    model = eqx.nn.MLP(2, "scalar", 8, 1, activation=jax.nn.tanh, key=jax.random.key(0))

    def objective(model, batch):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    train = eqx.filter_jit(
        lambda model: jaxfit.train(objective, model, optax.adam(0.01), 50, data=(x, y))
    )
    run = train(model)
    fitted = run.state.params
    assert fitted(x[0]).shape == () and fitted.activation is jax.nn.tanh
    assert objective(fitted, (x, y)) < 0.5 * run.trajectory["loss"][0]
    # The trajectory is a stack of modules.
    losses = eqx.filter_vmap(lambda model: objective(model, (x, y)))(run.trajectory["params"])
    assert_close(losses, run.trajectory["loss"], rtol=1e-4)
    eager = jaxfit.train(objective, model, optax.adam(0.01), 50, data=(x, y))
    assert_close(eager.trajectory["loss"], run.trajectory["loss"], rtol=1e-4)


def test_an_nnx_model_trains_through_split_and_merge(line):
    graph, params = nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))

    def objective(params, batch):
        x, y = batch
        return jnp.mean((nnx.merge(graph, params)(x[:, :1])[:, 0] - y) ** 2)

    run = jaxfit.train(objective, params, optax.sgd(0.3), 200, data=line)
    fitted = nnx.merge(graph, run.state.params)
    slope, intercept = np.linalg.lstsq(*map(np.asarray, line))[0]
    np.testing.assert_allclose(fitted.kernel[...], [[slope]], rtol=1e-4)
    np.testing.assert_allclose(fitted.bias[...], [intercept], rtol=1e-4)


def test_a_linen_model_trains_through_apply(line):
    model = linen.Dense(1)
    start = model.init(jax.random.key(0), jnp.ones((1, 1)))

    def objective(params, batch):
        x, y = batch
        return jnp.mean((model.apply(params, x[:, :1])[:, 0] - y) ** 2)

    run = jaxfit.train(objective, start, optax.sgd(0.3), 200, data=line)
    slope, intercept = np.linalg.lstsq(*map(np.asarray, line))[0]
    np.testing.assert_allclose(run.state.params["params"]["kernel"], [[slope]], rtol=1e-4)
    np.testing.assert_allclose(run.state.params["params"]["bias"], [intercept], rtol=1e-4)


# An optimizer of one's own.


def test_the_rule_of_the_lesson_is_sgd_bit_for_bit(line):
    def descent(grads, params):
        return jax.tree.map(lambda g: -0.1 * g, grads)

    runs = [
        jaxfit.train(loss, guess, optimizer, 50, data=line)
        for optimizer in (descent, optax.stateless(descent), optax.sgd(0.1))
    ]
    assert_same_bits(runs[0].trajectory, runs[2].trajectory)
    assert_same_bits(runs[1].trajectory, runs[2].trajectory)
    # And it is the three lines of the lesson.
    a = guess
    for t in range(50):
        assert_close(runs[0].trajectory["params"][t], a, rtol=1e-4)
        a = a - 0.1 * jax.grad(loss)(a, line)


def test_two_pure_functions_are_an_optimizer(line):
    def update(grads, velocity, params=None):
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        return jax.tree.map(lambda v: -0.05 * v, velocity), velocity

    mine = optax.GradientTransformation(lambda p: jax.tree.map(jnp.zeros_like, p), update)
    one = jaxfit.train(loss, guess, mine, 50, data=line)
    two = jaxfit.train(loss, guess, optax.sgd(0.05, momentum=0.9), 50, data=line)
    assert_close(one.trajectory, two.trajectory)


# Theory with numbers.


@pytest.mark.parametrize(
    ("optimizer", "rate", "tolerance"),
    [
        (optax.sgd(2 / 101), 0.980198, 1e-5),
        # A double root: the rate is (√κ - 1)/(√κ + 1) = .818182 times t/(t - 1) on the way there.
        (optax.sgd(0.033058, momentum=0.669421), 0.824, 2e-3),
    ],
)
def test_rates_on_a_quadratic_of_condition_100(optimizer, rate, tolerance):
    with jax.enable_x64(True):
        start, curvatures = jnp.ones(2), jnp.array([1.0, 100.0])
        run = jaxfit.train(
            lambda p: quadratic(p, curvatures), start, optimizer, 201, record=lambda s: s.params
        )
        distance = np.linalg.norm(run.trajectory, axis=1)
        assert abs((distance[200] / distance[100]) ** 0.01 - rate) < tolerance


# Transformations.


def test_eager_and_jitted_runs_agree(problem):
    objective, start, data = problem
    eager = jaxfit.train(objective, start, OPTIMIZERS["adam"], 30, data=data)
    assert_close(eager, jitted(problem, OPTIMIZERS["adam"])(), rtol=1e-4)


@pytest.mark.slow
def test_vmap_over_learning_rates_gives_every_run_alone(line):
    rates = jnp.array([0.01, 0.1, 0.5, 20.0])  # the last one diverges, and hurts nobody
    for factory in (optax.sgd, optax.adam):
        run = lambda lr, factory=factory: jaxfit.train(loss, guess, factory(lr), 40, data=line)
        together = jax.jit(jax.vmap(run))(rates)
        for i, lr in enumerate(rates[:3]):
            assert_close(row(together, i).trajectory, run(lr).trajectory, rtol=1e-4, atol=1e-5)


def test_many_runs_go_on_together(line):
    run = lambda start: jaxfit.train(loss, start, optax.adam(0.1), 5, data=line)
    halfway = jax.vmap(run)(jnp.stack([guess, guess + 1.0]))
    assert_close(row(jax.vmap(run)(halfway.state), 1), run(run(guess + 1.0).state))


@pytest.mark.slow
def test_vmap_over_parameters_and_over_data_keys(line):
    starts = jax.random.normal(jax.random.key(0), (3, 2))
    run = lambda start: jaxfit.train(loss, start, optax.sgd(0.1), 10, data=line)
    together = jax.vmap(run)(starts)
    for i in range(3):
        assert_close(row(together, i), run(starts[i]))

    x, y = line

    def shuffled(key):
        def batch(step):
            rows = jax.random.choice(jax.random.fold_in(key, step), 100, (10,), replace=False)
            return x[rows], y[rows]

        return jaxfit.train(loss, guess, optax.sgd(0.1), 10, data=batch)

    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(shuffled)(keys)
    for i in range(3):
        assert_close(row(together, i), shuffled(keys[i]))
    assert len(np.unique(together.trajectory["loss"][:, 5])) == 3


@pytest.mark.parametrize(
    "options", [{}, {"keyframe_every": 4}, {"record_every": 2, "keyframe_every": 6}]
)
def test_derivatives_through_a_run_are_those_of_the_closed_form(options):
    h, start, steps = 0.7, 1.3, 10

    def end(rate, start):
        run = jaxfit.train(lambda x: 0.5 * h * x**2, start, optax.sgd(rate), steps, **options)
        return 0.5 * h * run.state.params**2

    with jax.enable_x64(True):
        rate, start = jnp.asarray(0.3), jnp.asarray(start)
        # x_K = (1 - ηh)^K x_0, so dL/dη = -K h² x_0² (1 - ηh)^(2K - 1) and dL/dx_0 likewise.
        base = 1 - rate * h
        exact = (
            -steps * h**2 * start**2 * base ** (2 * steps - 1),
            h * start * base ** (2 * steps),
        )
        for differentiate in (jax.grad, jax.jacfwd):
            np.testing.assert_allclose(
                differentiate(end, argnums=(0, 1))(rate, start), exact, rtol=1e-12
            )
        _, tangent = jax.jvp(end, (rate, start), (jnp.ones(()), jnp.zeros(())))
        np.testing.assert_allclose(tangent, exact[0], rtol=1e-12)


def test_empty_containers_go_through_a_remainder(line):
    optimizer = optax.inject_hyperparams(optax.adamw)(0.1)  # whose state holds an empty dict
    keep = lambda step: {"loss": step.loss, "none": None, "nothing": {}}
    options = {"record": keep, "record_every": 2, "keyframe_every": 4}
    run = jaxfit.train(loss, guess, optimizer, 7, data=line, **options)
    assert jax.tree.structure(jax.tree.map(lambda leaf: leaf[0], run.keyframes)) == (
        jax.tree.structure(run.state)
    )
    assert run.trajectory["nothing"] == {}
    assert run.trajectory["none"] is None


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"record_every": 2, "keyframe_every": 4}])
def test_second_derivatives_by_every_mode_are_those_of_a_loop(options):
    with jax.enable_x64(True):
        start = jnp.asarray(1.3)
        quartic = lambda p: 0.7 * p**4

        def end(rate, start):
            run = jaxfit.train(quartic, start, optax.sgd(rate), 5, **options)
            return quartic(run.state.params)

        def by_hand(rate, start):
            for _ in range(5):
                start = start - rate * jax.grad(quartic)(start)
            return quartic(start)

        scaled = lambda f: jax.checkpoint(lambda scale, start: scale * f(0.05, start))
        modes = {
            "forward over reverse": lambda f: jax.hessian(f)(0.05, start),
            "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f))(0.05, start),
            "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f))(0.05, start),
            "mixed": lambda f: jax.grad(lambda s: jax.grad(f)(0.05, s))(start),
        }
        if jax.__version_info__ >= (0, 11):  # see the README's limits
            # Reverse mode through a checkpoint around a run the inner derivative does not move.
            modes["around"] = lambda f: jax.grad(lambda s: jax.grad(scaled(f))(1.0, s))(start)
        for mode, derivative in modes.items():
            np.testing.assert_allclose(
                jax.jit(derivative, static_argnums=0)(end),
                derivative(by_hand),
                rtol=1e-9,
                err_msg=mode,
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("momentum", {}),
        ("adam", {"record_every": 2, "keyframe_every": 4}),
    ],
)
def test_derivatives_through_a_run_are_those_of_finite_differences(line, name, options):
    factory = {
        "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
        "adam": optax.adam,
        "clip, momentum": lambda lr: optax.chain(
            optax.clip_by_global_norm(0.5), optax.sgd(lr, momentum=0.9)
        ),
    }[name]

    with jax.enable_x64(True):
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), line)

        @jax.jit
        def end(rate, start, x):
            run = jaxfit.train(loss, start, factory(rate), 10, data=(x, data[1]), **options)
            return loss(run.state.params, data) + jnp.mean(run.trajectory["loss"])

        point = (jnp.asarray(0.05), jnp.asarray(guess, jnp.float64), data[0])
        grads = jax.grad(end, argnums=(0, 1, 2))(*point)
        directions = jax.tree.map(
            lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype), point
        )
        nudged = lambda sign: end(
            *jax.tree.map(lambda p, d: p + sign * 1e-6 * d, point, directions)
        )
        slope = (nudged(1) - nudged(-1)) / 2e-6
        along = sum(jnp.vdot(g, d) for g, d in zip(grads, directions, strict=True))
        np.testing.assert_allclose(along, slope, rtol=1e-6)
        _, tangent = jax.jvp(end, point, directions)
        np.testing.assert_allclose(tangent, along, rtol=1e-10)


def test_the_first_step_falls_with_the_rate_as_its_two_gradients_agree(line):
    with jax.enable_x64(True):
        data, start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (line, guess))
        after = lambda rate: jaxfit.train(loss, start, optax.sgd(rate), 1, data=data).state.params
        slope = jax.grad(lambda rate: loss(after(rate), data))(0.1)
        gradient = lambda params: jax.grad(loss)(params, data)
        # dL(θ₁)/dη = -⟨g₁, g₀⟩
        expected = -jnp.vdot(gradient(after(0.1)), gradient(start))
        np.testing.assert_allclose(slope, expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"keyframe_every": 4}])
def test_a_schedule_and_weights_of_examples_have_their_derivatives(line, options):
    with jax.enable_x64(True):
        x, y = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), line)
        rates = jnp.linspace(0.3, 0.1, 10)
        weights = jax.random.uniform(jax.random.key(0), (100,), jnp.float64)

        @jax.jit
        def end(rates, weights):
            schedule = optax.sgd(lambda count: rates[count], momentum=0.5)
            start = jnp.asarray(guess, jnp.float64)
            weighted = jaxfit.losses.objective(linear, jaxfit.losses.mse)
            run = jaxfit.train(weighted, start, schedule, 10, data=(x, y, weights), **options)
            return loss(run.state.params, (x, y))

        slopes = jax.grad(end, argnums=(0, 1))(rates, weights)
        for which, places in ((0, (0, 4, 9)), (1, (0, 50))):
            for place in places:
                nudged = [rates, weights], [rates, weights]
                for arrays, sign in zip(nudged, (1, -1), strict=True):
                    arrays[which] = arrays[which].at[place].add(sign * 1e-6)
                difference = (end(*nudged[0]) - end(*nudged[1])) / 2e-6
                np.testing.assert_allclose(slopes[which][place], difference, rtol=1e-6, atol=1e-9)

        curvature = jax.hessian(lambda scale: end(scale * rates, weights))(1.0)
        slope = jax.grad(lambda scale: end(scale * rates, weights))
        np.testing.assert_allclose(curvature, (slope(1 + 1e-6) - slope(1 - 1e-6)) / 2e-6, rtol=1e-6)


@pytest.mark.slow
def test_reverse_mode_stores_keyframes_in_the_place_of_steps():
    width = 1000

    def temporary(num_steps, **options):
        def end(start):
            run = jaxfit.train(
                lambda p: jnp.sum(jnp.cos(p) ** 2),
                start,
                optax.adam(0.1),
                num_steps,
                record=lambda s: s.loss,
                **options,
            )
            return jnp.sum(run.state.params)

        compiled = jax.jit(jax.grad(end)).lower(jnp.ones(width)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * width)

    assert temporary(400) > 400
    assert temporary(400, keyframe_every=20) < 0.4 * temporary(400)
    # O(T/k + k): with k = √T, four times the steps need about twice the memory.
    assert temporary(1600, keyframe_every=40) < 2.5 * temporary(400, keyframe_every=20)


def test_no_tracer_leaks():
    # In a process of its own: it searches all objects of all modules after every trace.
    code = """
        import jax, jax.numpy as jnp, optax, jaxfit

        with jax.checking_leaks():
            run = lambda lr: jaxfit.train(jnp.square, 1.0, optax.sgd(lr), 5, record_every=2)
            jax.jit(jax.vmap(lambda lr: run(lr).state.params))(jnp.array([0.1, 0.2]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_run_inside_shard_map_averages_its_shards(line):
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def sharded_loss(params, batch):
        return jax.lax.pmean(loss(params, batch), "devices")

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec(), (spec("devices"), spec("devices"))),
        out_specs=spec(),
    )
    def run(start, batch):
        return jaxfit.train(sharded_loss, start, optax.adam(0.1), 20, data=batch)

    alone = jaxfit.train(loss, guess, optax.adam(0.1), 20, data=line)
    assert_close(run(guess, line), alone, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["data", "model"])
def test_a_sharded_run_is_the_run_and_communicates_no_more_than_one_by_hand(how):
    perceptron_loss, params, data = perceptron()
    mesh = jax.sharding.Mesh(jax.devices(), "devices")
    spec = jax.sharding.PartitionSpec
    put = lambda tree, *axes: jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec(*axes)))
    batch, optimizer = data(jnp.int32(0)), optax.adam(0.01)

    @jax.jit
    def run(params, batch):
        return jaxfit.train(perceptron_loss, params, optimizer, 20, data=batch)

    @jax.jit
    def by_hand(params, batch):
        def step(carry, _):
            params, opt_state = carry
            value, grads = jax.value_and_grad(perceptron_loss)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), (params, value)

        return jax.lax.scan(step, (params, optimizer.init(params)), length=20)

    if how == "data":
        given = put(params), put(batch, "devices")
    else:
        first, last = params
        split = [
            {"w": put(first["w"], None, "devices"), "b": put(first["b"], "devices")},
            {"w": put(last["w"], "devices", None), "b": put(last["b"])},
        ]
        given = split, put(batch)
    sharded = run(*given)
    assert_close(sharded, run(params, batch), rtol=1e-4)
    shardings = lambda tree: jax.tree.map(lambda leaf: leaf.sharding.spec, tree)
    assert str(shardings(sharded.state.params)) == str(shardings(by_hand(*given)[0][0]))
    ours, theirs = (
        re.findall(
            r" (all-reduce|all-gather|all-to-all|collective-permute)\(",
            function.lower(*given).compile().as_text(),
        )
        for function in (run, by_hand)
    )
    assert ours and ours == theirs


# Dtypes.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64, jnp.float16])
@pytest.mark.parametrize("name", ["adam", "MultiSteps"])
def test_runs_keep_their_dtype(line, dtype, name):
    with jax.enable_x64(dtype == jnp.float64):
        data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), line)
        run = jaxfit.train(
            loss, guess.astype(dtype), OPTIMIZERS[name], 6, data=data, record=everything
        )
        for leaf in (run.trajectory.params, run.trajectory.grads, run.trajectory.updates):
            assert leaf.dtype == dtype
        assert run.trajectory.loss.dtype == dtype and run.state.params.dtype == dtype
        assert run.steps.dtype == jnp.int32 and run.state.step.dtype == jnp.int32
        assert run.trajectory.loss[-1] < run.trajectory.loss[0]


def test_strict_promotion(line):
    with jax.numpy_dtype_promotion("strict"):
        run = jaxfit.train(loss, guess, optax.sgd(0.1), 5, data=line, record_every=2)
    assert run.trajectory["loss"][-1] < run.trajectory["loss"][0]


def test_importing_changes_no_setting_and_loads_no_pictures():
    program = (
        "import sys, jax; before = dict(jax.config.values); import jaxfit, jaxfit.train;"
        "assert dict(jax.config.values) == before and callable(jaxfit.train);"
        "assert not {'matplotlib', 'equinox', 'flax', 'imageio_ffmpeg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# What it costs.


def memory(num_steps, width=1000, **options):
    def run(start):
        objective = lambda p: jnp.sum(jnp.cos(p) ** 2)
        return jaxfit.train(objective, start, optax.adam(0.1), num_steps, **options)

    return jax.jit(run).lower(jnp.ones(width)).compile().memory_analysis()


def test_a_trajectory_costs_what_is_recorded_and_nothing_else():
    losses = [memory(n, record=lambda s: s.loss).temp_size_in_bytes for n in (100, 1000, 10000)]
    assert losses[0] == losses[1] == losses[2]
    sparse = [memory(n, record_every=10).temp_size_in_bytes for n in (100, 1000)]
    assert sparse[0] == sparse[1]
    rows = 4 * 1000 * 100
    full, tenth = (memory(100, record_every=k).output_size_in_bytes for k in (1, 10))
    assert full > rows and tenth < 0.2 * rows


def test_the_recorder_runs_once_for_each_row_that_is_kept():
    counted = []

    def keep(step):
        jax.debug.callback(lambda t: counted.append(int(t)), step.step)
        return step.loss

    run = jaxfit.train(lambda p: p**2, 1.0, optax.sgd(0.1), 20, record=keep, record_every=6)
    jax.block_until_ready(run)
    jax.effects_barrier()
    assert sorted(counted) == [0, 6, 12, 18]


def test_the_loss_is_traced_to_be_checked_and_to_be_differentiated_and_never_again(line):
    counted = chex.assert_max_traces(loss, n=2)
    optimizer = optax.adam(0.1)
    run = jax.jit(lambda start: jaxfit.train(counted, start, optimizer, 20, data=line))
    ends = [run(guess + shift).state.params for shift in (0.0, 1.0)]
    assert not np.array_equal(*ends)


@settings(max_examples=12, deadline=None)
@given(
    num_steps=st.integers(1, 13),
    record_every=st.integers(1, 5),
    segments=st.none() | st.integers(1, 4),
)
def test_every_shape_of_schedule(num_steps, record_every, segments):
    keyframe_every = segments and segments * record_every
    run = jaxfit.train(
        lambda p: 0.5 * p**2,
        1.0,
        optax.sgd(0.5),
        num_steps,
        record=lambda s: s.params,
        record_every=record_every,
        keyframe_every=keyframe_every,
    )
    kept = np.arange(0, num_steps, record_every)
    np.testing.assert_array_equal(run.steps, kept)
    np.testing.assert_array_equal(run.trajectory, 0.5**kept)
    assert run.state.params == 0.5**num_steps and run.state.step == num_steps
    if keyframe_every:
        frames = np.arange(0, num_steps, keyframe_every)
        np.testing.assert_array_equal(run.keyframes.step, frames)
        np.testing.assert_array_equal(run.keyframes.params, 0.5**frames)


def test_a_run_is_a_value(line):
    run = jaxfit.train(loss, guess, optax.adam(0.1), 5, data=line)
    leaves, structure = jax.tree.flatten(run)
    assert_same_bits(jax.tree.unflatten(structure, leaves), run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.state = None
    assert linear(run.state.params, line[0]).shape == (100,)
