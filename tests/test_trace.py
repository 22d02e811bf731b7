"""Traces: what they hold, on disk and back, and what is refused."""

from __future__ import annotations

import html
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.recording import store
from attnlens.recording.response import Region
from attnlens.recording.store import MANIFEST, TRACE, as_plain
from attnlens.segments import SEGMENTS

FEW = settings(max_examples=25, deadline=None)
# NumPy's text arrays drop NUL at the end of a text, hence no NUL here
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
TRICKY = st.sampled_from(["", "'", '"', "\n", "\\", "<back>", "图🙂e\u0301", "a\tb", " ", "\ufffd"])
TEXTS = TEXT | TRICKY
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def dataset(
    tokens=("a", "<back>", "b", "</back>"),
    *,
    layers=(0, 2),
    heads=2,
    images=0,
    visual_map=False,
    prompt_rows=0,
    attrs=None,
    seed=0,
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    steps, depth, visual = len(tokens), len(layers), 4
    full = (steps, depth, heads, len(SEGMENTS))
    query = ("\n", *tokens[:-1])[:steps]
    variables = {
        "mass": (("step", "layer", "head", "segment"), rng.random(full, dtype=np.float32)),
        "keys": (("step", "segment"), rng.integers(0, 9, (steps, 7), dtype=np.int32)),
        "visual_nonzero": (("step", "layer"), np.full((steps, depth), visual, dtype=np.int32)),
    }
    coordinates = {
        "step": np.arange(steps),
        "layer": list(layers),
        "head": np.arange(heads),
        "segment": list(SEGMENTS),
        "query_token": ("step", np.array(query, dtype=str)),
        "predicted_token": ("step", np.array(tokens, dtype=str)),
        "query_token_id": ("step", rng.integers(-1, 99, steps)),
        "predicted_token_id": ("step", rng.integers(-1, 99, steps)),
        "region": ("step", np.array(["", "back", "think"] * steps, dtype=str)[:steps]),
    }
    if images:
        values = rng.random((steps, depth, heads, images), dtype=np.float32)
        variables["mass_by_image"] = (("step", "layer", "head", "image"), values)
        coordinates["image"] = np.arange(images)
    if visual_map:
        values = rng.random((steps, depth, visual), dtype=np.float32)
        variables["visual_map"] = (("step", "layer", "visual"), values)
        coordinates["visual_image"] = ("visual", np.zeros(visual, dtype=np.int64))
        coordinates["visual_row"] = ("visual", np.arange(visual) // 2)
        coordinates["visual_column"] = ("visual", np.arange(visual) % 2)
    if prompt_rows:
        values = rng.random((prompt_rows, *full[1:]), dtype=np.float32)
        variables["prompt_mass"] = (("prompt_row", "layer", "head", "segment"), values)
        coordinates["prompt_row"] = np.arange(prompt_rows) + 3
        words = np.array(["é\n" * i for i in range(prompt_rows)], dtype=str)
        coordinates["prompt_token"] = ("prompt_row", words)
    data = xr.Dataset(variables, coordinates)
    data["mass"].attrs = {"long_name": "fraction of attention mass", "units": "1"}
    data.attrs = {"model": "tiny", "mode": "back", "question": "Where?"} if attrs is None else attrs
    return data


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in files_of(path)}


def refuse(path: Path, words: str) -> None:
    """Check that loading fails with one line that names the path."""
    with pytest.raises(attnlens.InputError, match=words) as refused:
        attnlens.Trace.load(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def resign(path: Path) -> None:
    """Write a manifest that matches the files, as somebody who means harm would."""
    files = {n: store._digest(path / n) for n in store._files(path)}
    manifest = {"format": TRACE.format, "version": TRACE.version, "files": files}
    (path / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "run.zarr"
    attnlens.Trace(dataset(images=2, visual_map=True, prompt_rows=2)).save(path)
    return path


@pytest.fixture
def stored(saved, tmp_path) -> Path:
    """Copy a saved trace, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run.zarr"))


@pytest.mark.slow
@FEW
@given(
    tokens=st.lists(TEXTS, min_size=1, max_size=4),
    layers=st.lists(st.integers(0, 40), min_size=1, max_size=3, unique=True),
    heads=st.integers(1, 3),
    images=st.sampled_from([0, 2]),
    visual_map=st.booleans(),
    prompt_rows=st.sampled_from([0, 2]),
    attrs=st.dictionaries(TEXTS, JSON, max_size=4),
    seed=st.integers(0, 99),
)
def test_round_trip(tmp_path_factory, **options):
    path = tmp_path_factory.mktemp("trace") / "run.zarr"
    data = dataset(**options)
    before = data.copy(deep=True)
    attnlens.Trace(data).save(path)
    xr.testing.assert_identical(data, before)  # saving leaves the trace alone
    loaded = attnlens.Trace.load(path)
    xr.testing.assert_identical(loaded.data, before)
    for name, variable in before.variables.items():
        assert loaded.data[name].dtype.kind == variable.dtype.kind, name
        if variable.dtype.kind != "U":
            assert loaded.data[name].dtype == variable.dtype, name
    assert loaded.attrs == options["attrs"]
    assert json.dumps(loaded.attrs) == json.dumps(options["attrs"])  # 1 stays 1, not 1.0 or True
    assert loaded.tokens == options["tokens"]


def test_values_that_storage_treats_as_missing(tmp_path):
    data = dataset(attrs={"a": float("inf")})
    data["mass"][0, 0, 0] = np.nan
    data["mass"][1] = 0
    data["keys"][:] = 0
    data["predicted_token_id"][:] = 0
    data["region"][:] = ""
    attnlens.Trace(data).save(tmp_path / "run.zarr")
    loaded = attnlens.Trace.load(tmp_path / "run.zarr")
    xr.testing.assert_identical(loaded.data, data)
    assert loaded.data["keys"].dtype == np.int32


def test_a_loaded_trace_can_be_saved_again(saved, tmp_path):
    loaded = attnlens.Trace.load(saved)
    loaded.save(tmp_path / "again.zarr")
    xr.testing.assert_identical(attnlens.Trace.load(tmp_path / "again.zarr").data, loaded.data)
    part = attnlens.Trace(loaded.data.isel(step=slice(1, 3), layer=[1]))
    part.save(tmp_path / "part.zarr")
    xr.testing.assert_identical(attnlens.Trace.load(tmp_path / "part.zarr").data, part.data)


def test_a_trace_without_steps(tmp_path):
    trace = attnlens.Trace(dataset(tokens=()))
    trace.save(tmp_path / "run.zarr")
    loaded = attnlens.Trace.load(tmp_path / "run.zarr")
    assert loaded.tokens == []
    assert loaded.text == ""
    assert loaded.data["predicted_token"].dtype.kind == "U"
    assert loaded.data["mass"].shape == (0, 2, 2, 7)
    assert "no steps" in repr(trace)
    assert "no steps" in trace._repr_html_()
    assert len(trace.to_pandas()) == 0


def test_attributes_that_json_does_not_know(tmp_path):
    trace = attnlens.Trace(dataset(attrs={"model": object()}))
    with pytest.raises((attnlens.InputError, TypeError)):
        trace.save(tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
    plain = as_plain({"a": np.float32(0.5), 1: (np.int64(2), [np.bool_(True)])})
    assert json.dumps(plain) == '{"a": 0.5, "1": [2, [true]]}'


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_writing_that_fails_leaves_the_old_trace(tmp_path, monkeypatch, error):
    path = tmp_path / "run.zarr"
    attnlens.Trace(dataset()).save(path)
    before = contents(path)
    write = xr.Dataset.to_zarr

    def half_written(data, folder, **options):
        write(data[["keys"]], folder, **options)
        raise error("no space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", half_written)
    with pytest.raises(error):
        attnlens.Trace(dataset(seed=1)).save(path, replace=True)
    with pytest.raises(error):
        attnlens.Trace(dataset(seed=1)).save(tmp_path / "new.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    assert contents(path) == before


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), np.int64(3), [np.zeros(2)], {"a": {(1, 2): 3}}, b"x"]
)
def test_attributes_that_json_cannot_hold(tmp_path, value):
    trace = attnlens.Trace(dataset())
    trace.attrs["plain"] = [1, "two"]
    trace.attrs["odd one"] = value
    with pytest.raises(attnlens.InputError, match="the attribute 'odd one'") as refused:
        trace.save(tmp_path / "run.zarr")
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_trace_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "run.zarr"
    old, new = attnlens.Trace(dataset()), attnlens.Trace(dataset(seed=1))
    old.save(path)
    with pytest.raises(attnlens.InputError, match=r"exists already.*replace=True") as refused:
        new.save(path)
    assert str(path) in str(refused.value)
    xr.testing.assert_identical(attnlens.Trace.load(path).data, old.data)
    new.save(path, replace=True)
    xr.testing.assert_identical(attnlens.Trace.load(path).data, new.data)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_folder_that_is_no_trace_is_never_replaced(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.tex").write_text("years of work")
    with pytest.raises(attnlens.InputError, match="something else than a trace") as refused:
        attnlens.Trace(dataset()).save(path, replace=True)
    assert str(path) in str(refused.value)
    assert contents(path) == {"chapter.tex": b"years of work"}


def test_saving_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run.zarr"):
        with pytest.raises(attnlens.InputError, match="not a folder"):
            attnlens.Trace(dataset()).save(path, replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def every_file(path: Path) -> list[Path]:
    found = files_of(path)
    assert len(found) > 40
    assert {".zmetadata", ".zgroup", ".zattrs", ".zarray", MANIFEST} <= {p.name for p in found}
    return found


def test_any_missing_file(stored):
    for file in every_file(stored):
        whole = file.read_bytes()
        file.unlink()
        refuse(stored, "no attnlens trace" if file.name == MANIFEST else "is missing")
        file.write_bytes(whole)
    attnlens.Trace.load(stored)


def test_any_truncated_file(stored):
    for file in every_file(stored):
        whole = file.read_bytes()
        for length in {0, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:length])
            refuse(stored, "no attnlens trace" if file.name == MANIFEST else "has changed")
        file.write_bytes(whole)
    attnlens.Trace.load(stored)


def test_any_changed_byte(stored):
    rng = np.random.default_rng(0)
    for file in every_file(stored):
        if file.name == MANIFEST:
            continue
        whole = bytearray(file.read_bytes())
        place = int(rng.integers(len(whole)))
        changed = whole.copy()
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        refuse(stored, "has changed")
        file.write_bytes(whole)
    attnlens.Trace.load(stored)


def test_any_changed_byte_of_the_manifest(stored):
    """Every bit of the first lines, and single bits of the rest."""
    file = stored / MANIFEST
    whole = file.read_bytes()
    expected = attnlens.Trace.load(stored)
    rng = np.random.default_rng(0)
    head = [(place, bit) for place in range(60) for bit in range(8)]
    rest = [(int(rng.integers(60, len(whole))), int(rng.integers(8))) for _ in range(40)]
    for place, bit in head + rest:
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        file.write_bytes(changed)
        refuse(stored, ".")
    file.write_bytes(whole)
    xr.testing.assert_identical(attnlens.Trace.load(stored).data, expected.data)


def test_an_added_file(stored):
    (stored / "mass" / "9.9.9.9").write_bytes(b"")
    refuse(stored, "does not belong to it")


def test_no_trace_there(tmp_path):
    refuse(tmp_path / "missing.zarr", "there is no trace")
    refuse(tmp_path / ("x" * 300), "there is no trace")
    refuse(tmp_path, "no attnlens trace")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"\x89PNG")
    refuse(tmp_path / "photos", "no attnlens trace")
    file = tmp_path / "run.zarr"
    file.write_text("not a folder")
    refuse(file, "no attnlens trace")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_store_of_something_else(tmp_path, zarr_format):
    path = tmp_path / "other.zarr"
    dataset()[["mass", "keys"]].drop_vars("segment").reset_coords(drop=True).to_zarr(
        path, zarr_format=zarr_format, consolidated=False
    )
    refuse(path, "no attnlens trace")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        "{}",
        '{"format": "attnlens-trace"}',
        '{"format": "other", "version": 1, "files": {}}',
        '{"format": "attnlens-trace", "version": "1", "files": {}}',
        '{"format": "attnlens-trace", "version": null, "files": {}}',
        '{"format": "attnlens-trace", "version": 0, "files": {}}',
        '{"format": "attnlens-trace", "version": 1, "files": []}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_manifest_of_something_else(stored, text):
    (stored / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    refuse(stored, "no attnlens trace")


def test_a_newer_format(stored):
    manifest = json.loads((stored / MANIFEST).read_text())
    manifest["version"] = TRACE.version + 1
    (stored / MANIFEST).write_text(json.dumps(manifest))
    refuse(stored, f"format version {TRACE.version + 1}.*install a newer attnlens")


class Canary:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("place", [".zarray", ".zmetadata"])
@pytest.mark.parametrize("role", ["compressor", "filters"])
def test_pickled_data_is_refused_unopened(stored, tmp_path, place, role):
    mark = tmp_path / "opened"
    pickled = pickle.dumps(Canary(mark))
    for chunk in (stored / "predicted_token").iterdir():
        if not chunk.name.startswith("."):
            chunk.write_bytes(pickled)
    codec = {"id": "pickle", "protocol": 5}
    for file in (stored / "predicted_token" / ".zarray", stored / ".zmetadata"):
        if file.name != place:
            continue
        meta = json.loads(file.read_text())
        array = meta["metadata"]["predicted_token/.zarray"] if place == ".zmetadata" else meta
        array["compressor"], array["filters"] = None, None
        array[role] = codec if role == "compressor" else [codec]
        file.write_text(json.dumps(meta))
    resign(stored)
    refuse(stored, "'pickle', which attnlens never opens")
    assert not mark.exists()
    pickle.loads(pickled)  # the trap works
    assert mark.exists()


@pytest.mark.parametrize("name", [".zmetadata", "mass/.zarray", "keys/0.0", "region/0"])
@pytest.mark.parametrize("data", [b"", b"[", b"{}", b"null", b"\xff\xfe", b"x" * 50])
def test_damage_that_the_manifest_vouches_for(stored, name, data):
    (stored / name).write_bytes(data)
    resign(stored)
    if name == "mass/.zarray" and data in (b"{}", b"null"):
        attnlens.Trace.load(stored)  # the consolidated metadata is what counts
    else:
        refuse(stored, "cannot be read")


def test_a_dataset_that_is_no_trace_in_a_signed_store(stored, tmp_path):
    path = tmp_path / "other.zarr"
    other = xr.Dataset({"temperature": ("day", np.arange(3.0))}, attrs={"attnlens": "{}"})
    other.to_zarr(path, zarr_format=2, consolidated=True)
    resign(path)
    refuse(path, "the dataset is no trace")
    del other.attrs["attnlens"]
    other.to_zarr(path, mode="w", zarr_format=2, consolidated=True)
    resign(path)
    refuse(path, "cannot be read")


def test_files_that_cannot_be_opened(stored, monkeypatch):
    read = Path.read_bytes

    def denied(path):
        if path.name == ".zgroup":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    refuse(stored, "Permission denied")


HOSTILE = "<script>alert('x')</script>&\x1b[31m\nsecond line"


def test_views_escape_what_a_file_holds():
    tokens = [HOSTILE, "<back>", HOSTILE, "</back>"]
    attrs = dict.fromkeys(("model", "question", "mode"), HOSTILE)
    trace = attnlens.Trace(dataset(tokens, attrs=attrs))
    page = trace._repr_html_()
    assert "<script" not in page
    assert html.unescape(page).count("<script>alert('x')</script>&") == 5
    for tag in ("<b>", "<table>", "<tr>", "<th ", "<td ", "</"):
        page = page.replace(tag, "")
    assert "<" not in page
    shown = repr(trace)
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 7


def test_views_show_what_matters():
    data = dataset(tokens=["so", " <back>", " red", " </back>", "<|im_end|>"])
    data.attrs["special_token_ids"] = [77]
    data["predicted_token_id"][:] = [1, 2, 3, 4, 77]
    data["mass"].loc[{"segment": "visual"}] = 0.25
    data["mass"].loc[{"segment": "visual", "step": 4, "head": 0}] = 0.75
    trace = attnlens.Trace(data)
    expected = {
        "model": "tiny",
        "question": "Where? (back)",
        "recorded": "5 steps, 2 layers, 2 heads",
        "visual mass": "0.250 at the first step, 0.500 at the last",
        "regions": "back 1-3",
        "response": "so <back> red </back>",
    }
    lines = repr(trace).splitlines()
    assert lines[0] == "<attnlens.Trace>"
    page = trace._repr_html_()
    for name, value in expected.items():
        shown = repr(value) if name == "response" else value
        assert f"  {name}: {shown}" in lines
        assert html.escape(value) in page
    assert trace.text == expected["response"]
    assert trace.tokens[-1] == "<|im_end|>"
    assert trace.regions == [Region("back", 1, 4, True)]
    open_region = attnlens.Trace(dataset(tokens=["<back>", "a" * 300]))
    assert "back 0-1 (not closed)" in repr(open_region)
    assert "..." in repr(open_region)
    assert len(repr(open_region)) < 600
    assert "regions: none" in repr(attnlens.Trace(dataset(tokens=["a"])))


def test_to_pandas():
    data = dataset(tokens=["x", "", "<back>"], layers=(3, 1), images=2, visual_map=True)
    frame = attnlens.Trace(data).to_pandas()
    assert list(frame.columns) == [
        *("step", "layer", "head", "segment"),
        *("query_token", "predicted_token", "region", "mass"),
    ]
    assert len(frame) == 3 * 2 * 2 * 7
    assert not frame.duplicated(["step", "layer", "head", "segment"]).any()
    for row in frame.itertuples():
        place = {"step": row.step, "layer": row.layer, "head": row.head, "segment": row.segment}
        assert row.mass == data["mass"].sel(place).item()
        for name in ("query_token", "predicted_token", "region"):
            assert getattr(row, name) == data[name].sel(step=row.step).item()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.drop_vars("mass"), r"needs mass\[step, layer, head, segment\]"),
        (lambda d: d.drop_vars("keys"), r"needs keys\[step, segment\]"),
        (lambda d: d.drop_vars("predicted_token"), r"needs predicted_token\[step\]"),
        (lambda d: d.drop_vars("predicted_token_id"), r"needs predicted_token_id\[step\]"),
        (lambda d: d.transpose("layer", ...), r"needs mass\[step, layer, head, segment\]"),
        (lambda d: d.mean("head"), "needs mass"),
        (lambda d: d.isel(step=0), "needs mass"),
        (lambda d: d.drop_vars("segment"), "its segments are"),
        (lambda d: d.isel(segment=slice(0, 6)), "its segments are"),
        (lambda d: d.isel(segment=slice(None, None, -1)), "its segments are"),
        (lambda d: d.assign_coords(segment=list("abcdefg")), "its segments are"),
    ],
)
def test_datasets_that_are_no_trace(change, words):
    with pytest.raises(attnlens.InputError, match=words) as refused:
        attnlens.Trace(change(dataset()))
    assert "the dataset is no trace" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
