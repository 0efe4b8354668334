"""Eigenvalues of a loss's second derivative agree with closed forms, within their own bounds."""

import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import analysis
from jaxfit.analysis._point import point_of
from tests.analysis.problems import (
    diagonal,
    factors,
    quadratic,
    rosenbrock,
    softmax_regression,
)
from tests.common import assert_same_bits, perceptron


def eigenvalues(loss, params, **options):
    """Under jit, which compiles once where eager loops compile each part."""
    return jax.jit(lambda params: analysis.curvature(loss, params, **options))(params)


@jax.jit
def both_ends(where):
    return [analysis.curvature(rosenbrock, where, k=k) for k in (2, -1)]


@pytest.mark.parametrize(
    ("where", "expected"),
    [((1.0, 1.0), [1001.6006, 0.3993608]), ((-1.2, 1.0), [1506.36698, 23.63302])],
)
def test_rosenbrocks_valley(where, expected):
    top, bottom = both_ends(jnp.array(where))
    np.testing.assert_allclose(top.eigenvalues, expected, rtol=2e-4)
    assert (np.abs(top.eigenvalues - np.array(expected)) <= top.residuals).all()
    np.testing.assert_allclose(bottom.eigenvalues, expected[1:], rtol=2e-4)


def test_multiple_eigenvalues_of_the_digits_come_as_often_as_they_are():
    loss, params, data = softmax_regression()
    found = eigenvalues(loss, params, data=data, k=10)
    np.testing.assert_allclose(found.eigenvalues, [1.1443528] * 9 + [0.0698834], rtol=1e-4)
    assert (found.residuals < 1e-3 * found.eigenvalues).all()


@pytest.mark.parametrize("start", [(0.1, 3.0), (0.3, 2.6)])
def test_gradient_descent_ends_at_the_edge_of_stability(start):
    # Of all minima xy = 1, at a sharpness just below 2/η, wherever it began (Cohen et al. 2021).
    loss, rate = lambda a: (1 - a[0] ** 2 * a[1] ** 2) ** 2 / 4, 0.2
    end = jax.jit(
        lambda a: jaxfit.train(loss, a, optax.sgd(rate), 20_000, record_every=20_000).state
    )(jnp.array(start))
    found = analysis.curvature(loss, end).eigenvalues[0]
    np.testing.assert_allclose(found * rate / 2, 0.99274, atol=1e-4)


def test_factors_at_zero_and_at_the_balanced_minimum():
    zero, root = jnp.zeros((3, 3)), jnp.diag(jnp.sqrt(jnp.array([3.0, 2.0, 1.0])))
    three = np.repeat([3.0, 2.0, 1.0], 3)
    for k, expected in ((9, three), (-9, -three)):
        found = eigenvalues(factors, (zero, zero), k=k).eigenvalues
        np.testing.assert_allclose(found, expected, atol=2e-4)
    found = eigenvalues(factors, (root, root), k=18).eigenvalues
    sums = np.sort(np.add.outer([3, 2, 1], [3, 2, 1]).ravel())[::-1]
    np.testing.assert_allclose(found, [*sums, *np.zeros(9)], atol=2e-4)


@pytest.mark.parametrize(
    ("sign", "k", "expected"),
    [(1, 6, [3, 3, 2, 2, 1, 1]), (-1, 3, [-1, -1, -2]), (-1, -3, [-3, -3, -2])],
)
def test_exhausted_spaces_give_neither_nan_nor_spurious_values(sign, k, expected):
    found = eigenvalues(lambda a: sign * diagonal(a), jnp.ones(6), k=k)
    np.testing.assert_allclose(found.eigenvalues, expected, atol=3e-5)
    assert (found.residuals < 1e-4).all()


def test_a_second_derivative_of_zero_has_eigenvalues_of_zero():
    found = eigenvalues(lambda a: jnp.sum(a), jnp.ones(5), k=5)
    assert_same_bits(found.eigenvalues, jnp.zeros(5))
    assert_same_bits(found.residuals, jnp.zeros(5))


def test_one_number_is_enough():
    found = eigenvalues(lambda a: 3 * a**2, 1.0, num_matvecs=1)
    np.testing.assert_allclose(found.eigenvalues, [6.0])


def test_vectors_are_eigenvectors_in_the_shapes_of_the_parameters():
    loss, matrix = quadratic(jnp.array([1.0, 3.0, 9.0, 27.0]), jax.random.key(3))
    whole = lambda p: loss(jnp.concatenate([p["a"].ravel(), p["b"][None]]))
    params = {"a": jnp.ones((3, 1)), "b": 1.0, "name": "fixed"}
    found = analysis.curvature(whole, params, k=2, num_matvecs=4, vectors=True)
    assert found.vectors["name"] is None and found.vectors["a"].shape == (2, 3, 1)
    stacked = jnp.concatenate([found.vectors["a"][:, :, 0], found.vectors["b"][:, None]], axis=1)
    for value, vector in zip(found.eigenvalues, stacked, strict=True):
        np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-4)
        np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-5)


