r"""When an answer is right."""

from __future__ import annotations

import signal
import string
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.answers import (
    LONGEST,
    boxed_answer,
    boxed_spans,
    final_answer,
    grader,
    is_changed,
    is_right,
    judge,
    true_answer,
)
from attnlens.answers.look_back import look_back_verdict
from attnlens.errors import InputError
from attnlens.testbed import held_out_sample, mark_response

SAME = [
    # wrapping
    ("6", " 6"),
    ("\n 6\t", "6"),
    ("$6$", "6"),
    ("$$ 6 $$", "6"),
    (r"\(6\)", "6"),
    (r"\[ 6 \]", "6"),
    ("**6**", "6"),
    (r"\boxed{6}", "6"),
    (r"\boxed{\boxed{ \text{6} }}", "6"),
    (r"$\boxed{\text{B}}$.", "B"),
    ("6.", "6"),
    ("$6.$", "6"),
    ("Red.", "red"),
    # option letters
    ("b", "B"),
    ("(B)", "B"),
    ("(b).", "B"),
    ("[B]", "b"),
    ("B)", "B"),
    ("B.", "B"),
    ("B:", "B"),
    ("B. red", "B"),
    (r"\text{B}", "B"),
    (r"\text{(B)}", "B"),
    (r"(\text{B})", r"(\text{B})"),
    (r"\mathrm {B}", "B"),
    (r"\textbf{B.}", "B"),
    ("（Ｂ）", "B"),  # noqa: RUF001
    # integers and decimals
    ("6", 6),
    ("6.0", 6),
    ("6", 6.0),
    ("6", np.int64(6)),
    ("+6", "6"),
    ("\N{MINUS SIGN}6", -6),
    ("-6.", "-6"),
    ("-0", "0"),
    (".5", "0.50"),
    ("0.1", np.float32(0.1)),
    ("0.00001", 1e-5),
    ("1,234", "1234"),
    ("1,234,567.50", "1234567.5"),
    (r"12{,}345", 12345),
    (r"12,\!345", 12345),
    (r"12\,345", 12345),
    ("１６", "16"),  # noqa: RUF001
    # fractions
    ("1/2", "0.5"),
    ("1 / 2", Fraction(1, 2)),
    (r"\frac{1}{2}", "1/2"),
    (r"\dfrac{ 1 }{ 2 }", "0.5"),
    (r"\tfrac12", "0.5"),
    (r"$-\frac{1}{2}$", -0.5),
    (r"\frac{-1}{2}", "-1/2"),
    (r"\frac{1,000}{3}", "1000/3"),
    ("2/4", "1/2"),
    ("6/1", 6),
    # percentages
    ("50%", "50 %"),
    (r"$50.0\%$", "50%"),
    # texts
    ("red   circle", "Red circle"),
    ("YES", "yes"),
    (r"\text{red circle}", "red circle"),
    ("caf\u00e9", "cafe\u0301"),
    ("3 cats", "3 cats."),
    ("1 1/2", "1 1/2"),
    ("007", "007"),
    ("1/0", "1/0"),
    ("9" * 10_000, "9" * 10_000),
]

