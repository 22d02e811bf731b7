"""The text of single tokens, without encoding any text again."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import cache
from typing import Any


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
