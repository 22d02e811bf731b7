"""CHAIR: objects that a text names and that are not in the picture (arXiv 1809.02156, section 2.1).

CHAIR_i = mentions of objects that are not there / all mentions of objects;
CHAIR_s = texts with such a mention / all texts. Lower is better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from attnlens.errors import InputError
from attnlens.measures.statistics import ratio_interval, with_interval


def mentions(text: str, objects: Mapping[str, Collection[str]]) -> list[str]:
    """Find the objects that a text names, each as often as it is named.

    Parameters
    ----------
    text
        The text; case does not count.
    objects
        Synonyms by the name of each object, which is one of them itself. Of names that overlap, the
        longest counts: a hot dog is no dog. Regular plurals are found.

    Returns
    -------
    list of str
        Names of objects, in order.
    """
    name_of = {
        form: name
        for name, synonyms in objects.items()
        for synonym in (name, *synonyms)
        for form in _forms(" ".join(synonym.lower().split()))
    }
    if not name_of:
        return []
    longest_first = sorted(name_of, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    return [name_of[found] for found in pattern.findall(" ".join(text.lower().split()))]


def _forms(word: str) -> tuple[str, ...]:
    """Singular and regular plural."""
    if re.search("[^aeiou]y$", word):
        return word, f"{word[:-1]}ies"
    return word, f"{word}es" if re.search("(?:s|x|z|ch|sh)$", word) else f"{word}s"


def chair(
    texts: Sequence[str],
    present: Sequence[Collection[str]],
    objects: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Score descriptions.

    Parameters
    ----------
    texts
        One description per picture.
    present
        Objects in each picture, by their names in `objects` or a synonym.
    objects
        As in ``mentions``. For MSCOCO give its 80 categories with the synonyms of the paper.

    Returns
    -------
    dict
        ``chair_i`` and ``chair_s``, each with ``mean``, ``low``, ``high`` and ``count``. The 95%
        interval of ``chair_i`` is that of a ratio over texts (Fieller; None for fewer than 20),
        since mentions of one text are not independent; that of ``chair_s`` is Wilson's (None for
        fewer than 12). ``absent``: how often each object was named that is not there, the most
        frequent first.

    Raises
    ------
    InputError
        If there are not as many texts as sets of objects, or a present object is not in `objects`.
    """
    if len(texts) != len(present):
        raise InputError(f"{len(texts)} texts and {len(present)} lists of objects: give one each")
    named, wrong = np.zeros(len(texts)), np.zeros(len(texts))
    absent: dict[str, int] = {}
    for i, (text, there) in enumerate(zip(texts, present, strict=True)):
        known: set[str] = set()
        for item in there:
            found = mentions(item, objects)
            if not found:
                raise InputError(f"{item!r} is not in the list of objects: add it, or a synonym")
            known.update(found)
        listed = mentions(text, objects)
        for name in listed:
            if name not in known:
                absent[name] = absent.get(name, 0) + 1
                wrong[i] += 1
        named[i] = len(listed)
    low, high = ratio_interval(wrong, named, 0.95) if named.any() else (np.nan, np.nan)
    return {
        "chair_i": {
            "mean": float(wrong.sum() / named.sum()) if named.any() else None,
            "low": max(low, 0.0) if np.isfinite(low) else None,
            "high": min(high, 1.0) if np.isfinite(high) else None,
            "count": int(named.sum()),
        },
        "chair_s": with_interval((wrong > 0).astype(float).tolist(), proportion=True),
        "absent": dict(sorted(absent.items(), key=lambda item: -item[1])),
    }