OTHER = [
    ("6", "16"),
    ("16", "6"),
    ("6", "-6"),
    ("1/2", "12"),
    ("1 2", "12"),
    ("1,2", "12"),
    ("1,23", "123"),
    ("12,34", "1234"),
    ("0,123", "123"),
    ("1,234", "1.234"),
    ("1.234.567", "1234567"),
    (r"\frac{1}{2}", "12"),
    (r"\frac123", "12/3"),
    (r"\frac{1}{0}", "0"),
    ("0.333", "1/3"),
    ("0.3...", "0.3"),
    ("0.3 . . .", "0.3"),
    ("1 1/2", "11/2"),
    ("007", "7"),
    ("1e3", "1000"),
    ("10²", "102"),
    ("10^2", "102"),
    ("½", "1/2"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("0.5", "50%"),
    ("$5", "5"),
    ("$5$ or $6$", "5"),
    (r"\boxed{5} or \boxed{6}", "6"),
    (r"\text{3} \text{cats}", "3"),
    ("3 cats", "3 dogs"),
    ("3 cats", "3"),
    ("5 mW", "5 MW"),
    ("B", "A or B"),
    ("A or B", "B"),
    ("(A) or (B)", "B"),
    ("AB", "A"),
    ("(6)", "6"),
    (r"\mathbb{R}", "R"),
    ("no", "not"),
    ("", "6"),
    (" ", "6"),
    (".", "6"),
    (r"\boxed{}", "6"),
    ("", ""),
    (r"\text{}", "$$"),
    (None, "6"),
    (None, "None"),
    ("9" * 10_000, "9" * 9_999),
    ("1e999999999", "2e999999999"),
]


@pytest.mark.parametrize(("answer", "truth"), SAME, ids=repr)
def test_what_is_the_same_is_right(answer, truth):
    assert is_right(answer, true_answer(truth))
    assert is_right(true_answer(truth), answer)


@pytest.mark.parametrize(("answer", "truth"), OTHER, ids=repr)
def test_what_is_another_answer_is_wrong(answer, truth):
    assert not is_right(answer, truth)
    if answer is not None:
        assert not is_right(truth, answer)


R, W = True, False
BY_STEP = [
    # a response, the truth, whether it is right, and the step that decides
    (r"So \boxed{5}, no, \boxed{6}.", "6", R, "number"),
    (r"\boxed{5} then \boxed{6", "5", R, "number"),
    (r"\boxed{\frac{1}{\sqrt{4}}}", "1/2", R, "expression"),
    (r"\boxed{\text{red {circle}}}", "red {circle}", R, "text"),
    ("<answer> 6 </answer>", "6", R, "number"),
    ("<answer>5</answer> <answer>6</answer>", "6", R, "number"),
    ("<think>6</think>", "6", W, "no answer"),
    ("It could be five.\nOr six: 6", "6", W, "no answer"),
    ("x" * 201, "x" * 201, W, "no answer"),
    (r"\boxed{ }", "6", W, "no answer"),
    ("6", "6", R, "number"),
    ("The answer is 6.", "6", R, "number"),
    ("Answer: 0.50", "1/2", R, "number"),
    ("7", "6", W, "number"),
    ("50%", "50", W, "number"),
    ("B", "B", R, "choice"),
    ("C", "B", W, "choice"),
    ("Option B", "B", R, "choice"),
    ("The correct answer is (B).", "B", R, "choice"),
    ("(B) a red circle", "B", R, "choice"),
    ("[b] a red circle", "B", R, "choice"),
    (r"B: \frac{1}{2}", "B", R, "choice"),
    ("B", "B. red", R, "choice"),
    ("B. red or C. blue", "B", W, "text"),
    ("A. red", "B", W, "text"),
    ("B. red", "B. blue", W, "text"),
    ("BANANA", "A", W, "text"),
    ("a banana", "A", W, "text"),
    ("Be", "B", W, "text"),
    ("Yes", "yes", R, "text"),
    ("No, there is none.", "no", R, "yes or no"),
    ("Yes. It is there", "yes", R, "yes or no"),
    ("No - it is a cat", "yes", W, "yes or no"),
    ("Yes, and no", "yes", W, "text"),
    ("Not at all", "no", W, "text"),
    ("no dogs", "no", W, "text"),
    ("Nothing", "no", W, "text"),
    ("A red circle", "red circle", R, "text"),
    ("the Red circle", "a red circle", R, "text"),
    ("\u201cred\u201d", "red", R, "text"),
    ("red,blue", "red, blue", R, "text"),
    ("blue, red", "red, blue", W, "text"),
    ("red circles", "red circle", W, "text"),
    ("2x+1", "1+2x", R, "expression"),
    ("2x+1", "2x-1", W, "expression"),
    (r"\sqrt{8}", r"2\sqrt{2}", R, "expression"),
    ("sqrt(8)", r"2\sqrt2", R, "expression"),
    ("\u221a8", r"2\sqrt{2}", R, "expression"),
    (r"$1\frac{1}{2}$", "1.5", R, "expression"),
    ("x=5", "5", R, "expression"),
    ("y=5", "x=5", W, "expression"),
    ("10^2", "100", R, "expression"),
    ("2^10", "1024", R, "expression"),
    ("10\u00b2", "100", R, "expression"),
    ("2*3", "6", R, "expression"),
    ("2\u00d73", "6", R, "expression"),
    ("\u03c0/2", r"\frac{\pi}{2}", R, "expression"),
    ("2pi", r"2\pi", R, "expression"),
    ("3.14", r"\pi", W, "expression"),
    ("30\u00b0", r"30^\circ", R, "expression"),
    ("(x+1)^2", "x^2+2x+1", R, "expression"),
    ("(2,1)", "(1,2)", W, "expression"),
    (r"\left(\frac12, 3\right)", "(0.5, 3)", R, "expression"),
    (r"\{2, 1\}", r"\{1,2\}", R, "expression"),
    ("[1,2)", "(1,2]", W, "expression"),
    ("x<3", "3>x", R, "expression"),
    ("2,1", "1,2", W, "text"),
    ("5 m", "5", W, "expression"),
    ("5 m", "5 M", W, "text"),
    ("5 cm", "5", W, "text"),
    ("2ab", "2ba", R, "expression"),
    ("1e3", "1000", W, "expression"),
    ("3:4", "3/4", W, "text"),
    ("10!", "3628800", W, "text"),
    ("9^{9^{9^9}}", "1", W, "text"),
    ("((9^{99})^{99})^{99}", "1", W, "text"),
    ("2^{99*99*99*99}", "1", W, "text"),
    ("1" * 31 + "+1", "2", W, "text"),
]


@pytest.mark.parametrize(("response", "truth", "right", "step"), BY_STEP, ids=repr)
def test_a_step_decides(response, truth, right, step):
    assert judge(final_answer(response), truth) == (right, step)


def test_without_math_verify_a_verdict_is_the_same_or_unknown(monkeypatch):
    before = [judge(final_answer(response), truth) for response, truth, *_ in BY_STEP]
    monkeypatch.setattr(grader, "find_spec", lambda _: None)
    for (response, truth, *_), (right, step) in zip(BY_STEP, before, strict=True):
        now = judge(final_answer(response), truth)
        assert now == ((None, "needs math-verify") if step == "expression" else (right, step))
    with pytest.raises(InputError, match=r"'2x\+1' is '1\+2x'.*pip install attnlens\[eval\]"):
        is_right("2x+1", "1+2x")
    assert is_changed("2x+1", "1+2x") is None
    with pytest.raises(InputError, match=r"pip install attnlens\[eval\]"):
        look_back_verdict(r"\boxed{6}", "6")


def test_what_takes_too_long_is_ended_in_any_thread():
    """Handed over without the limits, this power fills the memory or takes hours."""
    found = []

    def compare():
        found.append(grader.ask("equal", "9^{9^{9^{9}}}", "1", 0.5))
        found.append(grader.ask("equal", "1+1", "2"))

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    assert found == [None, "expression"]


LOOK_BACK = [
    (r"\boxed{6}", "6"),
    (r"\boxed{ \frac{1}{2} }", "0.5"),
    (r"\boxed{0.5} \boxed{\frac12}", r"\frac{1}{2}"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{1,234}", "1234"),
    (r"\boxed{6 cm}", "6"),
    (r"\boxed{6", "6"),
    (r"\boxed{\boxed{6}}", "6"),
    (r"\boxed{(1,2)}", "(1, 2)"),
    (r"\boxed{2x+1}", "1+2x"),
    (r"\boxed{$\sqrt{8}$}", r"$2\sqrt{2}$"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{0.333333}", "1/3"),
    (r"\boxed{BANANA}", "A"),
    (r"\boxed{banana}", "A"),
    (r"\boxed{B. red}", "B"),
    (r"\boxed{C}", "B"),
    (r"\boxed{yes}", "Yes"),
    (r"\boxed{red circle}", "Red Circle"),
    ("no box", "E"),
    ("no box", "B"),
    ("no box", "None"),
    (r"\boxed{}", "6"),
    (r"\boxed{6.0}", "6"),
    (r"\boxed{2\pi}", "6.283185"),
]


def test_look_backs_rule_is_that_of_its_script():
    """The three steps of ``cal_score.py`` with the libraries themselves, here in this process."""
    from math_verify import parse, verify
    from mathruler.grader import extract_boxed_content, grade_answer

    steps = set()
    for response, truth in LOOK_BACK:
        content = extract_boxed_content(response)
        letter = len(truth) == 1 and truth in string.ascii_uppercase and truth in content.upper()
        gives = grade_answer(content, truth) or verify(parse(content), parse(truth)) or letter
        verdict = look_back_verdict(response, truth)
        assert verdict.right == bool(gives), (response, truth)
        steps.add(verdict.step)
    assert steps == {"grade_answer", "math-verify", "letter", "none of them"}


numbers = st.fractions() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False)


@given(one=numbers, other=numbers)
def test_numbers_are_right_where_they_are_equal(one, other):
    def written(number):
        return format(number, "f") if isinstance(number, Decimal) else str(number)

    texts = [written(one), written(other)]
    if max(map(len, texts)) <= LONGEST:
        assert is_right(*texts) == (Fraction(one) == Fraction(other))
        assert is_right(texts[0], true_answer(one if not isinstance(one, Decimal) else texts[0]))


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_the_rule_holds_both_ways_round_and_never_fails(one, other):
    assert is_right(one, other) == is_right(other, one)
    assert not is_right(one, one + "6")


@pytest.mark.parametrize(
    "text",
    [
        "9" * 10_000,
        "1" + ",000" * 100_000,
        "1e999999999",
        "0." + "3" * 900 + "/" + "7" * 90,
        "1/" + "7" * 900,
        r"\boxed{" * 50_000,
        r"\boxed{" * 50_000 + "6" + "}" * 50_000,
        r"\text{" * 150 + "6" + "}" * 150,
        "$" * 100_000,
        "**" * 400 + "6" + "**" * 400,
        "." * 100_000,
        r"\frac{" * 160,
        "\\boxed" + " " * 100_000,
        "e" + "\u0301\u0323" * 499,
        "(" * 500 + "B" + ")" * 500,
    ],
    ids=lambda text: text[:12],
)
def test_no_answer_takes_long(text):
    """A model's answer is text from a stranger: the alarm ends the test where one would hang."""

    def too_long(*_):
        raise TimeoutError(text[:20])

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(10)
    try:
        for _ in range(3):
            assert not is_right(text, "16")
            boxed_answer(text)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_boxes_are_found_as_counting_braces_finds_them():
    def counted(text, at):
        depth = 1
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        return at, depth == 0

    texts = [
        r"}\boxed{a{b}c} {\boxed {d\boxed{e}} \boxed{f",
        r"\boxed{\boxed{\boxed{1}} {",
        r"{{\boxed{}}}}\boxed{}{}",
    ]
    for text in texts:
        spans = boxed_spans(text)
        assert len(spans) == text.count("\\boxed")
        for box in spans:
            assert (box.stop, box.closed) == counted(text, box.inside)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "True: give a text or a finite number"),
        (np.bool_(True), "give a text or a finite number"),
        (None, "None: give"),
        (float("nan"), "nan: give"),
        (float("inf"), "inf: give"),
        ([6], r"\[6\]: give"),
        (b"6", "b'6': give"),
        (10**5000, "thousands of digits"),
        ("", "'' is empty"),
        (" . ", "is empty"),
        (r"\boxed{}", "is empty"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_truth_that_nothing_can_equal_is_refused(value, message):
    with pytest.raises(InputError, match=message):
        true_answer(value)


@pytest.mark.parametrize(
    ("answer", "before", "changed"),
    [
        ("6", "6", False),
        ("6.0", r"\boxed{6}", False),
        ("6", "7", True),
        ("6", "", True),
        ("", "6", True),
        ("6", None, True),
        (None, "", False),
        ("a text\nof two lines", "a text\nof two lines", False),
    ],
)
def test_an_answer_changes_by_the_same_rule(answer, before, changed):
    assert is_changed(answer, before) == changed


def test_the_testbed_scores_by_the_rule():
    sample = held_out_sample(3, 0, "normal")
    truth = sample.question.answer
    assert mark_response(sample, rf"\boxed{{{truth}}}").answer
    assert mark_response(sample, rf"\boxed{{\text{{{truth}}}.}}").answer
    assert not mark_response(sample, rf"\boxed{{{truth}{truth}}}").answer
    assert not mark_response(sample, truth).answer
