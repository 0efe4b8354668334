"""What callbacks log is what the run holds, read back from what they wrote."""

import collections
import csv
import io
import json
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import jaxfit
from jaxfit import callbacks
from tests.common import assert_same_bits

SGD = optax.sgd(0.25)


def loss(a):
    return jnp.sum((a - 1.0) ** 2)


def record(step):
    low = step.loss.astype(jnp.bfloat16)
    kept = {"step": step.step, "loss": step.loss, "params": step.params, "low": low}
    return kept | {"aux": {"small": step.loss < 0.1, "phase": 1j * step.loss}}


def evaluate(state):
    return {"loss": jnp.sum(state.params) / 3.0, "params": state.params, "steps": (state.step,)}


def fitted(callback, steps=25, start=None, **options):
    options = {"record": record, "evaluate": evaluate, "evaluate_every": 10} | options
    options = {"chunk_size": 5, "progress": False} | options
    start = jnp.array([0.1, 0.7]) if start is None else start
    return jaxfit.fit(loss, start, SGD, steps, callback=callback, **options)


@pytest.fixture(scope="module")
def run():
    return fitted(None)


@pytest.fixture(scope="module")
def points(run):
    """What there is to log of that run: by name, a list of (step, value)."""
    rows, found = run.trajectory, {}
    columns = {"loss": rows["loss"], "low": rows["low"], "aux/small": rows["aux"]["small"]}
    for name, values in columns.items():
        found[name] = [*zip(range(25), map(float, values), strict=True)]
    columns = {"loss": run.evaluations["loss"], "steps/0": run.evaluations["steps"][0]}
    for name, values in columns.items():
        found[f"evaluation/{name}"] = [*zip([10, 20, 25], map(float, values[1:]), strict=True)]
    return found


def every_fifth(points):
    """What is left of the points if rows are logged at every fifth step."""
    return {
        name: [point for point in some if "evaluation" in name or point[0] % 5 == 0]
        for name, some in points.items()
    }


# CSV


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_read_back_is_the_rows_bit_for_bit(tmp_path, run, points):
    logged = fitted(callbacks.csv(tmp_path / "run.csv"))
    assert_same_bits(logged, run)
    lines = [line for line in read(tmp_path / "run.csv") if line["loss"]]
    assert [int(line["step"]) for line in lines] == [*range(25)]
    for name in "loss", "low":
        column = np.array([line[name] for line in lines]).astype(np.float32)
        assert_same_bits(column.astype(run.trajectory[name].dtype), run.trajectory[name])
    evaluated = [line for line in read(tmp_path / "run.csv") if not line["loss"]]
    column = np.array([line["evaluation/loss"] for line in evaluated], np.float32)
    assert_same_bits(column, run.evaluations["loss"][1:])
    assert set(lines[0]) == {"step", *points}
    assert {line["aux/small"] for line in lines} == {"0", "1"}


def test_the_lines_of_a_csv_file_are_in_the_order_of_the_steps(tmp_path):
    fitted(callbacks.csv(tmp_path / "run.csv"))
    lines = [(int(line["step"]), bool(line["loss"])) for line in read(tmp_path / "run.csv")]
    expected = [(step, True) for step in range(25)] + [(step, False) for step in (10, 20, 25)]
    assert lines == sorted(expected)  # False first: what was evaluated before the step


def test_float64_and_numbers_that_are_not_finite_are_read_back(tmp_path):
    rows = {"step": np.arange(4), "a": np.array([np.nan, np.inf, -np.inf, 0.1 + 0.2])}
    state = jaxfit.init(jnp.zeros(2), SGD)
    callbacks.csv(tmp_path / "run.csv")(state, rows, None)
    column = np.array([line["a"] for line in read(tmp_path / "run.csv")], float)
    np.testing.assert_array_equal(column, rows["a"])


def stop_at(step, inner):
    def callback(state, rows, evaluation):
        inner(state, rows, evaluation)
        if state.step == step:
            raise RuntimeError("killed")

    return callback


