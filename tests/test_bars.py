"""Progress is shown in a terminal, a file, and below the cell of a notebook, where it stays."""

import re

import jax.numpy as jnp
import optax
import pytest

import jaxfit
from tests.common import guess, loss


def fitted(line, **options):
    return jaxfit.fit(loss, guess, optax.sgd(0.1), 30, data=line, chunk_size=10, **options)


def swept(**options):
    return jaxfit.sweep(lambda x: x, {"x": jnp.arange(5)}, batch_size=2, **options)


def raced(**options):
    def fn(state, num_steps, x):
        return x, x

    return jaxfit.halving(fn, {"x": jnp.arange(9.0)}, 9, **options)


def test_in_a_notebook_a_bar_is_one_line_that_is_replaced_and_stays_at_its_end(
    notebook, line, capsys
):
    fitted(line)
    swept(progress=True)
    raced(progress=True)
    ends = {}
    for output in notebook():
        assert output.update == (output.transient["display_id"] in ends)
        ends[output.transient["display_id"]] = output.data["text/plain"]
        assert len(output.data["text/plain"]) <= 80
    fit_end, sweep_end, halving_end = ends.values()
    assert re.search(r"^100%\|█{8,}\| 30/30 \[.* steps/s, loss=[\d.]+\]$", fit_end)
    assert re.search(r"^100%\|█{8,}\| 5/5 \[.* runs/s\]$", sweep_end)
    assert re.search(r"^100%\|█{8,}\| 13/13 \[.* runs/s\]$", halving_end)
    assert capsys.readouterr() == ("", "")  # a cell shows stderr as an error


def test_in_a_notebook_a_bar_of_a_run_that_fails_stays_where_it_was(notebook, line):
    def fails(state, rows, evaluation):
        if state.step == 20:
            raise KeyError("twenty")

    with pytest.raises(KeyError, match="twenty"):
        fitted(line, callback=fails)
    assert " 20/30 [" in notebook()[-1].data["text/plain"]


def test_in_a_notebook_there_can_be_no_bar(notebook, line):
    fitted(line, progress=False)
    swept()
    raced()
    assert notebook() == []
