"""Figures of experiments carry what was measured: outlines, ROUTE percentages, definitions, use."""

from __future__ import annotations

import json
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from conftest import picture
from helpers_traces import (
    FakeRegion,
    dataset_of_attention,
    make_dataset,
    planted_dataset,
    random_attention,
)
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import stats
from test_plots import assert_nothing_touches, build, drawn_boxes, pieces

import attnlens
from attnlens import plots
from attnlens.errors import InputError
from attnlens.experiments.recovery import Recovery
from attnlens.interventions import AtStep, Copy, Route
from attnlens.measures import agreement, correlation, visual_share
from attnlens.measures.correlation import spearman
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.statistics import mean_interval
from attnlens.reports.figure_tables import agreement_tables
from attnlens.segments import SEGMENTS

WIDTHS = ("one-column", "two-column")


def caption_of(figure) -> str:
    (text,) = (t for t in figure.texts if t.get_gid() == "caption")
    return text.get_text().replace("\n", " ")


def series_of(axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def bars_of(axes) -> list[np.ndarray]:
    """Ends [point, (low, high)] of the bars of each series; Matplotlib empties undefined ones."""
    found = [c for c in axes.collections if isinstance(c, mpl.collections.LineCollection)]
    return [np.array([part[:, 1] for part in bars.get_segments() if len(part)]) for bars in found]


def assert_laid_out(figure) -> None:
    """No text touches another, and none is cut off."""
    boxes = drawn_boxes(figure)
    assert_nothing_touches(boxes)
    for box in boxes:
        assert box.x0 > -1
        assert box.y0 > -1
        assert box.x1 < figure.bbox.x1 + 1
        assert box.y1 < figure.bbox.y1 + 1


def assert_the_same_each_time(draw, folder) -> None:
    """Render several figures that live at once; objects elsewhere in memory must change nothing."""
    figures = [draw(), draw()]
    for suffix in ("svg", "pdf", "png"):
        files = [
            plots.save(figure, folder / f"{i}.{suffix}", dpi=60) for i, figure in enumerate(figures)
        ]
        assert len({file.read_bytes() for file in files}) == 1, suffix


# overlay


@pytest.fixture
def pictured() -> tuple[attnlens.Trace, Image.Image]:
    trace = build(pieces(30))
    record = {"path": None, "width": 56, "height": 30, "rows": 3, "columns": 4, "sha256": ""}
    trace.data.attrs["images"] = [record]
    return trace, picture(56, 30)


@pytest.mark.parametrize("width", WIDTHS)
def test_overlay_outlines_boxes_in_two_tones(pictured, width):
    trace, image = pictured
    boxes = [(10.5, 2, 20, 12), np.array([0.0, 0.0, 56.0, 30.0])]
    figure = plots.overlay(trace, 3, image=image, boxes=iter(boxes), width=width)
    patches = [p for p in figure.axes[0].patches if p.get_gid() == "box"]
    sides = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height())
             for p in patches]  # fmt: skip
    np.testing.assert_allclose(sides, np.repeat([list(map(float, b)) for b in boxes], 2, axis=0))
    for under, over in (patches[:2], patches[2:]):
        tones = [sum(to_rgb(p.get_edgecolor())) for p in (under, over)]
        assert abs(tones[0] - tones[1]) == 3  # black and white
        assert under.get_linewidth() > over.get_linewidth()
        assert not under.get_fill()
        assert not over.get_fill()
    assert "Outlined: the boxes given" in caption_of(figure)
    assert_laid_out(figure)


@pytest.mark.slow
def test_overlay_is_the_same_each_time(pictured, tmp_path):
    trace, image = pictured
    boxes = [(10.5, 2, 20, 12), np.array([0.0, 0.0, 56.0, 30.0])]
    assert_the_same_each_time(lambda: plots.overlay(trace, 3, image=image, boxes=boxes), tmp_path)