@pytest.mark.parametrize("torn", [b"", b"20,0.3", b"20", b"20,0.3,0.3,1,,\n21,0.2,0.2,1,,\n22,"])
def test_the_csv_file_of_a_run_that_goes_on_is_that_of_an_undisturbed_run(tmp_path, torn):
    fitted(callbacks.csv(tmp_path / "whole.csv"))
    path, options = tmp_path / "run.csv", {"checkpoint_dir": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="killed"):
        fitted(stop_at(20, callbacks.csv(path)), **options)
    with path.open("ab") as file:
        file.write(torn)  # steps that were shown, and lost before they were committed
    fitted(callbacks.csv(path), **options)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_new_run_replaces_the_lines_of_an_old_one_even_by_the_same_callback(tmp_path):
    callback, start = callbacks.csv(tmp_path / "run.csv"), jnp.array([5.0, 6.0])
    fitted(callbacks.csv(tmp_path / "whole.csv"))
    for again in callbacks.csv(tmp_path / "run.csv"), callback, callback:
        fitted(again, start=start)
        assert (tmp_path / "run.csv").read_bytes() != (tmp_path / "whole.csv").read_bytes()
        fitted(again)
        assert (tmp_path / "run.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    more = fitted(callback, 10)
    fitted(callback, 15, more.state)
    assert len(read(tmp_path / "run.csv")) == 25 + 3


def test_a_file_with_other_columns_is_left_alone(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("step,weight\n0,1.5\n")
    with pytest.raises(ValueError, match=r"data.csv has the columns step, weight, but this run h"):
        fitted(callbacks.csv(path))
    assert path.read_text() == "step,weight\n0,1.5\n"


def test_a_run_of_train_is_logged_afterwards(tmp_path):
    trained = jaxfit.train(loss, jnp.zeros(2), SGD, 9, record=jaxfit.record.metrics)
    callbacks.csv(tmp_path / "run.csv")(trained.state, trained.trajectory, None)
    column = np.array([line["grad_norm"] for line in read(tmp_path / "run.csv")], np.float32)
    assert_same_bits(column, trained.trajectory["grad_norm"])


# Trackers, read back by their own readers


def events(folder):
    """Yield the scalars of a directory's event file: records behind a length and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data = io.BytesIO(path.read_bytes())
    while head := data.read(12):
        event = Event.FromString(data.read(int.from_bytes(head[:8], "little")))
        data.read(4)
        yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def test_tensorboard_files_hold_every_scalar(tmp_path, points, monkeypatch):
    tensorboard_x = pytest.importorskip("tensorboardX")
    make, made = tensorboard_x.SummaryWriter, []

    def kept(*arguments, **options):
        made.append(make(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(tensorboard_x, "SummaryWriter", kept)
    for folder, every, expected in ("all", 1, points), ("some", 5, every_fifth(points)):
        fitted(callbacks.tensorboard(tmp_path / folder, every=every))
        made[-1].close()  # as at the end of the process; a thread is still writing
        found = collections.defaultdict(list)
        for name, *point in events(tmp_path / folder):
            found[name].append(tuple(point))
        assert found == expected


def test_pytorchs_tensorboard_is_used_where_tensorboardx_is_not(tmp_path, monkeypatch):
    logged = []

    class SummaryWriter:
        def __init__(self, logdir, flush_secs):
            assert logdir == str(tmp_path) and flush_secs == 1

        add_scalar = lambda self, *scalar: logged.append(scalar)
        flush = lambda self: logged.append("flush")

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    monkeypatch.setitem(sys.modules, "torch.utils", type(sys)("torch.utils"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    fitted(callbacks.tensorboard(tmp_path), 2, record=jaxfit.record.metrics)
    assert [scalar[0] for scalar in logged[:2]] == ["grad_norm", "loss"]
    assert logged[-1] == "flush"


def history(path):
    """Yield what each record of a .wandb file logged: pieces of records, in blocks of 32 kB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left  # padding
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])  # after a checksum
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last piece
            item = Record.FromString(record).history.item
            record = b""
            if item:
                yield {
                    one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in item
                }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the library
