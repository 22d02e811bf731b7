"""What ``attnlens trend`` writes of recorded answers: pictures, tables, summaries."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.answers import final_answer
from attnlens.errors import InputError
from attnlens.files import (
    check_writable,
    clear_leftover_files,
    clear_leftover_folders,
    write_file,
    write_folder,
)
from attnlens.measures.definitions import get_definition
from attnlens.models.modes import VERIFICATIONS, verification_tag
from attnlens.progress import progress
from attnlens.reports.table import (
    print_cut_off,
    print_unjudged,
    steps_table,
    write_csv,
    write_parts,
)
from attnlens.runs.cache import Entry, Run, make_each
from attnlens.runs.dataset import Question
from attnlens.runs.recordings import SUMMARY, TRACE, read_trace
from attnlens.runs.spool import Lazy
from attnlens.runs.workers import Workers
from attnlens.stores import local_copy, located, read_bytes
from attnlens.text import counted, one_line

if TYPE_CHECKING:
    import pandas as pd

    from attnlens.recording.trace import Trace
    from attnlens.runs.settings import PromptSettings

ALL_TOKENS = "Step_attention_all_tokens"
"""Name of the picture that is the same in every mode, as the reference script names it."""
FRAMES = "frame_attention"
"""Ending of the name of the picture of a video's frames."""


@dataclass(frozen=True, kw_only=True)
class TrendOutput:
    """What is shown of answers, and where it is written."""

    save_folder: str = "results"
    formats: tuple[str, ...] = ("png",)
    definition: str = "look-back"

    def check(self, max_new_tokens: int | None = None) -> None:
        """Refuse what can be refused before anything is run.

        Raises
        ------
        InputError
            If the definition is unknown or has no step in so few tokens, or the folder cannot be
            written.
        """
        first = get_definition(self.definition).first_step
        if max_new_tokens is not None and max_new_tokens <= first:
            raise InputError(
                f"--max_new_tokens {max_new_tokens}: {self.definition} leaves the first step "
                "out, so give at least 2"
            )
        check_writable(located(self.save_folder))


def check_folder(question: Question, mode: str, output: TrendOutput) -> Path:
    """Return the folder of a question from the command line.

    Raises
    ------
    InputError
        If it cannot be written, or holds the summary of another picture. A warning is printed if
        the answer to another question will be replaced.
    """
    folder = located(output.save_folder) / question.folder
    check_writable(folder)
    try:
        before = json.loads(read_bytes(folder / SUMMARY))
    except (OSError, ValueError):
        return folder
    if not isinstance(before, dict):
        return folder
    if before.get("image_sha256", question.image_sha256) != question.image_sha256:
        raise InputError(
            f"{str(folder)!r} holds the results of another picture ({before.get('image')!r}) "
            f"than {question.image!r}: give another --save_folder, or move it away"
        )
    if before.get("question", question.text) != question.text:
        text = (
            f"attnlens trend: {str(folder)!r} holds the answer to another question "
            f"({before['question']!r}); what was written there in mode {mode} is replaced"
        )
        print(one_line(text), file=sys.stderr)
    return folder


def report_one(
    trace: Trace, question: Question, settings: PromptSettings, output: TrendOutput, folder: Path
) -> None:
    """Write trace, table, summary and pictures of a question from the command line.

    The folder is written whole or not at all; what other modes left in it stays. An answer may have
    taken an hour: it is kept, even if a picture cannot be drawn.
    """
    mode = settings.mode
    problem: BaseException | None = None
    clear_leftover_folders([folder])
    with write_folder(folder, replace=True) as temporary:
        if folder.is_dir():
            with local_copy(folder) as before:
                shutil.copytree(
                    before,
                    temporary,
                    dirs_exist_ok=True,
                    symlinks=True,
                    ignore=functools.partial(_own_files, before, mode),
                )
        trace.save(temporary / f"{mode}_{TRACE}")
        write_csv(temporary / f"{mode}_steps.csv", steps_table(trace, question))
        _write_summary(trace, question, settings, output, temporary)
        try:
            _draw(trace, mode, output, temporary)
        except (Exception, KeyboardInterrupt) as error:
            problem = error
    if problem is not None:
        print(f"attnlens trend: no pictures; trace and summary are in {folder}", file=sys.stderr)
        raise problem
    print_cut_off("trend", Counter([trace.data.sizes["step"]] if trace.cut_off else ()), 1)


