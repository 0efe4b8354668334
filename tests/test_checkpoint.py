"""A run on disk is the run, however often it was killed and whatever happened to its files."""

import collections
import hashlib
import json
import pathlib
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import _spec, plot
from jaxfit._rows import Rows
from jaxfit.fit import _chunk, fit
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
    assert one.ended == other.ended


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
        assert isinstance(found.trajectory["loss"], Rows)
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
    compiled = _chunk._cache_size()
    run = fit(loss, guess, ADAM, STEPS, data=data, checkpoint_dir=kept, **OPTIONS)
    assert _chunk._cache_size() == compiled
    assert_same_bits(read(run), jax.tree.map(np.asarray, trained.trajectory))
    with pytest.raises(ValueError, match=r"holds the steps up to 40 of this run, but .* end at 39"):
        fit(loss, guess, ADAM, 39, data=data, checkpoint_dir=kept, **OPTIONS)


def test_a_rule_goes_on_remembering(data, tmp_path):
    sixth = lambda: Rule(lambda: jnp.int32(0), lambda step, seen: (seen == 25, seen + 1))
    options = {"data": data, "checkpoint_dir": tmp_path, **OPTIONS}
    fit(loss, guess, ADAM, 17, stop=sixth(), **options)
    run = fit(loss, guess, ADAM, STEPS, stop=sixth(), **options)
    assert run.state.step == 25 and len(run.steps) == 25
    assert jaxfit.load(tmp_path).ended == run.ended == "<lambda> was true at step 25"
    # It is still true there; another need not be, and a rule of another kind begins anew.
    assert fit(loss, guess, ADAM, STEPS, stop=sixth(), **options).state.step == 25
    assert fit(loss, guess, ADAM, 30, stop=loss_below(-1.0), **options).state.step == 30
    run = fit(loss, guess, ADAM, STEPS, stop=no_improvement(100), **options)
    assert run.state.step == STEPS and jaxfit.load(tmp_path).ended is None


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
    whole = jax.tree.map(lambda leaf: leaf[:] if isinstance(leaf, Rows) else leaf, run.trajectory)
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


def test_nothing_is_unpickled_and_no_class_is_called(kept, monkeypatch):
    for name in "load", "loads", "Unpickler":
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    assert jaxfit.load(kept).state.step == STEPS
    spec = {"namedtuple": "os:system", "fields": ["echo", "class"], "of": [None, {"value": 1}]}
    made = _spec.decode(spec)
    assert type(made).__name__ == "system" and made == (None, 1) and made.echo is None


INDICES = st.one_of(
    st.integers(-30, 29),
    st.slices(30),
    st.lists(st.integers(-30, 29), max_size=5).map(lambda rows: np.array(rows, int)),
    st.tuples(st.slices(30), st.integers(0, 2)),
    st.tuples(st.integers(0, 29), st.slices(3)),
    st.tuples(st.just(Ellipsis), st.lists(st.integers(0, 2), max_size=3)),
    st.tuples(st.lists(st.integers(0, 29), min_size=2, max_size=2), st.just([0, 2])),
    st.just(None),
)


@settings(max_examples=100, deadline=None)
@given(INDICES)
def test_rows_are_indexed_as_numpy_does(index):
    whole = np.arange(90).reshape(30, 3)
    ends = [1, 10, 12, 30]
    parts = [lambda a=a, b=b: whole[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    rows = Rows(parts, ends, jax.ShapeDtypeStruct((3,), whole.dtype))
    np.testing.assert_array_equal(rows[index], whole[index])


def test_rows_are_arrays_to_numpy_and_read_no_more_than_is_asked_for():
    reads = []
    part = lambda n: lambda: reads.append(n) or np.full((10, 2), n)
    rows = Rows([part(0), part(1), part(2)], [10, 20, 30], jax.ShapeDtypeStruct((2,), np.int64))
    assert rows.shape == (30, 2) and rows.ndim == 2 and rows.size == 60 and len(rows) == 30
    assert str(rows) == "Rows of int64[30, 2]" and rows.dtype == np.int64
    assert (rows[12:14] == 1).all() and reads == [1]
    assert (rows[11], rows[19]) and reads == [1]
    assert rows[-1].tolist() == [2, 2] and reads == [1, 2]
    assert (rows + 1).sum() == np.sum(rows) + 60 and np.exp(rows).shape == (30, 2)
    assert jnp.asarray(rows).shape == (30, 2)
    for beyond in 30, -31:
        with pytest.raises(IndexError, match="out of bounds"):
            rows[beyond]


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
        "the same shapes, but the loss, the optimizer, the data or record computes otherwise",
    ),
    "loss": ({"loss": lambda a, b: 2 * loss(a, b)}, "the same shapes, but the loss, the opt"),
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
    with pytest.raises(ValueError, match="lacks the steps 10 to 20: put their folder back"):
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


def test_what_is_no_directory_of_a_run_is_told(tmp_path, data, monkeypatch):
    with pytest.raises(FileNotFoundError, match="holds no run: give the checkpoint_dir of a fit"):
        jaxfit.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, which is a file: give a directory"):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=tmp_path / "file")
    with pytest.raises(TypeError, match="checkpoint_dir is 3, but must be the path of a directory"):
        fit(loss, guess, ADAM, 9, data=data, checkpoint_dir=3)
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
try:
    jaxfit.fit(loss, params, adam, 40, data=data, checkpoint_dir=folder, record_every=2)
except (ValueError, RuntimeError) as error:
    print(error)
print("loss", float(rows["loss"][-1]))
"""


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
