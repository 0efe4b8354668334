"""The Python blocks of the README and of the guide run in order, those of the models alone."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = [".", "jaxfit", "tests", "experiments", "experiments/models", "experiments/benchmarks"]
read = lambda folder: (ROOT / folder / "README.md").read_text(encoding="utf-8")
find = lambda text: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
MODELS = read("experiments/models").split("## Models")[1]


def run(block, names):
    exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        (".", {"fit.html", "path.png", "rates.png", "run"}),
        ("jaxfit", {"losses.csv", "run", "sweep"}),
    ],
)
def test_the_blocks_run_one_after_the_other(folder, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in find(read(folder)):
        run(block, names)
    assert {path.name for path in tmp_path.iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"), re.findall(r"\*\*(.*?)\*\*.*?```python\n(.*?)```", MODELS, re.DOTALL)
)
def test_every_model_runs_by_itself_and_has_learned(name, block, capsys):
    run(block, {})
    (accuracy,) = re.findall(r"accuracy ([\d.]+)", capsys.readouterr().out)
    assert float(accuracy) > 0.93


def test_there_are_the_models_that_people_have():
    assert len(find(MODELS)) == 6


def test_a_newcomer_is_not_kept_waiting():
    text = read(".")
    assert text.count("\n") <= 170
    assert len(find(text)[0].splitlines()) <= 15


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_lead_to_files_and_pictures_are_small(folder):
    text = read(folder)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / folder / link).exists(), link
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert 0 < (ROOT / folder / path).stat().st_size < 100 * 1024