def test_wandb_keeps_every_scalar_offline(tmp_path, points, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fitted(callbacks.wandb(mode="offline", project="test", dir=str(tmp_path), every=5))
    mine = wandb.run
    fitted(callbacks.wandb(every=5), 5, run.state)  # goes on with the run that is active
    assert wandb.run is mine
    mine.finish()
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found = collections.defaultdict(list)
    for logged in history(path):
        for name in logged.keys() & points.keys():
            found[name].append((logged["_step"], logged[name]))
    for name, expected in every_fifth(points).items():
        assert found[name][: len(expected)] == expected
    assert [step for step, _ in found["loss"]] == [0, 5, 10, 15, 20, 25]
    assert [step for step, _ in found["evaluation/loss"]] == [10, 20, 25, 30]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_every_scalar_in_a_local_database(tmp_path, points, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    fitted(callbacks.mlflow(run_name="test"))
    mine = mlflow.active_run()
    mlflow.end_run()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert (found.info.run_id, found.info.run_name) == (mine.info.run_id, "test")
    for name, expected in points.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert sorted((one.step, one.value) for one in history) == expected


# A curve


def test_without_a_notebook_a_curve_is_a_line_for_every_call(capsys, run):
    fitted(callbacks.curve())
    said = capsys.readouterr().out.splitlines()
    losses, held_out = run.trajectory["loss"], run.evaluations["loss"]
    assert said == [
        f"step {step}: loss {losses[step - 1]:.4g}, evaluation/loss {held_out[number]:.4g}"
        for number, step in enumerate((10, 20, 25), 1)
    ]
    fitted(callbacks.curve("low", "evaluation/steps/0"), 10)
    assert capsys.readouterr().out.endswith(", evaluation/steps/0 10\n")


def colors(picture):
    with Image.open(io.BytesIO(picture)) as image:
        return {color for _, color in image.convert("RGB").getcolors(image.width * image.height)}


@pytest.mark.filterwarnings("ignore")
def test_in_a_notebook_one_picture_is_drawn_again_and_again(notebook):
    fitted(callbacks.curve())
    shown = notebook()
    assert len(shown) == 3 and [bool(output.update) for output in shown] == [False, True, True]
    assert len({output.transient["display_id"] for output in shown}) == 1
    assert shown[-1].data["text/plain"].startswith("step 25: loss ")
    pictures = [output.data["image/png"] for output in shown]
    assert len(set(pictures)) == 3
    blue, orange, green = (0, 114, 178), (213, 94, 0), (0, 158, 115)
    assert {blue, orange} <= colors(pictures[-1]) and green not in colors(pictures[-1])


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 0.1, np.nan], "log"), ([1.0, 0.0, np.inf], "linear"), ([1.0, -1.0, 2.0], "linear")],
)
def test_a_curve_is_drawn_on_a_logarithmic_scale_if_it_can_be(values, scale, monkeypatch):
    from matplotlib.figure import Figure

    from jaxfit._drive.curves import _drawn

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    _drawn({"loss": [(np.arange(3), np.array(values, np.float32)), (np.array([3]), np.ones(1))]})
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == scale and axes.get_legend().get_texts()[0].get_text() == "loss"
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), range(4))
    np.testing.assert_array_equal(axes.lines[0].get_ydata()[:3], np.float32(values))


# Refusals


def test_rows_without_a_step_are_refused_in_a_sentence(tmp_path):
    for callback in callbacks.csv(tmp_path / "run.csv"), callbacks.curve():
        with pytest.raises(ValueError, match="the rows hold loss, but no step to log them") as said:
            fitted(callback, record=lambda step: {"loss": step.loss})
        assert str(said.value).endswith(".") and "\n" not in str(said.value)
    assert not (tmp_path / "run.csv").exists()


def test_a_curve_of_nothing_is_refused_in_a_sentence():
    names = "aux/small, loss, low, evaluation/loss, evaluation/steps/0"
    refusals = {("losses",): names, (): "step_size"}
    for given, scalars in refusals.items():
        one = lambda step: {"step": step.step, "step_size": 2 * step.step}
        options = {} if given else {"record": one, "evaluate": None, "evaluate_every": None}
        with pytest.raises(ValueError, match=r"callbacks.curve was to draw losses, but") as said:
            fitted(callbacks.curve(*given), **options)
        assert str(said.value).endswith(
            f"but the scalars are {scalars}: name some of them, as in "
            f"curve({scalars.split(',')[0]!r})."
        )


@pytest.mark.parametrize(
    ("make", "libraries"),
    [
        (lambda: callbacks.tensorboard("runs"), ["tensorboardX", "torch.utils.tensorboard"]),
        (callbacks.wandb, ["wandb"]),
        (callbacks.mlflow, ["mlflow"]),
    ],
)
def test_what_is_not_installed_is_named(make, libraries, monkeypatch):
    for library in libraries:
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"needs .*: pip install {libraries[0]}.$"):
        make()


def test_how_often_is_a_whole_number():
    with pytest.raises(ValueError, match="every is 0, but must be at least 1"):
        callbacks.tensorboard("runs", every=0)


def test_importing_jaxfit_loads_none_of_the_libraries():
    optional = "tensorboardX", "torch", "wandb", "mlflow", "IPython", "matplotlib"
    code = f"import sys, jaxfit.callbacks; print([n for n in {optional} if n in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_the_second_process_logs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    callback = callbacks.csv(tmp_path / "run.csv")
    monkeypatch.undo()
    fitted(callback)
    assert not (tmp_path / "run.csv").exists()
