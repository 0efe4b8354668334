"""A run on disk is the run, however often it was killed and whatever happened to its files."""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import enum
import hashlib
import json
import math
import pathlib
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import jaxfit
from jaxfit import plot
from jaxfit._disk import spec
from jaxfit._disk.manifest import FORMAT
from jaxfit._disk.rows import DiskRows
from jaxfit._drive.program import _steps
from jaxfit.fit import fit
from jaxfit.stop import Rule, loss_below, no_improvement
from tests.common import assert_same_bits, guess, loss, row, two_processes

STEPS = 40
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
OPTIONS = {"chunk_size": 10, "progress": False}


def read(run):
    """The rows of a run, all of them in memory."""
    return jax.tree.map(np.asarray, run.trajectory)


def assert_same_run(one, other):
    assert_same_bits(read(one), read(other))
    assert_same_bits((one.steps, one.state), (other.steps, other.state))
    assert one.stop_reason == other.stop_reason


@pytest.fixture(scope="module")
def data():
    return jaxfit.data.line(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(data):
    """Every row of the run, by train."""
    return jax.jit(lambda data: jaxfit.train(loss, guess, ADAM, STEPS, data=data))(data)


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory):
    """A directory with a finished run, not to be changed."""
    path = tmp_path_factory.mktemp("kept")
    fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=path, **OPTIONS)
    return path


@pytest.fixture
def copy(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "run")


# The same run


@pytest.mark.parametrize("every", [1, 7])
def test_a_run_in_pieces_is_the_run_of_train(every, data, trained, tmp_path):
    options = {"data": data, "record_every": every, "checkpoint_dir": tmp_path, **OPTIONS}
    for number in 5, 23, STEPS:  # ends amid a chunk, amid the steps of a row
        run = fit(loss, guess, ADAM, number, **options)
        assert run.state.step == number and len(run.steps) == -(-number // every)
    for found in run, jaxfit.load(tmp_path):
        assert_same_bits(read(found), row(trained.trajectory, slice(None, None, every)))
        assert_same_bits(found.steps, jnp.arange(0, STEPS, every, dtype=np.int32))
        assert_same_bits(found.state, trained.state)
        assert isinstance(found.trajectory["loss"], DiskRows)
        assert isinstance(found.state.opt_state[1][0], optax.ScaleByAdamState)


def test_every_end_of_a_chunk_is_a_keyframe(kept, data, trained):
    run = jaxfit.load(kept)
    assert run.keyframes.step.tolist() == [0, 10, 20, 30, 40]
    for start, stop in (3, 17), (30, 40), (40, 40):
        part = jaxfit.replay(loss, run, ADAM, start, stop, data=data)
        assert_same_bits(part.trajectory, row(trained.trajectory, slice(start, stop)))
    assert plot.path(run, loss, data).lines
    within = jax.jit(lambda data: jaxfit.at(loss, run, ADAM, 25, data=data))(data)
    assert_same_bits(within.params, trained.trajectory["params"][25])
    with pytest.raises(
        TypeError, match="step is traced, but the keyframes are on the host or on disk: pass"
    ):
        jax.jit(lambda step: jaxfit.at(loss, run, ADAM, step, data=data))(25)
    in_memory = jax.tree.map(np.asarray, run)  # as it says
    step = jax.jit(lambda run, step: jaxfit.at(loss, run, ADAM, step, data=data))(in_memory, 25)
    assert_same_bits(step.params, trained.trajectory["params"][25])


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_replay_from_the_host_gives_the_loss_arrays_of_jax(on_disk, tmp_path):
    table = lambda table, codes: jnp.mean((table[codes] - 1.0) ** 2)  # NumPy's takes no traced ones
    codes = lambda step: (step + jnp.arange(3)) % 5
    options = {"data": codes, "record": jaxfit.record.state, **OPTIONS}
    options |= {"checkpoint_dir": tmp_path} if on_disk else {}
    run = fit(table, jnp.zeros(5), optax.sgd(0.1), 20, **options)
    part = jaxfit.replay(table, run, optax.sgd(0.1), 12, 15, data=codes)
    assert_same_bits(part.trajectory["params"], run.trajectory.params[12:15])


def test_a_finished_run_is_returned_without_compiling(kept, data, trained):
    compiled = _steps.cache_size()
    run = fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=kept, **OPTIONS)
    assert _steps.cache_size() == compiled
    assert_same_bits(read(run), jax.tree.map(np.asarray, trained.trajectory))
    with pytest.raises(ValueError, match=r"holds the steps up to 40 of this run, but .* end at 39"):
        fit(loss, guess, ADAM, 39, data=data, checkpoint_dir=kept, **OPTIONS)


def test_a_rule_goes_on_remembering(data, tmp_path):
    sixth = lambda: Rule(lambda: jnp.int32(0), lambda step, seen: (seen == 25, seen + 1))
    options = {"data": data, "checkpoint_dir": tmp_path, **OPTIONS}
    fit(loss, guess, ADAM, 17, stop=sixth(), **options)
    run = fit(loss, guess, ADAM, STEPS, stop=sixth(), **options)
    assert run.state.step == 25 and len(run.steps) == 25
    assert jaxfit.load(tmp_path).stop_reason == run.stop_reason == "stop was true at step 25"
    # It is still true there; another need not be, and a rule of another kind begins anew.
    assert fit(loss, guess, ADAM, STEPS, stop=sixth(), **options).state.step == 25
    assert fit(loss, guess, ADAM, 30, stop=loss_below(-1.0), **options).state.step == 30
    run = fit(loss, guess, ADAM, STEPS, stop=no_improvement(100), **options)
    assert run.state.step == STEPS and jaxfit.load(tmp_path).stop_reason is None


