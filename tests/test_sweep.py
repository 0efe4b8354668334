"""A sweep is a labelled product of runs, each of them the run alone; and it goes out of the way."""

import hashlib
import itertools
import math
import os
import re
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import sweep as sweep_function
from jaxfit._drive import host
from jaxfit._drive.axes import parse
from jaxfit._drive.tiles import default_batch_size
from jaxfit._drive.variant import carried_by, variants_of
from jaxfit.sweep import Sweep, sweep
from tests.common import (
    TILES,
    assert_close,
    assert_same_bits,
    compiled,
    guess,
    loss,
    perceptron,
    process,
    two_processes,
)

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam, "lbfgs": optax.lbfgs}
RATES = np.array([0.01, 0.1, 0.3, 1.0, 0.03], np.float32)
KEYS = jax.random.split(jax.random.key(5), 3)
AXES = {"optimizer": OPTIMIZERS, "lr": RATES, "key": KEYS}


def on_the_line(line, steps=20):
    def fn(optimizer, lr, key):
        start = guess + 0.1 * jax.random.normal(key, (2,))
        return jaxfit.train(loss, start, optimizer(lr), steps, data=line).trajectory

    return fn


def on_minibatches(steps=20):
    x = jax.random.normal(jax.random.key(1), (64, 8))
    y = jax.random.randint(jax.random.key(2), (64,), 0, 3)
    loss, params, _ = perceptron()

    def fn(optimizer, lr, key):
        batches = jaxfit.minibatches((x, y), 16, key)
        return jaxfit.train(loss, params, optimizer(lr), steps, data=batches).trajectory

    return fn


@pytest.fixture(scope="module", params=["line", "minibatches"])
def problem(request, line):
    """A function to sweep, axes, and what a sweep by one run at a time and by four give."""
    if request.param == "line":
        fn, axes = on_the_line(line), AXES
    else:  # without lbfgs, whose programs take many times as long to compile
        fn, axes = on_minibatches(), {**AXES, "optimizer": {"sgd": optax.sgd, "adam": optax.adam}}
    return fn, axes, sweep(fn, axes, batch_size=1), sweep(fn, axes, batch_size=4)


# What a member is


def test_a_member_is_the_run_alone_bit_for_bit_with_a_batch_size_of_one(problem):
    fn, axes, alone, _ = problem
    for name, optimizer in axes["optimizer"].items():
        solo = jax.jit(lambda lr, key, optimizer=optimizer: fn(optimizer, lr, key))
        for lr, (i, key) in itertools.product(RATES, enumerate(KEYS)):
            assert_same_bits(
                alone.sel(optimizer=name, lr=lr, key=i).values,
                jax.tree.map(np.asarray, solo(lr, key)),
            )


def test_a_member_of_a_batch_is_the_run_alone_to_rounding(problem):
    _, axes, alone, batched = problem
    for name in axes["optimizer"]:
        steps = 3 if name == "lbfgs" else 20  # line searches amplify rounding
        early = lambda sweep, name=name, steps=steps: jax.tree.map(
            lambda leaf: leaf[:, :, :steps], sweep.sel(optimizer=name).values
        )
        assert_close(early(alone), early(batched), rtol=1e-3, atol=1e-4)


def test_what_becomes_of_one_run_changes_no_bit_of_the_others(problem):
    fn, axes, _, batched = problem
    rates = RATES.copy()
    rates[[2, 4]] = 1e38, np.nan
    with_bad = sweep(fn, {**axes, "lr": rates}, batch_size=4)
    bad = np.isnan(with_bad.values["loss"]).any(axis=-1)
    assert bad[:, 4].all() and bad[0, 2].all()
    others = lambda sweep: jax.tree.map(lambda leaf: np.delete(leaf, [2, 4], 1), sweep.values)
    assert_same_bits(others(with_bad), others(batched))


def test_the_number_of_devices_changes_no_bit(problem):
    fn, _, _, batched = problem
    assert len(jax.devices()) == 2
    for name in "sgd", "adam":  # lbfgs goes over both when it goes alone, above
        axes = {**AXES, "optimizer": {name: OPTIMIZERS[name]}}
        one = sweep(fn, axes, batch_size=4, devices=jax.devices()[:1])
        assert_same_bits(one.sel(optimizer=name).values, batched.sel(optimizer=name).values)


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(problem, cores, monkeypatch):
    fn, _, _, batched = problem
    monkeypatch.setattr(host, "cores", lambda: cores)
    axes = {**AXES, "optimizer": {"sgd": optax.sgd, "adam": optax.adam}}
    one = sweep(fn, axes, batch_size=4, devices=jax.devices()[1:])
    for name in axes["optimizer"]:
        assert_same_bits(one.sel(optimizer=name).values, batched.sel(optimizer=name).values)


def test_threads_run_under_the_configuration_of_the_caller(monkeypatch):
    monkeypatch.setattr(host, "cores", lambda: 2)
    with jax.enable_x64(True):
        axes = {"by": [2, 3], "x": np.arange(5.0)}
        result = sweep(lambda by, x: by * x / 3, axes, batch_size=2, devices=jax.devices()[:1])
    assert result.values.dtype == np.float64
    np.testing.assert_allclose(result.values, np.outer([2, 3], np.arange(5) / 3), 1e-15)


