"""Regions are found in the token stream, however the tags are cut into tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.recording.response import Region, find_regions, region_of_steps
from attnlens.segments import REGIONS

FEW = settings(max_examples=60, deadline=None)


def starting_tag(text: str, at: int) -> tuple[str, bool, int] | None:
    """Return name, whether it opens, and length of the tag at a character."""
    for name in REGIONS:
        for opens, tag in ((True, f"<{name}>"), (False, f"</{name}>")):
            if text[at : at + len(tag)].lower() == tag:
                return name, opens, len(tag)
    return None


def spans_by_hand(text: str) -> list[tuple[str, int, int, bool]]:
    """Read a text one character at a time: spans of characters, in no special order."""
    spans: list[tuple[str, int, int, bool]] = []
    stack: list[list] = []  # name, start, first opening tag after it

    def drop(depth: int, at: int) -> None:
        while len(stack) > depth:
            name, start, cut = stack.pop()
            spans.append((name, start, at if cut is None else cut, False))

    for at in range(len(text)):
        tag = starting_tag(text, at)
        if tag is None:
            continue
        name, opens, length = tag
        depths = [d for d, entry in enumerate(stack) if entry[0] == name]
        if opens:
            for entry in stack:
                if entry[2] is None:
                    entry[2] = at
            if depths:
                drop(depths[0], at)
            stack.append([name, at, None])
        elif depths:
            drop(depths[-1] + 1, at)
            spans.append((name, stack.pop()[1], at + length, True))
    drop(0, len(text))
    return spans + boxed_by_hand(text)


def boxed_by_hand(text: str) -> list[tuple[str, int, int, bool]]:
    spans = []
    word = "\\boxed"
    for at in range(len(text)):
        brace = at + len(word)
        if text[at:brace] != word:
            continue
        while text[brace : brace + 1].isspace():
            brace += 1
        if text[brace : brace + 1] != "{":
            continue
        depth = 0
        for end in range(brace, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                spans.append(("answer", at, end + 1, True))
                break
        else:
            tags = (i for i in range(brace, len(text)) if starting_tag(text, i))
            spans.append(("answer", at, next(tags, len(text)), False))
    return spans


def in_tokens(span: tuple[str, int, int, bool], tokens: list[str]) -> Region:
    """Name the tokens that hold a span's first and last character."""
    name, start, stop, closed = span
    owner = [number for number, token in enumerate(tokens) for _ in token]
    return Region(name, owner[start], owner[stop - 1] + 1, closed)


