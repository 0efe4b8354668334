"""A sweep on disk is the sweep, however often it was killed and whatever happened to its files."""

import hashlib
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import sweep
from jaxfit._disk.blocks import Blocks
from jaxfit._disk.rows import DiskValues
from jaxfit._disk.sweeps import SweepDirectory
from tests.common import TILES, assert_same_bits, compiled, process, two_processes

KEYS = jax.random.split(jax.random.key(5), 5)
RATES = np.geomspace(1e-3, 1, 7).astype(np.float32)
AXES = {"lr": RATES, "optimizer": {"sgd": optax.sgd, "adam": optax.adam}, "key": KEYS}


def fn(optimizer, lr, key):
    start = jax.random.normal(key, (2,))
    run = jaxfit.train(lambda a: jnp.sum((a - 1.0) ** 2), start, optimizer(lr), 6)
    return {
        "loss": run.trajectory["loss"],
        "key": key,
        "half": run.state.params.astype(jnp.bfloat16),
        "step": run.state.step,
        "nothing": jnp.zeros((3, 0)),
        "act": jax.nn.relu,
    }


def read(result):
    on_disk = lambda leaf: leaf[...] if isinstance(leaf, DiskValues) else leaf
    return {name: on_disk(leaf) for name, leaf in result.values.items() if name != "act"}