def test_rules_end_amid_the_steps_of_a_row(data, trained, tmp_path):
    options = {"data": data, "record_every": 4, "checkpoint_dir": tmp_path, **OPTIONS}
    after = lambda step: step.step >= 18
    for _ in range(2):
        run = fit(loss, guess, ADAM, STEPS, stop=after, **options)
        assert_same_bits(read(run), row(trained.trajectory, slice(0, 18, 4)))
        assert_same_bits(run.state.params, trained.trajectory["params"][18])
    assert_same_bits(fit(loss, guess, ADAM, STEPS, **options).state, trained.state)


def test_a_run_that_began_at_a_state(data, trained, tmp_path):
    start = jaxfit.train(loss, guess, ADAM, 5, data=data).state
    options = {"data": data, "checkpoint_dir": tmp_path, **OPTIONS}
    fit(loss, start, ADAM, 12, **options)
    run = fit(loss, start, ADAM, STEPS - 5, **options)
    assert_same_bits(run.steps, jnp.arange(5, STEPS))
    assert_same_bits(run.state, trained.state)
    assert_same_bits(jaxfit.load(tmp_path).steps, run.steps)


def test_types_come_back_as_far_as_nothing_is_executed(tmp_path):
    Pair = collections.namedtuple("Pair", "key half")
    params = {
        "model": eqx.nn.Linear(2, 1, key=jax.random.key(0)),
        "list": [jnp.ones(2, jnp.bfloat16), (1.0, None, jnp.complex64(1j))],
        "none": jnp.zeros((0, 3)),
        "pair": Pair(jax.random.key(7), np.float16(0.5)),
        "act": jnp.tanh,
        "power": 2,
        "zero": -0.0,
    }

    def loss(params):
        leaves = jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))
        return sum(jnp.sum(jnp.abs(leaf - 0.3) ** params["power"]).astype(float) for leaf in leaves)

    record = lambda step: (step.params, {"bits": step.loss > 1})
    options = {"record": record, **OPTIONS}
    expected = fit(loss, params, optax.sgd(0.1), 15, **options)
    run = fit(loss, params, optax.sgd(0.1), 15, checkpoint_dir=tmp_path, **options)
    made = run.trajectory[0]
    assert isinstance(made["model"], eqx.nn.Linear) and made["act"] is jnp.tanh
    assert made["pair"].key.dtype == params["pair"].key.dtype and made["pair"].key.shape == (15,)
    assert_same_bits(made["pair"].key[3:5], expected.trajectory[0]["pair"].key[3:5])
    whole = jax.tree.map(
        lambda leaf: leaf[:] if isinstance(leaf, DiskRows) else leaf, run.trajectory
    )
    assert_same_bits(*(eqx.filter(tree, eqx.is_array) for tree in (whole, expected.trajectory)))
    assert_same_bits(*(eqx.filter(one.state, eqx.is_array) for one in (run, expected)))

    loaded = jaxfit.load(tmp_path).state.params
    assert loaded["act"] == "tanh" and loaded["power"] == 2
    assert set(loaded["model"]) >= {"weight", "bias"}
    assert type(loaded["pair"]).__name__ == "Pair" and loaded["none"].shape == (0, 3)
    kept = {name: expected.state.params[name] for name in ("list", "pair", "zero")}
    leaves = zip(
        jax.tree.leaves({name: loaded[name] for name in kept}), jax.tree.leaves(kept), strict=True
    )
    for one, other in leaves:
        assert_same_bits(one, other)
    run = fit(loss, params, optax.sgd(0.1), 20, checkpoint_dir=tmp_path, **options)
    assert_same_bits(
        run.state.params["list"], fit(loss, params, optax.sgd(0.1), 20).state.params["list"]
    )


class Color(enum.Enum):
    RED, BLUE = 1, 2


@pytest.mark.parametrize(
    "names",
    [
        [("b", 1, None), ("a", (2.5, b"x")), ()],
        [2.0, 10.0, -0.5, math.inf],  # in another order than as texts
        [b"\xff\x00", b"a"],
        [7, 10, -1],
        [True, False],
        [None],
        ["None", "1", "\ud800", "ü"],
    ],
    ids=repr,
)
def test_the_keys_of_dicts_come_back_as_they_were(names, tmp_path):
    params = {name: jnp.full(2, number + 1.0) for number, name in enumerate(names)}
    bowl = lambda params: sum(jnp.sum(leaf**2) for leaf in params.values())
    run = fit(bowl, params, optax.sgd(0.1), 5, checkpoint_dir=tmp_path, **OPTIONS)
    loaded = jaxfit.load(tmp_path)
    for one, other in (loaded.state.params, params), (loaded.trajectory["params"], params):
        assert set(one) == set(other)
        assert {*map(type, one)} == {*map(type, other)}
    assert_same_bits(loaded.state, run.state)
    assert_same_bits(read(loaded), read(run))


