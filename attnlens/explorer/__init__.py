"""The explorer: one generation or many as a page that opens anywhere, and as a widget."""

from __future__ import annotations

from attnlens.explorer.contents import Shown as Shown
from attnlens.explorer.contents import page_contents as page_contents
from attnlens.explorer.index import write_index as write_index
from attnlens.explorer.page import check_page as check_page
from attnlens.explorer.page import page_html as page_html
from attnlens.explorer.page import runs_to_show as runs_to_show
from attnlens.explorer.page import write_page as write_page
from attnlens.explorer.view import View as View
from attnlens.explorer.view import view as view

__all__ = [
    "Shown",
    "View",
    "check_page",
    "page_contents",
    "page_html",
    "runs_to_show",
    "view",
    "write_index",
    "write_page",
]
