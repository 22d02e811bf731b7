"""What ``attnlens score`` writes: verdicts, scores, and attention beside correctness."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from attnlens._version import versions
from attnlens.answers import final_answer
from attnlens.answers.grader import INSTALL, is_there
from attnlens.errors import InputError
from attnlens.files import check_results, clear_leftover_folders, write_folder
from attnlens.measures.correctness import Attention, Correctness, attention_of, compare
from attnlens.measures.definitions import get_definition
from attnlens.measures.statistics import mcnemar, proportion_difference, with_interval
from attnlens.reports.score_benchmarks import BENCHMARKS, read_objects
from attnlens.reports.table import write_parquet, write_parts
from attnlens.runs.answered import trace_of, trace_paths
from attnlens.runs.chunks import JobError, in_chunks
from attnlens.runs.judged import LOOK_BACK, OURS, Judged, JudgedAnswer, judge_file
from attnlens.runs.responses.base import place_of
from attnlens.runs.spool import Lazy
from attnlens.runs.workers import Workers
from attnlens.stores import located
from attnlens.text import counted, one_line, quoted, shortened

FOLDER, MARKER = "score", "score.json"
ROWS = 1_000
"""Answers in one piece of the table."""
MOST_SHOWN = 5
"""How many answers that two rules judge differently are printed."""


@dataclass(frozen=True, kw_only=True)
class ScoreOutput:
    """What is scored, by which rule, and where the result goes."""

    file: str
    answers_format: str | None = None
    against: str | None = None
    rule: str = OURS
    benchmark: str | None = None
    objects: str | None = None
    traces: str | None = None
    definition: str = "mass"
    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return located(self.save_folder) / FOLDER

    def check(self) -> None:
        """Refuse what can be refused before anything is read.

        Raises
        ------
        InputError
            If options do not fit, the rule needs what is not installed, or the folder cannot be
            written.
        """
        get_definition(self.definition)
        if (self.objects is None) != (self.benchmark != "chair"):
            raise InputError("--objects FILE belongs to --benchmark chair: give both or neither")
        if self.rule == LOOK_BACK and not is_there(LOOK_BACK):
            raise InputError(f"--rule look-back needs mathruler and math-verify: {INSTALL}")
        check_results(self.folder, MARKER, "scores")


def report_score(output: ScoreOutput, workers: Workers) -> tuple[int, int]:
    """Judge, compare, measure, print and write.

    Parameters
    ----------
    output
        What is scored.
    workers
        Who judges the answers and reads their traces.

    Returns
    -------
    int, int
        How many records were skipped, and how many traces could not be measured.

    Raises
    ------
    InputError
        If there is nothing to score, or what is asked for needs fields that the file lacks.
    """
    given = None if output.traces is None else trace_paths(located(output.traces))
    objects = None if output.objects is None else read_objects(located(output.objects))
    judge = partial(
        judge_file,
        workers=workers,
        folder=output.folder,
        rule=output.rule,
        benchmark=output.benchmark,
    )
    judged = judge(output.file, answers_format=output.answers_format)
    result: dict[str, Any] = {
        "settings": asdict(output),
        "format": judged.format,
        "answers": len(judged.answers),
        "skipped": judged.skipped,
        "rules": {rule: _summary_of(judged, rule) for rule in judged.values},
    }
    lines = _lines_of(judged, output.rule, result)
    different = pd.DataFrame()
    if output.rule == LOOK_BACK:
        different = _differences(judged)
        result["differences"] = _counted_differences(different)
        lines += _lines_of_differences(different, result["differences"])
    if output.benchmark is not None:
        result["benchmark"] = BENCHMARKS[output.benchmark](judged, objects)
        lines += _lines_of_benchmark(output.benchmark, result["benchmark"])
    if output.against is not None:
        result["against"] = _compare(judged, judge(output.against), output)
        lines.append(_line_of_comparison(output, result["against"]))
    attention, failed = None, 0
    if given is not None or (judged.traces is not None and judged.traces.is_dir()):
        attention, result["attention"] = _attention(judged, given, output, workers, lines)
        failed = result["attention"]["unreadable"]
    result["versions"] = versions()
    clear_leftover_folders([output.folder])
    with write_folder(output.folder, replace=True) as temporary:
        write_parts(temporary / "answers.parquet", _tables(judged), len(judged.answers), each=ROWS)
        if len(different):
            different.to_csv(temporary / "differences.csv", index=False)
        if attention is not None:
            _write_attention(attention, temporary, output)
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (temporary / MARKER).write_text(text + "\n", encoding="utf-8")
    print("\n".join(map(one_line, lines)))
    print(one_line(f"written to {output.folder}"))
    return judged.skipped, failed


def _summary_of(judged: Judged, rule: str) -> dict[str, Any]:
    """Return the fraction right with its interval, and counts by step."""
    values = judged.values[rule]
    by_step: dict[str, dict[str, int]] = {}
    for verdict in (one.verdicts[rule] for one in judged.answers if one.verdicts):
        counts = by_step.setdefault(verdict.step, {"right": 0, "of": 0})
        counts["right"] += bool(verdict.right)
        counts["of"] += 1
    known = values[np.isfinite(values)].tolist()
    return {"right": with_interval(known, proportion=True), "by_step": by_step}


def _tables(judged: Judged) -> Iterator[pd.DataFrame]:
    """One row for each answer, in pieces."""
    rest = iter(judged.answers)
    while piece := list(islice(rest, ROWS)):
        yield _table(piece, list(judged.values))


def _table(answers: Sequence[JudgedAnswer], rules: Sequence[str]) -> pd.DataFrame:
    responses = [one.response for one in answers]
    columns: dict[str, Any] = {
        "id": pd.Series([one.id for one in responses], dtype="string"),
        "line": pd.Series([one.question.line for one in responses], dtype="Int64"),
        "image": pd.Series([one.question.image for one in responses], dtype="string"),
        "question": pd.Series([one.question.text for one in responses], dtype="string"),
        "expected": pd.Series([one.truth for one in answers], dtype="string"),
        "answer": pd.Series([final_answer(one.text) for one in responses], dtype="string"),
    }
    for i, rule in enumerate(rules):
        verdicts = [one.verdicts.get(rule) for one in answers]
        end = f"_{rule.replace('-', '_')}" if i else ""  # the rule that was asked for comes first
        rights = [None if one is None else one.right for one in verdicts]
        columns[f"right{end}"] = pd.Series(rights, dtype="boolean")
        steps = [None if one is None else one.step for one in verdicts]
        columns[f"step{end}"] = pd.Series(steps, dtype="string")
    return pd.DataFrame(columns)


def _differences(judged: Judged) -> pd.DataFrame:
    """Return the answers that the two rules judge differently."""
    found = []
    for piece in _tables(judged):
        table = piece.rename(columns={"right": "right_look_back", "step": "step_look_back"})
        known = table["expected"].notna()
        rights = table[["right_look_back", "right_attnlens"]].astype("object")
        found.append(table[known & (rights["right_look_back"] != rights["right_attnlens"])])
    return pd.concat(found, ignore_index=True)


def _counted_differences(different: pd.DataFrame) -> list[dict[str, Any]]:
    """Count differences by the steps that decided."""
    names = ["step_look_back", "step_attnlens", "right_look_back", "right_attnlens"]
    rows = Counter(tuple(row) for row in different[names].astype("object").to_numpy().tolist())
    return [
        {
            **dict(zip(names, (None if pd.isna(one) else one for one in row), strict=True)),
            "answers": count,
        }
        for row, count in rows.most_common()
    ]


def _compare(judged: Judged, other: Judged, output: ScoreOutput) -> dict[str, Any]:
    """Compare two files answer by answer: the difference with Tango's interval, and McNemar."""
    sides = []
    for one, path in ((judged, output.file), (other, output.against)):
        seen: set[str] = set()
        side: dict[str, tuple[tuple[bytes, bytes], float]] = {}
        for answer, value in zip(one.answers, one.values[output.rule], strict=True):
            key = answer.response.id
            if key in seen:
                shown = shortened(repr(key), 80)
                raise InputError(f"{quoted(path)} has several answers {shown}: ids must be unique")
            seen.add(key)
            if np.isfinite(value):
                side[key] = (_asked(answer), float(value))
        sides.append(side)
    first, second = sides
    both = [key for key in first if key in second and _alike(first[key][0], second[key][0])]
    if not both:
        raise InputError(
            f"{quoted(output.file)} and {quoted(output.against)} share no question: answers are "
            "paired where id, question, name of the picture and truth are the same"
        )
    ours = np.array([first[key][1] for key in both])
    theirs = np.array([second[key][1] for key in both])
    difference, low, high = proportion_difference(theirs, ours, 0.95)
    p_value = mcnemar(theirs, ours)
    return {
        "answers": len(both),
        "right": with_interval(ours.tolist(), proportion=True),
        "right_against": with_interval(theirs.tolist(), proportion=True),
        "only_here": int(((ours == 1) & (theirs == 0)).sum()),
        "only_there": int(((ours == 0) & (theirs == 1)).sum()),
        "difference": difference,
        "low": None if np.isnan(low) else low,
        "high": None if np.isnan(high) else high,
        "p_value": None if np.isnan(p_value) else p_value,
        "unpaired": len(first) + len(second) - 2 * len(both),
    }