NAMES = ["think", "back", "reflection", "answer", "THINK", "Back"]
PIECES = st.one_of(
    st.sampled_from([f"<{n}>" for n in NAMES] + [f"</{n}>" for n in NAMES]),
    st.sampled_from(["\\boxed{", "\\boxed {", "{", "}", "\\boxed", "<", ">", "</", "back", " "]),
    st.text("abé\n 图🙂", max_size=4),
)
NESTED = st.recursive(
    PIECES,
    lambda inner: st.one_of(
        st.builds("<{0}>{1}</{0}>".format, st.sampled_from(NAMES), inner),
        st.builds("\\boxed{{{}}}".format, inner),
        st.lists(inner, max_size=4).map("".join),
    ),
    max_leaves=8,
)
TEXTS = st.lists(NESTED, max_size=6).map("".join)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    """Draw a text that is cut at any places; some tokens are empty."""
    text = draw(TEXTS)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=2 * len(text)))
    edges = [0, *sorted(cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@FEW
@given(cut_texts())
def test_regions_of_any_cut(tokens):
    found = find_regions(tokens)
    spans = spans_by_hand("".join(tokens))
    expected = [in_tokens(span, tokens) for span in spans]
    key = repr
    assert sorted(found, key=key) == sorted(expected, key=key)
    assert [r.start for r in found] == sorted(r.start for r in found)


@FEW
@given(cut_texts())
def test_each_step_has_the_name_of_a_region_that_covers_it(tokens):
    regions = find_regions(tokens)
    for step, name in enumerate(region_of_steps(regions, len(tokens))):
        around = [r for r in regions if r.start <= step < r.stop]
        shortest = min((r.stop - r.start for r in around), default=0)
        assert name in ({r.name for r in around if r.stop - r.start == shortest} or {""})


ANSWER = "a <think> b </think>.\n<back> look </back> so \\boxed{3}"
CUTS = [
    "|".join(ANSWER),  # one character per token
    ANSWER,
    "a |<think>| b |</think>|.\n|<back>| look |</back>| so |\\boxed{3}",
    "a| <|think|>| b| </|think|>.\n|<|back|>| look| </|back|>| so| \\|boxed|{|3|}",
    "a <th||ink> b </|think||>.\n<||back> lo|ok </back> |so \\bo|xed{|3}",
]


@pytest.mark.parametrize("cut", CUTS)
def test_every_cut_gives_the_tokens_that_hold_the_tags(cut):
    tokens = cut.split("|")
    assert "".join(tokens) == ANSWER
    found = find_regions(tokens)
    assert [(r.name, r.closed) for r in found] == [
        ("think", True),
        ("back", True),
        ("answer", True),
    ]
    for region, (first, last) in zip(
        found, [("<think>", "</think>"), ("<back>", "</back>"), ("\\boxed", "}")], strict=True
    ):
        begin = ANSWER.index(first)
        end = ANSWER.index(last) + len(last)
        before = len("".join(tokens[: region.start]))
        assert before <= begin < before + len(tokens[region.start])
        after = len("".join(tokens[: region.stop]))
        assert after - len(tokens[region.stop - 1]) < end <= after


def test_three_tokens_of_one_tag():
    tokens = ["so", " <", "back", ">", " look", " </", "back", ">.\n", "then"]
    assert find_regions(tokens) == [Region("back", 1, 8, True)]
    assert region_of_steps(find_regions(tokens), 9) == [""] + ["back"] * 7 + [""]


def test_neighbouring_regions_share_the_token_that_holds_both_tags():
    tokens = ["<think", ">", "a", "</think", "><", "back>", "b", "c", "d", "</back>"]
    assert find_regions(tokens) == [Region("think", 0, 5, True), Region("back", 4, 10, True)]


def span(text: str) -> list[tuple[str, str, bool]]:
    """Regions of a text cut into characters, as the text that they enclose."""
    return [(r.name, text[r.start : r.stop], r.closed) for r in find_regions(list(text))]


def test_never_closed():
    assert span("a <back> b") == [("back", "<back> b", False)]
    assert span("<think> b <back> c</back> d") == [
        ("think", "<think> b ", False),
        ("back", "<back> c</back>", True),
    ]
    assert span("<think>a<back>b</think>c") == [
        ("think", "<think>a<back>b</think>", True),
        ("back", "<back>b", False),
    ]
    assert span("a <back") == []


def test_opened_again_without_being_closed():
    assert span("<back>a<back>b</back>") == [
        ("back", "<back>a", False),
        ("back", "<back>b</back>", True),
    ]
    assert span("<think>a<back>b</back>c<think>d</think>") == [
        ("think", "<think>a", False),
        ("back", "<back>b</back>", True),
        ("think", "<think>d</think>", True),
    ]


def test_repeated():
    assert span("<back>a</back>-<back>b</back>") == [
        ("back", "<back>a</back>", True),
        ("back", "<back>b</back>", True),
    ]


def test_nested():
    text = "<think>a<back>b</back>c</think>"
    assert span(text) == [("think", text, True), ("back", "<back>b</back>", True)]
    names = region_of_steps(find_regions(list(text)), len(text))
    assert "".join(n[:1] for n in names) == "t" * 8 + "b" * 14 + "t" * 9


def test_nested_in_one_token_the_innermost_wins():
    regions = find_regions(["<think><back>b</back></think>"])
    assert [r.name for r in regions] == ["think", "back"]
    assert region_of_steps(regions, 1) == ["back"]


def test_closing_tag_without_opening():
    assert span("a</back> b") == []
    assert span("</back><back>c</back>") == [("back", "<back>c</back>", True)]


def test_upper_case_and_look_alikes():
    tags = ("SUMMARY", "CAPTION", "REASONING", "REFLECTION", "CONCLUSION")
    text = "".join(f"<{tag}>x</{tag}>" for tag in tags)
    assert [name for name, _, _ in span(text)] == [tag.lower() for tag in tags]
    assert span("<Back>a</bACK>") == [("back", "<Back>a</bACK>", True)]
    # letters that only fold to those of a tag make no tag
    assert span("<\u017fummary>a</\u017fummary><thin\u212a>") == []
    assert span("<tool>a</tool>< back>b</back><back >c") == []


def test_boxed():
    assert span("so \\boxed{\\frac{1}{2}}.") == [("answer", "\\boxed{\\frac{1}{2}}", True)]
    assert span("\\boxed {3}") == [("answer", "\\boxed {3}", True)]
    assert span("\\boxed{a") == [("answer", "\\boxed{a", False)]
    assert span("\\boxed{a <back>b</back>") == [
        ("answer", "\\boxed{a ", False),
        ("back", "<back>b</back>", True),
    ]
    assert span("\\boxed 3") == []
    text = "<think>\\boxed{1}</think>"
    names = region_of_steps(find_regions(list(text)), len(text))
    assert "".join(n[:1] for n in names) == "t" * 7 + "a" * 9 + "t" * 8


def test_empty_and_no_tokens():
    assert find_regions([]) == []
    assert find_regions(["", "", ""]) == []
    assert find_regions(["", "<back>", "", "</back>", ""]) == [Region("back", 1, 4, True)]
    assert region_of_steps([], 2) == ["", ""]


def test_steps_beyond_the_recorded_ones_are_left_out():
    assert region_of_steps([Region("back", 1, 9, True)], 3) == ["", "back", "back"]
