"""The process behind ``attnlens.answers.grader``: for each line of JSON, a line of JSON."""

from __future__ import annotations

import json
import string
import sys
from contextlib import suppress

MEMORY = 4 * 2**30
"""Most memory that it may take, in bytes, where the system can limit it."""


def equal(answer: str, truth: str) -> str:
    """Compare two expressions in LaTeX with math-verify, either way round; say by what."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # units stay: 5 m is not 5
    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
    )
    config = [LatexExtractionConfig(normalization_config=spelling)]
    first, second = (
        parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=0)
        for text in (answer, truth)
    )
    if not first or not second:
        return ""
    options = {"allow_set_relation_comp": True, "timeout_seconds": 0}
    same = verify(second, first, **options) or verify(first, second, **options)
    return "expression" if same else ""


def look_back(response: str, truth: str) -> str:
    """Say by which step Look-Back's ``cal_score.py`` gives a point; empty where it gives none."""
    from math_verify import parse, verify
    from mathruler.grader import extract_boxed_content, grade_answer

    answer = extract_boxed_content(response)
    if grade_answer(answer, truth):
        return "grade_answer"
    if verify(parse(answer), parse(truth)):
        return "math-verify"
    if len(truth) == 1 and truth in string.ascii_uppercase and truth in answer.upper():
        return "letter"
    return ""


def serve() -> None:
    """Answer lines until there are no more."""
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        with suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    import math_verify  # noqa: F401 (before it says that it is ready)

    replies, sys.stdout = sys.stdout, sys.stderr  # a library may print
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        kinds = {"equal": equal, "look-back": look_back}
        step = kinds[question["kind"]](question["answer"], question["truth"])
        print(json.dumps(step), file=replies, flush=True)


if __name__ == "__main__":
    serve()
