"""The lesson is stored without outputs, and its cells run, play and print what is true."""

import pathlib
import re

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import experiments
import jaxfit

LESSON = pathlib.Path(experiments.__file__).parent / "lesson.ipynb"
COLUMNS = r"step +(\d+) +loss ([\d.]+)"


def test_it_is_stored_without_outputs():
    lesson = nbformat.read(LESSON, as_version=4)
    nbformat.validate(lesson)
    cells = [cell for cell in lesson.cells if cell.cell_type == "code"]
    assert len(cells) > 10
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.fixture(scope="module")
def outputs():
    """The outputs of all its cells, in a process of its own, in order."""
    lesson = nbformat.read(LESSON, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # so that figures are shown below their cells
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("PYTHONPATH", str(LESSON.parent.parent))
        NotebookClient(lesson, timeout=300).execute()  # which raises what a cell raises
    return [output for cell in lesson.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_its_numbers_are_those_of_numpy(outputs):
    printed = "".join(one.text for one in outputs if one.get("name") == "stdout")
    x, y = (np.asarray(array, np.float64) for array in jaxfit.data.line(jax.random.key(0)))
    a, losses = np.array([-1.0, 1.0]), []
    for _ in range(100):
        losses.append(np.mean((x @ a - y) ** 2))
        a = a - 0.1 * 2 / 100 * x.T @ (x @ a - y)
    found = np.array(re.findall(COLUMNS, printed), float)
    np.testing.assert_array_equal(found[:, 0], range(0, 100, 10))
    np.testing.assert_allclose(found[:, 1], losses[::10], atol=1e-4)
    assert f"y = {a[0]:.3f} x + {a[1]:.3f}" in printed
    assert "same bits: True" in printed

    curvatures = np.linalg.eigvalsh(2 * x.T @ x / 100)[::-1]
    pairs = np.array(re.findall(r"curvature ([\d.]+), .*exactly ([\d.]+)", printed), float)
    np.testing.assert_allclose(pairs, np.stack([curvatures] * 2, 1), atol=2e-5)
    (lowest,) = map(float, re.findall(r"ended above its start: ([\d.]+)", printed))
    assert 2 / curvatures[0] < lowest < 1.05 * 2 / curvatures[0]
    (below, above) = map(float, re.findall(r"rate: (\S+) at 0.01, (\S+) at 0.98", printed)[0])
    assert below < -100 and above > 1
    assert re.search(r"cross entropy before: 1.0986.*\nafter 60 steps: 0\.[12]", printed)
    assert float(re.search(r"(\d+)% of the points", printed)[1]) > 90


@pytest.mark.slow
def test_its_animations_play_its_pictures_are_there_and_it_complains_of_nothing(outputs):
    pages = [one.data["text/html"] for one in outputs if "text/html" in one.get("data", {})]
    assert len(pages) == 2
    assert all("jaxfit-player" in page and len(page) < 200_000 for page in pages)
    assert sum("image/png" in one.get("data", {}) for one in outputs) == 6
    (bar,) = [one for one in outputs if " runs/s" in one.get("data", {}).get("text/plain", "")]
    assert " 200/200 " in bar.data["text/plain"]
    assert [one for one in outputs if one.get("name") == "stderr"] == []
