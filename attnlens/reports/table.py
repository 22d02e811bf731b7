"""Tidy tables with a row for each step: of many runs as Parquet, of a single one as CSV."""

from __future__ import annotations

import csv
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlens.answers.grader import INSTALL
from attnlens.files import remove, write_file, write_folder
from attnlens.runs.dataset import Question

if TYPE_CHECKING:
    import pandas as pd

    from attnlens.recording.trace import Trace

OF_A_FILE = ("line", "expected", "right")
"""Columns that only questions of a file have."""
ROWS = 2**16
"""Rows that are held before they are written: a row group, of which a file should have few."""
PART = 10_000
"""Most answers in one file of a table."""


def steps_table(trace: Trace, question: Question | None = None) -> pd.DataFrame:
    """One row for each step of a run.

    Parameters
    ----------
    trace
        The run.
    question
        What was asked; taken from the trace when not given.

    Returns
    -------
    pandas.DataFrame
        ``line``, ``image``, ``question``, ``mode``, ``expected``, ``answer``, ``right`` (by the
        rule of ``attnlens.answers``; missing where that or the truth is not known), ``cut_off``
        (whether the answer had not ended when generation stopped at its longest length; missing
        where that is not known) of the run; ``step``, ``query_token``, ``predicted_token``,
        ``region`` (of the predicted token); ``keys_SEGMENT``, the number of keys, without those
        that are hidden from a head, and ``mass_SEGMENT``, the fraction of attention mass, both the
        mean over layers and heads; and each definition of visual share by its name
        (``attnlens.measures.definitions``), reduced over heads and layers, NaN where it is not
        defined. ``NAME_query`` and ``NAME_response`` follow a definition that has curves of the
        query text and the generated text; those of ``mass`` are the fractions of these names.
        Tokens and definitions are missing for synthetic traces.
    """
    import numpy as np
    import pandas as pd

    from attnlens.answers import final_answer, judge
    from attnlens.measures import shares, visual_share
    from attnlens.measures.definitions import DEFINITIONS
    from attnlens.measures.inputs import over_heads, visible_keys

    data = trace.data
    steps = data.sizes["step"]
    if question is None:
        images = trace.attrs.get("images") or [{}]
        question = Question(str(images[0].get("path") or ""), str(trace.attrs.get("question", "")))
    answer = final_answer(trace.text)
    right = None if question.answer is None else judge(answer, question.answer).right
    table = pd.DataFrame(
        {
            "line": pd.Series([question.line] * steps, dtype="Int64"),
            **_texts(
                steps,
                image=question.image,
                question=question.text,
                mode=str(trace.attrs.get("mode", "")),
                expected=question.answer,
                answer=answer,
            ),
            "right": pd.Series([right] * steps, dtype="boolean"),
            "cut_off": pd.Series([trace.cut_off] * steps, dtype="boolean"),
            "step": data["step"].values,
        }
    )
    for name in ("query_token", "predicted_token", "region"):
        texts = data[name].values.tolist() if name in data.variables else [None] * steps
        table[name] = pd.Series(texts, dtype="string")
    mean, keys = data["mass"].mean(("layer", "head")), over_heads(visible_keys(data))
    for segment in data["segment"].values.tolist():
        table[f"keys_{segment}"] = keys.sel(segment=segment).values
        table[f"mass_{segment}"] = mean.sel(segment=segment).values
    measured = {"query_token", "visual_nonzero"} <= set(data.variables)
    for name, definition in DEFINITIONS.items():
        columns = [name]
        if definition.has_curves:
            columns += [f"{name}_query", f"{name}_response"]
        values = np.full((steps, len(columns)), np.nan)
        if measured:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN
                share = shares(trace, name) if definition.has_curves else visual_share(trace, name)
            values = share.reindex(step=data["step"]).values.reshape(steps, -1)
        for column, one in zip(columns, values.T, strict=True):
            if column not in table:  # those of mass are there
                table[column] = one
    return table


def _texts(steps: int, **values: str | None) -> dict[str, pd.Series]:
    import pandas as pd

    return {name: pd.Series([text] * steps, dtype="string") for name, text in values.items()}


def print_cut_off(command: str, cut_off: Counter[int], total: int, of: str = "answers") -> None:
    """Print on standard error how many answers had not ended, if any.

    Parameters
    ----------
    command
        Name of the command.
    cut_off
        How many of these answers have which length, in tokens.
    total, of
        How many there are in all, and of what.
    """
    if cut_off:
        what = "the answer" if total == 1 else f"{cut_off.total()} of {total} {of}"
        least, most = min(cut_off), max(cut_off)
        tokens = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        print(
            f"attnlens {command}: {what} had not ended at the longest length, {tokens} "
            f"token{'' if most == 1 else 's'} (--max_new_tokens); "
            "results are about the part that is there",
            file=sys.stderr,
        )


def print_unjudged(command: str, count: int, of: str = "answers") -> None:
    """Print on standard error how many answers only math-verify could judge, if any."""
    if count:
        print(
            f"attnlens {command}: {count} {of} could not be judged, since only math-verify can "
            f"tell whether expressions are equal: {INSTALL}",
            file=sys.stderr,
        )


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write the steps of a question from the command line, without the columns `OF_A_FILE`.

    Texts are quoted: a token may be a comma or a line break, and CSV is read wrongly where one is
    a bare carriage return. Where there is no value, the cell is empty.
    """
    table.drop(columns=list(OF_A_FILE)).to_csv(
        path, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n", encoding="utf-8"
    )


def write_parquet(path: Path, tables: Iterable[pd.DataFrame]) -> int:
    """Write tables of the same columns one after the other into one Parquet file.

    About ``ROWS`` rows are held at a time. The file is written whole or not at all.

    Returns
    -------
    int
        Number of rows.
    """
    import pyarrow
    from pyarrow import parquet

    rows = waiting = 0
    schema: Any = None
    held: list[Any] = []
    with write_file(path) as temporary:
        writer: Any = None
        try:
            for table in tables:
                batch = pyarrow.Table.from_pandas(table, schema=schema, preserve_index=False)
                if writer is None:
                    # without pandas' own notes, which name versions
                    schema = batch.schema.remove_metadata()
                    writer = parquet.ParquetWriter(temporary, schema, compression="zstd")
                held.append(batch.replace_schema_metadata(None))
                rows += len(table)
                waiting += len(table)
                if waiting >= ROWS:
                    writer.write_table(pyarrow.concat_tables(held))
                    held, waiting = [], 0
            if held:
                writer.write_table(pyarrow.concat_tables(held))
        finally:
            if writer is not None:
                writer.close()
    return rows


def write_parts(path: Path, tables: Iterable[pd.DataFrame], count: int, *, each: int = 1) -> None:
    """Write the tables of ``count`` answers as one Parquet file, or as a folder of such files.

    It is a folder where there are more than ``PART`` answers, with that many in each file.
    Each table is of ``each`` answers, a number that divides ``PART``. ``pandas.read_parquet`` reads
    both.
    """
    if count <= PART:
        if path.is_dir():
            remove(path)
        write_parquet(path, tables)
        return
    if path.is_file():
        remove(path)
    rest = iter(tables)
    with write_folder(path, replace=True) as folder:
        for number in range(-(-count // PART)):
            write_parquet(folder / f"part-{number:05d}.parquet", islice(rest, PART // each))