def test_the_keys_of_other_types_come_back_as_texts_and_in_their_order():
    array = lambda n: jax.ShapeDtypeStruct((n,), np.float32)
    back = lambda tree: spec.decode(json.loads(json.dumps(spec.encode(tree))))
    assert back({np.int32(3): array(3)}) == {3: array(3)}
    assert back({Color.RED: array(1)}) == {"Color.RED": array(1)}
    # Of a class whose order is not that of its texts, and whose texts are the same.
    Key = dataclasses.make_dataclass("Key", ["at"], order=True, frozen=True)
    tree = {Key(10): array(10), Key(9): array(9)}
    assert dict(back(tree)) == {str(Key(10)): array(10), str(Key(9)): array(9)}
    assert jax.tree.leaves(back(tree)) == jax.tree.leaves(tree) == [array(9), array(10)]
    Key.__str__ = lambda self: "key"
    assert jax.tree.leaves(back(tree)) == [array(9), array(10)]


def test_nothing_is_unpickled_and_no_class_is_called(kept, monkeypatch):
    for name in "load", "loads", "Unpickler":
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    assert jaxfit.load(kept).state.step == STEPS
    system = {"namedtuple": "os:system", "fields": ["echo", "class"], "of": [None, {"value": 1}]}
    made = spec.decode(system)
    assert type(made).__name__ == "system" and made == (None, 1) and made.echo is None


def test_numbers_that_are_no_arrays_are_the_same_at_every_step(tmp_path):
    params = {"a": jnp.ones(2), "power": 2, "half": np.float32(0.5), "zero": np.zeros((), int)}
    bowl = lambda p: jnp.sum(p["a"] ** p["power"]) + p["half"] ** 2
    fit(bowl, params, ADAM, 20, checkpoint_dir=tmp_path, **OPTIONS)
    run, expected = jaxfit.load(tmp_path), jaxfit.train(bowl, params, ADAM, 20)
    part = jaxfit.replay(bowl, run, ADAM, 12, 15)
    assert_same_bits(part.trajectory["loss"], expected.trajectory["loss"][12:15])
    step = jaxfit.at(bowl, run, ADAM, 17)
    assert step.params["power"] == 2
    assert jaxfit.at(bowl, jax.tree.map(np.asarray, run), ADAM, 17).params["power"] == 2
    assert_same_bits(step.params["a"], expected.trajectory["params"]["a"][17])


def test_what_is_closed_over_may_be_a_key(tmp_path):
    def closing(seed):
        key = jax.random.key(seed)
        noisy = lambda a, batch: jnp.sum((a - jax.random.normal(key, (2,)) - batch) ** 2)
        return noisy, lambda step: jax.random.normal(jax.random.fold_in(key, step), (2,))

    noisy, data = closing(0)
    options = {"checkpoint_dir": tmp_path, **OPTIONS}
    fit(noisy, guess, ADAM, 10, data=data, **options)
    run = fit(noisy, guess, ADAM, 20, data=data, **options)
    assert_same_bits(run.state, jaxfit.train(noisy, guess, ADAM, 20, data=data).state)
    with pytest.raises(ValueError, match="the same shapes, but the loss"):
        fit(closing(1)[0], guess, ADAM, 20, data=data, **options)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, x, y: jnp.sum((a - x) ** 2 - a * y),
        lambda a, x, y: jax.lax.cond(a[0] > 9, jnp.sum, lambda a: jnp.sum(a * x) - a @ y, a),
        lambda a, x, y: jax.jit(jax.checkpoint(lambda a: jnp.sum((jnp.sin(a) - x) ** 2) - a @ y))(
            a
        ),
    ],
)
def test_what_is_closed_over_is_compared(loss, tmp_path):
    x, y = np.arange(2000, dtype=np.float32), jnp.ones(2000)
    options = {"record": lambda step: step.loss, "checkpoint_dir": tmp_path, **OPTIONS}
    run = lambda steps, x, y: fit(lambda a: loss(a, x, y), jnp.zeros(2000), ADAM, steps, **options)
    run(10, x, y)
    jax.clear_caches()
    assert run(20, x, y).state.step == 20
    for other in (x + 1, y), (x, y.at[1999].set(2)), (np.asarray(y), jnp.asarray(x)):
        with pytest.raises(ValueError, match="the same shapes, but the loss"):
            run(30, *other)


# Another run, and other faults

OTHERS = {
    "start": ({"params": jnp.zeros(2)}, "params has other values"),
    "shape": (
        {"params": jnp.zeros((2, 1)), "loss": lambda a, b: loss(a[:, 0], b)},
        r"params is float32\[2\] there and float32\[2, 1\] here",
    ),
    "dtype": ({"params": guess.astype(jnp.bfloat16)}, r"float32\[2\] there and bfloat16\[2\] here"),
    "leaf": (
        {"params": {"a": guess}, "loss": lambda p, b: loss(p["a"], b)},
        r"params has the leaf itself there, and not here",
    ),
    "state": (
        {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9))},
        r"the optimizer's state has the leaf \[1\]\[0\].count there, and not here",
    ),
    "rate": (
        {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.2))},
        "the same shapes, but the loss, optimizer, data or record computes differently",
    ),
    "loss": ({"loss": lambda a, b: 2 * loss(a, b)}, "the same shapes, but the loss, opt"),
    "record": ({"record": lambda s: {"loss": s.loss}}, r"a row has the leaf \['params'\] there"),
    "every": ({"record_every": 2}, "record_every is 1 there and 2 here"),
}