def test_overlay_without_boxes_has_no_outline(pictured):
    trace, image = pictured
    for boxes in (None, []):
        figure = plots.overlay(trace, 3, image=image, boxes=boxes)
        assert not figure.axes[0].patches
        assert "Outlined" not in caption_of(figure)
    assert "the box given" in caption_of(plots.overlay(trace, 3, image=image, boxes=[(0, 0, 1, 1)]))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ((1, 2, 3, 4), "a box is 1: give a list"),
        (5, "a box is 5"),
        ([(1, 2, 3)], r"a box is \(1, 2, 3\)"),
        (["1234"], "a box is '1234'"),
        ([(1, 2, 3, "4")], "'4'"),
        ([(False, 0, True, True)], "False"),
        ([(0, 0, 57, 30)], r"57, 30\) is not inside the image.*0 to 56"),
        ([(0, 0, 5, 31)], "top < bottom from 0 to 30"),
        ([(-1, 0, 5, 5)], "-1, 0"),
        ([(5, 0, 5, 5)], "5, 0, 5, 5"),
        ([(0, 6, 5, 5)], "0, 6, 5, 5"),
        ([(0, 0, float("nan"), 5)], "nan"),
        ([(0, 0, 5, 5), (0, 0, float("inf"), 5)], "inf"),
    ],
)
def test_overlay_refuses_bad_boxes(pictured, boxes, message):
    trace, image = pictured
    with pytest.raises(InputError, match=message):
        plots.overlay(trace, 3, image=image, boxes=boxes)


# routes

PERCENTS = {"route:50": 50, "route:10": 10.0, "copy": 100}
RUNS = ("untouched", "route:50", "copy", "route:10", "boost:1")


def recovery(samples: int = 5, *, truth: bool = True, seed: int = 0) -> Recovery:
    """Make a result of random numbers, with eight steps and interventions from step 2 on."""
    rng = np.random.default_rng(seed)
    names, steps, runs = list(DEFINITIONS), 8, len(RUNS)
    dims = ("sample", "run", "definition", "step")
    share = rng.uniform(0.1, 0.5, (samples, runs, len(names), steps))
    counted = share + 0.2
    counted[:, :, names.index("reflection-v")] = np.nan
    each = ("sample", "run")
    numbers = {
        "first_step": np.full((samples, runs), 2.0),
        "answer_changed": rng.integers(0, 2, (samples, runs)).astype(float),
        "right": rng.integers(0, 2, (samples, runs)).astype(float),
        "inserted": np.tile([0.0, 30, 60, 6, 0], (samples, 1)),
        "seconds": rng.uniform(1, 2, (samples, runs)),
    }
    numbers["first_step"][:, 0] = np.nan
    if not truth:
        numbers["right"][:] = np.nan
    data = xr.Dataset(
        {
            "share": (dims, share),
            "rise": (dims, share - share[:, :1]),
            "rise_with_copied": (dims, counted - share[:, :1]),
            "free_rise": (dims[:3], np.zeros(share.shape[:3])),
            "free_rise_with_copied": (dims[:3], np.zeros(share.shape[:3])),
            "kl": (("sample", "run", "step"), np.ones((samples, runs, steps))),
            "hellinger": (("sample", "run", "step"), np.ones((samples, runs, steps))),
            **{name: (each, values) for name, values in numbers.items()},
            "cache_bytes": (each, numbers["inserted"] * 2048),
        },
        {"run": list(RUNS), "definition": names, "step": np.arange(steps)},
        {"model": "synthetic", "cache_bytes_per_token": 2048},
    )
    return Recovery(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("definition", "width"), [*zip(DEFINITIONS, WIDTHS * 3, strict=True), ("mass", WIDTHS[1])]
)
def test_routes_draw_the_rises(definition, width):
    result = recovery(8)
    order = ["route:10", "route:50", "copy"]
    figure = plots.routes(result, PERCENTS, definition, width=width)
    rise, answers, cost = figure.axes
    drawn = bars_of(rise)
    kinds = [("not counted", "rise", False), ("counted", "rise_with_copied", True)]
    counts = DEFINITIONS[definition].counts_copied
    for place, (label, name, copied) in enumerate(kinds[: 1 + counts]):
        by_run = result.data[name].sel(definition=definition).isel(step=slice(2, None))
        means = by_run.sel(run=order).mean(("sample", "step")).values
        x, y = series_of(rise, label)
        np.testing.assert_array_equal(x, [10, 50, 100])
        np.testing.assert_allclose(y, means, rtol=1e-12)
        table = result.table(definition, include_copied=copied).set_index("intervention")
        ends = table.loc[order, ["rise_low", "rise_high"]].to_numpy()
        np.testing.assert_allclose(drawn[place], ends, rtol=1e-12)
        assert (drawn[place][:, 0] < drawn[place][:, 1]).all()
    assert len(drawn) == 1 + counts
    right = result.data["right"].mean("sample")
    np.testing.assert_allclose(series_of(answers, "ROUTE")[1], right.sel(run=order))
    np.testing.assert_allclose(series_of(answers, "untouched")[1], right.sel(run="untouched"))
    np.testing.assert_array_equal(cost.lines[0].get_ydata(), [6, 30, 60])
    words = caption_of(figure)
    assert DEFINITIONS[definition].formula in words
    assert DEFINITIONS[definition].units in rise.get_ylabel().replace("\n", " ")
    assert "8 of 8" in words
    assert "each takes 2,048 bytes of cache, 12 to 120 KiB in all" in words
    assert_laid_out(figure)