def _own_files(folder: Path, mode: str, here: str, names: list[str]) -> set[str]:
    """Return the files of an earlier run of the mode, which are replaced."""
    if Path(here) != folder:
        return set()
    pictures = (
        f"{mode}_step_attention",
        f"{mode}_step_attention_with_tokens",
        f"{mode}_{FRAMES}",
        ALL_TOKENS,
    )
    own = {f"{mode}_{TRACE}", f"{mode}_steps.csv", SUMMARY}
    own |= {f"{name}.{suffix}" for name in pictures for suffix in ("png", "pdf", "svg")}
    return own.intersection(names)


def report_each(
    recorded: Collection[Run], output: TrendOutput, workers: Workers, *, command: str = "trend"
) -> int:
    """Write summary and pictures of each answer, and one table of all steps for each mode.

    Pictures that are there already, of the same answer, definition and formats, are left alone.

    Parameters
    ----------
    recorded
        Recorded answers; the entry of each holds the trace.
    output
        What is shown of the answers.
    workers
        Who draws the pictures.
    command
        Name of the command, and of the folder with the pictures.

    Returns
    -------
    int
        How many of them now have pictures.
    """
    root = located(output.save_folder)

    def pictures_of(run: Run) -> Run:
        question, settings = run.question, run.settings
        entry = Entry(
            root / command / settings.mode / question.folder,
            {
                "question": question.text,
                "image": question.image,
                "answer": question.answer,
                "recorded_answer": run.entry.identity,
                "definition": output.definition,
                "pictures": sorted(output.formats),
            },
        )
        make = functools.partial(_show, question, run.entry, settings, output)
        return Run(question, settings, entry, make)

    pictures = Lazy(lambda: map(pictures_of, recorded), len(recorded))
    there = make_each(pictures, workers, command=f"{command} (pictures)")
    prefix = "" if command == "trend" else f"{command}_"  # both may share a folder
    for mode, count in Counter(run.settings.mode for run in recorded).items():
        path = root / f"{prefix}{mode}_steps.parquet"
        clear_leftover_files(path)
        clear_leftover_folders([path])
        of_mode = (run for run in recorded if run.settings.mode == mode)
        _write_table(of_mode, count, path, command)
        print(one_line(f"written to {path}"))
    return len(there)


def _show(
    question: Question,
    recorded: Entry,
    settings: PromptSettings,
    output: TrendOutput,
    _: Any,
    folder: Path,
) -> None:
    trace = read_trace(recorded)
    _write_summary(trace, question, settings, output, folder)
    _draw(trace, settings.mode, output, folder)


def _write_table(recorded: Iterable[Run], count: int, path: Path, command: str) -> None:
    """Write one row for each step of ``count`` answers."""
    cut_off: Counter[int] = Counter()
    replayed = _Replayed()
    unjudged = 0

    def tables() -> Iterator[pd.DataFrame]:
        nonlocal unjudged
        for run in progress(recorded, total=count, description="table"):
            trace = read_trace(run.entry)
            if trace.cut_off:
                cut_off[trace.data.sizes["step"]] += 1
            if "replayed" in trace.attrs:
                replayed.add(trace.attrs["replayed"], run.question.line)
            table = steps_table(trace, run.question)
            unjudged += run.question.answer is not None and bool(table["right"].isna().any())
            yield table

    write_parts(path, tables(), count)
    if not replayed.count:
        print_cut_off(command, cut_off, count)
    print_unjudged(command, unjudged)
    for text in replayed.said():
        print(f"attnlens {command}: {text}", file=sys.stderr)


MOST_LINES = 5
"""How many lines a message names."""