@pytest.mark.parametrize(("given", "difference"), OTHERS.values(), ids=OTHERS)
def test_the_directory_of_another_run_is_refused(given, difference, kept, data):
    arguments = {"loss": loss, "params": guess, "optimizer": ADAM, "num_steps": 50, "data": data}
    before = sorted(path.name for path in kept.iterdir())
    with pytest.raises(ValueError, match=rf"holds another run \(.*({difference})") as refused:
        fit(**(arguments | given), checkpoint_dir=kept, **OPTIONS)
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
    assert sorted(path.name for path in kept.iterdir()) == before


@pytest.mark.parametrize("other", ["key", "values"])
def test_another_order_or_another_dataset_is_refused(other, data, tmp_path):
    batches = lambda scale, key: jaxfit.minibatches(
        jax.tree.map(lambda leaf: scale * leaf, data), 10, jax.random.key(key)
    )
    options = {"checkpoint_dir": tmp_path, **OPTIONS}
    fit(loss, guess, ADAM, 10, data=batches(1, 0), **options)
    different = batches(1, 1) if other == "key" else batches(2, 0)
    with pytest.raises(ValueError, match=r"the first batch\[0\] has other values: .* another seed"):
        fit(loss, guess, ADAM, 20, data=different, **options)
    assert fit(loss, guess, ADAM, 20, data=batches(1, 0), **options).state.step == 20


def test_damaged_files_are_told_and_cost_no_more_than_their_chunk(copy, kept, data):
    whole, rng = jaxfit.load(kept), random.Random(0)
    expected, frames = read(whole), jax.tree.map(np.asarray, whole.keyframes)
    told = []
    for path in [*sorted(copy.glob("00000000[13]0*/**/*")), copy / "run.json", copy / "end.json"]:
        if path.is_dir() or "ocdbt.process" in str(path) or path.name == "commit_success.txt":
            continue  # of which nothing is read, where arrays are small
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for damaged in bytes(flipped), content[: len(content) // 2]:
            path.write_bytes(damaged)
            try:
                run = jaxfit.load(copy)
                assert_same_bits((read(run), run.state), (expected, whole.state))
                assert_same_bits(jax.tree.map(np.asarray, run.keyframes), frames)
            except ValueError as error:
                told.append(str(error))
                assert " is damaged (" in told[-1] and told[-1].count("\n") == 0
        path.write_bytes(content)
    assert len(told) >= 15

    manifest = copy / "0000000010-0000000020" / "manifest.ocdbt"
    content = manifest.read_bytes()
    manifest.write_bytes(b"")
    losses = jaxfit.load(copy).trajectory["loss"]
    with pytest.raises(ValueError, match="0000000010-0000000020 is damaged"):
        losses[15]
    assert_same_bits((losses[:10], losses[20:]), (expected["loss"][:10], expected["loss"][20:]))
    manifest.write_bytes(content)

    last = copy / "0000000030-0000000040"
    data_files = sorted((last / "d").iterdir(), key=lambda path: path.stat().st_size)
    data_files[-1].write_bytes(b"")
    with pytest.raises(ValueError, match=f"{last.name} is damaged .* run ends at step 30.$"):
        jaxfit.load(copy)
    with pytest.raises(ValueError, match=f"{last.name} is damaged"):
        fit(loss, guess, ADAM, 50, data=data, checkpoint_dir=copy, **OPTIONS)
    shutil.rmtree(last)  # as it says
    run = jaxfit.load(copy)
    assert run.state.step == 30
    assert_same_bits(read(run), row(expected, slice(30)))
    fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=copy, **OPTIONS)
    assert_same_run(jaxfit.load(copy), whole)

    shutil.rmtree(copy / "0000000010-0000000020")
    with pytest.raises(
        ValueError, match="has the steps up to 10, and then 0000000020-0000000030: put"
    ):
        jaxfit.load(copy)


def test_a_bit_that_flips_amid_a_large_array_is_told(tmp_path):
    start = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    bowl = lambda a: jnp.sum(a**2)
    run = fit(bowl, start, optax.sgd(0.1), 2, record=lambda s: s.loss, checkpoint_dir=tmp_path)
    files = (tmp_path / "0000000001-0000000002").rglob("*")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    assert len(content) > 9000  # random numbers, which cannot be packed
    for place in range(1000, 9000, 500):
        flipped = bytearray(content)
        flipped[place] ^= 1
        largest.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
            jaxfit.load(tmp_path)
    largest.write_bytes(content)
    assert_same_bits(jaxfit.load(tmp_path).state, run.state)


def reseal(path, change):
    """Change what a file of ours says, as somebody can who knows how it is sealed."""
    value = json.loads(path.read_text())
    sealed = value["custom_metadata"] if path.name == "_CHECKPOINT_METADATA" else value
    changed = change(sealed["value"])
    text = json.dumps(sealed["value"] if changed is None else changed, sort_keys=True)
    text = text.replace('"DEEP"', '{"list": [' * 5000 + "null" + "]}" * 5000)
    text = f'{{"crc32": {zlib.crc32(text.encode())}, "value": {text}}}'
    path.write_text(text if sealed is value else f'{{"custom_metadata": {text}}}')