def _asked(answer: JudgedAnswer) -> tuple[bytes, bytes]:
    """Return short digests of question and truth, and of the picture's name, if it has one.

    One question may be asked about many pictures.
    """
    question = answer.response.question
    name = Path(question.image).name
    return _digest([question.text, answer.truth]), _digest(name) if name else b""


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()[:16]


def _alike(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> bool:
    """Whether the same was asked, as far as both files tell."""
    return one[0] == other[0] and (one[1] == other[1] or not (one[1] and other[1]))


def _attention(
    judged: Judged,
    paths: Mapping[int, Path] | None,
    output: ScoreOutput,
    workers: Workers,
    lines: list[str],
) -> tuple[Correctness | None, dict[str, Any]]:
    """Compare attention between right and wrong answers, and say which have no trace.

    Where it cannot be compared, say why: what was judged stays.
    """
    counts = {"without": 0, "other": 0, "unreadable": 0}
    found, problem, failed = None, "", False
    there = np.zeros(0, dtype=bool)
    values = judged.values[output.rule]
    known = np.isfinite(values)
    try:
        by_line = trace_paths(cast("Path", judged.traces)) if paths is None else paths
        lines_of = (one.response.question.line or 0 for one in judged.answers)
        there = known & np.fromiter((line in by_line for line in lines_of), bool, len(values))
        counts["without"] = int((known & ~there).sum())
        rights = values[there] == 1

        def chosen() -> Iterator[tuple[Path, str, str]]:
            for one in compress(judged.answers, there):
                question = one.response.question
                yield by_line[question.line or 0], question.text, one.response.text

        asked = Lazy(chosen, len(rights))
        measured = in_chunks(workers, _measure_all, asked, output.folder, description="attention")

        def own() -> Iterator[tuple[Attention, bool]]:
            for one, right in zip(measured, rights, strict=True):
                if one is None:
                    counts["other"] += 1
                elif isinstance(one, str):
                    counts["unreadable"] += 1
                    text = f"attnlens score: {one}; the command that wrote it makes it again"
                    print(one_line(text), file=sys.stderr)
                else:
                    yield Attention(*one), bool(right)

        found = compare(own())
    except JobError as error:
        counts["unreadable"], problem = int(there.sum()), str(error)
        failed = True
    except InputError as error:
        problem = str(error)
    left_out = []
    if counts["without"]:
        answers = counted(int(known.sum()), "answer")
        has = "has" if counts["without"] == 1 else "have"
        left_out.append(f"{counts['without']} of {answers} {has} no trace")
    if counts["other"]:
        traces = counted(int(there.sum()), "trace")
        has = "is" if counts["other"] == 1 else "are"
        left_out.append(
            f"{counts['other']} of {traces} {has} of another question or answer than the line of "
            "the same number"
        )
    if counts["unreadable"]:
        left_out.append(
            f"{counts['unreadable']} of {counted(int(there.sum()), 'trace')} could not be measured"
        )
    notes = {
        "without_trace": counts["without"],
        "of_another_answer": counts["other"],
        "unreadable": counts["unreadable"],
    }
    if found is None:
        of_no_use = counts["other"] + counts["unreadable"]
        none_is_left = left_out and not failed and of_no_use == there.sum()
        why = "; ".join(left_out if none_is_left else [*left_out, problem])
        lines.append(f"attention beside correctness: left out: {why}")
        return None, {**notes, "problem": why}
    relations = found.regions["relation"].value_counts()
    shown = ", ".join(f"{name} in {count}" for name, count in relations.items())
    lines.append(
        f"attention beside correctness ({found.right} right, {found.wrong} wrong): of "
        f"{len(found.regions)} comparisons by definition and region, {shown}"
    )
    lines += [f"  left out: {text}" for text in left_out]
    numbers = {"right": found.right, "wrong": found.wrong, "relations": relations.to_dict()}
    return found, numbers | notes


def _measure_all(answers: Sequence[tuple[Path, str, str]]) -> list[Attention | str | None]:
    """Measure the trace of each answer.

    None where it is that of another one; where it cannot be measured, why.
    """
    return [_measured(*one) for one in answers]


def _measured(path: Path, question: str, text: str) -> Attention | str | None:
    try:
        trace = trace_of(path, question, text)
        return None if trace is None else attention_of(trace)
    except InputError as error:
        said = str(error)
        return said if str(path) in said else f"{quoted(path)}: {said}"


def _write_attention(found: Correctness, folder: Path, output: ScoreOutput) -> None:
    from attnlens import plots

    found.regions.to_csv(folder / "attention_regions.csv", index=False)
    write_parquet(folder / "attention_steps.parquet", [found.steps])
    figure = plots.correctness(found, output.definition)
    for suffix in output.formats:
        plots.save(figure, folder / f"correctness.{suffix}")


def _percent(value: Mapping[str, Any]) -> str:
    """Write a proportion with its interval."""
    if value["mean"] is None:
        return "-"
    ends = "" if value["low"] is None else f" [{value['low']:.1%}, {value['high']:.1%}]"
    return f"{value['mean']:.2%}{ends} of {value['count']}"


def _lines_of(judged: Judged, rule: str, result: Mapping[str, Any]) -> list[str]:
    known = result["rules"][rule]
    lines = [
        f"{counted(len(judged.answers), 'answer')} ({judged.format}); right by the rule {rule}: "
        f"{_percent(known['right'])}"
    ]
    steps = sorted(known["by_step"].items(), key=lambda item: -item[1]["of"])
    if steps:
        each = ", ".join(f"{step} {of['right']} of {of['of']}" for step, of in steps)
        lines.append(f"right by step: {each}")
    return lines


def _lines_of_differences(different: pd.DataFrame, counts: list[dict[str, Any]]) -> list[str]:
    lines = [f"the rules differ on {counted(len(different), 'answer')}"]
    words = {True: "right", False: "wrong", None: "undecided"}
    lines += [
        f"  {row['answers']}: {words[row['right_look_back']]} by look-back "
        f"({row['step_look_back']}), {words[row['right_attnlens']]} by attnlens "
        f"({row['step_attnlens']})"
        for row in counts
    ]
    lines += [
        f"  such as {place_of(row['line'], row['id'])}: {shortened(str(row['answer']), 60)!r}, "
        f"true is {shortened(str(row['expected']), 60)!r}"
        for row in different.head(MOST_SHOWN).to_dict("records")
    ]
    return lines


def _lines_of_benchmark(name: str, scores: Mapping[str, Any]) -> list[str]:
    parts = []
    for key, value in scores.items():
        if isinstance(value, Mapping) and "mean" in value:
            parts.append(f"{key} {_percent(value)}")
        elif isinstance(value, float):
            parts.append(f"{key} {value:.4g}")
    return [f"{name}: {', '.join(parts)}"]


def _line_of_comparison(output: ScoreOutput, found: Mapping[str, Any]) -> str:
    ends = "" if found["low"] is None else f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    p_value = "-" if found["p_value"] is None else f"{found['p_value']:.3g}"
    return (
        f"against {output.against}: {100 * found['difference']:+.1f} points{ends} on "
        f"{counted(found['answers'], 'shared question')}, right only here {found['only_here']}, "
        f"only there {found['only_there']}; McNemar p = {p_value}"
        + (f"; {found['unpaired']} unpaired" if found["unpaired"] else "")
    )
