"""The study on linear regression prints the numbers it should, and refuses with one sentence."""

import functools
import pathlib
import re

import jax
import numpy as np
import pytest

import jaxfit
from experiments import __main__ as listing
from experiments import linear_regression
from tests.common import assert_pictures, assert_refuses

HUBBLE = pathlib.Path(linear_regression.__file__).parent / "data" / "hubble1929.csv"
NUMBER = r"\s+(-?[\d.]+(?:e[+-]\d+)?)"


@pytest.fixture
def study(command):
    return functools.partial(command, linear_regression, "--no-animation")


def numbers(pattern, text):
    return np.array(re.findall(pattern, text), float)


def test_the_lesson_prints_its_points_and_losses_and_writes_its_pictures(study, tmp_path):
    printed = study()
    x, y = (np.asarray(array, np.float64) for array in jaxfit.data.line(jax.random.key(0)))
    table = numbers(rf"(?m)^ {NUMBER}{NUMBER}$", printed)
    np.testing.assert_allclose(table, np.stack([x[:5, 0], y[:5]], 1), atol=6e-5)

    a, losses = np.array([-1.0, 1.0]), []
    for _ in range(100):
        losses.append(np.mean((x @ a - y) ** 2))
        a = a - 0.1 * 2 / 100 * x.T @ (x @ a - y)
    descent = numbers(rf"step{NUMBER}   loss{NUMBER}", printed)
    np.testing.assert_array_equal(descent[:, 0], np.arange(0, 100, 10))
    np.testing.assert_allclose(descent[:, 1], losses[::10], atol=1e-4)
    (line,) = numbers(rf"gradient descent{NUMBER}{NUMBER}", printed)
    np.testing.assert_allclose(line, a, atol=1e-3)

    assert_pictures(tmp_path / "out", {"data", "guess", "fit", "loss", "path"}, printed)


@pytest.mark.slow
def test_the_study_of_hubbles_galaxies_finds_his_constant(study):
    printed = study("--csv", HUBBLE, "--x", "distance_mpc", "--y", "velocity_km_s")
    assert printed.startswith("24 points; the first five (distance_mpc, velocity_km_s):")
    (line,) = numbers(rf"gradient descent{NUMBER}{NUMBER}", printed)
    np.testing.assert_allclose(line, [454.158, -40.784], rtol=1e-4)
    theory = printed.split("beside theory:")[1]
    rate, steps, measured, expected = numbers(rf"(?m)^{NUMBER * 4}", theory)[0]
    assert (rate, steps) == (0.1, 100)
    np.testing.assert_allclose([measured, expected], [0.8, 0.8], atol=2e-3)


FILES = {
    "text.csv": "a,b\n1,2\n3,four\n5,6\n",
    "gap.csv": "a,b\n1,2\n3\n5,6\n",
    "infinite.csv": "a,b\n1,2\n3,inf\n",
    "one.csv": "a,b\n1,2\n",
    "empty.csv": "",
    "constant.csv": "a,b\n1,2\n3,2\n5,2\n",
    "good.csv": "a,b\n1,2\n3,4\n5,7\n",
}
COLUMNS = ("--x", "a", "--y", "b")
REFUSED = {
    "missing file": (("--csv", "none.csv", *COLUMNS), "none.csv cannot be read: No such file"),
    "missing column": (
        ("--csv", "good.csv", "--x", "a", "--y", "c"),
        "has no column 'c': it has a, b",
    ),
    "text": (("--csv", "text.csv", *COLUMNS), "line 3: 'four' in column 'b' is not a number"),
    "gap": (("--csv", "gap.csv", *COLUMNS), "line 3: None in column 'b' is not a number"),
    "infinite": (("--csv", "infinite.csv", *COLUMNS), "line 3: 'inf' in column 'b' is not a"),
    "one row": (("--csv", "one.csv", *COLUMNS), "has 1 rows, but a line needs at least two"),
    "empty": (("--csv", "empty.csv", *COLUMNS), "has no column 'a': it has none"),
    "constant": (("--csv", "constant.csv", *COLUMNS), "is 2 in every row, but must vary"),
    "csv without x": (("--csv", "good.csv", "--y", "b"), "--csv needs --x COLUMN and --y COLUMN"),
    "x without csv": (("--x", "a"), "--x and --y name columns of a file: give it with --csv"),
    "no steps": (("--steps", 0), "--steps is 0, but must be from 1"),
    "rate zero": (("--lr", 0), "--lr is 0, but must be more than 0"),
    "rate nan": (("--lr", "nan"), "--lr is nan, but must be more than 0"),
    "rate too large": (("--lr", 5), "--lr is 5, but .* is stable below 0.9.*: choose a smaller"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_answered_by_one_sentence(
    study, tmp_path, monkeypatch, capsys, arguments, sentence
):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert_refuses(capsys, f"linear_regression: .*{sentence}", study, *arguments)


def test_every_study_is_listed_with_the_first_line_of_its_text(capsys):
    listing.main()
    listed = dict(re.findall(r"(?m)^  experiments\.(\S+) +(.*)$", capsys.readouterr().out))
    files = pathlib.Path(listing.__file__).parent.glob("[a-z]*.py")
    assert len(listed) > 5 and {path.stem for path in files} <= set(listed)
    assert listed["linear_regression"] == linear_regression.__doc__.splitlines()[0]
