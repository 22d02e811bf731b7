"""The response as text: the tokens of its steps, and the regions that tags enclose in it."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from attnlens.answers import boxed_spans
from attnlens.segments import REGIONS

UNKNOWN = -1
"""Token id of a token that the recorder could not see."""


@dataclass(frozen=True)
class TokenStream:
    """The token ids around each step of one generation.

    Attributes
    ----------
    query, predicted
        int64 [steps]: the token fed in at each step and the one it predicts; ``UNKNOWN`` where
        they were not seen.
    """

    query: np.ndarray
    predicted: np.ndarray


def token_stream(
    positions: np.ndarray,
    fed: dict[int, int],
    generated: Sequence[int] | None,
    prompt_length: int,
    end_ids: frozenset[int],
    pad_ids: frozenset[int] = frozenset(),
) -> TokenStream:
    """Find each step's tokens, cut after the first one that ends the response.

    Parameters
    ----------
    positions
        int64 [steps]: key slots of the steps' queries.
    fed
        Token ids by the key slot that they were fed in at.
    generated
        Ids that ``generate`` returned, in full; None where it was not seen.
    prompt_length
        Number of prompt keys.
    end_ids, pad_ids
        Ids that end a response, and those that fill up the shorter ones of a batch. A response
        without an end token (a stop string ended it) is cut before the padding at its end.
    """

    def at(slot: int) -> int:
        index = slot - prompt_length
        if generated is not None and 0 <= index < len(generated):
            return int(generated[index])
        return fed.get(slot, UNKNOWN)

    query = np.array([at(int(p)) for p in positions], dtype=np.int64)
    predicted = np.array([at(int(p) + 1) for p in positions], dtype=np.int64)
    ends = np.flatnonzero(np.isin(predicted, list(end_ids)))
    if len(ends):
        stop = int(ends[0]) + 1
    else:
        kept = np.flatnonzero(~np.isin(predicted, list(pad_ids)))
        stop = int(kept[-1]) + 1 if len(kept) else len(predicted)
    return TokenStream(query[:stop], predicted[:stop])


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the characters that byte-level BPE writes bytes with (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in shown}
    hidden = (b for b in range(256) if b not in set(shown))
    table.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return table


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token of a sequence; joined, they give the text of the whole.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer; byte-level BPE is read byte by byte.
    ids
        Token ids; negative ones (not known) give the empty text.

    Returns
    -------
    list of str
        One text per token. A character that is spread over several tokens belongs to the last of
        them; bytes that make no character become the replacement character.
    """
    added = {i: str(t) for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in repr(getattr(backend, "decoder", ""))
    if not byte_level:
        return ["" if i < 0 else tokenizer.decode([i]) for i in ids]
    table = _byte_of_character()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = []
    for i in ids:
        if i < 0:
            texts.append("")
        elif i in added:
            # an unfinished character before a special token will never be finished
            texts.append(decoder.decode(b"", final=True) + added[i])
        else:
            piece = tokenizer.convert_ids_to_tokens(i) or ""
            data = b"".join(bytes([table[c]]) if c in table else c.encode("utf-8") for c in piece)
            texts.append(decoder.decode(data))
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that are no part of the text (end of turn, padding, placeholders)."""
    # all_special_ids holds those with a role (end, padding), not every placeholder
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = (i for i, token in added.items() if getattr(token, "special", False))
    return frozenset([*getattr(tokenizer, "all_special_ids", ()), *marked])


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

    Tags are searched in the joined text, so it does not matter how tokens cut them.

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
    for box in boxed_spans(text):
        next_tag = None if box.closed else _TAG.search(text, box.inside)
        stop = next_tag.start() if next_tag else box.stop
        found.append(("answer", box.start, stop, box.closed))
    # ordered by character, since regions in the same tokens can still be nested
    return [
        Region(name, bisect_right(ends, start), bisect_right(ends, stop - 1) + 1, closed)
        for name, start, stop, closed in sorted(found, key=lambda span: (span[1], -span[2]))
    ]


def region_of_steps(regions: Sequence[Region], steps: int) -> list[str]:
    """Name of the innermost region of each step; empty outside all regions."""
    names = [""] * steps
    for region in sorted(regions, key=lambda r: r.start - r.stop):  # long ones first
        for step in range(region.start, min(region.stop, steps)):
            names[step] = region.name
    return names
