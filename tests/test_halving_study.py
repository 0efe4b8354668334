"""The study on halving finds the grid's rate for a part of its steps, and its runs are exact."""

import functools
import re

import pytest

from experiments import halving
from tests.common import assert_pictures, assert_refuses


@pytest.fixture
def study(command):
    return functools.partial(command, halving, "--rates", 9, "--seeds", 2, "--steps", 27)


@pytest.mark.slow
def test_the_study_prints_what_halving_saves_and_draws_where_rates_were_let_go(study, tmp_path):
    printed = study()
    assert printed.count("have the bits of the runs alone: yes") == 4
    for name in "halving", "Hyperband":
        rows = re.findall(rf"{name} +([\d.e+-]+) .* ([\d,]+) +([\d.]+)%", printed)
        assert len(rows) == 2
        for rate, steps, part in rows:
            assert float(part) == pytest.approx(int(steps.replace(",", "")) / 4.86, abs=0.06)
            assert 1e-3 <= float(rate) <= 10
    # Nine rates for 3 steps, three for 6 more, one for 18 more, all twice.
    assert printed.count(" 126 ") == 2
    assert_pictures(tmp_path / "out", {"rates"}, printed)


def test_a_mistake_is_answered_by_one_sentence(study, capsys):
    sentence = "halving: --seeds is 1, but must be from 2 to 1000"
    assert_refuses(capsys, sentence, study, "--seeds", 1)
