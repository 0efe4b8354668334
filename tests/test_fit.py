"""fit is train, bit for bit, however it is cut into chunks and wherever it ends."""

import dataclasses
import itertools
import pickle
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxfit
from jaxfit import fit as fit_function
from jaxfit._drive import bars
from jaxfit._drive.program import _steps
from jaxfit.fit import fit
from jaxfit.stop import Rule, loss_below, no_improvement, not_finite
from tests.common import assert_same_bits, guess, loss, perceptron, row

STEPS = 37
SCHEDULE = optax.cosine_decay_schedule(0.3, STEPS)
OPTIMIZERS = {
    "momentum": optax.sgd(0.1, 0.9),
    "adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE)),
    "multi": optax.MultiSteps(optax.adam(0.1), 3),
    "lbfgs": optax.lbfgs(),
}


def on_minibatches():
    x = jax.random.normal(jax.random.key(1), (64, 8))
    y = jax.random.randint(jax.random.key(2), (64,), 0, 3)
    loss, params, _ = perceptron()
    return loss, params, jaxfit.minibatches((x, y), 16, jax.random.key(3))


def same(fitted, trained):
    """One run is the other, but for where its rows are."""
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(fitted.trajectory))
    assert_same_bits(fitted, trained)


@pytest.fixture(scope="module")
def data():
    return jaxfit.data.line(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(data):
    """The lesson by train, for every optimizer and record_every, as asked for."""
    runs = {}

    def run(name, every=1, steps=STEPS, record=jaxfit.record.whole):
        if (name, every, steps, record) not in runs:
            options = {"record": record, "record_every": every}
            runs[name, every, steps, record] = jax.jit(
                lambda data: jaxfit.train(
                    loss, guess, OPTIMIZERS[name], steps, data=data, **options
                )
            )(data)
        return runs[name, every, steps, record]

    return run


# The same run


@pytest.mark.parametrize(
    ("name", "every"),
    [("momentum", 1), ("adam", 5), ("multi", 5), pytest.param("lbfgs", 1, marks=pytest.mark.slow)],
)
def test_a_fit_is_the_run_of_train_bit_for_bit(name, every, data, trained):
    for chunk_size in (8,) if name == "lbfgs" else (1, 8, STEPS, None):
        options = {"data": data, "record_every": every, "chunk_size": chunk_size}
        same(fit(loss, guess, OPTIMIZERS[name], STEPS, **options), trained(name, every))


@settings(max_examples=8, deadline=None)
@given(chunk_size=st.integers(1, 60), every=st.sampled_from([1, 5]))
def test_the_length_of_chunks_changes_no_bit(data, trained, chunk_size, every):
    options = {"data": data, "record_every": every, "chunk_size": chunk_size}
    same(fit(loss, guess, OPTIMIZERS["momentum"], STEPS, **options), trained("momentum", every))


def test_a_fit_on_minibatches_is_the_run_of_train():
    loss, params, batches = on_minibatches()
    adam, options = optax.adam(0.01), {"record": jaxfit.record.state, "record_every": 4}
    run = jax.jit(lambda data: jaxfit.train(loss, params, adam, 20, data=data, **options))(batches)
    for chunk_size in 6, None:
        same(fit(loss, params, adam, 20, data=batches, chunk_size=chunk_size, **options), run)


def test_a_fit_goes_on_from_a_state_and_train_from_a_fit(data, trained):
    adam = OPTIMIZERS["adam"]
    half = fit(loss, guess, adam, 17, data=data, chunk_size=5)
    rest = fit(loss, half.state, adam, STEPS - 17, data=data, chunk_size=5)
    whole = trained("adam")
    assert_same_bits(rest.state, whole.state)
    assert_same_bits(rest.trajectory, row(whole.trajectory, slice(17, None)))
    assert_same_bits(rest.steps, jnp.arange(17, STEPS))
    assert half._known_steps == range(17) and rest._known_steps is None
    more = jax.jit(lambda s, data: jaxfit.train(loss, s, adam, STEPS - 17, data=data))
    assert_same_bits(more(half.state, data).state, whole.state)


def test_a_state_of_numpy_arrays_and_numbers_goes_on_to_the_same_end(data, trained, tmp_path):
    adam, whole = OPTIMIZERS["adam"], trained("adam")
    half = fit(loss, guess, adam, 17, data=data)
    on_host = jax.device_get(half.state)
    assert isinstance(on_host.step, np.ndarray) and isinstance(on_host.params, np.ndarray)
    number = dataclasses.replace(half.state, step=17)
    for state in on_host, number, pickle.loads(pickle.dumps(on_host)):
        rest = fit(loss, state, adam, STEPS - 17, data=data, chunk_size=7)
        assert_same_bits(rest.state, whole.state)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(rest.state))
    rest = jax.jit(lambda data: jaxfit.train(loss, on_host, adam, STEPS - 17, data=data))(data)
    assert_same_bits(rest.state, whole.state)

    options = {"data": data, "checkpoint_dir": tmp_path, "chunk_size": 5}
    fit(loss, on_host, adam, 10, **options)
    assert_same_bits(fit(loss, on_host, adam, STEPS - 17, **options).state, whole.state)

    assert_same_bits(
        jaxfit.fork(on_host, adam, carry_over=True), jaxfit.fork(half.state, adam, carry_over=True)
    )
    bad = dataclasses.replace(on_host, params=np.full(2, np.nan, np.float32))
    assert jaxfit.blame(loss, bad, adam, data=data).leaf == "params"
    run = jax.jit(lambda data: jaxfit.train(loss, guess, adam, STEPS, data=data, keyframe_every=9))
    replay = jax.jit(lambda run, data: jaxfit.replay(loss, run, adam, 20, 30, data=data))
    run = run(data)
    kept = jax.device_get(run)
    part = jax.jit(lambda data: jaxfit.replay(loss, kept, adam, 20, 30, data=data))(data)
    assert_same_bits(part, replay(run, data))


