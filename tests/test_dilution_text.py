"""The tables of ``attnlens dilution`` on a terminal hold the numbers that were measured."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from test_measures_information import answer

from attnlens import measures
from attnlens.measures.theorems.synthetic import synthetic_attention
from attnlens.reports.dilution_tables import as_text


def runs(count):
    sizes = {"visual": 16, "text": 8, "sink": 1.0}
    return [synthetic_attention(16, gap=-0.1 * i, scatter=(0.5, i), **sizes) for i in range(count)]


def twins(seed):
    sizes = {"visual": 16, "text": 8, "scatter": (0.5, seed)}
    return {
        name: synthetic_attention(16, copied=(k, 8 if k else 0), **sizes)
        for name, k in (("untouched", 0), ("half", 8), ("copy", 16))
    }


def rows(table):
    """Cells of each line below the names of the columns, by the first one."""
    lines = table.splitlines()
    at = next(i for i, line in enumerate(lines) if "interval" in line)
    return {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in lines[at + 1 :])}


def test_exponents_and_the_split_by_layer():
    found = measures.dilution(runs(8))
    cells = rows(as_text(found, None, None))
    assert list(cells) == ["all", "no sink", "0", "1"]
    alpha, interval, *terms, even = cells["all"]
    assert float(alpha) == pytest.approx(found.exponent, abs=0.005)
    assert interval == f"[{found.exponent_low:.2f}, {found.exponent_high:.2f}]"
    change = found.change
    means = [change.log_odds.mean, change.counts.mean, change.preference.mean]
    np.testing.assert_allclose([float(term) for term in terms], means, atol=0.005)
    assert float(even) == pytest.approx(found.evenness["visual"]["mean"], abs=0.005)
    sinkless = float(cells["no sink"][3])
    assert sinkless == pytest.approx(found.change_without_sink.counts.mean, abs=0.005)
    assert sinkless != float(terms[1])
    layer = found.by_layer.loc[1]
    assert float(cells["1"][0]) == pytest.approx(layer["exponent"], abs=0.005)
    assert float(cells["1"][4]) == pytest.approx(layer["preference"], abs=0.005)


def test_a_change_over_fewer_runs_says_over_how_many():
    found = measures.dilution(runs(4))
    assert "(n)" not in as_text(found, None, None)
    fewer = replace(found, change_without_sink=replace(found.change_without_sink, samples=3))
    table = as_text(fewer, None, None)
    assert "(n): over n of the runs" in table
    cells = rows(table)
    assert [cell.endswith(" (3)") for cell in cells["no sink"][2:5]] == [True] * 3
    assert not any("(" in cell for cell in cells["all"])


def test_one_run_has_no_interval():
    cells = rows(as_text(measures.dilution(runs(1)), None, None))
    assert cells["all"][1] == "-"


def test_insertions_and_bounds():
    found = measures.dilution(runs(3))
    inserted = measures.insertion([twins(i) for i in range(4)], confidence=0.9)
    others = np.array([[-3.0, -4.0], [-2.0, -5.0]])
    answers = [[answer([-1.0, -2.0 - i], others)] for i in range(8)]
    shared = measures.mutual_information(answers, bins=2)
    tables = as_text(found, inserted, shared).split("\n\n")
    assert "90% interval" in tables[1]
    cells = rows(tables[1])
    assert list(cells) == ["untouched", "half", "copy"]
    assert cells["untouched"][3:] == ["-", "-", "-"]
    row = inserted.table.set_index("insertion").loc["copy"]
    expected = [row[name] for name in ("log_odds", "counts", "preference")]
    np.testing.assert_allclose([float(c) for c in cells["copy"][3:]], expected, atol=0.005)
    bounds = rows(tables[2])
    most = bounds["at most (against others)"]
    assert most == [f"{shared.nats:.2f}", f"[{shared.nats_low:.2f}, {shared.nats_high:.2f}]"]
    ceiling = float(bounds["of, at most, with so many images"][0])
    assert ceiling == pytest.approx(np.log(3), abs=0.005)
    assert float(bounds["tells its image among the others by"][0]) <= ceiling