def slope_of_a_run(line):
    end = lambda lr: jaxfit.train(loss, guess, optax.sgd(lr), 10, data=line).state.params
    return jax.value_and_grad(lambda lr: loss(end(lr), line))


def least_squares(line):
    x = jax.random.normal(jax.random.key(1), (64, 8))
    return lambda lr: jnp.linalg.solve(x.T @ x / 64 + lr * jnp.eye(8), x.T @ x[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("make", [slope_of_a_run, least_squares])
def test_what_is_no_run_is_the_same_on_any_number_of_devices_too(line, make):
    fn = make(line)
    for batch_size in (1, 4):
        one, two = (
            sweep(lambda lr: fn(lr), {"lr": RATES}, batch_size=batch_size, devices=devices).values
            for devices in (jax.devices()[:1], jax.devices())
        )
        assert_same_bits(one, two)
    solo = jax.jit(fn)
    alone = sweep(lambda lr: fn(lr), {"lr": RATES}, batch_size=1)
    for lr in RATES:
        assert_same_bits(alone.sel(lr=lr).values, jax.tree.map(np.asarray, solo(lr)))


# Eight devices, and two processes

ELSEWHERE = """
import hashlib
import sys
import jax
import numpy as np
if len(sys.argv) > 2:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from tests.test_sweep import AXES, on_the_line
from jaxfit import data, sweep
expected = int(sys.argv[1])
assert len(jax.devices()) == expected, jax.devices()
axes = {**AXES, "optimizer": {"adam": AXES["optimizer"]["adam"]}}
fn = on_the_line(data.line(jax.random.key(0)))
results = [sweep(fn, axes, batch_size=4)]
if len(sys.argv) == 2:
    results.append(sweep(fn, axes, batch_size=4, devices=jax.devices()[:3]))
for result in results:
    for leaf in jax.tree.leaves(result.values):
        print(hashlib.sha256(np.ascontiguousarray(leaf)).hexdigest())
"""


def hashes(said):
    return re.findall("[0-9a-f]{64}", said)


@pytest.fixture(scope="module")
def adam(line):
    """The bits that a sweep on one device of this process makes."""
    axes = {**AXES, "optimizer": {"adam": optax.adam}}
    result = sweep(on_the_line(line), axes, batch_size=4, devices=jax.devices()[:1])
    leaves = map(np.ascontiguousarray, jax.tree.leaves(result.values))
    return [hashlib.sha256(leaf).hexdigest() for leaf in leaves]


@pytest.mark.slow
def test_eight_devices_make_the_bits_of_one(adam):
    flags = "--xla_force_host_platform_device_count=8"
    with process(ELSEWHERE, 8, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}") as running:
        said, complaint = running.communicate(timeout=300)
    assert running.returncode == 0, complaint
    assert hashes(said) == [*adam, *adam]


@pytest.mark.slow
def test_two_processes_make_the_bits_of_one_and_both_have_them_all(adam):
    for said, _ in two_processes(ELSEWHERE, 4):
        assert hashes(said) == adam


# The product and its labels


def test_the_module_and_the_function_have_one_name():
    assert sweep_function is sweep is jaxfit.sweep and jaxfit.Sweep is Sweep


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    outside=st.integers(0, 2),
    batch_size=st.integers(1, 7) | st.none(),
    order=st.randoms(use_true_random=False),
)
def test_every_point_of_the_product_is_run_once_and_in_its_place(
    lengths, outside, batch_size, order
):
    axes = {f"a{i}": np.arange(length) * 10**i for i, length in enumerate(lengths)}
    axes |= {f"b{i}": {"x": 1000 * 10**i, "y": 2000 * 10**i} for i in range(outside)}
    axes = dict(order.sample(list(axes.items()), len(axes)))
    result = sweep(lambda **point: sum(point.values()), axes, batch_size=batch_size)
    items = [axis.values() if isinstance(axis, dict) else axis for axis in axes.values()]
    expected = np.array([sum(point) for point in itertools.product(*items)])
    assert list(result.axes) == list(axes)
    np.testing.assert_array_equal(result.values, expected.reshape([len(axis) for axis in items]))


def test_a_zipped_axis_gives_its_arrays_together_and_a_list_its_items_alone():
    axes = {
        "point": {"a": np.arange(3), "b": np.array([[1, 2], [3, 4], [5, 6]])},
        "width": [2, 3],
        "key": KEYS,
        "pair": (jnp.arange(2.0), KEYS[:2]),
    }

    def fn(point, width, key, pair):
        assert isinstance(width, int) and point["b"].shape == (2,) and key.shape == ()
        number, other = pair
        return (
            point["a"] + point["b"] @ jnp.array([10, 100]) + 1000 * jnp.ones(width).sum() + number,
            jax.random.uniform(key) + jax.random.uniform(other),
        )

    result = sweep(fn, axes, batch_size=4)
    drawn = np.asarray(jax.vmap(jax.random.uniform)(KEYS))
    assert result.values[0].shape == (3, 2, 3, 2)
    assert result.values[0][2, 1, 0, 1] == 2 + 650 + 3000 + 1
    np.testing.assert_allclose(result.values[1][0, 0], drawn[:, None] + drawn[None, :2], rtol=1e-6)
    assert result.axes["width"] == ("2", "3")
    assert_same_bits(result.axes["key"], KEYS)
    assert result.sel(width=3, key=1, point=2, pair=0).values[0] == 3652
    assert (
        repr(result.sel(key=0))
        == "Sweep({point: 3 {'a': int32[3], 'b': int32[3, 2]}, width: 2 (2, 3), "
        "pair: 2 (float32[2], key<fry>[2])}, (float32[3, 2, 2], float32[3, 2, 2]))"
    )


def test_axes_of_python_objects_alone_are_run_too():
    result = sweep(lambda a, b: jnp.float32(a * b), {"a": [2, 3], "b": {"five": 5.0, "six": 6.0}})
    np.testing.assert_array_equal(result.values, [[10, 12], [15, 18]])
    assert result.sel(a=3, b="six").values == 18


def test_results_may_hold_keys_functions_and_dtypes_of_all_kinds():
    def fn(key, scale):
        return {"key": key, "act": jax.nn.relu, "half": jnp.bfloat16(scale), "yes": scale > 1}

    result = sweep(fn, {"key": KEYS, "scale": jnp.arange(3.0)}, batch_size=2)
    assert result.values["act"] is jax.nn.relu
    assert_same_bits(result.values["key"], jnp.repeat(KEYS[:, None], 3, axis=1))
    assert result.values["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result.sel(key=1).values["yes"], [False, False, True])
    assert result.sel(key=1, scale=2).values["act"] is jax.nn.relu


def test_python_objects_are_results_if_they_are_the_same_for_all_runs():
    class Model:
        def apply(self, x):
            return x

    model, thing = Model(), object()
    fn = lambda by, x: {"x": by * x, "apply": model.apply, "thing": thing, "name": "line"}
    values = sweep(fn, {"by": [1, 2], "x": jnp.arange(3)}).values
    assert values["thing"] is thing and values["apply"](3) == 3 and values["name"] == "line"
    np.testing.assert_array_equal(values["x"], [[0, 1, 2], [0, 2, 4]])


def test_axes_have_the_dtypes_that_jax_gives_them():
    rates = np.logspace(-3, 0, 4)
    dtype_of = lambda lr: jnp.zeros(lr.dtype.itemsize)
    assert sweep(dtype_of, {"lr": rates}).values.shape == (4, 4)
    with jax.enable_x64(True):
        result = sweep(dtype_of, {"lr": rates})
    assert result.values.shape == (4, 8) and result.axes["lr"].dtype == np.float64


@pytest.mark.slow
def test_runs_of_a_sweep_are_replayed_under_vmap():
    loss, params, data = perceptron()

    def fn(lr):
        return jaxfit.train(loss, params, optax.adam(lr), 12, data=data, keyframe_every=5)

    runs = sweep(fn, {"lr": RATES}, batch_size=5, devices=jax.devices()[:1]).values

    @jax.jit
    @jax.vmap
    def replay(run, lr):
        return jaxfit.replay(loss, run, optax.adam(lr), 7, 12, data=data)

    part = replay(runs, RATES)
    assert_same_bits(part.trajectory, jax.tree.map(lambda leaf: leaf[:, 7:12], runs.trajectory))
    assert_same_bits(part.state, runs.state)


# Selecting

TABLE = {"optimizer": OPTIMIZERS, "lr": np.array([0.1, 0.01, 1.0]), "seed": jnp.arange(2)}


@pytest.fixture(scope="module")
def table():
    def fn(optimizer, lr, seed):
        place = list(OPTIMIZERS.values()).index(optimizer)
        return {"loss": place + jnp.abs(lr - 0.01) + 10 * seed, "two": jnp.ones(2)}

    return sweep(fn, TABLE)


def test_a_label_selects_and_a_near_one_only_when_asked(table):
    one = table.sel(optimizer="adam", lr=0.1)
    assert list(one.axes) == ["seed"] and one.values["two"].shape == (2, 2)
    np.testing.assert_allclose(one.values["loss"], [1.09, 11.09], rtol=1e-6)
    assert_same_bits(table.sel({"optimizer": "adam"}, lr=0.09, method="nearest").values, one.values)
    for wrong in {"lr": 0.09}, {"seed": 2}, {"optimizer": "lion"}, {"rate": 0.1}:
        with pytest.raises(
            KeyError, match=r"has no label|there is no axis 'rate': the axes are op"
        ):
            table.sel(**wrong)
    with pytest.raises(KeyError, match="has no label 'lion': it has 3 \\(sgd, adam, lbfgs\\)"):
        table.sel(optimizer="lion", method="nearest")
    with pytest.raises(ValueError, match="method is 'exact', but must be None or"):
        table.sel(lr=0.1, method="exact")


F16, BF16, F32, INF, NAN = np.float16, jnp.bfloat16, np.float32, np.inf, np.nan
short = lambda value: str(value)[:20]
SELECTED = [  # the labels, their dtype, what is selected, and its position
    ([3, 1, 2], np.int32, 1.0, 1),
    ([3, 1, 2], np.int32, jnp.int32(2), 2),
    ([3, 1, 2], np.int32, True, 1),
    ([3, 1, 2], np.int32, 1.7, None),
    ([3, 1, 2], np.int32, 2**32 + 1, None),
    ([3, 1, 2], np.int32, 2**70, None),
    ([3, 1, 2], np.int32, NAN, None),
    ([3, 1, 2], np.int32, INF, None),
    ([3, 1, 2], np.int32, 1 + 1j, None),
    ([3, 1, 2], np.int32, "1", None),
    ([3, 1, 2], np.int32, None, None),
    ([3, 1, 2], np.int32, [3, 1, 2], None),
    ([3, 1, 2], np.int32, KEYS[1], None),
    ([3, 255], np.uint8, -1, None),
    ([2**53, 2**53 + 1], np.int64, 2**53 + 1, 1),
    ([False, True], bool, True, 1),
    ([False, True], bool, 1.0, 1),
    ([False, True], bool, 2, None),
    ([False, True], bool, 0.5, None),
    ([0.2, 0.1], F32, 0.1, 1),
    ([0.2, 0.1], F32, np.float64(0.1), 1),
    ([0.2, 0.1], F32, 0.1000001, None),
    ([0.2, 0.1], F16, F32(0.1), 1),
    ([0.2, 0.1], BF16, 0.1, 1),
    ([0.2, 1.0], BF16, True, 1),
    ([1.0, INF], F32, INF, 1),
    ([1.0, INF], F32, -INF, None),
    ([1.0, INF], F32, 1e300, None),
    ([1.0, INF], F32, 2**70, None),
    ([1.0, INF], F32, 2**2000, None),
    ([1.0, INF], BF16, 1e300, None),
    ([NAN, 1.0], F32, 1, 1),
    ([1.0, NAN], F32, NAN, 1),
    ([1.0, 1j], np.complex64, 1j, 1),
]


@pytest.mark.parametrize(("labels", "dtype", "label", "position"), SELECTED, ids=short)
def test_a_label_is_the_very_number_or_its_rounding_on_an_axis_of_floats(
    labels, dtype, label, position
):
    axis = Sweep({"n": np.array(labels).astype(dtype)}, np.arange(len(labels)))
    if position is None:
        with pytest.raises(KeyError, match=r"axis 'n' has no label .*: it has \d \(.*\)\."):
            axis.sel(n=label)
    else:
        assert axis.sel(n=label).values == position
        if label == label:
            assert axis.sel(n=label, method="nearest").values == position


@pytest.mark.parametrize(
    ("labels", "dtype", "label", "position"),
    [
        ([3, 200], np.uint8, 5, 0),
        ([3, 200], np.uint8, -7.5, 0),
        ([3, 200], np.uint8, 2**70, 1),
        ([-100, 20], np.int8, 100, 1),
        ([-100, 20], np.int8, -INF, 0),
        ([7, 3], np.uint8, 5, 0),  # the first of two
        ([0, 2**53 + 1, 2**53 + 3], np.int64, 2**53 + 4, 2),
        ([True, False], bool, 0.4, 1),
        ([1.0, 2.0, 1.5], F16, 1.6, 2),
        ([1.0, 2.0, 1.5], BF16, F32(1.9), 1),
        ([-6e4, 6e4], F16, 5e4, 1),
        ([NAN, 1.0, 3.0], F32, 2.9, 2),
        ([NAN, 1.0, 3.0], BF16, INF, 2),
        ([INF, 1.0, 3.0], F32, 1e300, 2),
        ([INF, 1.0, 3.0], F32, 2**2000, 2),
        ([INF, 1.0, -INF], F32, -(2**2000), 1),
        ([INF, 1.0, -INF], F32, -INF, 2),
        ([1.0, 3.0], F32, -INF, 0),
        ([1.0, 1j], np.complex64, 0.9j, 1),
        ([NAN, NAN], F32, 1.0, None),
        ([1.0, NAN], F32, NAN, None),
        ([1.0, 2.0], F32, "1.0", None),
        ([1.0, 2.0], F32, None, None),
    ],
    ids=short,
)
def test_the_nearest_of_any_dtype_is_never_nan(labels, dtype, label, position):
    axis = Sweep({"n": np.array(labels).astype(dtype)}, np.arange(len(labels)))
    if position is None:
        with pytest.raises(KeyError, match=r"axis 'n' has no label near .*: it has 2 \(.*\)\."):
            axis.sel(n=label, method="nearest")
    else:
        assert axis.sel(n=label, method="nearest").values == position


def test_the_best_has_the_lowest_score_and_nan_is_none(table):
    assert table.best("loss") == {"optimizer": "sgd", "lr": np.float32(0.01), "seed": 0}
    assert table.sel(table.best("loss")).values["loss"] == 0
    worst = table.best(by=lambda values: -values["loss"])
    assert worst == {"optimizer": "lbfgs", "lr": 1, "seed": 1}
    for dtype in (np.float64, F32, F16, BF16):
        some = Sweep({"a": np.arange(3)}, np.array([np.nan, 2.0, 1.0]).astype(dtype))
        assert some.best() == {"a": 2}
    unnamed = Sweep({"a": np.array([1.0, np.nan])}, np.array([2.0, 1.0]))
    assert unnamed.sel(unnamed.best()).values == 1
    for by, sentence in {
        "two": r"gives float32\[3, 3, 2, 2\], but .* of shape \[3, 3, 2\]: give by=lambda",
        lambda values: np.full((3, 3, 2), np.nan): "all runs score NaN",
        lambda values: values["loss"] + 1j: "gives complex64",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            table.best(by)


def test_an_xarray_has_dimensions_coordinates_and_steps(table, line):
    data = table.to_xarray()
    assert dict(data.sizes) == {"optimizer": 3, "lr": 3, "seed": 2, "two_dim_0": 2}
    assert data.loss.sel(optimizer="adam", lr=0.1, seed=1, method=None).item() == pytest.approx(
        11.09
    )
    assert data.loss.mean("seed").sel(optimizer="adam").idxmin("lr").item() == np.float32(0.01)

    def fn(lr):
        return jaxfit.train(loss, guess, optax.sgd(lr), 20, data=line, record_every=5)

    run = sweep(fn, {"lr": RATES}).to_xarray()
    assert run["trajectory.params"].dims == ("lr", "step", "trajectory.params_dim_1")
    np.testing.assert_array_equal(run.step, [0, 5, 10, 15])
    assert run["state.params"].dims == ("lr", "state.params_dim_0")
    rows = sweep(lambda lr: fn(lr).trajectory, {"lr": RATES}).to_xarray()
    assert rows.loss.dims == ("lr", "step") and "step" not in rows.data_vars
    np.testing.assert_array_equal(rows.loss, run["trajectory.loss"])

    zipped = {"point": {"lr": RATES, "decay": RATES / 2}, "key": KEYS}
    zipped = sweep(lambda point, key: point["lr"] - point["decay"], zipped).to_xarray()
    np.testing.assert_array_equal(zipped["point.decay"], RATES / 2)
    assert zipped.value.dims == ("point", "key") and list(zipped.key) == [0, 1, 2]


def test_steps_that_differ_from_run_to_run_are_no_coordinate(line):
    def fn(start):
        state = jaxfit.init(guess, optax.sgd(0.1))
        state = jaxfit.State(start, state.params, state.opt_state)
        return jaxfit.train(loss, state, optax.sgd(0.1), 3, data=line).trajectory

    rows = sweep(fn, {"start": jnp.arange(2)}).to_xarray()
    assert rows.loss.dims == ("start", "row")
    np.testing.assert_array_equal(rows.step, [[0, 1, 2], [1, 2, 3]])


@pytest.fixture(scope="module")
def runs(line):
    """The runs of a sweep over the rates."""
    train = lambda lr: jaxfit.train(loss, guess, optax.sgd(lr), 6, data=line, record_every=2)
    return sweep(train, {"lr": RATES}).values


@pytest.mark.parametrize("axis", ["step", "steps", "row", "value", "loss", "state.params", "step_"])
@pytest.mark.parametrize("kept", ["run", "rows", "number", "dict"])
def test_names_of_an_xarray_are_distinct_and_axes_keep_theirs(runs, axis, kept):
    values = {
        "run": runs,
        "rows": runs.trajectory,
        "number": RATES / 2,
        "dict": {axis: RATES / 2, axis + "_": RATES / 2 + 1},
    }[kept]
    result = Sweep({axis: RATES}, values)
    data = result.to_xarray()
    np.testing.assert_array_equal(data[axis], RATES)
    assert data[axis].dims == (axis,)
    if kept == "number":
        assert list(data.data_vars) == ["value_" if axis == "value" else "value"]
    elif kept == "dict":
        np.testing.assert_array_equal(data[axis + "_"], RATES / 2)
        np.testing.assert_array_equal(data[axis + "__"], RATES / 2 + 1)
    else:
        losses = "trajectory.loss" if kept == "run" else "loss_" if axis == "loss" else "loss"
        step = "step_" if axis == "step" else "step"
        assert data[losses].dims == (axis, step)
        np.testing.assert_array_equal(data[step], [0, 2, 4])
        count = lambda dims: sum(np.ndim(leaf) == dims for leaf in jax.tree.leaves(result.values))
        steps_too = kept == "rows"  # the coordinate
        assert len(data.data_vars) == sum(map(count, (1, 2, 3))) - steps_too
    assert len(data.to_dataframe()) == math.prod(data.sizes.values())


def test_names_that_meet_in_an_xarray_are_told_apart():
    def fn(a):
        return {
            "p": {"q": a["x"]},
            "p.q": 2 * a["x"],
            "a.x": a["x"],
            "r": jnp.ones(2),
            "r_dim_0": 1,
        }

    data = sweep(fn, {"a": {"x": jnp.arange(3), "y": jnp.arange(3)}}).to_xarray()
    assert set(data.data_vars) == {"p.q", "p.q_", "a.x_", "r", "r_dim_0"}
    assert set(data.coords) == {"a", "a.x", "a.y"} and data.r.dims == ("a", "r_dim_0_")
    rows = sweep(lambda a: {"step": jnp.arange(2) + a, "row": a}, {"a": jnp.arange(3)}).to_xarray()
    assert rows.step.dims == ("a", "row") and rows.row_.dims == ("a",)


def test_without_xarray_the_error_names_the_extra(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfit-train\[analysis\]"'):
        table.to_xarray()


# What it costs


def test_a_second_sweep_traces_and_compiles_nothing_and_a_part_of_a_tile_neither():
    traced = []

    def fn(width, lr):
        traced.append(width)
        return lr * jnp.ones(width).sum()

    compiled.clear()
    run = lambda rates: sweep(fn, {"width": [2, 3], "lr": rates}, batch_size=2)
    run(RATES)
    first = list(traced)
    assert compiled.count(TILES) == 2 and sorted(set(first)) == [2, 3]
    np.testing.assert_allclose(run(2 * RATES[:3]).values, np.outer([4, 6], RATES[:3]), 1e-6)
    assert compiled.count(TILES) == 2 and traced == first


def test_things_that_cannot_be_hashed_are_known_by_their_identity():
    class Scale:
        __hash__ = None

        def __init__(self, by):
            self.by = by

        def __call__(self, thing, x):
            return self.by * thing["by"] * x

    thing = {"by": 2}
    double = Scale(2)
    compiled.clear()
    for _ in range(2):
        result = sweep(double, {"thing": {"two": thing}, "x": jnp.arange(3)})
        np.testing.assert_array_equal(result.values, [[0, 4, 8]])
    assert compiled.count(TILES) == 1
    tripled = sweep(Scale(3), {"thing": {"two": thing}, "x": jnp.arange(3)})
    np.testing.assert_array_equal(tripled.values, [[0, 6, 12]])


def test_true_and_one_are_not_one_program():
    fn = lambda thing, x: x + (10 if thing is True else 0)
    result = sweep(fn, {"thing": {"int": 1, "bool": True}, "x": jnp.arange(2)})
    np.testing.assert_array_equal(result.values, [[0, 1], [10, 11]])


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_every_core_of_a_cpu_has_a_tile(cores, monkeypatch):
    monkeypatch.setattr(host, "cores", lambda: cores)
    devices = jax.devices()
    assert default_batch_size(devices[:1], 1000, 4, 4) == {1: 250, 2: 250, 8: 125}[cores]
    assert default_batch_size(devices, 1000, 4, 4) == {1: 250, 2: 250, 8: 125}[cores]
    assert default_batch_size(devices[:1], 3, 4, 4) == {1: 3, 2: 2, 8: 1}[cores]


@pytest.mark.parametrize(
    ("platform", "limit", "devices", "number", "size", "carried", "expected"),
    [
        ("cpu", 2**33, 1, 10**5, 4, 8, 256),
        ("cpu", 2**33, 2, 100, 4, 8, 50),
        ("cpu", 2**33, 1, 300, 4, 8, 150),  # two tiles, evened out
        ("cpu", 2**33, 8, 3, 4, 8, 1),
        ("cpu", 2**33, 1, 10**5, 4, 2**16, 64),  # 4 MB of state
        ("cpu", 2**33, 1, 10**5, 4, 2**24, 1),
        ("gpu", 2**33, 1, 10**5, 4, 2**24, 14286),
        ("gpu", 2**33, 1, 10**5, 2**24, 8, 64),  # an eighth of the memory
        ("gpu", 2**33, 1, 10**5, 2**40, 8, 1),
    ],
)
def test_a_tile_fits_into_a_device(
    platform, limit, devices, number, size, carried, expected, monkeypatch
):
    monkeypatch.setattr(host, "cores", lambda: 1)
    device = types.SimpleNamespace(
        process_index=0, platform=platform, memory_stats=lambda: {"bytes_limit": limit}
    )
    assert default_batch_size([device] * devices, number, size, carried) == expected


def test_what_a_run_carries_is_its_state(line):
    def fn(optimizer, lr):
        return jaxfit.train(loss, guess, optimizer(lr), 5, data=line).trajectory["loss"]

    def carried(**optimizers):
        axes = parse({"optimizer": optimizers, "lr": RATES})
        return carried_by(variants_of(fn, axes), axes[1:])

    # Adam has two averages of two parameters, and a counter.
    assert carried(adam=optax.adam) == carried(sgd=optax.sgd) + 4 * (2 * 2 + 1) < 200
    assert carried(sgd=optax.sgd, adam=optax.adam) == carried(adam=optax.adam)


INTERRUPTED = """
import os
import signal
import jax
import optax
from jax.experimental import io_callback
from jaxfit import sweep, train
from tests.common import loss

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background process ignores

def begin(lr):
    os.write(1, b"begun ")  # at once, also by two threads
    return lr

def fn(lr):  # minutes of work
    lr = io_callback(begin, lr, lr)
    data = jax.numpy.ones((100, 2)), jax.numpy.ones(100)
    return train(loss, jax.numpy.zeros(2), optax.sgd(lr), 2**30, data=data, record_every=2**30)

try:
    sweep(fn, {"lr": jax.numpy.arange(9.0)}, batch_size=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
finally:
    os._exit(0)  # without waiting for the run that XLA cannot stop
"""


@pytest.mark.slow
def test_an_interrupted_sweep_does_not_wait_for_its_tile():
    with process(INTERRUPTED) as running:
        try:
            assert running.stdout.read(6) == "begun "
            running.send_signal(signal.SIGINT)
            said, complaint = running.communicate(timeout=60)
        finally:
            running.kill()
    assert said.endswith("interrupted\n"), complaint


RAISED = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxfit import sweep

jax.config.update("jax_num_cpu_devices", 2)
kind, batch_size = sys.argv[1], int(sys.argv[2])

def refuse(x):
    if x == 5:
        raise ValueError("five is too many")
    return np.float32(x)

def fn(by, x):
    if kind == "debug":
        jax.debug.callback(refuse, by * x)
        return x
    return io_callback(refuse, jax.ShapeDtypeStruct((), jnp.float32), by * x)

axes = {"by": {"zero": 0.0, "one": 1.0}, "x": jnp.arange(12.0)}
try:
    sweep(fn, axes, batch_size=batch_size)
except jax.errors.JaxRuntimeError as error:
    (note,) = error.__notes__
    print("five is too many" in str(error), note)
print(sweep(fn, axes | {"x": jnp.arange(3.0)}, batch_size=batch_size).values.tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "batch_size", "runs"), [("debug", 1, "4 to 5"), ("io", 3, "0 to 5")]
)
def test_an_error_in_a_callback_ends_a_sweep_and_says_where(kind, batch_size, runs):
    with process(RAISED, kind, batch_size) as running:
        try:
            said, complaint = running.communicate(timeout=60)
        finally:
            running.kill()
    note, after = said.splitlines() or [complaint]
    assert note == (
        f"True This ended jaxfit.sweep among runs {runs} of 12 with {{'by': 'one'}}, where a "
        f"callback in fn, or the device, raised it: call fn by itself to find the reason."
    )
    assert after == (
        "[[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]]" if kind == "io" else str([[0.0, 1.0, 2.0]] * 2)
    )


def test_progress_counts_runs_and_is_silent_by_default(capsys):
    axes = {"x": jnp.arange(5), "by": [2, 3]}
    sweep(lambda x, by: x * by, axes, batch_size=2)
    assert capsys.readouterr() == ("", "")
    sweep(lambda x, by: x * by, axes, batch_size=2, progress=True)
    assert re.search(r"100%.* 10/10 .*runs/s", capsys.readouterr().err)


# Refusals

good = lambda lr: lr
rates = jnp.ones(3)
REFUSED = {
    "no axes": (lambda: sweep(good, {}), "axes is {}, but must be a dict of one axis or more"),
    "axes not by name": (lambda: sweep(good, rates), "but must be a dict of one axis or more by"),
    "empty array": (lambda: sweep(good, {"lr": rates[:0]}), r"shape \(0,\).* one item or more"),
    "empty list": (lambda: sweep(good, {"lr": []}), "axis 'lr' is empty, but needs one item"),
    "empty dict": (lambda: sweep(good, {"lr": {}}), "axis 'lr' is empty, but needs one item"),
    "number": (lambda: sweep(good, {"lr": 0.1}), "axis 'lr' is 0.1, but must be an array of num"),
    "array of no axis": (
        lambda: sweep(good, {"lr": jnp.float32(1)}),
        r"arrays of shape \(\), but they must share one leading axis, of one item or more",
    ),
    "ragged": (
        lambda: sweep(good, {"lr": (jnp.ones(3), jnp.ones(4))}),
        r"arrays of shape \(3,\) and \(4,\), but they must share one leading axis",
    ),
    "ragged dict": (
        lambda: sweep(good, {"lr": {"a": jnp.ones(3), "b": jnp.ones(4)}}),
        r"give arrays \[items, …\], or a list to compile for each item on its own",
    ),
    "strings": (
        lambda: sweep(good, {"lr": np.array(["a", "b"])}),
        "axis 'lr' is array.*'a'.*but must be an array of numbers or PRNG keys.*in a dict",
    ),
    "objects": (lambda: sweep(good, {"lr": np.array([None])}), "must be an array of numbers or PR"),
    "tuple of names": (lambda: sweep(good, {"lr": ("a", "b")}), "put anything else in a dict"),
    "range": (
        lambda: sweep(good, {"lr": range(3)}),
        "is range.0, 3.*convert numbers with jnp.asar",
    ),
    "twice": (lambda: sweep(good, {"lr": ["a", "a"]}), "has the label 'a' more than once"),
    "unknown name": (
        lambda: sweep(good, {"lr": rates, "seed": rates}),
        r"fn takes \(lr\), but is called with one keyword for each axis, lr, seed",
    ),
    "missing name": (
        lambda: sweep(lambda lr, seed: lr, {"lr": rates}),
        "missing a required argument: 'seed'.: name the axes as its arguments",
    ),
    "no function": (lambda: sweep(0.1, {"lr": rates}), "fn is 0.1, but must be a function of lr"),
    "batch of none": (lambda: sweep(good, {"lr": rates}, batch_size=0), "batch_size is 0, but"),
    "half a batch": (lambda: sweep(good, {"lr": rates}, batch_size=0.5), "batch_size is 0.5, but"),
    "no device": (lambda: sweep(good, {"lr": rates}, devices=[]), r"devices is \[\], but must be"),
    "a name of devices": (
        lambda: sweep(good, {"lr": rates}, devices="cpu"),
        "devices is 'cpu', but must be one device or more in a list",
    ),
    "a device twice": (
        lambda: sweep(good, {"lr": rates}, devices=jax.devices()[:1] * 2),
        "devices has .*0.* more than once, but each device takes .*: give each once",
    ),
    "an axis that is no keyword": (
        lambda: sweep(good, {0: rates}),
        "axes has the name 0, but fn is called with one keyword .*: name axes with strings",
    ),
    "labels that are numbers": (
        lambda: sweep(good, {"lr": {1: "a", 2: "b"}}),
        "axis 'lr' has the label 1, but Python objects in a dict are labelled by strings: give",
    ),
    "labels that cannot be sorted": (
        lambda: sweep(good, {"lr": {"a": 1.0, optax.sgd: 2.0}}),
        "axis 'lr' has the label sgd, but Python objects in a dict are labelled by strings: give",
    ),
    "a zipped axis that cannot be sorted": (
        lambda: sweep(good, {"lr": {"a": rates, 2: rates}}),
        "axis 'lr' has the label 2, but Python objects in a dict are labelled by strings: give",
    ),
    "a string made afresh": (
        lambda: sweep(lambda lr: {"lr": lr, "name": f"{lr}"}, {"lr": rates}),
        r"fn returned '.*' at leaf .*'name'.*, but the leaves .* must be arrays, .*: leave it out",
    ),
    "a string for each": (
        lambda: sweep(lambda by, lr: {"lr": lr, "by": by}, {"by": ["a", "b"], "lr": rates}),
        r"fn returned 'b' at leaf .*'by'.*Python objects that are the same for all runs",
    ),
    "a string for one": (
        lambda: sweep(lambda by, lr: (lr, by), {"by": [1, "b"], "lr": rates}),
        r"fn returned 'b' at leaf '\[1\]', but the leaves of a result must be arrays, numbers, or",
    ),
    "a function made afresh": (
        lambda: sweep(lambda lr: (lr, lambda x: lr * x), {"lr": rates}, batch_size=1),
        r"fn returned <lambda> at leaf '\[1\]', but the leaves of a result must be arrays, numb",
    ),
    "a function alone": (
        lambda: sweep(lambda lr: lambda x: lr * x, {"lr": rates}),
        "fn returned <lambda>, but the leaves of a result must be .*: leave it out, or make it",
    ),
    "a function that is there": (
        lambda: sweep(lambda lr: good, {"lr": rates}),
        "fn returned <function .*, but a sweep needs at least one array: return what to keep",
    ),
    "closed over": (
        lambda: jax.grad(lambda a: sweep(lambda lr: lr * a, {"lr": rates}).values.sum())(2.0),
        "what fn closes over is traced, but sweep is driven from Python",
    ),
    "traced": (
        lambda: jax.jit(lambda lr: sweep(good, {"lr": lr}).values)(rates),
        "axis 'lr' is traced, but sweep is driven from Python",
    ),
    "ragged results": (
        lambda: sweep(
            lambda optimizer, lr: jaxfit.init(guess, optimizer(lr)),
            {"optimizer": {"sgd": optax.sgd, "adam": optax.adam}, "lr": rates},
        ),
        "fn returns one shape for {'optimizer': 'sgd'} and another for {'optimizer': 'adam'} .*"
        "return less, such as the losses alone",
    ),
    "nothing": (lambda: sweep(lambda lr: None, {"lr": rates}), "fn returned None, but a sweep nee"),
    "too much": (
        lambda: sweep(lambda lr: jnp.zeros((10**6, 10**6)) + lr, {"lr": rates}),
        r"would take 12,000.0 GB \(3 runs of 4,000,000,000,000 bytes\), but the host has .* return "
        "the losses alone",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_a_sentence_and_before_anything_is_compiled(call, sentence):
    compiled.clear()
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        call()
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
    assert TILES not in compiled