def test_what_is_not_trained_is_the_same_in_a_state_of_numpy_arrays():
    start = {"w": guess, "table": jnp.array([1, 0]), "key": jax.random.key(0), "power": 2}
    loss = lambda params: jnp.sum((params["w"][params["table"]] - 3.0) ** params["power"])
    sgd = optax.sgd(0.1, 0.9)
    half = fit(loss, start, sgd, 5)
    rest = fit(loss, jax.device_get(half.state), sgd, 5)
    assert_same_bits(rest.state, fit(loss, start, sgd, 10).state)
    assert isinstance(rest.state.params["table"], np.ndarray)  # untouched


def test_a_run_can_end_at_the_last_step_that_int32_counts_and_is_loaded(data, tmp_path):
    sgd, last = optax.sgd(0.1), 2**31 - 1
    start = dataclasses.replace(jaxfit.init(guess, sgd), step=last - 5)
    run = fit(loss, start, sgd, 5, data=data, chunk_size=2, checkpoint_dir=tmp_path / "run")
    for one in run, jaxfit.load(tmp_path / "run"), fit(loss, start, sgd, 5, data=data):
        assert int(one.state.step) == last and one.steps.tolist() == [*range(last - 5, last)]
    with pytest.raises(ValueError, match="at step 2147483642 and num_steps is 6, but steps are"):
        fit(loss, start, sgd, 6, data=data, checkpoint_dir=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_fit_is_replayed(data):
    adam = OPTIMIZERS["adam"]
    run = fit(loss, guess, adam, 30, data=data, record=jaxfit.record.state, record_every=10)

    @jax.jit
    def replay(run, data):
        return jaxfit.replay(loss, run, adam, 12, 30, data=data)

    part = replay(run, data)
    whole = jax.jit(lambda data: jaxfit.train(loss, guess, adam, 30, data=data))(data)
    assert_same_bits(part.trajectory, row(whole.trajectory, slice(12, None)))


def test_a_loss_without_data_with_aux_and_leaves_that_are_not_trained():
    params = {"a": 1.0, "power": 2, "act": jnp.tanh, "key": jax.random.key(0)}

    def loss(params):
        value = params["act"](params["a"])
        for _ in range(params["power"]):  # a number that must not be traced
            value = value * params["a"]
        return value, jax.random.key_data(params["key"]).sum()

    options = {"has_aux": True, "record": lambda step: (step.params, step.aux)}
    run = fit(loss, params, optax.sgd(0.1), 9, chunk_size=4, **options)
    (kept, aux), end = run.trajectory, run.state.params
    assert kept["act"] is end["act"] is jnp.tanh and end["power"] == 2
    assert_same_bits(end["key"], params["key"])

    @jax.jit
    def trained(key):
        start = params | {"key": key}
        run = jaxfit.train(loss, start, optax.sgd(0.1), 9, **options)
        return run.trajectory[0]["a"], run.trajectory[1], run.state.params["a"]

    assert_same_bits((kept["a"], aux, end["a"]), trained(params["key"]))


# What it costs


def test_one_program_serves_all_chunks_one_more_the_rest_and_a_second_fit_none(data):
    traced = []

    def counted(a, batch):
        traced.append(1)
        return loss(a, batch)

    adam = optax.adam(0.1)
    for every, chunk_size, programs in (1, 15, 1), (1, None, 1), (7, 15, 2), (7, None, 1):
        options = {"data": data, "chunk_size": chunk_size, "record_every": every}
        before = _steps.cache_size()
        fit(counted, guess, adam, 50, **options)
        assert _steps.cache_size() - before == programs  # the rest's stands already in the last
        number = len(traced)
        fit(counted, guess, adam, 50, **options)
        assert _steps.cache_size() - before == programs and len(traced) == number


def test_chunks_grow_until_they_take_half_a_second_and_no_further(monkeypatch, data):
    seconds, clock = 0.001, [0.0]
    lengths = []

    class Bar:
        def __init__(self, total, **_):
            pass

        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None
        set_postfix = lambda self, **_: None

        def update(self, number):
            lengths.append(number)
            clock[0] += seconds * number

    monkeypatch.setattr(bars, "tqdm", Bar)
    monkeypatch.setattr(sys.modules["jaxfit._drive.pace"].time, "perf_counter", lambda: clock[0])
    fit(loss, guess, optax.sgd(0.1), 5000, data=data)
    assert sum(lengths) == 5000 and lengths[0] == 1
    assert max(lengths) == 500 and lengths.count(500) > 5
    fit(loss, guess, optax.sgd(0.1), 60, data=data, chunk_size=25)
    assert lengths[-3:] == [25, 25, 10]


# Where it ends


def with_hook(monkeypatch, hook):
    """Call a hook after every chunk."""

    class Bar(bars.tqdm):
        def update(self, number):
            hook()

    monkeypatch.setattr(bars, "tqdm", Bar)


@pytest.mark.parametrize(("every", "chunk_size"), list(itertools.product([1, 5], [8, None])))
@pytest.mark.parametrize("end", [0, 5, 13])
def test_a_fit_ends_at_the_first_step_where_the_rule_is_true(end, every, chunk_size, data, trained):
    after = lambda step: step.step >= end
    options = {"data": data, "record_every": every, "chunk_size": chunk_size}
    run = fit(loss, guess, OPTIMIZERS["momentum"], STEPS, stop=after, **options)
    assert run.stop_reason == f"stop was true at step {end}"
    whole = trained("momentum", every)
    assert_same_bits(run.trajectory, row(whole.trajectory, slice(-(-end // every))))
    assert_same_bits(run.steps, jnp.arange(0, end, every, dtype=np.int32))
    if end:
        assert_same_bits(run.state, trained("momentum", 1, end).state)
    else:
        assert_same_bits(run.state, jaxfit.init(guess, OPTIMIZERS["momentum"]))


def test_a_rule_that_is_never_true_changes_nothing(data, trained):
    run = fit(loss, guess, OPTIMIZERS["adam"], STEPS, data=data, stop=loss_below(-1.0))
    same(run, trained("adam"))
    assert run.stop_reason is None


def test_the_ready_made_rules_end_where_the_losses_say(data):
    sgd = optax.sgd(0.1)
    losses = np.asarray(jaxfit.train(loss, guess, sgd, 200, data=data).trajectory["loss"])
    run = fit(loss, guess, sgd, 200, data=data, stop=loss_below(0.1))
    assert int(run.state.step) == np.argmax(losses < 0.1) > 0
    assert run.stop_reason == f"loss_below(0.1) was true at step {np.argmax(losses < 0.1)}"

    waves = jnp.array([5.0, 4.0, 4.5, 3.0, 3.0, 2.95, 3.0, 1.0, 1.0])
    wave = lambda a, batch: batch[0] + 0 * a.sum()
    steps = lambda step: waves[step][None]
    for rule, end in {
        no_improvement(2): None,
        no_improvement(2, 0.1): 5,
        no_improvement(3, 0.1): 6,
    }.items():
        run = fit(wave, jnp.zeros(2), sgd, 9, data=steps, stop=rule, chunk_size=4)
        assert int(run.state.step) == (9 if end is None else end)

    overflow = lambda a: jnp.sum(jnp.exp(a))
    run = fit(overflow, jnp.zeros(2), optax.sgd(-1.0), 50, stop=not_finite)
    assert run.stop_reason.startswith("not_finite was true at step") and run.state.step < 10
    assert np.isfinite(run.state.params).all() and np.isfinite(run.trajectory["loss"]).all()
    assert not np.isfinite(overflow(run.state.params))


@pytest.fixture
def handler():
    """Python's own, which a process that ignored Ctrl-C from its start lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_chunk_and_returns_the_run_so_far(
    monkeypatch, capsys, data, trained, handler
):
    with_hook(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # the second
        fit(loss, guess, OPTIMIZERS["adam"], STEPS, data=data, chunk_size=5)
    assert signal.getsignal(signal.SIGINT) is handler
    calls = iter([signal.SIGINT])
    with_hook(monkeypatch, lambda: [signal.raise_signal(number) for number in calls])
    run = fit(loss, guess, OPTIMIZERS["adam"], STEPS, data=data, chunk_size=5)
    assert signal.getsignal(signal.SIGINT) is handler
    made = int(run.state.step)
    assert 5 <= made <= 15 and run.stop_reason == f"interrupted before step {made}"
    said = capsys.readouterr().err
    assert said == f"fit: {run.stop_reason} of {STEPS}; the run so far is returned.\n"
    assert_same_bits(run.trajectory, row(trained("adam").trajectory, slice(made)))
    rest = fit(loss, run.state, OPTIMIZERS["adam"], STEPS - made, data=data)
    assert_same_bits(rest.state, trained("adam").state)


def test_where_ctrl_c_is_ignored_it_goes_on_being_ignored(monkeypatch, data, trained, handler):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with_hook(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    same(fit(loss, guess, OPTIMIZERS["adam"], STEPS, data=data, chunk_size=5), trained("adam"))
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_progress_is_shown_on_a_terminal_or_always_or_never(data, capsys):
    quiet = {"data": data, "chunk_size": 10}
    fit(loss, guess, optax.sgd(0.1), 30, **quiet)
    fit(loss, guess, optax.sgd(0.1), 30, progress=False, **quiet)
    assert capsys.readouterr() == ("", "")
    fit(loss, guess, optax.sgd(0.1), 30, progress="always", **quiet)
    said = capsys.readouterr().err
    assert "100%" in said and " 30/30 " in said and "loss=" in said and "steps/s" in said


def test_the_module_and_the_function_have_one_name():
    assert fit_function is fit is jaxfit.fit


# Refusals

REFUSED = {
    "no steps": ({"num_steps": -1}, "num_steps is -1, but must be at least 0"),
    "no chunk": ({"chunk_size": 0}, "chunk_size is 0, but must be at least 1"),
    "half a chunk": ({"chunk_size": 0.5}, "chunk_size is 0.5, but must be a whole number"),
    "no rule": ({"stop": 0.1}, r"stop is 0.1, but must be a function of a Step.*loss_below\(0.1\)"),
    "functions in a tuple": (
        {"stop": (lambda: 0, lambda step, seen: (False, seen))},
        r"stop is \(<function .*, but must be a function of a Step that returns a boolean, or a r",
    ),
    "an optimizer": ({"stop": optax.sgd(0.1)}, "stop is .*, but must be a function of a Step that"),
    "a dict": ({"stop": {}}, "stop is {}, but must be a function of a Step that returns a boolean"),
    "a rule without functions": (
        {"stop": Rule(0.1, 0.2)},
        "the rule stop has 0.1 as its init, but that must be a function of 0 arguments: write Rule",
    ),
    "a rule that remembers nothing": (
        {"stop": Rule(lambda: 0, lambda step: False)},
        "the rule stop has <lambda> as its update, but that must be a function of 2 arguments",
    ),
    "a maker of rules": (
        {"stop": loss_below},
        "stop loss_below returned <function .*, but must return one boolean: .* call a maker of",
    ),
    "text for a boolean": (
        {"stop": lambda step: "no"},
        "stop <lambda> returned no, but must return",
    ),
    "a rule of two": (
        {"stop": lambda step, more: True},
        r"takes other arguments, but it is called as stop\(step\)",
    ),
    "no boolean": ({"stop": lambda step: step.loss}, r"returned float32\[\], but must return one"),
    "many booleans": (
        {"stop": lambda step: step.params < 0},
        r"returned bool\[2\], but must return one boolean",
    ),
    "progress": ({"progress": "never"}, "progress is 'never', but must be True, False or"),
    "too much": (
        {"record": lambda step: jnp.zeros((10**6, 10**6)) + step.loss},
        "the trajectory would take .* GB .* record fewer rows",
    ),
    "nothing recorded": ({"record": lambda step: None}, "record returned None, but a row needs"),
    "another loss": ({"loss": lambda a: a.sum()}, "takes other arguments, but data was given"),
}


@pytest.mark.parametrize(("given", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_anything_is_compiled(given, sentence, data):
    arguments = {"loss": loss, "params": guess, "optimizer": optax.sgd(0.1), "num_steps": 10}
    before = _steps.cache_size()
    with pytest.raises((TypeError, ValueError), match=sentence) as refused:
        fit(**(arguments | {"data": data} | given))
    assert str(refused.value).count("\n") == 0 and str(refused.value).endswith(".")
    assert _steps.cache_size() == before


def test_a_traced_fit_is_sent_to_train(data):
    with pytest.raises(TypeError, match="is traced, but fit is driven from Python and"):
        jax.jit(lambda start: fit(loss, start, optax.sgd(0.1), 9, data=data).state)(guess)


def test_a_rule_of_your_own_remembers(data):
    third = Rule(lambda: jnp.int32(0), lambda step, seen: (seen == 2, seen + 1))
    assert fit(loss, guess, optax.sgd(0.1), 9, data=data, stop=third).state.step == 2


def test_fit_and_sweep_inside_traced_code_are_refused_in_a_sentence(data):
    sgd, options = optax.sgd(0.1), {"progress": False, "data": data}
    member = lambda rate: fit(loss, guess, optax.sgd(rate.sum()), 3, **options).state.params
    sentence = "is traced, but fit is driven from Python and compiles for itself"
    for transformed in jax.jit(member), jax.vmap(member), jax.jacfwd(member):
        with pytest.raises(TypeError, match=sentence):
            transformed(jnp.array([0.1]))
    swept = lambda scale: jaxfit.sweep(lambda a: a * scale, {"a": jnp.arange(3.0)}).values
    for transformed in jax.jit(swept), jax.vmap(swept):
        with pytest.raises(TypeError, match="is traced, but sweep is driven from Python"):
            transformed(jnp.arange(2.0))
    assert fit(loss, guess, sgd, 3, **options).state.step == 3


def test_runs_of_all_lengths_share_their_programs(data):
    sgd, losses = optax.sgd(0.1), lambda step: step.loss
    run = lambda steps, **more: fit(
        loss, guess, sgd, steps, data=data, record=losses, progress=False, **more
    )
    run(26), run(26, record_every=4)
    before = _steps.cache_size()
    for steps in 25, 24, 1, 2000:
        run(steps)
    for steps in 25, 23, 2:
        run(steps, record_every=4)
    assert _steps.cache_size() == before


def test_fresh_minibatches_retrace_nothing(data):
    seen, sgd = [], optax.sgd(0.1)

    def counted(a, batch):
        seen.append(1)
        return loss(a, batch)

    def run(seed):
        batches = jaxfit.minibatches(data, 10, jax.random.key(seed))
        return fit(counted, guess, sgd, 5, data=batches, progress=False)

    run(0)
    number = len(seen)
    first, second = run(1), run(2)
    assert len(seen) == number and (first.state.params != second.state.params).any()


def test_a_run_of_no_steps_is_its_state(data):
    kinds = {"record_every": 2, "evaluate": lambda state: state.params, "evaluate_every": 2}
    trained = jaxfit.train(loss, guess, optax.adam(0.1), 0, data=data, keyframe_every=4, **kinds)
    fitted = fit(loss, guess, optax.adam(0.1), 0, data=data, **kinds)
    start = jaxfit.init(guess, optax.adam(0.1))
    for run in trained, fitted:
        assert_same_bits(run.state, start)
        assert_same_bits(run.evaluations, guess[None])
        assert run.evaluated_steps.tolist() == [0] and run.steps.shape == (0,)
        assert run.trajectory["params"].shape == (0, 2) and run.trajectory["loss"].shape == (0,)
    assert trained.keyframes.params.shape == (0, 2)