def entry(name, value):
    return lambda about: about.__setitem__(name, value)


def in_row(spec):
    return entry("row", {"dict": [["loss", {"array": "float32", "shape": []}], ["params", spec]]})


def array(shape, dtype="float32"):
    return in_row({"array": dtype, "shape": shape})


def named(fields, parts):
    return in_row({"namedtuple": "jaxfit.fit:_Chunk", "fields": fields, "of": parts})


DAMAGES = {
    "run.json": [
        *(lambda about, name=name: about.pop(name) and None for name in ("first", "record_every")),
        *(lambda about, name=name: about.pop(name) and None for name in ("state", "row", "format")),
        *(entry("first", first) for first in (-1, "0", True, None, 2**31, 10**400)),
        *(entry("record_every", every) for every in (0, -1, 1.5, "1", None, [1])),
        *(entry("format", form) for form in (1.0, True, None, "1")),
        *(lambda _, value=value: value for value in ([], [[]], "run", 7, {})),
        *(entry("state", spec) for spec in (None, {}, {"state": []}, {"tuple": [None] * 3})),
        entry("state", {"state": [{"array": "float32", "shape": []}, None, None]}),
        entry("state", {"state": [{"array": "int32", "shape": [1]}, None, None]}),
        entry("state", {"state": [{"value": 40}, None, None]}),
        *(array(shape) for shape in ([-1], [1.5], ["2"], [[2]], [None], "2", 2, None, [2] * 99)),
        *(array(shape) for shape in ([12 * 10**12], [2**31, 2**31], [2**62, 4], [2**64], [10**30])),
        *(array(shape) for shape in ([0, 2**62, 2**62], [3], [])),
        *(array([0], dtype) for dtype in ("O", "U9", "V8")),
        *(array([], dtype) for dtype in ("O", "V8", "U9", "i4,f4", "(2,2)f4", "none", "", 3, None)),
        *(in_row(spec) for spec in ([], [1], "loss", 7, True, {}, {"value": [1]}, {"name": 3})),
        *(
            in_row({kind: parts})
            for kind in ("list", "tuple", "dict", "node")
            for parts in (1, "a")
        ),
        *(in_row({"dict": pairs}) for pairs in ([1], [[1]], ["ab"], [[1, None, 2]], [[{}, None]])),
        in_row({"dict": [["a", None], ["a", None]]}),
        in_row({"dict": [["a", None], [1, None]]}),
        in_row({"dict": [[{"bytes": "x"}, None]]}),
        in_row({"dict": [[{"tuple": "DEEP"}, None]]}),
        in_row({"dict": [[{"tuple": ["a", ["b"]]}, None]]}),
        in_row({"keys": "no such", "of": {"array": "float32", "shape": [2]}}),
        in_row({"keys": "threefry2x32", "of": {"array": "float32", "shape": [2]}}),
        in_row({"keys": "no such", "of": {"array": "uint32", "shape": [2]}}),
        in_row({"keys": "threefry2x32", "of": {"array": "uint32", "shape": [3]}}),
        in_row({"keys": ["threefry2x32"], "of": {"array": "uint32", "shape": [2]}}),
        named(["a", "b"], [None]),
        named([], [None]),
        named("ab", [None, None]),
        named(None, []),
        entry("row", "DEEP"),
        entry("state", {"state": [{"array": "int32", "shape": []}, "DEEP", None]}),
    ],
    "end.json": [
        *(lambda end, name=name: end.pop(name, 0) and None for name in ("step", "stop_reason")),
        *(entry("stop_reason", why) for why in (3, [], {}, True, ["data ended"], "DEEP")),
        *(lambda _, value=value: value for value in ([], "end", 7)),
    ],
    "0000000030-0000000040/_CHECKPOINT_METADATA": [
        *(lambda _, value=value: value for value in ([], "sums", 7)),
        entry("state/1", -1),
        entry("state/1", "12"),
        entry("state/1", [1]),
        entry("rows/0", 2**70),
        entry("rows/0", "DEEP"),
    ],
}


def look(folder):
    """Read all that there is of a run."""
    run = jaxfit.load(folder)
    return read(run), jax.tree.map(np.asarray, run.keyframes)


@pytest.mark.parametrize("name", DAMAGES)
def test_files_that_say_what_cannot_be_are_told(name, copy, data):
    sound = (copy / name).read_bytes()
    for change in DAMAGES[name]:
        reseal(copy / name, change)
        with pytest.raises(ValueError, match=r" is damaged \(.*\): put back a copy.*\.$") as told:
            look(copy)
        assert str(told.value).count("\n") == 0 and len(str(told.value)) < 600
        with contextlib.suppress(ValueError):  # which does not read as much
            fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=copy, **OPTIONS)
        (copy / name).write_bytes(sound)
    assert len(DAMAGES[name]) >= 8
    look(copy)


OTHER_VERSIONS = {
    "jax": entry("jax", "0.0.1"),
    "jaxfit": entry("jaxfit", "0.0.1"),
    "unknown": lambda about: about.pop("jaxfit") and None,
}


