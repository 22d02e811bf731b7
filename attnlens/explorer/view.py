"""The explorer in a notebook: a widget where anywidget is installed, else the page in a frame."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnlens.explorer.contents import Shown, page_contents
from attnlens.explorer.page import page_html, runs_to_show, script, stylesheet

if TYPE_CHECKING:
    from attnlens.recording.trace import Trace

LARGEST_HERE = 5_000_000
"""Most bytes of a page that stands in a notebook, which a browser loads whole."""
HEIGHT = 900
"""Of the page in a notebook, in pixels."""


class View:
    """Runs, shown where a notebook's cell ends in it.

    Parameters
    ----------
    runs
        What is shown.
    largest
        Most bytes of the page, about; it is kept in the notebook.
    """

    def __init__(self, runs: Sequence[Shown], *, largest: int = LARGEST_HERE) -> None:
        self.contents = page_contents(runs, largest=largest)
        self._widget: Any = None

    @property
    def widget(self) -> Any:
        """The widget; its trait ``step`` is the step at the cursor, and can be set.

        Raises
        ------
        ImportError
            If anywidget is not installed.
        """
        if self._widget is None:
            self._widget = _widget_class()(
                payload=json.dumps(self.contents, allow_nan=False),
                step=self.contents["runs"][0]["steps"][0],
            )
        return self._widget

    @property
    def step(self) -> int:
        """The step at the widget's cursor."""
        return self.widget.step

    def _repr_mimebundle_(self, **options: Any) -> Any:
        try:
            widget = self.widget
        except ImportError:
            return {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return widget._repr_mimebundle_(**options)

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, which survives an export to HTML."""
        page = html.escape(page_html(self.contents), quote=True)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0" title="attnlens explorer">'
            "</iframe>"
        )


def view(trace: Trace, *, largest: int = LARGEST_HERE, **options: Any) -> View:
    """Show a trace in a notebook.

    Parameters
    ----------
    trace
        The record of one generation.
    largest
        Most bytes of the page, about. Where it would be larger, maps have fewer levels, or only
        their mean over layers is kept (``Trace.to_html`` keeps more).
    **options
        ``twins``, ``images``, ``dependence``, ``expected``, ``truth`` and ``looking``, as in
        ``Trace.to_html``.

    Returns
    -------
    View
        What a cell shows. ``view.step`` is the step at the cursor, where anywidget is installed
        (extra ``notebooks``); otherwise the page stands in an ``<iframe>``.

    Raises
    ------
    InputError
        As ``Trace.to_html``.
    """
    return View(runs_to_show(trace, **options), largest=largest)


def _widget_class() -> type:
    import anywidget
    import traitlets

    class ExplorerWidget(anywidget.AnyWidget):
        """The page's script as a widget."""

        _esm = script()
        _css = stylesheet()
        payload = traitlets.Unicode("").tag(sync=True)
        step = traitlets.Int(0).tag(sync=True)

    return ExplorerWidget
