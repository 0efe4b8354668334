"""Runs, states and steps print as summaries, wherever they are and whatever their leaves are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfit
from jaxfit import _summary

adam = optax.adam(0.1)
params = {"w": jnp.zeros(2), "b": 0.0}
x = jnp.ones((5, 2))


def loss(params, batch):
    return jnp.mean((batch @ params["w"] + params["b"] - 1) ** 2)


def train(rate=0.1, steps=100, **options):
    return jaxfit.train(loss, params, optax.adam(rate), steps, data=x, **options)


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda: train(keyframe_every=10))()


def test_a_run_says_how_long_it_is_what_it_holds_and_how_large_it_is(run):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(run))
    assert repr(run) == (
        "Run(100 steps, 100 rows: loss float32[100], params.b float32[100], "
        f"params.w float32[100, 2], step int32[100]; 10 keyframes; {size / 1000:.3g} kB)"
    )
    assert repr(run.state) == "State(step 100: b float32[], w float32[2]; 44 bytes)"
    assert repr(run.keyframes).startswith("State(10 steps: b float32[10], w float32[10, 2]; ")


def test_a_run_says_why_it_stopped():
    stop = jaxfit.stop.loss_below(0.3)
    run = jaxfit.fit(loss, params, adam, 100, data=x, stop=stop, progress=False)
    assert repr(run).endswith(f"; stopped: {run.stop_reason})")
    assert repr(run).startswith(f"Run({len(run.steps)} steps, {len(run.steps)} rows: ")


def test_steps_are_counted_from_where_a_run_began(run):
    more = jaxfit.train(loss, run.state, adam, 7, data=x)
    assert repr(more).startswith("Run(7 steps, 7 rows: ")


def test_a_step_names_its_parameters_batch_and_loss(run):
    step = jaxfit.at(loss, run, adam, 5, data=x)
    shown = "batch float32[5, 2], loss float32[], params.b float32[], params.w float32[2]"
    assert repr(step).startswith(f"Step(step 5: {shown}; ")


def test_many_runs_are_as_many_as_they_are():
    runs = jax.vmap(lambda rate: train(rate, 4))(jnp.array([0.1, 0.2, 0.3]))
    assert repr(runs).startswith("Run(3×4 rows: loss float32[3, 4], ")


def test_to_print_a_traced_run_computes_nothing():
    def traced(print_it):
        def made():
            run = train(steps=4)
            texts = [repr(run), run._repr_html_()] if print_it else []
            assert all("4 rows: loss float32[4]" in text for text in texts)
            return run

        return str(jax.make_jaxpr(made)())

    assert traced(True) == traced(False)


@pytest.mark.parametrize("leaf", [jnp.shape, lambda leaf: None, lambda leaf: "text", np.asarray])
def test_whatever_the_leaves_are_it_prints(run, leaf):
    other = jax.tree.map(leaf, run)
    assert repr(other).startswith("Run(") and repr(other.state).startswith("State(")
    assert other._repr_html_().startswith("<table>")


def test_the_table_of_a_notebook_lists_every_leaf_and_escapes_it():
    state = jaxfit.init({"<b>": jnp.zeros(1000)}, adam)
    table = state._repr_html_()
    assert "params.&lt;b&gt;" in table and "<b>" not in table
    assert table.count("<tr>") == 1 + len(jax.tree.leaves((state.params, state.opt_state)))
    assert ">4,000<" in table


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 bytes"), (250, "1 kB"), (10**6, "4 MB"), (2**50, "4.5e+03 TB")]
)
def test_sizes_are_in_units_of_thousands(number, text):
    assert _summary.size(jax.ShapeDtypeStruct((number,), np.float32)) == text


def test_the_first_of_many_leaves_are_named():
    assert _summary.line(dict.fromkeys("abcdefgh", 1)) == "a 1, b 1, c 1, d 1, e 1, f 1, and 2 more"
