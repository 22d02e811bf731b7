"""Region summaries: which steps count, under either owner of a step."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers_traces import FakeRegion, FakeTrace, make_dataset, planted_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.errors import InputError
from attnlens.measures import region_summary, visual_share

SERIES = np.array([0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.55, 0.45])


def look_back_of(visual):
    """Look-back share in a planted dataset: half of what is not visual lies on the sink."""
    return visual / (visual + (1 - visual) / 2)


def row(table, name, occurrence=None):
    rows = table[table["name"] == name]
    if occurrence is not None:
        rows = rows[rows["occurrence"] == occurrence]
    assert len(rows) == 1
    return rows.iloc[0]


def test_predicted_owner_takes_the_steps_that_predict_the_region():
    regions = [FakeRegion("think", 0, 2), FakeRegion("back", 3, 6)]
    table = region_summary(planted_dataset(SERIES, regions=regions), "mass")
    assert table["name"].tolist() == ["think", "back", "outside", "all"]
    back = row(table, "back")
    assert (back["start"], back["stop"], back["closed"], back["steps"]) == (3, 6, True, 3)
    np.testing.assert_allclose(back["mean"], SERIES[3:6].mean(), rtol=1e-6)
    np.testing.assert_allclose(back["peak"], 0.60, rtol=1e-6)
    assert back["peak_step"] == 5
    np.testing.assert_allclose(back["area"], SERIES[3:6].sum(), rtol=1e-6)
    outside = row(table, "outside")
    np.testing.assert_allclose(outside["area"], SERIES[[2, 6, 7]].sum(), rtol=1e-6)
    assert outside["steps"] == 3
    assert pd.isna(outside["start"])
    assert pd.isna(outside["closed"])
    whole = row(table, "all")
    np.testing.assert_allclose(whole["mean"], SERIES.mean(), rtol=1e-6)
    assert whole["steps"] == 8


def test_query_owner_takes_the_steps_that_are_fed_the_region():
    regions = [FakeRegion("think", 0, 2), FakeRegion("back", 3, 6)]
    table = region_summary(planted_dataset(SERIES, regions=regions), "look-back")
    share = look_back_of(SERIES)
    back = row(table, "back")
    assert (back["start"], back["stop"], back["steps"]) == (3, 6, 3)
    np.testing.assert_allclose(back["mean"], share[4:7].mean(), rtol=1e-6)
    assert back["peak_step"] == 5
    np.testing.assert_allclose(row(table, "think")["mean"], share[1:3].mean(), rtol=1e-6)
    # Step 0 is left out by look-back; outside are the steps fed tokens 2 and 6.
    np.testing.assert_allclose(row(table, "outside")["area"], share[[3, 7]].sum(), rtol=1e-6)
    assert row(table, "all")["steps"] == 7


def test_a_region_that_ends_the_response_loses_its_last_step_under_query_ownership():
    trace = planted_dataset(SERIES, regions=[FakeRegion("back", 5, 8, closed=False)])
    by_query, by_prediction = region_summary(trace, "look-back"), region_summary(trace, "mass")
    assert row(by_query, "back")["steps"] == 2
    assert row(by_prediction, "back")["steps"] == 3
    assert not row(by_query, "back")["closed"]


def test_occurrences_are_numbered_by_name_in_order():
    regions = [FakeRegion("back", 5, 7), FakeRegion("think", 0, 1), FakeRegion("back", 1, 3)]
    table = region_summary(FakeTrace(planted_dataset(SERIES), regions), "mass")
    named = table.iloc[:3]
    assert named["name"].tolist() == ["think", "back", "back"]
    assert named["occurrence"].tolist() == [1, 1, 2]
    assert named["start"].tolist() == [0, 1, 5]


def test_nested_regions_of_a_trace_are_kept_whole():
    regions = [FakeRegion("think", 0, 6), FakeRegion("back", 2, 4)]
    data = planted_dataset(SERIES, regions=regions)
    table = region_summary(FakeTrace(data, regions), "mass")
    assert row(table, "think")["steps"] == 6
    assert row(table, "back")["steps"] == 2
    assert row(table, "outside")["steps"] == 2
    # The dataset alone knows the innermost region of each token.
    parts = region_summary(data, "mass")
    assert row(parts, "think", 1)["stop"] == 2
    assert row(parts, "think", 2)["start"] == 4


def test_a_dataset_tells_closed_regions_by_their_closing_tag():
    regions = [FakeRegion("think", 0, 3), FakeRegion("back", 5, 8, closed=False)]
    data = planted_dataset(SERIES, regions=regions)
    assert region_summary(data)["closed"].tolist()[:2] == [True, False]


@pytest.mark.parametrize(("last", "closed"), [("}", True), (" more", False)])
def test_a_boxed_answer_is_closed_by_its_brace(last, closed):
    data = planted_dataset(SERIES, regions=[FakeRegion("answer", 2, 5)])
    tokens = data["predicted_token"].values.astype("<U9")
    tokens[2:5] = "\\boxed{", "red", last
    data = data.assign_coords(predicted_token=("step", tokens))
    assert region_summary(data)["closed"].tolist()[0] is closed


def test_undefined_steps_are_left_out():
    table = region_summary(planted_dataset(SERIES, regions=[FakeRegion("back", 0, 2)]), "no-sink")
    assert row(table, "back")["steps"] == 2
    table = region_summary(
        planted_dataset(SERIES, regions=[FakeRegion("back", 0, 2)]), "lookback-ratio"
    )
    assert row(table, "back")["steps"] == 1
    assert row(table, "back")["peak_step"] == 1


def test_a_region_without_a_measured_step_has_missing_values():
    table = region_summary(planted_dataset([0.3], regions=[FakeRegion("back", 0, 1)]), "look-back")
    back = row(table, "back")
    assert back["steps"] == 0
    assert all(pd.isna(back[name]) for name in ("mean", "peak", "peak_step", "area"))
    assert row(table, "all")["steps"] == 0


def test_a_run_without_regions_has_two_equal_rows():
    table = region_summary(planted_dataset(SERIES))
    assert table["name"].tolist() == ["outside", "all"]
    assert table["area"].iloc[0] == table["area"].iloc[1]
    without = region_summary(planted_dataset(SERIES).drop_vars("region"))
    assert without["name"].tolist() == ["outside", "all"]


def test_columns_types_and_attributes():
    table = region_summary(planted_dataset(SERIES, regions=[FakeRegion("back", 1, 3)]), "no-sink")
    assert table.columns.tolist() == [
        "name",
        "occurrence",
        "start",
        "stop",
        "closed",
        "steps",
        "mean",
        "peak",
        "peak_step",
        "area",
    ]
    assert table["start"].dtype == "Int64"
    assert table["mean"].dtype == "float64"
    assert table.attrs["step_owner"] == "predicted"
    assert table.attrs["definition"] == "no-sink"


def test_a_part_of_a_dataset_keeps_its_step_labels():
    data = planted_dataset(SERIES, regions=[FakeRegion("back", 3, 6)])
    table = region_summary(data.isel(step=slice(2, 7)), "mass")
    back = row(table, "back")
    assert (back["start"], back["stop"], back["peak_step"]) == (3, 6, 5)


@given(
    st.integers(2, 20).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.integers(0, n), min_size=0, max_size=6, unique=True)
        )
    ),
    st.sampled_from(["mass", "look-back", "reflection-v", "lookback-ratio"]),
)
@settings(max_examples=60, deadline=None)
def test_areas_of_regions_and_outside_add_up(cut, name):
    steps, bounds = cut
    bounds = sorted(bounds)
    regions = [FakeRegion("back", a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False)]
    rng = np.random.default_rng(steps)
    data = make_dataset(rng.dirichlet(np.ones(7), (steps, 2, 3)), regions=regions)
    table = region_summary(FakeTrace(data, regions), name)
    parts = table[table["name"] != "all"]
    whole = row(table, "all")
    assert parts["steps"].sum() == whole["steps"]
    np.testing.assert_allclose(parts["area"].sum(), whole["area"], rtol=1e-9)
    # The share's own region coordinate says the same as the summary.
    share = visual_share(data, name)
    labelled = np.isfinite(share.values) & (share["region"].values == "back")
    assert table.loc[table["name"] == "back", "steps"].sum() == labelled.sum()


def test_bad_input_is_refused_as_in_visual_share():
    with pytest.raises(InputError, match="known: mass"):
        region_summary(planted_dataset(SERIES), "nothing")
