"""The explorer in a notebook that is executed: the widget, or the page in a frame."""

from __future__ import annotations

import sys

import nbformat
import pytest
from helpers_explorer import large_trace
from test_notebooks import execute, kernel_folder  # noqa: F401

import attnlens


@pytest.mark.slow
def test_a_notebook_shows_the_widget_and_reads_its_step(kernel_folder, tmp_path):  # noqa: F811
    pytest.importorskip("anywidget")
    large_trace(steps=8, layers=2, heads=2, rows=2, columns=3, mapped=1).save(tmp_path / "t.zarr")
    code = [
        "import attnlens, attnlens.explorer\n"
        "shown = attnlens.explorer.view(attnlens.Trace.load('t.zarr'))\nshown",
        "shown.widget.step = 5\nprint(shown.step)",
        "from IPython.display import HTML\nHTML(shown._repr_html_())",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in code])
    execute(notebook, kernel_folder, tmp_path)
    widget, step, frame = (cell.outputs[-1] for cell in notebook.cells)
    assert "application/vnd.jupyter.widget-view+json" in widget.data
    assert step.text == "5\n"
    assert frame.data["text/html"].startswith("<iframe srcdoc=")


def test_without_anywidget_a_view_is_a_frame(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    trace = large_trace(steps=4, layers=2, heads=2, rows=2, columns=3, mapped=1)
    shown = attnlens.explorer.view(trace)
    bundle = shown._repr_mimebundle_()
    assert bundle["text/html"] == shown._repr_html_()
    with pytest.raises(ImportError):
        _ = shown.step