@dataclass
class _Replayed:
    """On how many answers what was fed differs from what the file has."""

    count: int = 0
    drifts: Counter[int] = field(default_factory=Counter)
    other: list[int | None] = field(default_factory=list)
    cut: int = 0
    special: list[int | None] = field(default_factory=list)

    def add(self, replayed: Mapping[str, Any], line: int | None) -> None:
        """Count what a trace says of its answer, which has a line in the file."""
        self.count += 1
        if replayed["drift"]:
            self.drifts[replayed["drift"]] += 1
        if replayed.get("same_prompt") is False:
            self.other.append(line)
        if replayed.get("special"):
            self.special.append(line)
        self.cut += replayed["cut_off"] is True

    def said(self) -> list[str]:
        """Say it."""
        of = f"of {counted(self.count, 'answer')}"
        found = []
        if self.drifts:
            found.append(
                f"the tokens of {self.drifts.total()} {of} do not give their text back: "
                f"{min(self.drifts):,} to {max(self.drifts):,} characters differ"
            )
        if self.other:
            found.append(
                f"the prompts of {len(self.other)} {of} do not match the token ids in the file: "
                "another picture, mode, template, limits of pixels or checkpoint "
                f"({_lines(self.other)})"
            )
        if self.special:
            verb = "spells" if len(self.special) == 1 else "spell"
            found.append(
                f"{len(self.special)} {of} {verb} special tokens in the text, and these tokens "
                f"are fed ({_lines(self.special)})"
            )
        if self.cut:
            found.append(f"{self.cut} {of} had not ended, as the file says")
        return found


def _lines(lines: Sequence[int | None]) -> str:
    """Name the first of some lines."""
    shown = ", ".join(map(str, lines[:MOST_LINES]))
    rest = len(lines) - MOST_LINES
    return f"line{'' if len(lines) == 1 else 's'} {shown}" + (f" and {rest} more" * (rest > 0))


def _draw(trace: Trace, mode: str, output: TrendOutput, folder: Path) -> None:
    """Draw the three pictures, and one of a video's frames.

    Those that the answer is too short for are reported.
    """
    from attnlens import plots

    definition = output.definition
    figures = {
        f"{mode}_step_attention": lambda: plots.trend(trace, definition),
        f"{mode}_step_attention_with_tokens": lambda: plots.trend(trace, definition, tokens=True),
        ALL_TOKENS: lambda: plots.tokens(trace, definition),
    }
    if any(image.get("frames") for image in trace.attrs["images"]):
        figures[f"{mode}_{FRAMES}"] = lambda: plots.frame_trend(trace)
    missing: dict[str, str] = {}
    for name, draw in progress(figures.items(), total=len(figures), description="drawing"):
        try:
            figure = draw()
        except InputError as error:  # an answer of one token has no step under some definitions
            missing[name] = str(error)
            continue
        for suffix in output.formats:
            plots.save(figure, folder / f"{name}.{suffix}")
    if missing:
        text = f"{', '.join(missing)}: {next(iter(missing.values()))}"
        print(f"attnlens: left out {one_line(text)}", file=sys.stderr)


def _write_summary(
    trace: Trace, question: Question, settings: PromptSettings, output: TrendOutput, folder: Path
) -> None:
    text = json.dumps(summary(trace, question, settings, output), indent=2, ensure_ascii=False)
    with write_file(folder / SUMMARY) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def summary(
    trace: Trace, question: Question, settings: PromptSettings, output: TrendOutput
) -> dict[str, Any]:
    """Return answer, regions, decay, refocus, settings and versions as plain JSON-able values."""
    from attnlens import measures

    definition = output.definition
    values: dict[str, Any] = {
        "image": question.image,
        "image_sha256": question.image_sha256,
        "question": question.text,
        "mode": settings.mode,
        "response": trace.text,
        "answer": final_answer(trace.text),
        "expected": question.answer,
        "cut_off": trace.cut_off,
        "steps": int(trace.data.sizes["step"]),
        "definition": definition,
        "regions": [asdict(region) for region in trace.regions],
        "settings": {**asdict(settings), **asdict(output)},
        "provenance": {k: v for k, v in trace.attrs.items() if k != "special_token_ids"},
        "versions": trace.attrs["versions"],
    }
    table = measures.region_summary(trace, definition=definition)
    values["region_summary"] = json.loads(table.to_json(orient="records"))
    region = VERIFICATIONS[verification_tag(settings.words) or "<back>"]
    for name, compute in (
        ("decay", measures.decay),
        ("refocus", functools.partial(measures.refocus, region=region)),
    ):
        try:
            values[name] = compute(trace, definition=definition).as_dict()
        except InputError as error:  # too short, or no <back>: the summary says so
            values[name] = {"not_available": str(error)}
    return values
