"""Every notebook of the documentation runs from its first cell to its last, and carries no output."""

import json

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

pytestmark = pytest.mark.slow

NAMES = ("features_to_auroc", "slide_to_attention", "two_hospitals")


def test_these_are_all_notebooks(repository):
    assert tuple(sorted(path.stem for path in (repository / "docs/notebooks").glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    notebook = json.loads((repository / f"docs/notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    names: dict = {"__name__": name}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
    plt.close("all")
