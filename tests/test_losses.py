"""The losses agree with NumPy, SciPy and scikit-learn, and refuse shapes that would broadcast."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special
from sklearn import linear_model, metrics

import jaxfit
from jaxfit.losses import (
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    huber,
    l2,
    mse,
    objective,
)
from jaxfit.models import linear, mlp, mlp_init, polynomial

random = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(), (7,), (7, 1), (3, 4, 2)])
def test_mse_is_the_mean_of_the_squares(shape):
    one, other = random.normal(size=shape), random.normal(size=shape)
    with jax.enable_x64(True):
        value = mse(jnp.asarray(one), jnp.asarray(other))
        assert value.shape == ()
        np.testing.assert_allclose(value, np.mean((one - other) ** 2), rtol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "target"), [((5, 1), (5,)), ((5,), (5, 1)), ((5,), ()), ((1,), (5,))]
)
def test_shapes_that_would_broadcast_are_refused(prediction, target):
    with pytest.raises(ValueError, match="but both must have the same shape"):
        mse(jnp.ones(prediction), jnp.ones(target))


def test_a_perceptron_of_one_output_is_not_compared_with_a_vector():
    params = mlp_init(jax.random.key(0), (2, 3, 1))
    with pytest.raises(ValueError, match=r"shape \(5, 1\) and targets of shape \(5,\)"):
        objective(mlp, mse)(params, (jnp.ones((5, 2)), jnp.ones(5)))


def test_the_gradient_of_linear_least_squares_is_its_closed_form():
    x, a, y = random.normal(size=(9, 3)), random.normal(size=3), random.normal(size=9)
    with jax.enable_x64(True):
        value, grads = jax.value_and_grad(objective(linear, mse))(
            *jax.tree.map(jnp.asarray, (a, (x, y)))
        )
        np.testing.assert_allclose(value, np.mean((x @ a - y) ** 2), rtol=1e-12)
        np.testing.assert_allclose(grads, 2 / 9 * x.T @ (x @ a - y), rtol=1e-12)


def test_an_objective_is_the_loss_of_the_prediction_and_the_target():
    absolute = lambda prediction, target: jnp.max(jnp.abs(prediction - target))
    composed = objective(polynomial, absolute)
    batch = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 1.0])
    assert composed(jnp.array([1.0, 0.0, 2.0]), batch) == 8.0


# Weights, with every loss.

N, CLASSES = 7, 3
LOSSES = {"mse": mse, "huber": huber, "binary": binary_cross_entropy, "classes": cross_entropy}
every_loss = pytest.mark.parametrize("name", LOSSES)
WEIGHTS = random.uniform(0.1, 3.0, N)


def problem(name, dtype=np.float64):
    """Return a prediction and a target of N examples."""
    random = np.random.default_rng(1)
    if name == "classes":
        return random.normal(size=(N, CLASSES)).astype(dtype), random.integers(0, CLASSES, N)
    labels = random.integers(0, 2, N) if name == "binary" else random.normal(size=N).astype(dtype)
    return 2.0 * random.normal(size=N).astype(dtype), labels


def value_and_gradient(loss, prediction, *rest, **options):
    function = jax.jit(jax.value_and_grad(lambda prediction: loss(prediction, *rest, **options)))
    return jax.tree.map(np.asarray, function(jnp.asarray(prediction)))


@every_loss
def test_a_weighted_loss_is_the_weighted_mean_over_examples(name):
    prediction, target = problem(name)
    loss = LOSSES[name]
    with jax.enable_x64(True):
        alone = [loss(prediction[i : i + 1], target[i : i + 1]) for i in range(N)]
        np.testing.assert_allclose(loss(prediction, target), np.mean(alone), rtol=1e-12)
        expected = np.average(alone, weights=WEIGHTS)
        np.testing.assert_allclose(loss(prediction, target, WEIGHTS), expected, rtol=1e-12)
        for weights in (100.0 * WEIGHTS, jnp.asarray(WEIGHTS)):
            np.testing.assert_allclose(loss(prediction, target, weights), expected, rtol=1e-12)


@every_loss
def test_whole_weights_count_an_example_so_many_times(name):
    prediction, target = problem(name)
    times = np.array([1, 0, 3, 2, 1, 0, 1])
    with jax.enable_x64(True):
        repeated = LOSSES[name](np.repeat(prediction, times, 0), np.repeat(target, times, 0))
        for weights in (times, times.astype(np.float32)):
            weighted = LOSSES[name](prediction, target, weights)
            np.testing.assert_allclose(weighted, repeated, rtol=1e-12)
        kept = times > 0
        of_some = LOSSES[name](prediction[kept], target[kept])
        np.testing.assert_allclose(LOSSES[name](prediction, target, kept), of_some, rtol=1e-12)


@every_loss
def test_an_example_of_no_weight_is_not_there_however_large_its_loss(name):
    prediction, target = problem(name, np.float32)
    target[2] = name in ("binary", "classes")
    prediction[2] = (0.0, -1e15, 0.0) if name == "classes" else -1e15
    weights = np.ones(N, np.float32)
    kept = np.arange(N) != 2
    assert LOSSES[name](prediction, target) > 1e14
    value, slope = value_and_gradient(LOSSES[name], prediction, target, weights * kept)
    without, slope_without = value_and_gradient(LOSSES[name], prediction[kept], target[kept])
    np.testing.assert_allclose(value, without, rtol=1e-6)
    np.testing.assert_allclose(slope[kept], slope_without, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(slope[2], 0.0)


def test_an_example_of_no_weight_takes_nothing_from_the_sum():
    # Whole numbers are added without rounding, so no bit may differ.
    target = jnp.array([1.0, 2.0, 1e18, 4.0, 5.0])
    assert mse(jnp.zeros(5), target, jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])) == 46 / 4
    assert mse(jnp.zeros(5), target, jnp.array([2.0, 1.0, 0.0, 4.0, 1.0])) == 95 / 8


@every_loss
def test_the_derivative_with_respect_to_weights_is_the_excess_over_the_mean(name):
    prediction, target = problem(name)
    with jax.enable_x64(True):
        loss = lambda weights: LOSSES[name](prediction, target, weights)
        value, slope = jax.value_and_grad(loss)(jnp.asarray(WEIGHTS))
        alone = np.array([loss(np.arange(N) == i) for i in range(N)])
        np.testing.assert_allclose(slope, (alone - value) / WEIGHTS.sum(), rtol=1e-10)


@every_loss
@pytest.mark.parametrize("axes", [1, 2])
def test_examples_are_the_axes_that_the_weights_have(name, axes):
    random = np.random.default_rng(2)
    shape = (3, 4, CLASSES)
    prediction = random.normal(size=shape)
    target = random.integers(0, 2, shape[:2] if name == "classes" else shape)
    target = target if name in ("binary", "classes") else target.astype(float)
    weights = random.uniform(size=shape[:axes])
    with jax.enable_x64(True):
        loss = LOSSES[name]
        alone = [loss(prediction[i], target[i]) for i in np.ndindex(weights.shape)]
        np.testing.assert_allclose(loss(prediction, target), np.mean(alone), rtol=1e-12)
        expected = np.average(alone, weights=weights.ravel())
        np.testing.assert_allclose(loss(prediction, target, weights), expected, rtol=1e-12)


@every_loss
@pytest.mark.parametrize("shape", [(N - 1,), (1,), (N, 1), (1, N), (CLASSES,), (N, N)])
def test_weights_of_another_shape_are_refused(name, shape):
    sentence = rf"weights have shape {re.escape(str(shape))} and the losses \(7,\), but .*: reshape"
    with pytest.raises(ValueError, match=sentence):
        LOSSES[name](*problem(name, np.float32), np.ones(shape))


# Values and gradients, beside those of scikit-learn and SciPy.


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_the_log_loss_of_softmax_probabilities(weights):
    logits, labels = problem("classes")
    probabilities = special.softmax(logits, axis=1)
    expected = metrics.log_loss(labels, probabilities, sample_weight=weights, labels=range(CLASSES))
    with jax.enable_x64(True):
        value, slope = value_and_gradient(cross_entropy, logits, labels, weights)
    share = np.full(N, 1 / N) if weights is None else weights / weights.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    one_hot = np.eye(CLASSES)[labels]
    np.testing.assert_allclose(slope, (probabilities - one_hot) * share[:, None], atol=1e-15)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_with_a_probability_for_each_class(weights):
    random = np.random.default_rng(2)
    logits, _ = problem("classes")
    soft = random.dirichlet(np.ones(CLASSES), N)
    losses = -np.sum(soft * special.log_softmax(logits, axis=1), axis=1)
    with jax.enable_x64(True):
        value, slope = value_and_gradient(cross_entropy, logits, soft, weights)
    share = np.full(N, 1 / N) if weights is None else weights / weights.sum()
    np.testing.assert_allclose(value, np.sum(share * losses), rtol=1e-12)
    expected = (special.softmax(logits, axis=1) - soft) * share[:, None]
    np.testing.assert_allclose(slope, expected, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_integers_of_any_kind_are_labels(dtype):
    logits, labels = problem("classes", np.float32)
    for loss in (cross_entropy, accuracy):
        assert loss(logits, labels.astype(dtype)) == loss(logits, labels)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32])
@pytest.mark.parametrize("leading", [(), (2, 4)])
def test_labels_and_one_hot_labels_are_the_same(leading, dtype):
    random = np.random.default_rng(2)
    logits = random.normal(size=(*leading, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, leading)
    one_hot = np.eye(CLASSES)[labels].astype(dtype)
    one, other = (value_and_gradient(cross_entropy, logits, form) for form in (labels, one_hot))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5, atol=1e-7)
    expected = np.mean(np.argmax(logits, -1) == labels)
    assert accuracy(logits, labels) == accuracy(logits, one_hot)
    np.testing.assert_allclose(accuracy(logits, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_is_the_log_loss_of_logistic_probabilities(weights):
    random = np.random.default_rng(2)
    logits, labels = problem("binary")
    probabilities = special.expit(logits)
    expected = metrics.log_loss(labels, probabilities, sample_weight=weights)
    share = np.full(N, 1 / N) if weights is None else weights / weights.sum()
    soft = random.uniform(size=N)
    with jax.enable_x64(True):
        for form in (labels, labels > 0, labels.astype(float)):
            value, slope = value_and_gradient(binary_cross_entropy, logits, form, weights)
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            np.testing.assert_allclose(slope, (probabilities - labels) * share, atol=1e-15)
        losses = -soft * special.log_expit(logits) - (1 - soft) * special.log_expit(-logits)
        value = binary_cross_entropy(logits, soft, weights)
        np.testing.assert_allclose(value, np.sum(share * losses), rtol=1e-12)
        two = jnp.stack([jnp.zeros(N), logits], axis=1)
        np.testing.assert_allclose(cross_entropy(two, labels, weights), expected, rtol=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("delta", [0.3, 1.0, 10.0])
def test_huber_is_that_of_scipy(delta, weights):
    prediction, target = problem("huber")
    error = prediction - target
    share = np.full(N, 1 / N) if weights is None else weights / weights.sum()
    with jax.enable_x64(True):
        value, slope = value_and_gradient(huber, prediction, target, weights, delta=delta)
        np.testing.assert_allclose(value, np.sum(share * special.huber(delta, error)), rtol=1e-12)
        np.testing.assert_allclose(slope, share * np.clip(error, -delta, delta), atol=1e-15)
        half = 0.5 * mse(prediction, target, weights)
        assert np.isclose(value, half, rtol=1e-12) == (delta == 10.0)
        threshold = jnp.asarray(delta)
        traced = jax.jit(lambda delta: huber(prediction, target, weights, delta=delta))(threshold)
        np.testing.assert_allclose(traced, value, rtol=1e-12)


def test_weighted_mse_is_that_of_scikit_learn():
    prediction, target = problem("mse")
    expected = metrics.mean_squared_error(target, prediction, sample_weight=WEIGHTS)
    with jax.enable_x64(True):
        value, slope = value_and_gradient(mse, prediction, target, WEIGHTS)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    closed = 2 * WEIGHTS / WEIGHTS.sum() * (prediction - target)
    np.testing.assert_allclose(slope, closed, rtol=1e-12)


@pytest.mark.parametrize("shape", [(50,), (5, 4)])
def test_accuracy_is_that_of_scikit_learn(shape):
    random = np.random.default_rng(2)
    logits = random.normal(size=(*shape, 4)).astype(np.float32)
    labels = random.integers(0, 4, shape)
    expected = metrics.accuracy_score(labels.ravel(), np.argmax(logits, -1).ravel())
    np.testing.assert_allclose(accuracy(logits, labels), expected, rtol=1e-6)
    assert 0 < expected < 1
    assert accuracy(logits, np.argmax(logits, -1)) == 1.0
    assert accuracy(logits, np.argmin(logits, -1)) == 0.0


# Where logits are large.


def test_cross_entropies_stay_finite_and_right_at_large_logits():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], np.float32)
    right, wrong = jnp.array([0, 1]), jnp.array([1, 2])
    probabilities = np.eye(3)[[0, 1]]
    for labels, expected in ((right, 0.0), (wrong, (2e4 + 1e4) / 2)):
        for form in (labels, jax.nn.one_hot(labels, 3)):
            value, slope = value_and_gradient(cross_entropy, logits, form)
            assert value == expected
            np.testing.assert_array_equal(slope, (probabilities - np.eye(3)[labels]) / 2)
    logits = np.array([1e4, -1e4], np.float32)
    value, slope = value_and_gradient(binary_cross_entropy, logits, np.array([1, 0]))
    assert value == 0.0 and not slope.any()
    value, slope = value_and_gradient(binary_cross_entropy, logits, np.array([0, 1]))
    assert value == 1e4 and slope.tolist() == [0.5, -0.5]
    for label in (0, 1):
        value, slope = value_and_gradient(binary_cross_entropy, np.float32(0.0), label)
        np.testing.assert_allclose([value, slope], [np.log(2), 0.5 - label], rtol=1e-6)


def test_huber_is_linear_at_large_errors_and_smooth_at_none():
    value, slope = value_and_gradient(huber, jnp.array([1e30, -1e30]), jnp.zeros(2), delta=2.0)
    assert value == np.float32(2e30) and slope.tolist() == [1.0, -1.0]
    value, slope = value_and_gradient(huber, jnp.zeros(2), jnp.zeros(2))
    assert value == 0.0 and slope.tolist() == [0.0, 0.0]


# Under jit and vmap, and in every dtype.


@every_loss
def test_losses_under_jit_and_vmap_are_those_alone(name):
    random = np.random.default_rng(2)
    several = [np.stack([leaf, leaf[::-1], leaf]) for leaf in problem(name, np.float32)]
    weights = random.uniform(size=(3, N)).astype(np.float32)
    loss = LOSSES[name]
    together = jax.jit(jax.vmap(loss))(*several, weights)
    alone = [loss(*(leaf[i] for leaf in several), weights[i]) for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    unweighted = jax.vmap(loss)(*several)
    np.testing.assert_allclose(unweighted, [loss(*problem(name, np.float32))] * 3, rtol=1e-5)


@functools.cache
def in_double(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return float(LOSSES[name](*problem(name), WEIGHTS))


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_losses_keep_their_dtype(name, dtype):
    expected = in_double(name)
    prediction, target = problem(name, np.float32)
    target = target.astype(dtype) if name in ("mse", "huber") else target
    prediction, weights = prediction.astype(dtype), WEIGHTS.astype(dtype)

    @jax.jit
    def all_of_them(prediction, weights):
        value, slope = jax.value_and_grad(LOSSES[name])(prediction, target, weights)
        penalty = l2({"w": prediction, "b": weights})
        return value, slope, LOSSES[name](prediction, target), penalty

    with jax.numpy_dtype_promotion("strict"):
        results = all_of_them(prediction, weights)
    assert {leaf.dtype for leaf in results} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(np.float64(results[0]), expected, 8 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("form", [bool, np.int32, np.float32])
def test_labels_for_each_class_take_the_dtype_of_the_logits(form):
    logits, labels = problem("classes", np.float32)
    one_hot = np.eye(CLASSES)[labels].astype(form)
    with jax.numpy_dtype_promotion("strict"):
        value = jax.jit(cross_entropy)(logits.astype(jnp.bfloat16), one_hot)
    assert value.dtype == jnp.bfloat16


# Penalties.


def test_l2_is_half_the_square_of_the_norm_of_what_is_trained():
    params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.0]]), "z": jnp.array(3.0 + 4.0j), "b": 2.0}
    rest = {"degree": 5, "order": jnp.arange(3), "none": None, "f": jnp.tanh}
    assert l2(params | rest) == (1 + 4 + 9 + 25 + 4) / 2
    slope = jax.grad(l2)({"w": params["w"], "b": params["b"]})
    np.testing.assert_array_equal(slope["w"], params["w"])
    assert slope["b"] == 2.0
    np.testing.assert_array_equal(jax.grad(l2)(jnp.zeros(3)), 0.0)


@pytest.mark.parametrize("weights", [None, random.uniform(0.5, 2.0, 30)])
def test_ridge_regression_is_at_its_least_where_scikit_learn_says(weights):
    random = np.random.default_rng(2)
    x, y = random.normal(size=(30, 4)), random.normal(size=30)
    alpha, total = 3.0, 30 if weights is None else weights.sum()
    model = linear_model.Ridge(alpha, fit_intercept=False).fit(x, y, sample_weight=weights)
    batch = (x, y) if weights is None else (x, y, weights)
    ridge = lambda a: objective(linear, mse)(a, batch) + 2 * alpha / total * l2(a)
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(ridge))
        np.testing.assert_allclose(slope(jnp.asarray(model.coef_)), 0.0, atol=1e-12)
        assert np.abs(slope(jnp.zeros(4))).max() > 0.01


@pytest.mark.parametrize("weights", [None, random.uniform(0.5, 2.0, 60)])
@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_at_its_least_where_scikit_learn_says(classes, weights):
    random = np.random.default_rng(2)
    x, y = random.normal(size=(60, 3)), random.integers(0, classes, 60)
    c, total = 0.7, 60 if weights is None else weights.sum()
    model = linear_model.LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10)
    model.fit(x, y, sample_weight=weights)
    # With two classes, it has one logit.
    loss = cross_entropy if classes > 2 else binary_cross_entropy
    best = {"w": model.coef_.T, "b": model.intercept_}
    if classes == 2:
        best = {"w": model.coef_[0], "b": model.intercept_[0]}
    batch = (x, y) if weights is None else (x, y, weights)
    affine = lambda params, x: x @ params["w"] + params["b"]
    penalised = lambda params: objective(affine, loss)(params, batch) + l2(params["w"]) / c / total
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(penalised))(jax.tree.map(jnp.asarray, best))
        for leaf in jax.tree.leaves(slope):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-8)


# Objectives.


@every_loss
def test_the_third_part_of_a_batch_is_the_weights(name):
    prediction, target = problem(name, np.float32)
    identity = lambda params, x: params * x
    composed = objective(identity, LOSSES[name])
    weights = WEIGHTS.astype(np.float32)
    for rest in ((target,), (target, weights)):
        expected = LOSSES[name](2.0 * prediction, *rest)
        np.testing.assert_allclose(composed(2.0, (prediction, *rest)), expected, rtol=1e-6)


def test_a_run_on_weighted_examples_is_weighted_least_squares():
    random = np.random.default_rng(2)
    x, y, weights = random.normal(size=(30, 2)), random.normal(size=30), random.uniform(size=30)
    with jax.enable_x64(True):
        batch = tuple(map(jnp.asarray, (x, y, weights)))
        run = jaxfit.train(objective(linear, mse), jnp.zeros(2), optax.sgd(0.3), 300, data=batch)
        root = np.sqrt(weights)
        best, *_ = np.linalg.lstsq(root[:, None] * x, root * y)
        np.testing.assert_allclose(run.state.params, best, rtol=1e-9)
        sparse = batch[0], batch[1], jnp.asarray(weights > 0.5, jnp.float64)
        run = jaxfit.train(objective(linear, mse), jnp.zeros(2), optax.sgd(0.3), 300, data=sparse)
        best, *_ = np.linalg.lstsq(x[weights > 0.5], y[weights > 0.5])
        np.testing.assert_allclose(run.state.params, best, rtol=1e-9)


# What is refused.


@pytest.mark.parametrize("loss", [huber, binary_cross_entropy])
@pytest.mark.parametrize(("prediction", "target"), [((5, 1), (5,)), ((5,), ()), ((1,), (5,))])
def test_other_losses_do_not_broadcast_either(loss, prediction, target):
    sentence = re.escape(f"{loss.__name__} was given predictions of shape {prediction} and targets")
    with pytest.raises(ValueError, match=rf"{sentence} .*: reshape one of them\."):
        loss(jnp.ones(prediction), jnp.ones(target))


@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ((5, 3), (4,)),
        ((5, 3), (5, 1)),
        ((5, 3), (5, 2)),
        ((5, 3), (3,)),
        ((5, 3), ()),
        ((5,), (5, 1)),
        ((), ()),
        ((2, 5, 3), (5,)),
        ((2, 5, 3), (2,)),
        ((5, 1), (5, 3)),
    ],
)
def test_labels_of_another_shape_are_refused(loss, logits, labels):
    shapes = re.escape(f"{loss.__name__} was given logits of shape {logits} and labels of shape ")
    with pytest.raises(ValueError, match=shapes + re.escape(f"{labels}, but takes [..., classes]")):
        loss(jnp.ones(logits), jnp.ones(labels, int))


@pytest.mark.parametrize("loss", [cross_entropy, accuracy])
@pytest.mark.parametrize("dtype", ["float32", "bool", "bfloat16"])
def test_labels_that_are_no_integers_are_refused(loss, dtype):
    sentence = rf"given labels of dtype {dtype}, but .* integer: convert them with labels.astype"
    with pytest.raises(TypeError, match=sentence):
        loss(jnp.ones((5, 3)), jnp.ones(5, dtype))