def test_routes_without_true_answers_draw_changed_ones():
    result = recovery(truth=False)
    answers = plots.routes(result, PERCENTS).axes[1]
    changed = result.data["answer_changed"].mean("sample").sel(run=["route:10", "route:50", "copy"])
    np.testing.assert_allclose(answers.lines[-1].get_ydata(), changed)
    assert "changed answers" in answers.get_ylabel()
    assert "untouched" not in [line.get_label() for line in answers.lines]


def test_routes_of_one_sample_and_of_runs_that_never_acted(tmp_path):
    result = recovery(1)
    result.data["first_step"].loc[{"run": "route:50"}] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.routes(result, PERCENTS)
        plots.save(figure, tmp_path / "a.png")
    _, y = series_of(figure.axes[0], "not counted")
    assert np.isfinite(y).tolist() == [True, False, True]
    assert [len(ends) for ends in bars_of(figure.axes[0])] == [0, 0]
    assert "0 to 1 of 1" in caption_of(figure)


@pytest.mark.slow
def test_routes_are_the_same_each_time(tmp_path):
    assert_the_same_each_time(lambda: plots.routes(recovery(), PERCENTS), tmp_path)


@pytest.mark.parametrize(
    ("percents", "options", "message"),
    [
        ({}, {}, "percents is {}"),
        (["route:50"], {}, "give a mapping"),
        ({"route:5": 5}, {}, "'route:5': there are route:50, copy"),
        ({"untouched": 0}, {}, "'untouched'"),
        ({"copy": 101}, {}, "'copy' is 101"),
        ({"copy": -1}, {}, "is -1"),
        ({"copy": float("nan")}, {}, "nan"),
        ({"copy": True}, {}, "True"),
        ({"copy": "100"}, {}, "'100'"),
        ({"copy": 50, "route:50": 50.0}, {}, "one percentage, 50"),
        (PERCENTS, {"definition": "gaze"}, "'gaze'"),
        (PERCENTS, {"width": "wide"}, "'wide'"),
    ],
)
def test_routes_refuse_bad_input(percents, options, message):
    with pytest.raises(InputError, match=message):
        plots.routes(recovery(), percents, **options)


def test_routes_refuse_what_never_acted():
    result = recovery()
    result.data["first_step"][:] = np.nan
    with pytest.raises(InputError, match="none of route:10, route:50, copy acted"):
        plots.routes(result, PERCENTS)


# definitions


@pytest.fixture(scope="module")
def runs() -> list[xr.Dataset]:
    """Three runs of unlike length; the last has fewer steps than there are bins."""
    return [
        dataset_of_attention(random_attention(seed, steps=steps))
        for seed, steps in ((0, 41), (1, 57), (2, 13))
    ]


def by_hand(run: xr.Dataset, name: str) -> np.ndarray:
    share = visual_share(run, name).to_series()
    return share.reindex(range(run.sizes["step"])).to_numpy()


def test_agreement_is_the_mean_over_runs_of_rank_correlations_by_step(runs):
    found, many = agreement(runs), agreement(runs * 3)
    assert found.names == tuple(DEFINITIONS)
    assert found.samples == 3
    for i, a in enumerate(found.names):
        for j, b in enumerate(found.names):
            by_run = [
                stats.spearmanr(by_hand(r, a), by_hand(r, b), nan_policy="omit").statistic
                for r in runs
            ]
            assert found.correlations[i, j] == pytest.approx(np.mean(by_run), abs=1e-12)
            if i != j:
                assert np.isnan([found.low[i, j], found.high[i, j]]).all()  # three runs have none
                ends = mean_interval(np.array(by_run * 3), 0.95, within=(-1, 1))
                assert (many.low[i, j], many.high[i, j]) == pytest.approx(ends, abs=1e-9)
                assert -1 <= many.low[i, j] <= many.high[i, j] <= 1
    worst = np.unravel_index(np.argmin(found.correlations), found.correlations.shape)
    assert sorted(found.least_alike()) == sorted(map(int, worst))


