"""Lines, planes and principal components agree with closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import analysis
from tests.common import assert_same_bits, perceptron

wells = lambda x: (x**2 - 1) ** 2


def test_the_barrier_between_two_wells_is_exactly_one():
    found = analysis.line(wells, -1.0, 1.0)
    assert float(found.barrier) == 1
    assert_same_bits(found.loss[jnp.array([0, -1])], jnp.zeros(2))
    tilted = analysis.line(lambda x: wells(x) + x, jnp.float32(-1), jnp.float32(1))
    np.testing.assert_allclose(tilted.barrier, 1, rtol=1e-6)
    np.testing.assert_allclose(tilted.loss, wells(2 * tilted.at - 1) + 2 * tilted.at - 1, atol=1e-6)


def test_below_its_chord_a_loss_has_no_barrier():
    assert float(analysis.line(lambda x: x**2, -1.0, 2.0, num=7).barrier) == 0


def test_the_line_of_a_product_has_its_closed_form():
    one, other = {"w": jnp.array([1.0, 2.0]), "b": 0.0}, {"w": jnp.array([1.0, 5.0]), "b": 4.0}
    signed = lambda sign: lambda params: sign * params["w"][1] * params["b"]
    found = analysis.line(signed(1), one, other)
    np.testing.assert_allclose(found.loss, (2 + 3 * found.at) * 4 * found.at, rtol=1e-6)
    # 8 t + 12 t² is below its straight line, 20 t, and above it with the sign changed.
    assert float(found.barrier) == 0
    np.testing.assert_allclose(analysis.line(signed(-1), one, other).barrier, 3, rtol=1e-6)
    bad = analysis.line(lambda x: jnp.where(abs(x) < 0.5, jnp.nan, x), -1.0, 1.0)
    assert np.isnan(bad.barrier)


def test_ends_are_ends_and_other_leaves_are_those_of_the_first():
    loss = lambda p: p["f"](p["w"] * p["power"]).sum()
    a = {"w": jnp.array([0.1, 1 / 3]), "power": 3, "f": jnp.sin}
    b = {"w": jnp.array([0.7, 1e-8]), "power": 3, "f": jnp.sin}
    found = jax.jit(lambda w: analysis.line(loss, a | {"w": w}, b))(a["w"])
    np.testing.assert_allclose(found.loss[0], loss(a), rtol=1e-6)
    np.testing.assert_allclose(found.loss[-1], loss(b), rtol=1e-6)


def test_states_bring_their_carries():
    loss = lambda a, carry: (a * carry, carry)
    a, b = (jaxfit.State(0, value, None, carry=value + 1) for value in (1.0, 3.0))
    found = analysis.line(loss, a, b, num=3)
    np.testing.assert_allclose(found.loss, [2, 6, 12])


def test_a_plane_is_the_loss_at_its_places():
    loss, params, data = perceptron()
    batch, params = data(0), jax.tree.map(lambda leaf: leaf + 0.1, params)
    found = jax.jit(lambda p: analysis.plane(loss, p, data=batch, num=5, extent=(-1, 2)))(params)
    move = lambda p, u, v: p + found.x[3] * u + found.y[1] * v
    there = jax.tree.map(move, params, *found.directions)
    np.testing.assert_allclose(found.loss[1, 3], loss(there, batch), rtol=1e-5)
    np.testing.assert_allclose(found.x, [-1, -0.25, 0.5, 1.25, 2])
    lengths = lambda tree: [jnp.linalg.norm(layer["w"], axis=0) for layer in tree]
    for direction in found.directions:
        np.testing.assert_allclose(
            np.concatenate(lengths(direction)), np.concatenate(lengths(params)), rtol=1e-5
        )
        assert all(not layer["b"].any() for layer in direction)


def test_filters_may_be_the_first_axis_or_leaves_whole():
    params = jax.random.normal(jax.random.key(0), (3, 4))
    square = lambda a: jnp.sum(a**2)
    first = analysis.plane(square, params, filter_axis=0, num=1).directions[0]
    np.testing.assert_allclose(*(np.linalg.norm(a, axis=1) for a in (first, params)), rtol=1e-5)
    leaf = analysis.plane(square, params, normalize="leaf", num=1).directions[1]
    np.testing.assert_allclose(*map(np.linalg.norm, (leaf, params)), rtol=1e-5)
    bare = analysis.plane(square, params, normalize=None, num=1).directions
    assert abs(np.linalg.norm(bare[0]) - 12**0.5) < 2


def test_pictures_of_networks_of_other_scales_agree():
    """A relu network does not change if one layer is ten times as large and the next a tenth."""
    x = jax.random.normal(jax.random.key(0), (16, 3))
    loss = lambda w, x: jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2)
    w = [jax.random.normal(jax.random.key(i), (3, 3)) for i in (1, 2)]
    one = analysis.plane(loss, w, data=x, num=5)
    other = analysis.plane(loss, [10 * w[0], w[1] / 10], data=x, num=5)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("center", "expected"),
    [
        ("mean", 6 / (np.pi * np.arange(1, 4)) ** 2),  # .608, .152, .068
        ("last", 8 / (np.pi * np.arange(1, 6, 2)) ** 2),  # .811, .090, .032
    ],
)
def test_principal_components_of_a_random_walk(center, expected):
    steps = jax.random.normal(jax.random.key(0), (200, 2000))
    found = analysis.pca(jnp.cumsum(steps, axis=0), k=3, center=center)
    np.testing.assert_allclose(found.ratio, expected, rtol=0.06)


def test_a_run_in_a_plane_lies_in_it():
    loss = lambda p: (p["a"][0] ** 2 + 4 * p["a"][1] ** 2 + 0 * jnp.sum(p["a"])) / 2
    params = {"a": jnp.array([3.0, 1.0, 7.0]), "n": 4}
    run = jaxfit.train(loss, params, optax.sgd(0.1), 40)
    found = analysis.pca(run)
    assert found.directions["a"].shape == (2, 3) and found.directions["n"] is None
    np.testing.assert_allclose(found.off_plane, 0, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(found.ratio), 1, rtol=1e-5)
    np.testing.assert_allclose(found.coordinates[-1], 0, atol=1e-6)
    axes = found.directions["a"]
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-5)
    last = run.trajectory["params"]["a"][-1]
    np.testing.assert_allclose(
        found.coordinates @ axes + last, run.trajectory["params"]["a"], atol=1e-5
    )
    # The plane through these directions has the loss of the path.
    directions = [jax.tree.map(lambda leaf, i=i: leaf[i], found.directions) for i in (0, 1)]
    center = jax.tree.map(lambda leaf: leaf[-1], run.trajectory["params"])
    low, high = found.coordinates.min(0), found.coordinates.max(0)
    shown = analysis.plane(loss, center, directions, num=2, extent=jnp.stack([low, high], axis=1))
    corner = last + low[0] * axes[0] + high[1] * axes[1]
    np.testing.assert_allclose(shown.loss[1, 0], loss({"a": corner}), rtol=1e-4)


def test_what_is_off_the_plane_is_said():
    path = jnp.array([[3.0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]])
    found = analysis.pca(path)
    # Squares of 9, 4 and 1 along the axes, from the last row.
    np.testing.assert_allclose(found.ratio, [9 / 14, 4 / 14], rtol=1e-6)
    np.testing.assert_allclose(found.off_plane, [0, 0, 1, 0], atol=1e-6)


def test_rows_on_disk(tmp_path):
    square = lambda a: jnp.sum(jnp.array([1.0, 3.0]) * a**2)
    record = lambda s: s.params
    options = {"checkpoint_dir": tmp_path, "progress": False, "record": record}
    jaxfit.fit(square, jnp.ones(2), optax.sgd(0.1), 6, **options)
    found = analysis.pca(jaxfit.load(tmp_path), k=1)
    assert found.coordinates.shape == (6, 1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: analysis.line(wells, -1.0, jnp.ones(2)), "b is not of the shapes of a"),
        (lambda: analysis.line(wells, -1.0, 1.0, num=1), "num is 1, but a line has two ends"),
        (lambda: analysis.plane(wells, 1.0, (1.0, jnp.ones(3))), "directions hold float32"),
        (lambda: analysis.plane(wells, 1.0, normalize="layer"), "normalize is 'layer', but must"),
        (lambda: analysis.plane(wells, 1.0, extent=(1, 2, 3)), "extent is (1, 2, 3), but must"),
        (lambda: analysis.pca(jnp.ones((3, 2)), k=3), "k is 3, but 3 rows of 2 trained numbers"),
        (lambda: analysis.pca(jnp.ones((3, 2)), center="first"), "center is 'first', but must"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(sentence) and str(refused.value).endswith(".")


def test_runs_without_parameters_are_refused():
    run = jaxfit.train(wells, 1.0, optax.sgd(0.1), 3, record=lambda s: s.loss * jnp.ones(2))
    with pytest.raises(ValueError, match="the run has not recorded its parameters"):
        analysis.pca(run)
