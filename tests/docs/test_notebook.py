"""The notebook runs from its first cell to its last one, against a server that answers at once."""

from __future__ import annotations

import nbformat
import pytest
from fake_server import FakeServer, chat
from markdown_pages import ROOT, relative_links
from nbclient import NotebookClient

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def answer(body):
    """What the server says: an answer that fits each question of the notebook."""
    asked = body["messages"][-1]["content"]
    return chat("4" if "walk to restaurants" in asked else "yes")


@pytest.fixture
def server(monkeypatch):
    made = FakeServer()
    made.reply = answer
    monkeypatch.setenv("BASE_URL", f"{made.root}/v1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield made
    made.kill()


@pytest.mark.slow
def test_the_notebook_runs(server):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "40 rows, 40 distinct, 0 failed" in printed
    assert 80 < len(server.bodies) < 120  # two questions per row, one per home


def test_links_of_the_notebook_lead_somewhere():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    links = [path for cell in cells if cell.cell_type == "markdown" for path, _ in relative_links(cell.source)]
    assert links and all((NOTEBOOK.parent / path).exists() for path in links)