def test_agreement_bins_each_run_over_its_own_mean(runs):
    found = agreement(runs, bins=20)
    for row, name in zip(found.curves, found.names, strict=True):
        for place, value in enumerate(row):
            means = []
            for run in runs:
                share = by_hand(run, name)
                at = (np.arange(len(share)) + 0.5) / len(share)
                inside = share[(at >= place / 20) & (at < (place + 1) / 20)]
                inside = inside[np.isfinite(inside)]
                if len(inside):
                    means.append(inside.mean() / np.nanmean(share))
            assert value == pytest.approx(np.mean(means), rel=1e-9)
    np.testing.assert_allclose(found.bins, np.arange(21) / 20)


def test_agreement_compares_the_same_forward_pass():
    """A share that jumps at one step does so at that step in every definition."""
    shares = np.full(12, 0.2)
    shares[5] = 0.6
    found = agreement(planted_dataset(shares), bins=12, names=["look-back", "mass"])
    assert np.nanargmax(found.curves, 1).tolist() == [5, 5]
    assert np.isnan(found.curves[0, 0])  # look-back has no step 0
    assert np.isfinite(found.curves[1]).all()
    np.testing.assert_allclose(found.correlations, 1)
    assert np.isnan(found.low).all()  # one run has no interval


def test_agreement_where_definitions_are_undefined():
    mass = np.zeros((9, 2, 3, len(SEGMENTS)))
    mass[..., SEGMENTS.index("sink")] = 1  # no-sink has no value, and mass is 0 throughout
    dark = make_dataset(mass)
    found = agreement([dark], names=["mass", "no-sink"])
    assert np.isnan(found.curves).all()
    assert np.isnan(found.correlations).all()
    assert found.least_alike() is None
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["correlations"] == [[None, None], [None, None]]
    assert plain["names"] == ["mass", "no-sink"]
    with pytest.raises(InputError, match="nothing to draw"):
        plots.definitions([dark], names=["mass", "no-sink"])


def test_agreement_says_over_how_many_runs_a_correlation_is(runs):
    """A run in which the share never moves has none."""
    names = ["mass", "mean-weight", "no-sink"]
    mass = np.zeros((9, 2, 3, len(SEGMENTS)))
    mass[..., SEGMENTS.index("sink")] = 1
    found = agreement([*runs, make_dataset(mass)], names=names)
    alone = agreement(runs, names=names)
    assert found.samples == 4
    assert found.runs.tolist() == [[3] * 3] * 3
    np.testing.assert_allclose(found.correlations, alone.correlations)
    _, pairs = agreement_tables(found)
    assert pairs["runs"].tolist() == [3, 3, 3]
    captions = [
        " ".join(" ".join(t.get_text() for t in plots.definitions(one).texts).split())
        for one in (found, alone)
    ]
    assert "mean over the runs that have one (3)" in captions[0]
    assert "mean over runs (\N{EN DASH}: undefined)" in captions[1]


def test_spearman_by_hand():
    nan = np.nan
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 25, 90])) == 1
    assert spearman(np.array([1.0, 2, nan, 3, 4]), np.array([4.0, 3, 9, 2, 1])) == -1
    assert np.isnan(spearman(np.array([1.0, 2, 3, nan]), np.array([1.0, 2, 3, 4])))
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


@pytest.mark.parametrize("width", WIDTHS)
def test_definitions_draw_the_agreement(runs, width):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.definitions(iter(runs), width=width)
    left, right = figure.axes
    found = agreement(runs)
    for i, name in enumerate(DEFINITIONS):
        x, y = series_of(left, name)
        np.testing.assert_allclose(x, np.arange(0.025, 1, 0.05))
        np.testing.assert_allclose(y, found.curves[i])
    lines = [line for line in left.get_lines() if line.get_label() in DEFINITIONS]
    assert len({line.get_color() for line in lines}) == len(DEFINITIONS)
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(DEFINITIONS)
    np.testing.assert_allclose(right.images[0].get_array(), found.correlations)
    written = {t.get_position(): t.get_text().replace("\N{MINUS SIGN}", "-") for t in right.texts}
    for (i, j), value in np.ndenumerate(found.correlations):
        assert float(written[j, i]) == pytest.approx(value, abs=0.0051)
    assert [t.get_text() for t in right.get_yticklabels()] == list(DEFINITIONS)
    words = caption_of(figure)
    assert all(d.formula in words for d in DEFINITIONS.values())
    assert "mean over 3 runs" in words
    a, b = found.least_alike()
    assert f"Least alike: {found.names[a]} and {found.names[b]}" in words
    assert_laid_out(figure)


