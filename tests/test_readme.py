"""The Python blocks of the README run in their order, those of the models each by itself."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "experiments/models/README.md").read_text(encoding="utf-8").split("## Models")[1]
find = lambda text: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
STORY = find(README)


def run(block, names):
    exec(compile(block, "README.md", "exec"), names)


def test_the_blocks_of_the_story_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in STORY:
        run(block, names)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"losses.csv", "path.png", "rates.png", "run", "sweep"}
    assert len(STORY) >= 5


@pytest.mark.parametrize(
    ("name", "block"), re.findall(r"\*\*(.*?)\*\*.*?```python\n(.*?)```", MODELS, re.DOTALL)
)
def test_every_model_runs_by_itself_and_has_learned(name, block, capsys):
    run(block, {})
    (accuracy,) = re.findall(r"accuracy ([\d.]+)", capsys.readouterr().out)
    assert float(accuracy) > 0.93


def test_there_are_the_models_that_people_have():
    assert len(find(MODELS)) == 6


def test_the_first_example_is_short_and_the_pictures_are_there():
    assert len(STORY[0].splitlines()) <= 15
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert 0 < (ROOT / path).stat().st_size < 300 * 1024


@pytest.mark.parametrize("path", [".", "experiments/models", "experiments/benchmarks"])
def test_links_lead_to_files(path):
    text = (ROOT / path / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / path / link).exists(), link
