"""The README's Python blocks run, in their order; its commands are the ones that are tested."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"path.png", "rates.png"}
    assert len(BLOCKS) >= 6


def test_the_first_example_is_short_and_the_pictures_are_there():
    assert len(BLOCKS[0].splitlines()) <= 15
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README):
        assert 0 < (ROOT / path).stat().st_size < 300 * 1024
