"""A page that opens anywhere: one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnlens.errors import InputError
from attnlens.explorer.contents import LARGEST, Shown, embedded, page_contents
from attnlens.files import check_file, write_file
from attnlens.text import one_line, quoted, shortened

if TYPE_CHECKING:
    import xarray as xr

    from attnlens.recording.trace import Trace

_HERE = Path(__file__).parent
_START = """
const root = document.getElementById("attnlens");
start(root, JSON.parse(document.getElementById("attnlens-data").textContent), { hash: true });
"""
_BODY = """
body { margin: 0; background: #ffffff; }
@media (prefers-color-scheme: dark) { body { background: #15171b; } }
"""
_PLAIN = 1000
"""Most questions in a list without JavaScript."""
UNTOUCHED = "untouched"
"""Name of a run beside its twins."""


def script() -> str:
    """Return the text of the module that draws a page."""
    return (_HERE / "explorer.js").read_text(encoding="utf-8")


def stylesheet() -> str:
    """Return the style of a page."""
    return (_HERE / "explorer.css").read_text(encoding="utf-8")


def page_html(contents: Mapping[str, Any]) -> str:
    """Return a page that shows contents.

    Nothing but its own script and style runs in it, and it can load nothing but the pictures it
    holds (Content-Security-Policy).

    Parameters
    ----------
    contents
        From ``page_contents`` or ``index_contents``.
    """
    module, style = script() + _START, stylesheet() + _BODY
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(module)}'",
            f"style-src '{_hash(style)}'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    title = html.escape(shortened(one_line(str(contents["title"])), 200))
    # a script or style that held these would end too early, and a browser would refuse it
    assert "</script" not in module.lower()
    assert "<!--" not in module
    assert "</style" not in style.lower()
    data = embedded(contents)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<main id="attnlens"><h1>{title}</h1></main>\n'
        f"<noscript>{_plain(contents)}</noscript>\n"
        f'<script type="application/json" id="attnlens-data">{data}</script>\n'
        f'<script type="module">{module}</script>\n</body>\n</html>\n'
    )


def _plain(contents: Mapping[str, Any]) -> str:
    """Return what is shown where JavaScript is off: each question with its answer."""
    rows = list(contents.get("rows") or contents.get("runs") or ())
    told = [
        ": ".join(filter(None, (row["name"], row["question"], row["answer"] or "no answer")))
        for row in rows[:_PLAIN]
    ]
    if len(rows) > _PLAIN:
        told.append(f"and {len(rows) - _PLAIN:,} more")
    items = "".join(f"<li>{html.escape(shortened(one_line(text), 500))}</li>" for text in told)
    return (
        "<p>This page draws its figures with JavaScript, which is off. Questions and answers:</p>"
        f"<ul>{items}</ul>"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_page(
    path: str | Path,
    runs: Sequence[Shown],
    *,
    replace: bool = False,
    largest: int = LARGEST,
) -> Path:
    """Write a page about runs.

    Parameters
    ----------
    path
        The file, usually ``<name>.html``.
    runs
        The runs, the one that others are compared with first.
    replace
        Whether to write over a file that is already there.
    largest
        Most bytes of the file, about; see ``page_contents``.

    Raises
    ------
    InputError
        If the file cannot be written or exists and ``replace`` is not set, or as in
        ``page_contents``.
    """
    path = check_page(path, replace=replace)
    text = page_html(page_contents(runs, largest=largest))
    with write_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_page(path: str | Path, *, replace: bool = False) -> Path:
    """Refuse, before any work, a path at which no page can be written.

    Raises
    ------
    InputError
        If it cannot be written, or is there and ``replace`` is not set.
    """
    path = Path(path)
    check_file(path)
    if path.exists() and not replace:
        raise InputError(f"{quoted(path)} exists already: give another name, or replace=True")
    return path


def runs_to_show(
    trace: Trace,
    *,
    twins: Mapping[str, Trace] | None = None,
    images: Any = None,
    dependence: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    expected: str | None = None,
    truth: Any = None,
    looking: xr.Dataset | None = None,
) -> list[Shown]:
    """Return a trace and its twins with all that is known of them; see ``Trace.to_html``.

    Raises
    ------
    InputError
        If a twin answers another prompt or has the name of another run, or a dependence is of a
        run that is not there.
    """
    twins = dict(twins or {})
    own = UNTOUCHED if twins else ""
    if own in twins:
        raise InputError(f"a twin is named {own!r}, as the trace itself: give it another name")
    for name, twin in twins.items():
        check_twin(str(name), twin, trace)
    by_run: dict[str, Any] = {}
    if dependence is not None:
        # a dataset is a mapping, too
        by_run = {own: dependence} if hasattr(dependence, "data_vars") else dict(dependence)
        unknown = [name for name in by_run if name != own and name not in twins]
        if unknown:
            names = ", ".join(map(repr, [own, *twins]))
            raise InputError(f"dependence= names {unknown[0]!r}: the runs are {names}")
    several = images is None or isinstance(images, list | tuple)
    given = images if several else [images]
    return [
        Shown(
            trace=one,
            name=name,
            images=given,
            dependence=by_run.get(name),
            expected=expected,
            truth=truth if one is trace else _truth_of_twin(truth, trace, one),
            looking=looking,
        )
        for name, one in {own: trace, **twins}.items()
    ]


def check_twin(name: str, twin: Trace, trace: Trace) -> None:
    """Refuse, with an ``InputError``, a run of another model, prompt or image."""
    named = f"the twin {shortened(name, 80)!r}"
    advice = "give a run of the same model and prompt"
    for key, word in (("config_hash", "model"), ("prompt", "prompt"), ("question", "question")):
        if twin.attrs.get(key) != trace.attrs.get(key):
            raise InputError(f"{named} has another {word} than the trace: {advice}")
    # where a picture was read from says nothing of what is in it
    pictures = [
        [{k: v for k, v in image.items() if k != "path"} for image in one.attrs.get("images") or ()]
        for one in (twin, trace)
    ]
    if pictures[0] != pictures[1]:
        raise InputError(f"{named} has another image than the trace: {advice}")
    for axis in ("layer", "head"):
        if not np.array_equal(twin.data[axis].values, trace.data[axis].values):
            raise InputError(f"{named} has other {axis}s than the trace: record the same ones")


def _truth_of_twin(truth: Any, trace: Trace, twin: Trace) -> Any:
    """Return the boxes of those steps up to which a twin has the tokens of the trace."""
    if truth is None or isinstance(truth, Mapping):
        return truth  # which is compared with the twin's own tokens
    both = zip(trace.data["step"].values, trace.tokens, twin.tokens, strict=False)
    same = {int(step) for step, _, _ in takewhile(lambda one: one[1] == one[2], both)}
    return [pair for pair in truth if pair[0] in same]