def test_the_dimension_is_doubled_until_the_bound_is_small():
    loss, _ = quadratic(jnp.linspace(0.99, 1.0, 120), jax.random.key(0))
    short = eigenvalues(loss, jnp.ones(120), num_matvecs=3)
    found = analysis.curvature(loss, jnp.ones(120))
    assert short.residuals[0] > 1e-3 > found.residuals[0]
    np.testing.assert_allclose(found.eigenvalues, [1.0], rtol=1e-3)


def test_it_says_where_the_bound_is_not_small(monkeypatch):
    monkeypatch.setattr(sys.modules["jaxfit.analysis.curvature"], "_MOST", 2)
    loss, _ = quadratic(jnp.linspace(0.0, 1.0, 200), jax.random.key(0))
    with pytest.warns(UserWarning, match="curvature: after 22 products the error bounds"):
        analysis.curvature(loss, jnp.ones(200))


def test_the_bound_is_a_bound_below_the_rounding_of_float32():
    values = jnp.geomspace(1e-3, 1.0, 80)
    loss, matrix = quadratic(values, jax.random.key(1))
    exact = np.linalg.eigvalsh(np.asarray(matrix, np.float64))[-1]
    for num in (10, 62):
        found = eigenvalues(loss, jnp.ones(80), num_matvecs=num)
        assert abs(found.eigenvalues[0] - exact) <= found.residuals[0]


def test_what_is_trained_may_be_complex_half_mixed_or_beside_other_leaves():
    squares = lambda z: jnp.sum((z**2).real)
    found = eigenvalues(squares, jnp.array([1 + 1j, 2.0]), k=4)
    np.testing.assert_allclose(found.eigenvalues, [2, 2, -2, -2], atol=1e-5)
    found = eigenvalues(lambda a: jnp.sum(3 * a**2), jnp.ones(3, jnp.float16))
    assert found.eigenvalues.dtype == jnp.float32
    np.testing.assert_allclose(found.eigenvalues, [6], rtol=1e-2)
    layer = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    params = (layer, jnp.ones(2, jnp.bfloat16), 7, None, jnp.sin)

    def mixed(p):
        module, half, number, nothing, function = p
        assert (number, nothing, function) == (7, None, jnp.sin)
        return jnp.sum(module(jnp.ones(2)) ** 2) + jnp.sum(2 * half**2).astype(jnp.float32)

    found = analysis.curvature(mixed, params, k=3)  # 2 (x, 1) (x, 1)ᵀ, and 4
    np.testing.assert_allclose(found.eigenvalues, [6, 4, 4], rtol=1e-2)


def test_under_x64_all_digits_come():
    with jax.enable_x64(True):
        found = eigenvalues(rosenbrock, jnp.array([1.0, 1.0]), k=2)
        matrix = np.array([[802.0, -400.0], [-400.0, 200.0]])
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-12)
        single = jax.eval_shape(lambda: eigenvalues(rosenbrock, jnp.ones(2, jnp.float32)))
        assert single.eigenvalues.dtype == jnp.float32


def test_a_state_brings_its_carry_and_lookahead_its_fast_half():
    loss = lambda a, carry: (carry * jnp.sum(a**2), carry)
    state = jaxfit.State(0, jnp.ones(2), None, carry=3.0)
    assert jax.grad(point_of(loss, state).loss)(jnp.ones(2))[0] == 6
    pair = optax.LookaheadParams(jnp.ones(2), jnp.zeros(2))
    assert_same_bits(point_of(lambda a: jnp.sum(a**4), pair).at, jnp.ones(2))


def test_it_is_the_body_of_a_recorder_and_changes_nothing():
    loss, params, data = perceptron()
    optimizer = optax.adam(0.01)
    sharpness = lambda s: analysis.curvature(loss, s.params, data=s.batch).eigenvalues[0]
    record = lambda s: (s.params, sharpness(s))
    plain = jax.jit(lambda: jaxfit.train(loss, params, optimizer, 6, data=data).state)()
    run = jax.jit(lambda: jaxfit.train(loss, params, optimizer, 6, data=data, record=record))()
    assert_same_bits(run.state, plain)
    point = point_of(loss, jax.tree.map(lambda leaf: leaf[4], run.trajectory[0]), data(4))
    dense = jax.jit(jax.hessian(point.loss))(point.at)
    np.testing.assert_allclose(run.trajectory[1][4], np.linalg.eigvalsh(dense)[-1], rtol=1e-4)