@pytest.mark.slow
def test_definitions_are_the_same_each_time(runs, tmp_path):
    assert_the_same_each_time(lambda: plots.definitions(runs), tmp_path)


def test_definitions_of_one_run_with_undefined_cells(tmp_path):
    figure = plots.definitions(planted_dataset(np.full(9, 0.3)), names=["mass", "no-sink"])
    left, right = figure.axes
    # a constant has no rank correlation, and nine steps leave bins empty
    assert {t.get_text() for t in right.texts} == {"\N{EN DASH}"}
    assert np.isfinite(series_of(left, "mass")[1]).sum() == 9
    assert "Least alike" not in caption_of(figure)
    plots.save(figure, tmp_path / "a.pdf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["mass", "gaze"]}, "'gaze'"),
        ({"names": ["mass"]}, r"names is \['mass'\]: give two or more"),
        ({"names": "mass"}, "names is 'mass'"),
        ({"names": ["mass", "mass"]}, "different"),
        ({"names": []}, r"names is \[\]"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_definitions_refuse_bad_input(runs, options, message):
    with pytest.raises(InputError, match=message):
        plots.definitions(runs, **options)


def test_definitions_refuse_nothing_and_no_traces(runs):
    with pytest.raises(InputError, match="at least one"):
        plots.definitions([])
    with pytest.raises(InputError, match="not a trace"):
        plots.definitions([runs[0], "a trace"])
    for bins in (0, 1.5, True, 1001):
        with pytest.raises(InputError, match="bins is"):
            agreement(runs, bins=bins)


# dependence


def used(seed: int, steps: int = 60, **options) -> xr.Dataset:
    """Make what ``attnlens.dependence`` returns, of random numbers; KL rises with mass."""
    rng = np.random.default_rng(seed)
    mass = rng.uniform(0.05, 0.5, steps)
    kl = np.exp(rng.normal(20 * mass - 12, 3, (2, steps)))
    kl[:, ::7] = 0
    mass[3:4] = np.nan
    regions = [FakeRegion("think", 0, 50), FakeRegion("back", 20, 35), FakeRegion("answer", 52, 58)]
    data = planted_dataset(np.full(60, 0.3), regions=regions).isel(step=slice(0, steps))
    names = ("predicted_token", "region")
    return xr.Dataset(
        {"kl": (("reference", "step"), kl), "mass": ("step", mass)},
        {
            "reference": options.get("references", ["removed", "blank"]),
            "step": np.arange(steps),
            **{name: ("step", data[name].values) for name in names},
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("reference", [None, "removed"])
def test_dependence_draws_mass_and_divergence(width, reference):
    datasets = [*map(used, range(8)), used(8, steps=40)]
    name = reference or "blank"
    figure = plots.dependence(iter(datasets), width=width, reference=reference)
    above, below, scatter = figure.axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), datasets[0]["mass"])
    np.testing.assert_array_equal(below.lines[0].get_ydata(), datasets[0]["kl"].sel(reference=name))
    assert above.get_xlim() == below.get_xlim() == (-0.5, 59.5)
    mass = np.concatenate([d["mass"].values for d in datasets])
    kl = np.concatenate([d["kl"].sel(reference=name).values for d in datasets])
    known = np.isfinite(mass)
    (points,) = scatter.collections
    want = np.stack([mass, np.maximum(kl, 1e-6)], 1)[known]
    np.testing.assert_allclose(points.get_offsets(), want)
    assert scatter.get_yscale() == "log"
    rhos = [
        stats.spearmanr(d["mass"], d["kl"].sel(reference=name), nan_policy="omit").statistic
        for d in datasets
    ]
    title = scatter.get_title()
    assert f"= {np.mean(rhos):.2f} [" in title
    ends = [float(end) for end in title.split("[")[1].rstrip("]").split(", ")]
    assert min(rhos) - 0.01 <= ends[0] <= ends[1] <= max(rhos) + 0.01
    words = caption_of(figure)
    under = int((kl[known] < 1e-6).sum())
    assert f"{known.sum()} steps of 9 runs; the {under} below 1e-6 nats" in words
    assert f"reference {name}" in words
    assert_laid_out(figure)


def test_dependence_of_one_run_has_no_interval():
    data = used(4)
    figure = plots.dependence(data)
    assert figure.axes[2].get_title().endswith(f"= {correlation(data)['rho']:.2f}")
    assert "over the steps of one run, which give it no interval" in caption_of(figure)


def test_dependence_shades_whole_regions():
    figure = plots.dependence(used(0))
    for axes in figure.axes[:2]:
        spans = {
            (p.get_x(), p.get_x() + p.get_width()) for p in axes.patches if p.get_gid() == "region"
        }
        # <think> goes on after the <back> that it holds
        assert spans == {(-0.5, 49.5), (19.5, 34.5), (51.5, 57.5)}
    names = [t.get_text() for t in figure.axes[0].texts if t.get_gid() == "region name"]
    assert sorted(names) == ["answer", "back", "think"]


@pytest.mark.slow
def test_dependence_is_the_same_each_time(tmp_path):
    data = [used(0), used(1)]
    assert_the_same_each_time(lambda: plots.dependence(data), tmp_path)


def test_dependence_of_few_steps_and_without_regions(tmp_path):
    data = used(0, steps=2).drop_vars(["region", "predicted_token"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("default", DeprecationWarning)  # of libraries among one another
        for datasets in (data, [data, data]):
            figure = plots.dependence(datasets)
            assert "undefined" in figure.axes[2].get_title()
            plots.save(figure, tmp_path / "a.png")


def test_dependence_takes_blank_or_the_first_reference_that_all_have():
    one, other = used(0, references=["removed", "other"]), used(1, references=["other", "blank"])
    assert "reference removed" in caption_of(plots.dependence(one))
    assert "reference other" in caption_of(plots.dependence([one, other]))
    with pytest.raises(InputError, match="'removed' was not measured in all runs: use other"):
        plots.dependence([one, other], reference="removed")
    with pytest.raises(InputError, match="no reference was measured in all"):
        plots.dependence([used(0, references=["a", "b"]), used(1, references=["c", "d"])])


@pytest.mark.parametrize("datasets", [[], [planted_dataset(np.full(9, 0.3))], 5, ["kl"], [None]])
def test_dependence_refuses_bad_input(datasets):
    with pytest.raises(InputError, match=r"attnlens\.dependence"):
        plots.dependence(datasets)


def test_dependence_refuses_what_is_undefined():
    data = used(0)
    with pytest.raises(InputError, match="nothing to draw"):
        plots.dependence(data.assign(mass=data["mass"] * np.nan))
    with pytest.raises(InputError, match="'wide'"):
        plots.dependence(data, width="wide")


@pytest.mark.parametrize("width", WIDTHS)
def test_places_of_panels_are_rounded(width):
    """The solver's last bits differ now and then: they must not reach a file."""
    for figure in (plots.dependence(used(0), width=width), plots.routes(recovery(), PERCENTS)):
        before = [axes.get_position().bounds for axes in figure.axes]
        np.testing.assert_allclose(before, np.round(before, 6), rtol=0, atol=1e-12)
        drawn_boxes(figure)
        assert [axes.get_position().bounds for axes in figure.axes] == before


# real runs


def test_figures_of_a_real_model(tiny, tmp_path):
    prompt = tiny.prompt(picture(140, 112, 1), "Is there a red circle?", "back")
    options = {"min_new_tokens": 10, "do_sample": False}
    trace = attnlens.run(tiny, prompt, 10, **options)
    data = attnlens.dependence(tiny, trace, prompt=prompt)
    chosen = [Route(when=AtStep(3), percent=20), Copy(when=AtStep(3))]
    result = attnlens.recover(tiny, prompt, chosen, 10, detail="step", **options)
    figures = [
        plots.dependence(data),
        plots.definitions(trace),
        plots.routes(result, {"route:20": 20, "copy": 100}),
    ]
    np.testing.assert_array_equal(figures[0].axes[0].lines[0].get_ydata(), data["mass"])
    counted = series_of(figures[2].axes[0], "counted")[1]
    want = result.data["rise_with_copied"].sel(definition="mass", run=["route:20", "copy"])
    np.testing.assert_allclose(counted, want.values[0, :, 3:].mean(-1))
    for i, figure in enumerate(figures):
        plots.save(figure, tmp_path / f"{i}.pdf")
