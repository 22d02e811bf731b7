"""Spans of steps that a tag pair encloses, found in the token stream.

Tags are looked for in the joined token texts, and characters are counted back to tokens, so that
it does not matter how a tag is cut: three tokens, one token, or stuck to its neighbours.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from attnlens.boxed import boxed_spans
from attnlens.segments import REGIONS

# in any case; \boxed{...} is the region `answer` too
_TAG = re.compile(rf"<(/?)({'|'.join(REGIONS)})>", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Region:
    """A span of response tokens, tags included.

    Attributes
    ----------
    name
        The tag's name in lower case.
    start, stop
        Half-open span of steps: those whose *predicted* token belongs to the region.
    closed
        Whether the closing tag was found. A region that is not closed reaches to the next opening
        tag, to the closing tag of a region around it, or to the end.
    """

    name: str
    start: int
    stop: int
    closed: bool


def find_regions(texts: Sequence[str]) -> list[Region]:
    """Find the regions of a response.

    Parameters
    ----------
    texts
        Text of each response token, as ``token_texts`` gives them.

    Returns
    -------
    list of Region
        In order of their start. A region inside another is listed after it.
    """
    text = "".join(texts)
    ends = list(accumulate(len(t) for t in texts))
    tags = list(_TAG.finditer(text))
    openings = [match.start() for match in tags if not match[1]]
    found: list[tuple[str, int, int, bool]] = []
    open_tags: list[tuple[str, int]] = []

    def end_open(index: int, at: int) -> None:
        """End the open tags from an index on, unclosed, at a character or the next opening."""
        for name, start in open_tags[index:]:
            later = openings[bisect_right(openings, start) :][:1]
            found.append((name, start, min([at, *later]), False))
        del open_tags[index:]

    for match in tags:
        name = match[2].lower()
        names = [n for n, _ in open_tags]
        if not match[1]:
            if name in names:  # opened again without having been closed
                end_open(names.index(name), match.start())
            open_tags.append((name, match.start()))
        elif name in names:
            index = len(names) - 1 - names[::-1].index(name)
            # what was opened inside and never closed ends where its surrounding does
            end_open(index + 1, match.start())
            found.append((name, open_tags.pop()[1], match.end(), True))
    end_open(0, len(text))
    found += _boxed_spans(text)
    # ordered by character, since regions that lie in the same tokens can still be nested
    return [
        Region(name, bisect_right(ends, start), bisect_right(ends, stop - 1) + 1, closed)
        for name, start, stop, closed in sorted(found, key=lambda span: (span[1], -span[2]))
    ]


def _boxed_spans(text: str) -> list[tuple[str, int, int, bool]]:
    r"""Character spans of ``\boxed{...}``; one that is not closed ends at the next tag."""
    spans = []
    for box in boxed_spans(text):
        stop = box.stop
        if not box.closed and (tag := _TAG.search(text, box.inside)):
            stop = tag.start()
        spans.append(("answer", box.start, stop, box.closed))
    return spans


def region_of_steps(regions: Sequence[Region], steps: int) -> list[str]:
    """Name of the innermost region of each step; empty outside all regions."""
    names = [""] * steps
    for region in sorted(regions, key=lambda r: r.start - r.stop):  # long ones first
        for step in range(region.start, min(region.stop, steps)):
            names[step] = region.name
    return names