@pytest.fixture(scope="module")
def whole():
    """The sweep in memory."""
    return read(sweep(fn, AXES, batch_size=4))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A directory with the finished sweep, not to be changed."""
    path = tmp_path_factory.mktemp("kept")
    sweep(fn, AXES, batch_size=4, checkpoint_dir=path)
    return path


@pytest.fixture
def copy(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "sweep")


class Counted:
    """Count the runs that are computed."""

    def __init__(self, monkeypatch, last=math.inf):
        self.runs, add = 0, SweepDirectory.add

        def counted(directory, variant, runs, arrays):
            self.runs += len(runs)
            add(directory, variant, runs, arrays)
            if self.runs >= last:
                directory.finish()
                raise KeyboardInterrupt

        monkeypatch.setattr(SweepDirectory, "add", counted)


# The same sweep


def test_a_sweep_on_disk_is_the_sweep_in_memory(kept, whole):
    again = sweep(fn, AXES, checkpoint_dir=kept)  # with the batch size that is there
    assert_same_bits(read(again), whole)
    assert isinstance(again.values["loss"], DiskValues) and again.values["act"] is jax.nn.relu
    assert str(again.values["loss"]) == "Values of float32[7, 2, 5, 6] on disk (read by np.asarray)"
    some = again.sel(optimizer="adam", key=3)
    np.testing.assert_array_equal(some.values["loss"], whole["loss"][:, 1, 3])
    assert again.best(lambda values: values["loss"][..., -1])["optimizer"] == "sgd"
    assert_same_bits(again.values["key"][2, 0], whole["key"][2, 0])
    data = again.to_xarray()
    np.testing.assert_array_equal(data.loss, whole["loss"])


def test_a_finished_sweep_is_returned_without_computing(kept, whole, monkeypatch):
    counted = Counted(monkeypatch)
    compiled.clear()
    assert_same_bits(read(sweep(fn, AXES, checkpoint_dir=kept, batch_size=4)), whole)
    assert counted.runs == 0 and TILES not in compiled


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_it_goes_on_with_another_number_of_devices(first, then, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Counted(patch, 30)
        with pytest.raises(KeyboardInterrupt):
            sweep(fn, AXES, batch_size=4, devices=jax.devices()[:first], checkpoint_dir=tmp_path)
    counted = Counted(monkeypatch)
    result = sweep(fn, AXES, devices=jax.devices()[:then], checkpoint_dir=tmp_path)
    assert_same_bits(read(result), whole)
    assert 70 - 30 <= counted.runs < 70


def test_axes_of_python_objects_alone_are_written_too(tmp_path):
    axes = {"a": [2, 3], "b": {"five": 5.0, "six": 6.0}}
    for _ in range(2):
        result = sweep(lambda a, b: jnp.float32(a * b), axes, checkpoint_dir=tmp_path)
        np.testing.assert_array_equal(result.values, [[10, 12], [15, 18]])


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["loss", "done", "step"])
def test_what_is_damaged_is_made_again(damage, name, copy, whole, monkeypatch):
    files = sorted(
        path for path in (copy / "values.zarr" / name / "c").rglob("*") if path.is_file()
    )
    assert len(files) == 28
    for path in files[3], files[20]:
        damage(path)
    counted = Counted(monkeypatch)
    assert_same_bits(read(sweep(fn, AXES, checkpoint_dir=copy)), whole)
    assert 2 <= counted.runs <= 16


def test_a_description_that_is_lost_is_written_again(copy, whole):
    (copy / "values.zarr" / "zarr.json").unlink()
    (copy / "values.zarr" / "loss" / "zarr.json").write_text("{")
    shutil.rmtree(copy / "values.zarr" / "optimizer")
    assert_same_bits(read(sweep(fn, AXES, checkpoint_dir=copy)), whole)
    assert xarray.open_zarr(copy / "values.zarr").optimizer.values.tolist() == ["sgd", "adam"]


def test_damage_after_the_sweep_is_found_when_it_is_read(copy):
    result = sweep(fn, AXES, checkpoint_dir=copy)
    flip(copy / "values.zarr" / "loss" / "c" / "0" / "0" / "0" / "0")
    with pytest.raises(
        ValueError, match=r"loss is damaged .*: call sweep again, which makes again"
    ):
        np.asarray(result.values["loss"])


# Another sweep

OTHERS = {
    "rates": (
        {"axes": {**AXES, "lr": 2 * RATES}},
        r"holds another sweep \(axis 'lr' has other values\): give another directory",
    ),
    "fewer": (
        {"axes": {**AXES, "lr": RATES[:3]}},
        r"axis 'lr' is float32\[7\] there and float32\[3\] here",
    ),
    "names": (
        {"axes": {**AXES, "optimizer": {"sgd": optax.sgd, "lion": optax.adam}}},
        r"axis 'optimizer' is \(sgd, adam\) there and \(sgd, lion\) here",
    ),
    "objects": (
        {"axes": {**AXES, "optimizer": {"sgd": optax.sgd, "adam": optax.adamw}}},
        "the same axes and shapes, but fn computes differently",
    ),
    "order": (
        {"axes": dict(reversed(AXES.items()))},
        "its axes are lr, optimizer, key there and key, optimizer, lr here",
    ),
    "batches": ({"batch_size": 8}, "batch_size is 4 there and 8 here"),
    "less": (
        {"fn": lambda optimizer, lr, key: fn(optimizer, lr, key)["loss"]},
        r"the result of a run has the leaf .* there, and not here",
    ),
    "data": (
        {"fn": lambda optimizer, lr, key: fn(optimizer, lr, key) | {"half": lr * jnp.ones(2)}},
        r"the result of a run\['half'\] is bfloat16\[2\] there and float32\[2\] here",
    ),
}


@pytest.mark.parametrize(("given", "sentence"), OTHERS.values(), ids=OTHERS)
def test_the_directory_of_another_sweep_is_refused_with_the_difference(given, sentence, kept):
    options = {"fn": fn, "axes": AXES, "checkpoint_dir": kept} | given
    with pytest.raises(ValueError, match=sentence) as refused:
        sweep(**options)
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")


def test_data_that_fn_closes_over_are_part_of_the_sweep(tmp_path):
    over = lambda data: lambda lr: jnp.sum(data * lr)
    sweep(over(jnp.arange(3.0)), {"lr": RATES}, checkpoint_dir=tmp_path)
    sweep(over(jnp.arange(3.0)), {"lr": RATES}, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="fn computes differently"):
        sweep(over(jnp.arange(3.0) + 1), {"lr": RATES}, checkpoint_dir=tmp_path)


def test_runs_and_sweeps_do_not_mix(copy, tmp_path):
    fit = lambda path: jaxfit.fit(
        lambda a: a**2, 1.0, optax.sgd(0.1), 3, checkpoint_dir=path, progress=False
    )
    with pytest.raises(ValueError, match="holds a sweep, and not a run: give another directory"):
        fit(copy)
    fit(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run, and not a sweep: give another directory"):
        sweep(fn, AXES, checkpoint_dir=tmp_path / "run")
    (copy / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"holds a values.zarr, but no sweep.json that says which"):
        sweep(fn, AXES, checkpoint_dir=copy)


def test_bad_names_and_damaged_manifests_are_refused(copy, tmp_path):
    with pytest.raises(
        ValueError, match="'a/b' names an array, and with checkpoint_dir its folder"
    ):
        sweep(lambda x: {"a/b": x}, {"x": RATES}, checkpoint_dir=tmp_path / "new")
    (copy / "sweep.json").write_text((copy / "sweep.json").read_text().replace('"lr"', '"lR"'))
    with pytest.raises(ValueError, match=r"sweep.json is damaged .*: put back a copy"):
        sweep(fn, AXES, checkpoint_dir=copy)


# Zarr


def test_other_programs_read_it_while_it_runs(tmp_path, whole, monkeypatch):
    Counted(monkeypatch, 30)
    with pytest.raises(KeyboardInterrupt):
        sweep(fn, AXES, batch_size=4, checkpoint_dir=tmp_path)
    data = xarray.open_zarr(tmp_path / "values.zarr")
    done = data.done.values
    assert data.loss.dims[:3] == data.done.dims == ("lr", "optimizer", "key")
    assert 20 <= done.sum() <= 30
    np.testing.assert_array_equal(data.loss.values[done], whole["loss"][done])
    assert np.isnan(data.loss.values[~done]).all() and not data.step.values[~done].any()
    np.testing.assert_array_equal(data["half"].values[done], whole["half"].astype("f")[done])
    assert data.half.dtype == np.float32 and data["key.data"].dtype == np.uint32
    np.testing.assert_array_equal(data.lr, RATES)
    assert data.optimizer.values.tolist() == ["sgd", "adam"]
    best = data.loss.where(data.done).isel(loss_dim_0=-1).sel(optimizer="sgd").mean("key")
    assert best.dims == ("lr",)


def test_points_of_a_search_have_their_coordinates(tmp_path):
    points = {"lr": RATES, "width": np.arange(7)}
    result = sweep(lambda point: point["lr"] * point["width"], {"point": points})
    kept = sweep(
        lambda point: point["lr"] * point["width"], {"point": points}, checkpoint_dir=tmp_path
    )
    np.testing.assert_array_equal(kept.values, result.values)
    data = xarray.open_zarr(tmp_path / "values.zarr")
    np.testing.assert_array_equal(data["point.lr"], RATES)
    np.testing.assert_array_equal(data["value"], result.values)


# Blocks, and what is read


@settings(max_examples=100, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4),
    most=st.integers(1, 40),
)
def test_blocks_are_boxes_of_consecutive_runs(axes, most):
    lengths, inside = zip(*axes, strict=True)
    blocks = Blocks.of(lengths, inside, most)
    made = sorted(range(len(lengths)), key=lambda i: inside[i])
    ids = np.arange(math.prod(lengths)).reshape([lengths[i] for i in made])
    ids = np.moveaxis(ids, range(len(made)), made)  # the positions of all runs, on the axes
    number = math.prod(n for n, one in axes if one)
    bounds = blocks.bounds
    assert bounds[0] == 0 and bounds[-1] == number and (np.diff(bounds) > 0).all()
    assert np.diff(bounds).max() <= most
    for variant in range(math.prod(lengths) // number):
        for begin, end in itertools.pairwise(bounds.tolist()):
            box = blocks.box(variant, begin)
            expected = np.arange(begin, end) + variant * number
            np.testing.assert_array_equal(ids[box].ravel(), expected)
            assert all(part.start % k == 0 for part, k in zip(box, blocks.chunk, strict=True))


WHOLE = np.arange(4 * 3 * 5.0).reshape(4, 3, 5)
PART = st.one_of(st.integers(-5, 5), st.slices(5), st.integers(-2, 2).map(np.int64))
INDICES = st.one_of(
    PART,
    st.tuples(PART, PART),
    st.tuples(PART, PART, PART),
    st.tuples(PART, st.just(...), PART),
    st.tuples(st.lists(st.integers(-4, 3), max_size=3), PART),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from([None, (), ..., (..., 0), (0, None), np.array(1), WHOLE > 7, True, 1.5, "a"]),
    st.tuples(PART, PART, PART, PART),
)


@settings(max_examples=300, deadline=None)
@given(INDICES)
def test_values_are_indexed_as_numpy_does(index):
    shape = jax.ShapeDtypeStruct(WHOLE.shape, WHOLE.dtype)
    values = DiskValues(lambda box: WHOLE[box], shape)
    try:
        expected = WHOLE[index]
    except IndexError:
        with pytest.raises(IndexError):
            values[index]
    else:
        np.testing.assert_array_equal(values[index], expected)


def test_no_more_is_read_than_is_asked_for():
    boxes = []
    values = DiskValues(
        lambda box: boxes.append(box) or WHOLE[box], jax.ShapeDtypeStruct(WHOLE.shape, WHOLE.dtype)
    )
    assert values[2, 1, 3] == WHOLE[2, 1, 3] and values[-1, ..., 1:4:2].shape == (3, 2)
    assert [[(one.start, one.stop) for one in box] for box in boxes] == [
        [(2, 3), (1, 2), (3, 4)],
        [(3, 4), (0, 3), (1, 4)],
    ]
    assert (values + 1 == WHOLE + 1).all() and values.mean() == WHOLE.mean() and len(values) == 4
    with pytest.raises(TypeError, match="indexed by a traced number"):
        jax.jit(lambda i: values[0, i])(0)


# Processes that die


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path):
    faults = ["before_it_is_done", "without_room", "random_moments"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sweep_faults", tmp_path, "30", *faults],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ends = {name: (status, said) for name, status, said in lines if name != "after it"}
    assert ends["before_it_is_done"] == (9, "")
    assert [line[:2] for line in lines].count(["random_moments", 9]) == 30
    assert "results could not be written to" in ends["without_room"][1]
    assert "what was written before is committed: make room" in ends["without_room"][1]
    after = [said for name, status, said in lines if name == "after it"]
    assert len(after) == 3 and all(said.startswith("the same, of which ") for said in after), lines


def test_only_one_sweep_writes_to_a_directory(copy):
    with (copy / "lock").open("a") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="is being written by another sweep: wait for it"):
            sweep(fn, AXES, checkpoint_dir=copy)


LARGE = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from jaxfit import sweep

fn = lambda x: x + jnp.arange(2**18, dtype=jnp.float32)  # 1 MB
folder = sys.argv[1]
sweep(fn, {"x": jnp.arange(8.0)}, batch_size=1, checkpoint_dir=folder + "/small")
(virtual,) = [int(line.split()[1]) for line in open("/proc/self/status") if "VmSize" in line]
allowed = 96 * 2**20
limit = virtual * 1024 + allowed // 2  # Python has kept some that it had freed
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    np.ones(allowed // 8)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
result = sweep(fn, {"x": jnp.arange(300.0)}, batch_size=1, checkpoint_dir=folder + "/large")
assert result.values.nbytes > 3 * allowed
print([float(result.values[i, 5]) for i in (0, 299)], float(result.values[3:7].sum()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_a_result_may_be_larger_than_memory(tmp_path):
    with process(LARGE, tmp_path) as running:
        said, complaint = running.communicate(timeout=200)
    assert running.returncode == 0, complaint
    expected = np.arange(3, 7, dtype=np.float32)[:, None] + np.arange(2**18, dtype=np.float32)
    assert said.strip() == f"[5.0, 304.0] {float(expected.sum())}"


TOGETHER = """
import hashlib
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from jaxfit import sweep
from tests.test_sweep_on_disk import AXES, fn
for _ in range(2):
    result = sweep(fn, AXES, batch_size=4, checkpoint_dir=sys.argv[1])
    print(hashlib.sha256(np.asarray(result.values["loss"])).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_share_a_directory(whole, tmp_path):
    for said, _ in two_processes(TOGETHER, tmp_path):
        expected = hashlib.sha256(np.ascontiguousarray(whole["loss"])).hexdigest()
        assert re.findall("[0-9a-f]{64}", said) == [expected] * 2


ONE_DIES = """
import os, signal, sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from jaxfit import sweep
from jaxfit._disk.sweeps import SweepDirectory
from tests.test_sweep_on_disk import AXES, fn

write, written = SweepDirectory._write, []

def write_and_die(directory, arrays, box):
    write(directory, arrays, box)
    written.append(box)
    if jax.process_index() == 1 and len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

SweepDirectory._write = write_and_die
try:
    sweep(fn, AXES, batch_size=2, checkpoint_dir=sys.argv[1])
except RuntimeError as error:
    print(len(written), error, flush=True)
os._exit(0)  # the other is missed at a regular end
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_same_call_goes_on(
    whole, tmp_path, monkeypatch
):
    (said, _), (nothing, _) = two_processes(ONE_DIES, tmp_path, ends=(0, -9))
    sentence = "another process has ended before its time: start all processes again, and they go"
    assert re.search(f"^21 {sentence}", said, re.MULTILINE)  # half of the 42 blocks
    assert "another" not in nothing
    counted = Counted(monkeypatch)
    assert_same_bits(read(sweep(fn, AXES, batch_size=2, checkpoint_dir=tmp_path)), whole)
    assert 0 < counted.runs < 35