def test_points_can_be_mapped_over():
    points = jnp.array([[1.0, 1.0], [-1.2, 1.0]])
    found = jax.vmap(lambda a: analysis.curvature(rosenbrock, a).eigenvalues[0])(points)
    np.testing.assert_allclose(found, [1001.6006, 1506.36698], rtol=1e-5)


def test_nan_stays_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = analysis.curvature(lambda a: jnp.sum(jnp.log(a) * a**2), -jnp.ones(3), k=2)
    assert np.isnan(found.eigenvalues).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 50))
@example(245, 0.1)  # a zero that is rounded as the largest is
def test_eigenvalues_do_not_depend_on_axes_scale_with_the_loss_and_respect_signs(seed, factor):
    values = jnp.array([0.0, 0.0, 0.5, 2.0, 5.0]) * factor
    top, bottom = quadratic_top(values, jax.random.key(seed))
    np.testing.assert_allclose(top.eigenvalues, factor * jnp.array([5.0, 2.0]), rtol=1e-4)
    assert bottom.eigenvalues[0] >= -bottom.residuals[0]


@jax.jit
def quadratic_top(values, key):
    loss, _ = quadratic(values, key)
    return (
        analysis.curvature(loss, jnp.ones(5), k=2),
        analysis.curvature(loss, jnp.ones(5), k=-1),
    )


# Preconditioned.


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-2),
        optax.chain(optax.clip_by_global_norm(1e6), optax.adamw(1e-2)),
        optax.rmsprop(1e-2),
        optax.adagrad(1e-2),
    ],
)
def test_the_preconditioner_is_what_the_optimizer_divides_by(optimizer):
    loss = lambda a: jnp.sum(jnp.array([1.0, 30.0]) * a**2) / 2
    run = jax.jit(lambda: jaxfit.train(loss, jnp.ones(2), optimizer, 5))()
    state = run.state
    scale = analysis.preconditioner(state.opt_state)
    kinds = optax.ScaleByAdamState, optax.ScaleByRmsState, optax.ScaleByRssState
    find = lambda tree: [
        node
        for node in jax.tree.leaves(tree, is_leaf=lambda node: type(node) in kinds)
        if type(node) in kinds
    ]
    (kept,) = find(state.opt_state)
    moment = kept.nu if hasattr(kept, "nu") else kept.sum_of_squares
    if isinstance(kept, optax.ScaleByAdamState):
        moment = moment / (1 - 0.999**5)
    np.testing.assert_allclose(scale, jnp.sqrt(moment), rtol=1e-4)


def test_curvature_is_preconditioned_from_both_sides():
    loss = lambda a: jnp.sum(jnp.array([1.0, 30.0]) * a**2) / 2
    found = eigenvalues(loss, jnp.ones(2), precondition=jnp.array([0.5, 60.0]), k=2)
    np.testing.assert_allclose(found.eigenvalues, [2, 0.5], rtol=1e-5)


def test_before_its_first_update_adam_has_no_preconditioner():
    state = optax.adam(0.1).init(jnp.ones(2))
    assert np.isnan(analysis.preconditioner(state)).all()


# Refused.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 0}, "k is 0, but must be a whole number: 1 for the largest eigenvalue"),
        ({"k": 3}, "k is 3, but the loss has 2 trained numbers and as many eigenvalues"),
        ({"num_matvecs": 3}, "num_matvecs is 3, but must be from 1"),
        ({"k": 2, "num_matvecs": 1}, "num_matvecs is 1, but must be from 2"),
        ({"precondition": jnp.ones(3)}, "precondition is float32\\[3\\], but must have a number"),
        ({"data": lambda step: step}, "data is the function <lambda>, but one point is examined"),
        ({"has_aux": True}, "has_aux=True was given, but the loss returned float32\\[\\]"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, sentence):
    loss = (lambda a, batch: rosenbrock(a)) if "data" in options else rosenbrock
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}.*\\.$"):
        analysis.curvature(loss, jnp.ones(2), **options)


def test_a_run_is_no_point():
    run = jaxfit.train(rosenbrock, jnp.ones(2), optax.sgd(0.1), 1)
    with pytest.raises(TypeError, match="params is a Run, but must be parameters, a State or"):
        analysis.curvature(rosenbrock, run)


def test_a_loss_without_a_second_derivative_is_refused():
    @jax.custom_vjp
    def odd(a):
        return jnp.sum(a)

    def backward(shape, cotangent):
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        return (jax.pure_callback(lambda c: np.ones(2, np.float32) * c, like, cotangent),)

    odd.defvjp(lambda a: (odd(a), None), backward)
    with pytest.raises(ValueError, match="the loss has no second derivative that JAX can compute"):
        analysis.curvature(lambda a: odd(a) ** 2, jnp.ones(2))


def test_states_without_one_second_moment_are_refused():
    with pytest.raises(ValueError, match="opt_state has 0 second moments"):
        analysis.preconditioner(optax.sgd(0.1).init(jnp.ones(2)))
