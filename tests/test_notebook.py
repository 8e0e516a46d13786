"""The page for users of RecTools and LensKit runs as a notebook; peers run where installed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "coming-from-rectools-and-lenskit.md"
FENCE = re.compile(r"^```python (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELLS = FENCE.findall(PAGE.read_text("utf-8"))


def run(cells: list[str], folder: Path) -> list[object]:
    """Execute cells in one kernel and return their outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of the notebook packages to one another
        nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def shown(outputs: object) -> str:
    """The HTML of a cell."""
    assert isinstance(outputs, list)
    return " ".join(output.data.get("text/html", "") for output in outputs if "data" in output)


@pytest.mark.slow
def test_recloop_cells_run_and_render(tmp_path: Path) -> None:
    outputs = run([code for kind, code in CELLS if kind == "notebook"], tmp_path)
    html = " ".join(map(shown, outputs))
    assert "<td>columns.item_id</td><td>sku</td>" in html
    assert re.search(r"<th>NDCG@10</th>.*<td>covisitation</td>.*95 % CI over users", html, re.DOTALL)
    assert (tmp_path / "bundle" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["rectools", "lenskit"])
def test_cells_of_a_peer_run_where_it_is_installed(peer: str, tmp_path: Path) -> None:
    pytest.importorskip(peer)
    log = next(code for kind, code in CELLS if kind == "notebook")
    run(["import pandas as pd\n" + log, *(code for kind, code in CELLS if kind == peer)], tmp_path)


def test_every_cell_is_of_a_known_kind_and_compiles() -> None:
    assert {kind for kind, _ in CELLS} == {"notebook", "rectools", "lenskit"}
    for _, code in CELLS:
        compile(code, PAGE.name, "exec")