@pytest.mark.parametrize("change", OTHER_VERSIONS.values(), ids=OTHER_VERSIONS)
def test_programs_of_other_versions_are_not_compared(change, copy, data):
    options = {"data": data, "checkpoint_dir": copy, **OPTIONS}
    reseal(copy / "run.json", entry("program", [0]))
    with pytest.raises(ValueError, match="the same shapes, but the loss, optimizer, data or rec"):
        fit(loss, guess, ADAM, 50, **options)
    reseal(copy / "run.json", change)
    with pytest.raises(ValueError, match="record_every is 1 there and 2 here"):
        fit(loss, guess, ADAM, 50, record_every=2, **options)
    assert fit(loss, guess, ADAM, 50, **options).state.step == 50


@pytest.mark.parametrize(
    ("manifest", "use"),
    [
        ({"format": 9, "jaxfit": "9.1.2"}, "jaxfit 9.1.2, which wrote it"),
        ({"format": 0}, "the jaxfit that wrote it"),
    ],
)
def test_a_directory_of_another_format_is_refused(manifest, use, copy, data):
    reseal(copy / "run.json", lambda _: manifest)
    before = sorted(path.name for path in copy.iterdir())
    said = (
        f"{copy} holds a run in format {manifest['format']}, but jaxfit {jaxfit.__version__} reads "
        f"format {FORMAT}: use {use}, or give another directory."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        jaxfit.load(copy)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        fit(loss, guess, ADAM, 50, data=data, checkpoint_dir=copy, **OPTIONS)
    assert sorted(path.name for path in copy.iterdir()) == before


@pytest.mark.parametrize("value", [None, {}, [], {"params": 1}, {"params": {"": 3}}, "DEEP"])
def test_fit_tells_of_leaves_that_cannot_be(value, copy, data):
    reseal(copy / "run.json", entry("leaves", value))
    with pytest.raises(ValueError, match=r"run.json is damaged \(.*\): put back a copy\.$"):
        fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=copy, **OPTIONS)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 10**5, '{"custom_metadata": 3}'])
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "_METADATA"])
def test_metadata_that_are_none_are_told(name, text, copy, data):
    (copy / "0000000030-0000000040" / name).write_text(text)
    with pytest.raises(ValueError, match="0000000030-0000000040 is damaged"):
        jaxfit.load(copy)
    with pytest.raises(ValueError, match="0000000030-0000000040 is damaged"):
        fit(loss, guess, ADAM, 50, data=data, checkpoint_dir=copy, **OPTIONS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0000000030-0000000050", r"is damaged \(it has the state after step 40\)"),
        ("0000000030-9999999999", r"is damaged \(it has the state after step 40\)"),
        ("0000000020-0000000040", "has the steps up to 30, and then 0000000020-0000000040: put"),
        ("0000000030-0000000010", "has the steps up to 30, and then 0000000030-0000000010: put"),
    ],
)
def test_folders_of_other_names_are_told(name, said, copy, data):
    (copy / "0000000030-0000000040").rename(copy / name)
    with pytest.raises(ValueError, match=said):
        jaxfit.load(copy)
    if "9999999999" not in name:  # which goes on no more
        with pytest.raises(ValueError, match=said):
            fit(loss, guess, ADAM, 10**9, data=data, checkpoint_dir=copy, **OPTIONS)


FAULTS = {
    "in_the_first_chunk": (9, "^$", 0),
    "in_a_commit": (9, "^$", range(72, 97, 24)),
    "before_it_is_renamed": (9, "^$", 48),
    "without_room": (
        0,
        "^OSError: the chunk .*72 could not be written .*File too large.* before 48",
        48,
    ),
    "read_only": (0, "^PermissionError: .* cannot be written .Permission denied.: give", 48),
}


def run_faults(folder, *names):
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", str(folder), *names]
    root = pathlib.Path(__file__).parent.parent
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.slow
def test_a_run_that_was_killed_or_could_not_write_goes_on_to_the_same_end():
    with tempfile.TemporaryDirectory() as folder:  # unlike tmp_path, one that others may read
        pathlib.Path(folder).chmod(0o755)
        ends = run_faults(folder, *FAULTS)
    for (name, signal, said), (_, _, after) in zip(ends[::2], ends[1::2], strict=True):
        expected, sentence, steps = FAULTS[name]
        assert signal == expected, name
        assert re.search(sentence, said), said
        possible = steps if isinstance(steps, range) else [steps]
        assert after in [f"the same from {step}" for step in possible], after


@pytest.mark.slow
def test_a_run_killed_at_thirty_random_moments_goes_on_to_the_same_end(tmp_path):
    *killed, after = run_faults(tmp_path, "random_moments")
    assert len(killed) == 30 and all(signal == 9 for _, signal, _ in killed)
    assert after[2].startswith("the same from ") and int(after[2].split()[-1]) > 100, after


def test_two_fits_do_not_write_to_one_directory(data, tmp_path):
    refused = []

    def batch(step):
        if step == 15:
            with pytest.raises(RuntimeError, match="is being written by another fit: wait") as said:
                fit(loss, guess, ADAM, 30, data=data, checkpoint_dir=tmp_path, **OPTIONS)
            refused.append(said)
        return jax.tree.map(lambda leaf: np.asarray(leaf[step : step + 5]), data)

    batches = jaxfit.host_batches(batch)
    fit(loss, guess, ADAM, 30, data=batches, checkpoint_dir=tmp_path, **OPTIONS)
    assert len(refused) == 1
    fit(loss, guess, ADAM, 30, data=batches, checkpoint_dir=tmp_path, **OPTIONS)


