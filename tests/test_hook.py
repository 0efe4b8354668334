"""The callback of a fit is shown every step once, as train has it, and says where the run ends."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit._drive import bars
from jaxfit._drive.chunks import End
from jaxfit._drive.hook import Hook
from jaxfit._drive.pace import Marks, Pace
from jaxfit._drive.program import Chunk, _steps
from jaxfit.fit import fit
from jaxfit.stop import Rule
from tests.common import assert_same_bits, concatenate, guess, loss, row, two_processes

STEPS = 37
MOMENTUM = optax.sgd(0.1, 0.9)


def record(step):
    key = jax.random.fold_in(jax.random.key(0), step.step)
    return {"step": step.step, "state": step.state, "loss": step.loss, "key": key}


def evaluate(state):
    return {"norm": optax.tree.norm(state.params), "step": state.step}


class Seen(list):
    """A callback that keeps what it is shown, and says something at a step."""

    def __init__(self, at=None, says=lambda: True):
        self.at, self.says = at, says

    def __call__(self, state, rows, evaluation):
        self.append((state, rows, evaluation))
        return self.says() if state.step == self.at else None

    @property
    def steps(self):
        return [int(state.step) for state, _, _ in self]


@pytest.fixture(scope="module")
def data():
    return jaxfit.data.line(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(data):
    """The lesson by train, evaluated at steps 0, 10, 20, 30 and 37."""
    options = {"record": record, "evaluate": evaluate, "evaluate_every": 10}
    run = jax.jit(lambda data: jaxfit.train(loss, guess, MOMENTUM, STEPS, data=data, **options))
    return run(data)


@pytest.fixture(scope="module")
def once(data, trained):
    """Check that callbacks were shown the steps of train once, up to one, and nothing else."""

    def check(calls, until=STEPS, every=1, evaluated=False):
        rows = concatenate(*(rows for _, rows, _ in calls))
        assert_same_bits(rows, row(trained.trajectory, slice(0, until, every)))
        evaluations = dict(zip(trained.evaluated_steps.tolist(), range(5), strict=True))
        for state, rows, evaluation in calls:
            at = int(state.step)
            then = row(trained.trajectory["state"], at) if at < STEPS else trained.state
            assert_same_bits(state, then)
            assert (rows["step"] < at).all() and len(rows["step"])
            if evaluated:
                assert_same_bits(evaluation, row(trained.evaluations, evaluations[at]))
            else:
                assert evaluation is None
            shown = jax.tree.leaves((state, rows | {"key": None}, evaluation))
            assert all(isinstance(leaf, np.ndarray) for leaf in shown)

    return check


def fitted(data, callback, steps=STEPS, start=guess, **options):
    options = {"record": record, "progress": False} | options
    return fit(loss, start, MOMENTUM, steps, data=data, callback=callback, **options)


# When it is called, and with what


@pytest.mark.parametrize(
    ("every", "chunk_size", "steps"),
    [(1, 8, [8, 16, 24, 32, 37]), (5, 10, [10, 20, 30, 35, 37]), (1, 40, [37])],
)
def test_without_evaluate_every_it_is_called_after_every_chunk(
    every, chunk_size, steps, data, once
):
    seen = Seen()
    fitted(data, seen, record_every=every, chunk_size=chunk_size)
    assert seen.steps == steps
    once(seen, every=every)


@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize(("every", "chunk_size"), [(1, 8), (1, 40), (5, 5), (5, None)])
def test_with_it_after_every_so_many_steps_and_at_the_end(
    every, chunk_size, evaluated, data, once, trained
):
    seen, options = Seen(), {"evaluate": evaluate} if evaluated else {}
    options |= {"evaluate_every": 10, "record_every": every, "chunk_size": chunk_size}
    run = fitted(data, seen, **options)
    assert seen.steps == [10, 20, 30, 37]
    once(seen, every=every, evaluated=evaluated)
    assert_same_bits(run.state, trained.state)
    assert_same_bits(run.trajectory, row(trained.trajectory, slice(0, STEPS, every)))
    assert run.stop_reason is None
    if evaluated:
        assert_same_bits(run.evaluations, trained.evaluations)


def test_a_run_that_ends_at_a_multiple_or_has_no_steps_is_not_shown_once_more(data, once):
    seen = Seen()
    fitted(data, seen, 30, evaluate=evaluate, evaluate_every=10, chunk_size=8)
    assert seen.steps == [10, 20, 30]
    once(seen, 30, evaluated=True)
    fitted(data, none := Seen(), 0, evaluate=evaluate, evaluate_every=10)
    assert not none


def test_from_a_state_it_is_called_at_multiples_from_there(data, once):
    half, rest = Seen(), Seen()
    run = fitted(data, half, 17, chunk_size=8)
    fitted(data, rest, STEPS - 17, run.state, evaluate_every=9, chunk_size=8)
    assert half.steps == [8, 16, 17] and rest.steps == [26, 35, 37]
    once([*half, *rest])


def test_what_it_does_to_its_rows_is_not_done_to_the_run(data, trained):
    def spoil(state, rows, evaluation):
        rows["loss"][:] = 0.0

    run = fitted(data, spoil, chunk_size=8)
    assert_same_bits(run.trajectory, trained.trajectory)


def test_a_callback_compiles_nothing(data):
    fitted(data, None, chunk_size=8)
    before = _steps.cache_size()
    fitted(data, Seen(), chunk_size=8)
    assert _steps.cache_size() == before


# Where the run ends


@pytest.mark.parametrize(("end", "chunk_size"), [(13, 8), (20, 8), (24, 40)])
def test_steps_that_a_rule_discards_are_not_shown(end, chunk_size, data, once):
    rule = Rule(tuple, lambda step, memory: (step.step >= end, memory))
    options = {"evaluate": evaluate, "evaluate_every": 10, "chunk_size": chunk_size}
    run = fitted(data, seen := Seen(), stop=rule, **options)
    assert seen.steps == [*range(10, end, 10), end] and run.state.step == end
    rows = concatenate(*(rows for _, rows, _ in seen))
    assert_same_bits(rows, run.trajectory)
    assert [int(evaluation["step"]) for _, _, evaluation in seen] == seen.steps
    once([(state, rows, None) for state, rows, _ in seen], end)
    fitted(data, every_chunk := Seen(), stop=rule, chunk_size=chunk_size)
    assert every_chunk.steps == [*range(chunk_size, end, chunk_size), end]
    once(every_chunk, end)


def test_nothing_is_shown_if_a_rule_discards_the_first_step(data):
    fitted(data, seen := Seen(), stop=lambda step: step.step >= 0, evaluate_every=10)
    assert not seen


def test_steps_after_an_evaluation_that_ends_the_run_are_not_shown(data, once):
    third = Rule(tuple, evaluated=lambda seen, memory: (seen["step"] >= 20, memory))
    options = {"evaluate": evaluate, "evaluate_every": 10, "chunk_size": 8}
    run = fitted(data, seen := Seen(), stop=third, **options)
    assert seen.steps == [10, 20] and run.state.step == 20
    once(seen, 20, evaluated=True)


@pytest.mark.parametrize("says", [True, np.bool_(True)])
@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"chunk_size": 8}, 16),
        ({"chunk_size": 10, "record_every": 5}, 35),
        ({"chunk_size": 8, "evaluate": evaluate, "evaluate_every": 10}, 20),
    ],
)
def test_the_run_ends_where_it_returns_true(options, end, says, data, once, trained):
    run = fitted(data, seen := Seen(end, lambda: says), **options)
    assert seen.steps[-1] == end == run.state.step
    assert run.stop_reason == f"callback returned True at step {end}"
    every = options.get("record_every", 1)
    once(seen, end, every, evaluated="evaluate" in options)
    assert_same_bits(run.trajectory, row(trained.trajectory, slice(0, end, every)))
    assert_same_bits(run.state, row(trained.trajectory["state"], end))
    if "evaluate" in options:
        assert run.evaluated_steps.tolist() == [0, 10, 20]
    rest = fitted(data, None, STEPS - end, run.state, chunk_size=8)
    assert_same_bits(rest.state, trained.state)


def test_false_and_none_go_on(data):
    fitted(data, seen := Seen(16, lambda: False), chunk_size=8)
    assert seen.steps[-1] == STEPS


@pytest.mark.parametrize("options", [{}, {"evaluate_every": 10}, {"evaluate_every": STEPS}])
def test_true_at_the_last_step_is_no_early_end(options, data):
    run = fitted(data, seen := Seen(STEPS), chunk_size=8, **options)
    assert seen.steps[-1] == STEPS and run.stop_reason is None


# Data from Python


def batches(data, fails_at=None):
    def batch(step):
        if step == fails_at:
            raise RuntimeError("the disk is gone")
        return jax.tree.map(np.asarray, data)

    return jaxfit.host_batches(batch)


@pytest.mark.parametrize("chunk_size", [8, 40])
def test_batches_from_python_are_shown_in_the_same_way(chunk_size, data, once):
    options = {"evaluate": evaluate, "evaluate_every": 10, "chunk_size": chunk_size}
    for source in batches(data), (jax.tree.map(np.asarray, data) for _ in iter(int, 1)):
        fitted(source, seen := Seen(), **options)
        assert seen.steps == [10, 20, 30, 37]
        once(seen, evaluated=True)


def test_the_end_of_the_data_is_the_end_that_is_shown(data, once):
    source = (jax.tree.map(np.asarray, data) for _ in range(24))
    run = fitted(source, seen := Seen(24), evaluate_every=10, chunk_size=8)
    assert seen.steps == [10, 20, 24] and run.stop_reason == "data ended before step 24"
    once(seen, 24)


def test_true_before_an_error_of_later_data_ends_the_run_without_it(data, once):
    run = fitted(batches(data, 16), seen := Seen(16), chunk_size=8)
    assert run.state.step == 16 and run.stop_reason == "callback returned True at step 16"
    once(seen, 16)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fitted(batches(data, 16), seen := Seen(), chunk_size=8)
    once(seen, 16)


# Errors, and runs that go on


class Mine(Exception):
    pass


def fail():
    raise Mine("no network")


def test_an_exception_is_theirs_and_says_what_became_of_the_steps(data):
    with pytest.raises(Mine) as raised:
        fitted(data, seen := Seen(16, fail), chunk_size=8)
    assert seen.steps == [8, 16] and raised.value.args == ("no network",)
    (note,) = raised.value.__notes__
    assert note == "fit: the steps before step 16 are lost, without a checkpoint_dir."


@pytest.mark.parametrize("options", [{"chunk_size": 10}, {"chunk_size": 8, "evaluate_every": 10}])
def test_an_exception_commits_what_is_done_which_is_not_shown_again(options, data, once, tmp_path):
    options |= {"checkpoint_dir": tmp_path}
    with pytest.raises(Mine) as raised:
        fitted(data, first := Seen(20, fail), **options)
    (note,) = raised.value.__notes__
    assert note == f"fit: the steps before step 20 are committed in {tmp_path}."
    assert jaxfit.load(tmp_path).state.step == 20
    fitted(data, rest := Seen(), **options)
    assert first.steps == [10, 20] and rest.steps == [30, 37]
    once([*first, *rest])


@pytest.mark.parametrize("every", [1, 5])
def test_rows_that_were_committed_but_not_shown_are_shown_by_the_next(every, data, once, tmp_path):
    options = {"evaluate": evaluate, "evaluate_every": 10, "record_every": every}
    options |= {"checkpoint_dir": tmp_path, "chunk_size": 8 if every == 1 else 5}
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fitted(batches(data, 16), first := Seen(), **options)
    assert jaxfit.load(tmp_path).state.step >= 15
    fitted(batches(data), second := Seen(), 25, **options)
    fitted(batches(data), third := Seen(), **options)
    fitted(batches(data), fourth := Seen(), **options)
    assert (first.steps, second.steps) == ([10], [20, 25])
    assert (third.steps, fourth.steps) == ([30, 37], [])
    calls = [*first, *second, *third]
    assert [int(evaluation["step"]) for _, _, evaluation in calls] == [10, 20, 25, 30, 37]
    once([(state, rows, None) for state, rows, _ in calls], every=every)


def test_a_run_that_it_ended_goes_on_from_there(data, once, tmp_path):
    options = {"chunk_size": 8, "evaluate_every": 10, "checkpoint_dir": tmp_path}
    fitted(data, first := Seen(20), **options)
    assert jaxfit.load(tmp_path).stop_reason == "callback returned True at step 20"
    fitted(data, rest := Seen(), **options)
    assert first.steps == [10, 20] and rest.steps == [30, 37]
    once([*first, *rest])


# What it costs


def test_a_slow_callback_makes_chunks_longer_and_not_shorter(data, monkeypatch):
    clock, lengths = [0.0], []

    class Bar(bars.tqdm):
        def update(self, number):
            clock[0] += 0.001 * number  # seconds that the steps took
            lengths.append(number)
            assert len(lengths) < 100

    def slow(state, rows, evaluation):
        clock[0] += 2.0

    monkeypatch.setattr(bars, "tqdm", Bar)
    monkeypatch.setattr(sys.modules["jaxfit._drive.pace"].time, "perf_counter", lambda: clock[0])
    fitted(data, slow, 60_000, record=lambda step: {"step": step.step})
    assert sum(lengths) == 60_000 and lengths[0] == 1
    assert 5_000 < max(lengths) < 7_000  # steps of six seconds, and the callback's two


def test_chunks_have_room_for_the_rows_between_two_calls_and_no_more():
    of = lambda size, marks: Pace.of(size, 10**6, 5, 8, False, marks).capacity
    assert of(None, Marks(0, None)) == 2**21
    assert of(None, Marks(0, 100)) == of(1000, Marks(0, 100)) == 20
    assert of(50, Marks(0, 100)) == of(50, Marks(0, None)) == 10


def test_rows_that_wait_for_a_call_do_not_keep_the_memory_of_their_chunk(data):
    stacked = jnp.zeros((1000, 3))
    hook = Hook(lambda *_: None, jax.ShapeDtypeStruct((3,), np.float32), Marks(0, 10))
    chunk = Chunk(0, 2, 2, None, None, None, [stacked])
    assert np.shares_memory(chunk.rows[0], np.asarray(stacked))  # on a CPU
    assert not hook.ends(chunk, End(20))
    (kept,) = hook._rows
    assert kept.shape == (2, 3) and not np.shares_memory(kept, np.asarray(stacked))


# Refusals


@pytest.mark.parametrize("says", [[None], 1, "stop"])
def test_another_answer_is_refused_in_a_sentence(says, data):
    with pytest.raises(TypeError, match=r"callback returned .*, but must return True") as refused:
        fitted(data, Seen(8, lambda: says), chunk_size=8)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"callback": 3}, "callback is 3, but must be a function."),
        (
            {"callback": lambda state: None},
            r"callback <lambda> takes other arguments, but it is called as "
            r"callback\(state, rows, evaluation\): change its signature.",
        ),
        (
            {"evaluate_every": 7, "record_every": 2},
            "evaluate_every is 7 and record_every 2, .* make evaluate_every a multiple of record_e",
        ),
        ({"evaluate_every": 10, "callback": None}, "evaluate_every was given alone: give evaluate"),
        ({"evaluate": evaluate}, "evaluate was given alone: give evaluate_every=100 with it"),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_is_compiled(options, sentence, data):
    before = _steps.cache_size()
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        fitted(data, **({"callback": Seen()} | options))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert _steps.cache_size() == before


# Several processes

TWO = """
import sys, jax, jax.numpy as jnp, optax
address, rank = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=rank)
import jaxfit

def callback(state, rows, evaluation):
    print(rank, int(state.step), rows["step"].tolist(), round(float(evaluation), 3))
    return rank == 0 and state.step == 4

run = jaxfit.fit(lambda a: (a - 1.0) ** 2, 0.0, optax.sgd(0.25), 10, callback=callback,
                 evaluate=lambda state: state.params, evaluate_every=2, progress=False)
print(run.stop_reason)
"""


def test_processes_are_all_shown_the_run_and_end_where_the_first_says():
    for rank, (out, _) in enumerate(two_processes(TWO)):
        assert out.splitlines()[-3:] == [
            f"{rank} 2 [0, 1] 0.75",
            f"{rank} 4 [2, 3] 0.938",
            "callback returned True at step 4",
        ]
