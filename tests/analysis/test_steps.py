"""Steps and optimizers are judged as closed forms have it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis
from tests.analysis.problems import rosenbrock
from tests.common import perceptron, row

CURVATURES = jnp.array([1.0, 10.0])
WHERE = jnp.array([-1.2, 1.0])


def bowl(a):
    return jnp.sum(CURVATURES * a**2) / 2


def quality(loss, params, optimizer, **options):
    record = lambda step: analysis.step_quality(loss, step)
    train = lambda: jaxfit.train(loss, params, optimizer, 1, record=record, **options)
    return jax.tree.map(lambda leaf: leaf[0], jax.jit(train)().trajectory)


def test_alpha_of_gradient_descent_in_one_dimension():
    def one(rate):
        return quality(lambda a: 5 * a**2, 1.0, optax.sgd(rate / 10))

    found = jax.vmap(one)(jnp.array([0.5, 1.0, 1.5, 2.0]))
    np.testing.assert_allclose(found.alpha, [-0.5, 0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(found.predicted, found.actual, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.critical_factor, [4, 2, 4 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(found.cauchy_rate, 0.1, rtol=1e-6)


def test_rates_on_a_quadratic():
    found = quality(bowl, jnp.ones(2), optax.sgd(1e-3))
    np.testing.assert_allclose(2 / found.critical_rate, 9.910891, rtol=1e-5)
    np.testing.assert_allclose(1 / found.cauchy_rate, 9.910891, rtol=1e-5)


@pytest.mark.parametrize("rate", [1e-5, 0.3])
def test_rates_on_rosenbrock_do_not_depend_on_the_step_s_own(rate):
    found = quality(rosenbrock, WHERE, optax.sgd(rate))
    np.testing.assert_allclose(found.cauchy_rate, 6.646686e-4, rtol=1e-4)
    np.testing.assert_allclose(found.critical_rate, 0.00170360, rtol=1e-4)
    np.testing.assert_allclose(found.critical_factor, 0.00170360 / rate, rtol=1e-4)


def test_uphill_the_loss_rises_at_once_and_a_slope_never():
    uphill = quality(bowl, jnp.ones(2), lambda grads, params: grads)
    assert float(uphill.critical_factor) == 0 and float(uphill.actual) > 0
    slope = quality(lambda a: jnp.sum(a), jnp.ones(2), optax.sgd(0.1))
    assert np.isinf(slope.critical_rate) and float(slope.alpha) == -1


def test_a_step_is_judged_on_its_own_batch_or_another():
    loss, params, data = perceptron()
    optimizer = optax.adam(0.01)

    def record(step):
        other = analysis.step_quality(loss, step, data=data(0))
        return step, analysis.step_quality(loss, step), other

    train = lambda: jaxfit.train(loss, params, optimizer, 4, data=data, record=record)
    step, own, other = row(jax.jit(train)().trajectory, 3)
    after = optax.apply_updates(step.params, step.updates)
    np.testing.assert_allclose(own.actual, loss(after, data(3)) - step.loss, rtol=1e-3)
    expected = loss(after, data(0)) - loss(step.params, data(0))
    np.testing.assert_allclose(other.actual, expected, rtol=1e-3)
    with pytest.raises(TypeError, match="step is a State, but must be a Step"):
        analysis.step_quality(loss, step.state)


# The stability of optimizers.


def magnitudes(optimizer, k=1, loss=bowl, params=None, **options):
    params = jnp.ones(2) if params is None else params
    state = jaxfit.init(params, optimizer)
    return jax.jit(lambda s: analysis.stability(loss, s, optimizer, k=k, **options))(state)


def test_gradient_descent_at_its_best_rate():
    found = magnitudes(optax.sgd(2 / 11), k=2)
    np.testing.assert_allclose(found.magnitudes, [9 / 11, 9 / 11], rtol=1e-5)
    np.testing.assert_allclose(np.sort(found.eigenvalues.real), [-9 / 11, 9 / 11], rtol=1e-5)


def test_heavy_ball_at_its_best_is_the_root_of_its_momentum():
    low, high = CURVATURES**0.5
    rate, momentum = (2 / (low + high)) ** 2, ((high - low) / (high + low)) ** 2
    found = magnitudes(optax.sgd(rate, momentum))
    # A double root: its rounding is the root of that of float32.
    np.testing.assert_allclose(found.magnitudes, [0.5194939], rtol=2e-3)


def test_what_is_only_handed_on_does_not_count():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
    np.testing.assert_allclose(magnitudes(optimizer).magnitudes, [0.95], rtol=1e-5)


def test_a_flat_direction_neither_grows_nor_fades():
    flat = magnitudes(optax.sgd(0.1), loss=lambda a: a[0] ** 2)
    np.testing.assert_allclose(flat.magnitudes, [1], rtol=1e-6)


def test_with_minibatches_it_takes_the_batch_of_a_step():
    loss, params, data = perceptron()
    optimizer = optax.adam(0.01)
    record = lambda s: analysis.stability(
        loss, s, optimizer, data=s.batch, num_matvecs=5
    ).magnitudes[0]
    train = lambda: jaxfit.train(loss, params, optimizer, 3, data=data, record=record)
    run = jax.jit(train)()
    assert run.trajectory.shape == (3,) and (run.trajectory > 0.9).all()


EDGES = {  # an optimizer on a single curvature, and its edge at rate 0.1
    "sgd": (optax.sgd(0.1), analysis.edge("sgd", 0.1), 20),
    "momentum": (optax.sgd(0.1, 0.9), analysis.edge("momentum", 0.1), 38),
    "nesterov": (
        optax.sgd(0.1, 0.9, nesterov=True),
        analysis.edge("nesterov", 0.1),
        3.8 / (0.1 * 2.8),
    ),
    "ema": (
        optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1)),
        analysis.edge("adam", 0.1),
        380,
    ),
    "nesterov_ema": (
        optax.chain(optax.trace(0.9, nesterov=True), optax.scale(0.1), optax.scale(-0.1)),
        analysis.edge("nadam", 0.1),
        3.8 / (0.1 * 2.8) * 10,
    ),
    "decay": (
        optax.chain(optax.add_decayed_weights(3.0), optax.scale(-0.1)),
        analysis.edge("sgd", 0.1, weight_decay=3.0),
        17,
    ),
    "all": (
        optax.chain(
            optax.ema(0.9, debias=False), optax.add_decayed_weights(3.0), optax.scale(-0.1)
        ),
        analysis.edge("adamw", 0.1, weight_decay=3.0),
        17 * 19,
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_below_the_edge_a_run_converges_and_above_it_diverges(name):
    optimizer, found, expected = EDGES[name]
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    def end(curvature):
        def step(carry, _):
            a, state = carry
            updates, state = optimizer.update(curvature * a, state, a)
            return (a + updates, state), None

        start = jnp.float32(1.0)
        (a, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=2000)
        return jnp.abs(a)

    below, above = jax.jit(jax.vmap(end))(found * jnp.array([0.98, 1.02]))
    assert below < 0.05 and not above < 100


def test_edges_of_arrays_of_rates():
    np.testing.assert_allclose(analysis.edge("sgd", np.array([0.1, 0.2])), [20, 10])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: analysis.edge("lion", 0.1), "optimizer is 'lion', but the edge has a closed"),
        (
            lambda: magnitudes(optax.sgd(0.1), k=3),
            "k is 3, but parameters and optimizer state have 2",
        ),
        (lambda: magnitudes(optax.sgd(0.1), num_matvecs=3), "num_matvecs is 3, but must be"),
        (
            lambda: analysis.stability(bowl, jnp.ones(2), optax.sgd(0.1)),
            "state is a ArrayImpl, but must be a State",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        call()