@pytest.mark.slow
def test_threads_write_runs_of_their_own(data, trained, tmp_path):
    def run(number):
        options = {"chunk_size": 2, "progress": False, "checkpoint_dir": tmp_path / str(number)}
        made = fit(loss, guess, ADAM, STEPS, data=data, **options)
        return made, jaxfit.load(tmp_path / str(number))

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for made, loaded in threads.map(run, range(4)):
            assert_same_bits(read(made), read(loaded))
            assert_same_bits((made.state, loaded.state), (trained.state, trained.state))


def test_fit_goes_on_in_a_loop_of_asyncio_and_in_its_threads(data, trained, tmp_path):
    def run(name):
        fit(loss, guess, ADAM, 15, data=data, checkpoint_dir=tmp_path / name, **OPTIONS)
        made = fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=tmp_path / name, **OPTIONS)
        assert_same_bits(read(made), read(jaxfit.load(tmp_path / name)))
        return made.state

    async def runs():
        first = run("within")
        beside = [asyncio.to_thread(run, name) for name in ("one", "two")]
        return [first, *await asyncio.gather(*beside)]

    for state in asyncio.run(runs()):
        assert_same_bits(state, trained.state)


def test_steps_that_int32_cannot_count_are_refused_before_anything_is_written(data, tmp_path):
    last = jaxfit.train(loss, guess, ADAM, 1, data=data).state
    last = dataclasses.replace(last, step=jnp.int32(2**31 - 6))
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=r"at step 2147483642 and num_steps is 6, but steps are"):
        fit(loss, last, ADAM, 6, data=data, checkpoint_dir=folder, **OPTIONS)
    assert not folder.exists()
    fit(loss, last, ADAM, 3, data=data, checkpoint_dir=folder, **OPTIONS)
    run = fit(loss, last, ADAM, 5, data=data, checkpoint_dir=folder, **OPTIONS)
    assert run.state.step == jaxfit.load(folder).state.step == 2**31 - 1
    assert jaxfit.load(folder).steps.tolist() == list(range(2**31 - 6, 2**31 - 1))


@pytest.mark.parametrize("then", ["a chunk", "an error", "the end"])
def test_one_place_says_what_is_committed_and_it_is_true(then, data, tmp_path, monkeypatch):
    lost = tmp_path / ("0000000020-0000000025" if then == "an error" else "0000000020-0000000030")
    wait = orbax.checkpoint.AsyncCheckpointer.wait_until_finished

    def fail(self):
        wait(self)
        if lost.exists():
            shutil.rmtree(lost)
            raise OSError("no room")

    def batch(step):
        if (step, then) == (25, "an error"):
            raise LookupError("no such batch")
        return jax.tree.map(lambda leaf: np.asarray(leaf[step : step + 5]), data)

    monkeypatch.setattr(orbax.checkpoint.AsyncCheckpointer, "wait_until_finished", fail)
    options = {"data": jaxfit.host_batches(batch), "checkpoint_dir": tmp_path, **OPTIONS}
    with pytest.raises((OSError, LookupError)) as raised:
        fit(loss, guess, ADAM, 30 if then == "the end" else STEPS, **options)
    said = f"the chunk {lost} could not be written (no room), and the steps before 20 are committed"
    notes = getattr(raised.value, "__notes__", [])
    if then == "an error":
        assert str(raised.value) == "no such batch" and len(notes) == 2
        assert notes[1].startswith(f"fit: {said}")
    else:
        assert str(raised.value).startswith(said) and not notes
    assert jaxfit.load(tmp_path).state.step == 20


def test_an_error_in_the_stream_or_the_recorder_is_theirs_and_what_was_made_is_kept(data, tmp_path):
    def batch(step):
        if step == 25:
            raise LookupError("no such batch")
        return jax.tree.map(lambda leaf: np.asarray(leaf[step : step + 5]), data)

    options = {"checkpoint_dir": tmp_path / "stream", "record_every": 4, **OPTIONS}
    with pytest.raises(LookupError, match="no such batch") as raised:
        fit(loss, guess, ADAM, STEPS, data=jaxfit.host_batches(batch), **options)
    assert raised.value.__notes__ == [
        "fit: raised by data, for step 25.",
        f"fit: the steps before step 25 are committed in {tmp_path / 'stream'}.",
    ]
    assert jaxfit.load(tmp_path / "stream").state.step == 25

    def record(step):
        def see(step):
            if step == 28:
                raise LookupError("cannot be recorded")
            return step

        return step.loss, jax.pure_callback(see, step.step, step.step)

    options["checkpoint_dir"] = tmp_path / "record"
    with pytest.raises(Exception, match="cannot be recorded") as raised:
        fit(loss, guess, ADAM, STEPS, data=data, record=record, **options)
    assert raised.value.__notes__ == [
        f"fit: the steps before step 24 are committed in {tmp_path / 'record'}."
    ]
    assert jaxfit.load(tmp_path / "record").state.step == 24


def test_what_others_have_in_the_directory_stays_there(data, trained, tmp_path):
    folders = ["2020-2021", "notes", "0000000000-00000000100", "a.orbax-checkpoint-tmp"]
    folders += ["0000000003.orbax-checkpoint-tmp", "²000000000-0000000010"]
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("theirs")
    (tmp_path / "lock").write_text("theirs")
    options = {"data": data, "checkpoint_dir": tmp_path, **OPTIONS}
    fit(loss, guess, ADAM, 25, **options)
    ours = [
        f"00000000{n}0-00000000{n + 1}0.orbax-checkpoint-tmp{end}"
        for n, end in ((3, ""), (4, "-1"))
    ]
    for name in ours:
        (tmp_path / name / "d").mkdir(parents=True)
    fit(loss, guess, ADAM, STEPS, **options)
    assert_same_bits(jaxfit.load(tmp_path).state, trained.state)
    assert not any((tmp_path / name).exists() for name in ours)
    assert all((tmp_path / name / "kept").read_text() == "theirs" for name in folders)
    assert (tmp_path / "lock").read_text() == "theirs"


@pytest.mark.parametrize("kept_of_it", ["end.json", "0*"])
def test_chunks_of_which_nothing_is_known_are_no_run(kept_of_it, copy, data):
    for path in copy.iterdir():
        if not path.match(kept_of_it):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copy / "lock").touch()
    before = sorted(path.name for path in copy.iterdir())
    with pytest.raises(ValueError, match=r"but no run\.json that says which run they are of: put"):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=copy)
    assert sorted(path.name for path in copy.iterdir()) == before


def test_what_is_no_directory_of_a_run_is_told(tmp_path, data, monkeypatch):
    with pytest.raises(FileNotFoundError, match="holds no run: give the checkpoint_dir of a fit"):
        jaxfit.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, which is a file: give a directory"):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=tmp_path / "file")
    with pytest.raises(TypeError, match="checkpoint_dir is 3, but must be the path of a directory"):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for call in jaxfit.load, lambda path: fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=path):
        with pytest.raises(ValueError, match='checkpoint_dir is "", but must be the path of a dir'):
            call("")
        with pytest.raises(ValueError, match="run', but there is no such home directory: give"):
            call("~no one/run")
    fit(loss, guess, ADAM, 9, data=data, checkpoint_dir="~/run", **OPTIONS)
    assert jaxfit.load("~/run").state.step == jaxfit.load(tmp_path / "home" / "run").state.step == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home"]
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "jaxfit-train\[checkpoint\]"'):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=tmp_path / "new")


# Several processes

TOGETHER = """
import hashlib, sys, jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import jax.numpy as jnp, numpy as np, optax, jaxfit
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(jax.devices(), "devices")
put = lambda array, spec: jax.make_array_from_callback(
    array.shape, NamedSharding(mesh, spec), lambda index: array[index])
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 4)).astype("f"), rng.normal(size=16).astype("f")
data = put(x, P("devices")), put(y, P("devices"))
params = {"w": put(np.zeros(4, "f"), P("devices")), "b": put(np.zeros((), "f"), P())}
loss = lambda p, batch: jnp.mean((batch[0] @ p["w"] + p["b"] - batch[1]) ** 2)
adam = optax.adam(0.1)

def fit(steps, folder=None, **options):
    return jaxfit.fit(loss, params, adam, steps, data=data, checkpoint_dir=folder, **options)

folder = sys.argv[1]
fit(12, folder, chunk_size=5)
run = fit(30, folder, chunk_size=5, progress="always")
assert not run.state.params["w"].is_fully_addressable
whole = fit(30, chunk_size=5)
for one in run, whole, jaxfit.load(folder):
    rows = jax.tree.map(np.asarray, one.trajectory)
    print(hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(rows))).hexdigest())
assert (run.state.params["w"] == whole.state.params["w"]).all()
options = {"chunk_size": 4, "record": lambda step: step.loss, "progress": False}
streamed = [
    jaxfit.fit(loss, params, adam, 9, data=data, **options).trajectory
    for data in (
        lambda step: (x + step.astype("f"), y),
        jaxfit.host_batches(lambda step: (x + np.float32(step), y)),
        ((x + np.float32(step), y) for step in range(9)),
    )
]
assert np.allclose(streamed[0], streamed[1]) and (streamed[1] == streamed[2]).all()
try:
    jaxfit.fit(loss, params, adam, 40, data=data, checkpoint_dir=folder, record_every=2)
except (ValueError, RuntimeError) as error:
    print(error)
print("loss", float(rows["loss"][-1]))
"""


@pytest.mark.slow
def test_two_processes_write_one_run(tmp_path):
    said = two_processes(TOGETHER, tmp_path)
    (first, shown), (second, hidden) = said
    hashes = re.findall("^[0-9a-f]{64}$", first + second, re.MULTILINE)
    assert len(hashes) == 6 and len(set(hashes)) == 1
    assert "record_every is 1 there and 2 here" in first
    assert "another process could not use checkpoint_dir" in second
    assert "30/30" in shown and "30/30" not in hidden
    loaded = jaxfit.load(tmp_path)  # by one process, what two wrote
    assert loaded.state.step == 30 and loaded.state.params["w"].shape == (4,)
    assert first.splitlines()[-1] == f"loss {float(loaded.trajectory['loss'][-1])}"
    text = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(loaded.trajectory))
    assert hashlib.sha256(text).hexdigest() == hashes[0]
