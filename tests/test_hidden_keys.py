"""Key counts under a knock-out, against passes in which the hidden keys are not there."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import picture
from helpers_traces import dataset_of_attention, random_attention
from transformers import DynamicCache, StaticCache

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import At, AtStep, Boost, Copy, Knockout
from attnlens.measures import dilution, log_odds, visual_share
from attnlens.measures.inputs import visible_keys
from attnlens.measures.theorems.dilution import evenness
from attnlens.measures.theorems.exponent import exponents
from attnlens.models.cache import with_cache
from attnlens.recording.masks import as_bias
from attnlens.recording.mass import AttentionRows, KeyColumns, attention_mass
from attnlens.recording.store import MANIFEST
from attnlens.reports.table import steps_table
from attnlens.segments import SEGMENTS

NEW = 14
OPTIONS = {"do_sample": False, "min_new_tokens": NEW}
LAYERS, HEADS = 3, 4


@pytest.fixture(scope="module")
def one(tiny):
    return tiny.prompt(picture(140, 112), "Is there a red circle?", "back")


@pytest.fixture(scope="module")
def two(tiny):
    images = [picture(112, 112), picture(140, 112, seed=1)]
    return tiny.prompt(images, "Is there a red circle?", "back")


def everywhere():
    return [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def in_box(prompt, left, top, right, bottom):
    """Slots of the visual tokens, 28 pixels a side, that a box overlaps."""
    rows, columns = prompt.grids[0]
    slots = np.flatnonzero(prompt.image_of_key == 0).reshape(rows, columns)
    return slots[top // 28 : -(-bottom // 28), left // 28 : -(-right // 28)].ravel()


def case(name, one, two):
    """Prompt, knock-out, hidden slots, (layer, head) pairs, first step, step after the last."""
    visual = np.flatnonzero(one.segments == "visual")
    return {
        "image": (one, Knockout(when=AtStep(4)), visual, everywhere(), 4, NEW),
        "one of two": (
            two,
            Knockout(when=AtStep(0), image=1),
            np.flatnonzero(two.image_of_key == 1),
            everywhere(),
            0,
            NEW,
        ),
        "box": (
            one,
            Knockout(when=AtStep(3), box=(28, 28, 84, 56)),
            in_box(one, 28, 28, 84, 56),
            everywhere(),
            3,
            NEW,
        ),
        "layers": (
            one,
            Knockout(when=AtStep(2), layers=[1]),
            visual,
            [(1, head) for head in range(HEADS)],
            2,
            NEW,
        ),
        "heads, to a step": (
            one,
            Knockout(when=AtStep(5), until=AtStep(9), heads=[(0, 1), (2, 3)]),
            visual,
            [(0, 1), (2, 3)],
            5,
            9,
        ),
    }[name]


CASES = ["image", "one of two", "box", "layers", "heads, to a step"]


def pass_without(vlm, prompt, ids, slots, places, start, stop):
    """Scores and visible keys of each step, in one eager pass without the hidden keys.

    Each head's row is the softmax over the keys that are left: the others are taken out of the
    product, not masked. Returns scores [step][layer, head] of the keys left, and their slots.
    """
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    whole = torch.tensor([prompt.inputs["input_ids"][0].tolist() + ids[:-1]])
    first = len(prompt.segments) - 1
    real = module.eager_attention_forward
    scores, left = {}, {}

    def without(attention, query, key, value, attention_mask, scaling, **options):
        output = real(attention, query, key, value, attention_mask, scaling=scaling, **options)
        if not hasattr(attention, "layer_idx"):  # a vision block
            return output
        groups = query.shape[1] // key.shape[1]
        for head in range(query.shape[1]):
            for step in range(len(ids)):
                row = first + step
                gone = (attention.layer_idx, head) in places and start <= step < stop
                keys = [j for j in range(row + 1) if not (gone and j in slots)]
                s = key[0, head // groups, keys] @ query[0, head, row] * scaling
                output[0][0, row, head] = s.softmax(-1) @ value[0, head // groups, keys]
                scores[step, attention.layer_idx, head] = s.numpy().astype(np.float64)
                left[step, attention.layer_idx, head] = np.array(keys)
        return output

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "eager_attention_forward", without)
        model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == model.config.image_token_id).int(),
            pixel_values=prompt.inputs["pixel_values"],
            image_grid_thw=prompt.inputs["image_grid_thw"],
        )
    segments = np.array([*map(str, prompt.segments), *["response"] * (len(ids) - 1)])
    return scores, left, segments


@pytest.mark.parametrize("name", CASES)
def test_counts_and_what_follows_equal_a_pass_without_the_hidden_keys(tiny, one, two, name):
    prompt, chosen, slots, places, start, stop = case(name, one, two)
    trace = attnlens.run(tiny, prompt, NEW, chosen, **OPTIONS)
    ids = trace.data["predicted_token_id"].values.tolist()
    scores, left, segments = pass_without(tiny, prompt, ids, set(slots), places, start, stop)
    shape = (NEW, LAYERS, HEADS)
    keys = np.zeros((*shape, len(SEGMENTS)))
    mean, ratio, counts, odds, preference, share = (np.full(shape, np.nan) for _ in range(6))
    for at, s in scores.items():
        of = segments[left[at]]
        weights = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        visual, response = of == "visual", of == "response"
        keys[at] = [(of == segment).sum() for segment in SEGMENTS]
        share[at] = visual.mean()
        if response.any():
            context, generated = weights[~response].mean(), weights[response].mean()
            ratio[at] = context / (context + generated)
        mean[at] = weights[visual].mean() if visual.any() else 0.0
        if visual.any():
            mass = weights[visual].sum()
            odds[at] = np.log(mass) - np.log(weights[~visual].sum())
            counts[at] = np.log(visual.sum() / (~visual).sum())
            preference[at] = np.log(np.exp(s[visual]).mean()) - np.log(np.exp(s[~visual]).mean())
    np.testing.assert_array_equal(visible_keys(trace.data).values, keys)
    np.testing.assert_allclose(
        visual_share(trace, "mean-weight", reduction="none"), mean, atol=1e-6
    )
    np.testing.assert_allclose(
        visual_share(trace, "lookback-ratio", reduction="none"), ratio, atol=1e-4
    )
    terms = log_odds(trace)
    np.testing.assert_allclose(terms["counts"], counts, atol=1e-12)
    np.testing.assert_allclose(terms["key_share"], share, atol=1e-12)
    np.testing.assert_allclose(terms["log_odds"], odds, atol=1e-3)
    np.testing.assert_allclose(terms["preference"], preference, atol=1e-3)
    np.testing.assert_allclose(odds, counts + preference, atol=1e-9)
    expected = np.array(
        [
            np.nanmean([keys[:, i, j, k] for i in range(LAYERS) for j in range(HEADS)], axis=0)
            for k in range(len(SEGMENTS))
        ]
    ).T
    table = steps_table(trace)
    np.testing.assert_allclose(table[[f"keys_{s}" for s in SEGMENTS]], expected)
    even = np.where(keys > 0, keys / keys.sum(-1, keepdims=True), np.nan)
    each = mass_of(scores, left, segments, shape) / even
    for k, segment in enumerate(SEGMENTS):
        known = each[..., k][np.isfinite(each[..., k]).any((1, 2))]
        if len(known):
            want = np.nanmean(each[..., k], axis=0)
            got = evenness(trace).sel(segment=segment)
            np.testing.assert_allclose(got, want, rtol=1e-3)


def mass_of(scores, left, segments, shape):
    mass = np.zeros((*shape, len(SEGMENTS)))
    for at, s in scores.items():
        weights = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        mass[at] = [weights[segments[left[at]] == segment].sum() for segment in SEGMENTS]
    return mass


@pytest.mark.parametrize("name", ["image", "one of two", "box"])
def test_counts_equal_those_of_a_cache_from_which_the_keys_were_deleted(tiny, one, two, name):
    prompt, chosen, slots, _, start, _ = case(name, one, two)
    trace = attnlens.run(tiny, prompt, NEW, chosen, **OPTIONS)
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    whole = torch.tensor([[*prompt.inputs["input_ids"][0].tolist(), *trace_ids(trace)[:-1]]])
    types = (whole == model.config.image_token_id).int()
    grids = prompt.inputs["image_grid_thw"]
    positions, _ = model.model.get_rope_index(
        whole, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=torch.ones_like(whole)
    )
    text = model.model.language_model
    at = len(prompt.segments) - 1 + start  # the first query that does not see them
    with torch.no_grad():
        features = model.get_image_features(
            prompt.inputs["pixel_values"], grids, return_dict=True
        ).pooler_output
        embedded = model.get_input_embeddings()(whole)
        embedded[types.bool()] = torch.cat(tuple(features))
        cache = DynamicCache(config=text.config)
        given = with_cache(text, cache)
        text(inputs_embeds=embedded[:, :at], position_ids=positions[:, :, :at], **given)
        kept = [j for j in range(at) if j not in set(slots)]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        output = text(
            inputs_embeds=embedded[:, at:],
            position_ids=positions[:, :, at:],
            output_attentions=True,
            **given,
        )
    weights = torch.stack(output.attentions)[:, 0].numpy()  # [layer, head, step, key]
    of = np.array([*map(str, prompt.segments), *["response"] * (NEW - 1)])
    of = of[[*kept, *range(at, len(of))]]
    data = trace.data.isel(step=slice(start, None))
    for step in range(NEW - start):
        seen = of[: len(kept) + step + 1]
        want = [(seen == segment).sum() for segment in SEGMENTS]
        got = visible_keys(data).isel(step=step)
        np.testing.assert_array_equal(
            got.transpose(..., "segment"), np.broadcast_to(want, (LAYERS, HEADS, len(SEGMENTS)))
        )
    mass = np.stack([weights[..., of == segment].sum(-1) for segment in SEGMENTS], -1)
    np.testing.assert_allclose(data["mass"], mass.transpose(2, 0, 1, 3), atol=1e-5)
    got = visual_share(trace, "mean-weight", reduction="none").values[start:]
    visual = of == "visual"
    if visual.any():
        np.testing.assert_allclose(got, weights[..., visual].mean(-1).transpose(2, 0, 1), atol=1e-6)
    else:
        assert (got == 0).all()
        assert (visual_share(trace, "reflection-v").values[start:] == 0).all()


def trace_ids(trace):
    return trace.data["predicted_token_id"].values.tolist()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_without_a_knockout_nothing_is_hidden(tiny, one, two, implementation):
    vlm = tiny
    if implementation == "eager":
        model = copy.deepcopy(tiny.model)
        model.set_attn_implementation("eager")
        vlm = dataclasses.replace(tiny, model=model)
    boosted = Boost(when=AtStep(2), log_odds=-30.0) + Copy(when=AtStep(5))
    for options in ({}, {"cache_implementation": "static"}, {"intervention": boosted}):
        trace = attnlens.run(vlm, one, NEW, **OPTIONS, **options)
        assert "hidden" not in trace.data, options
    batch = vlm.batch([one, two])  # one of them is padded
    with attnlens.record(vlm, batch, prompt_rows="all") as recorder:
        vlm.model.generate(**batch.inputs, max_new_tokens=4, min_new_tokens=4)
    assert all("hidden" not in trace.data for trace in recorder.traces)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_forced_and_free_passes_count_alike_with_insertions(tiny, one, implementation):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation(implementation)
    vlm = dataclasses.replace(tiny, model=model)
    hidden = Knockout(when=AtStep(3), until=AtStep(11), heads=[(0, 2), (1, 0), (1, 3)])
    chosen = hidden + Copy(when=AtStep(7)) + Boost(when=AtStep(2), log_odds=1.0)
    free = attnlens.run(vlm, one, NEW, chosen, **OPTIONS)
    twin = attnlens.force(vlm, one, trace_ids(free), chosen)
    cache = StaticCache(vlm.model.config.text_config, max_cache_len=160)
    static = attnlens.run(vlm, one, NEW, chosen, past_key_values=cache, **OPTIONS)
    count = int((one.segments == "visual").sum())
    expected = np.zeros((NEW, LAYERS, HEADS, len(SEGMENTS)), int)
    for layer, head in [(0, 2), (1, 0), (1, 3)]:
        expected[3:11, layer, head, SEGMENTS.index("visual")] = count
    for trace in (free, twin, static):
        np.testing.assert_array_equal(trace.data["hidden"], expected)
        assert trace.data["keys"].sel(segment="copied").values.tolist() == [0] * 7 + [count] * 7
        none = trace.data["mass"].sel(segment="visual").values == 0
        np.testing.assert_array_equal(none, expected[..., SEGMENTS.index("visual")] > 0)


def test_an_insertion_moves_a_knockout_that_is_under_way(tiny, one):
    """Stepping back: a trigger of several tokens fires after the knock-out has begun."""
    plain = attnlens.run(tiny, one, NEW, **OPTIONS)
    words = "".join(plain.tokens[6:9])
    chosen = Copy(when=At(words)) + Knockout(when=AtStep(7), layers=[1])
    trace = attnlens.run(tiny, one, NEW, chosen, **OPTIONS)
    assert [e["inserted"] > 0 for e in trace.attrs["interventions"]].count(True) == 1
    of_visual = trace.data["hidden"].sel(segment="visual").values
    none = trace.data["mass"].sel(segment="visual").values == 0
    np.testing.assert_array_equal(none, of_visual == int((one.segments == "visual").sum()))
    assert none[7:, 1].all()
    assert not none[:7].any()
    assert not none[:, [0, 2]].any()


def test_hidden_keys_are_counted_for_any_mask(monkeypatch):
    """Against a count by hand: any bias, dtype and padding, in chunks of rows and layers."""
    rng = np.random.default_rng(3)
    batch, heads, rows, length, layers = 2, 4, 5, 11, 3
    columns = torch.from_numpy(rng.integers(0, 4, (batch, length)))
    columns[1, :3] = -1  # padding
    positions = torch.tensor([4, 5, 8, 9, 10])
    for dtype in (torch.bool, torch.float32, torch.float16, torch.bfloat16):
        for of_heads, of_rows in ((1, rows), (heads, rows), (heads, 1)):
            gone = torch.from_numpy(rng.random((batch, of_heads, of_rows, length)) < 0.3)
            gone[..., 3] = False
            mask = ~gone
            if dtype != torch.bool:
                lowest = torch.finfo(dtype).min if of_heads > 1 else float("-inf")
                boost = torch.from_numpy(rng.normal(0, 20, gone.shape)).to(dtype)
                mask = boost.masked_fill(gone, lowest)
            expected = np.zeros((batch, rows, heads, 4), int)
            for b, r, h, j in np.ndindex(batch, rows, heads, length):
                seen = j <= positions[r] and columns[b, j] >= 0
                if seen and gone[b, h % of_heads, r % of_rows, j]:
                    expected[b, r, h, columns[b, j]] += 1
            queries = [torch.randn(batch, heads, rows, 8) for _ in range(layers)]
            keys = [torch.randn(batch, 2, length, 8) for _ in range(layers)]
            for chunk in (4_000_000, batch * heads * rows * length, batch * heads * length * 2):
                monkeypatch.setattr("attnlens.recording.mass.CHUNK_ELEMENTS", chunk)
                found = attention_mass(
                    AttentionRows(queries, keys, positions, 8**-0.5, as_bias(mask)),
                    KeyColumns(columns, 4, torch.tensor([[3], [4]])),
                )
                for one_layer in found:
                    counts = one_layer.hidden.expand_as(one_layer.by_column)
                    np.testing.assert_array_equal(counts, expected)


def test_a_trace_with_hidden_keys_is_kept_and_refused_by_older_versions(tiny, one, tmp_path):
    chosen = Knockout(when=AtStep(4), heads=[(1, 2)])
    trace = attnlens.run(tiny, one, NEW, chosen, **OPTIONS)
    plain = attnlens.run(tiny, one, NEW, **OPTIONS)
    for name, made in (("hidden", trace), ("plain", plain)):
        made.save(tmp_path / name)
        assert json.loads((tmp_path / name / MANIFEST).read_text())["version"] == 2
        assert attnlens.Trace.load(tmp_path / name).data.equals(made.data)
    loaded = attnlens.Trace.load(tmp_path / "hidden")
    assert loaded.data["hidden"].dtype == np.int32
    np.testing.assert_array_equal(
        visual_share(loaded, "mean-weight"), visual_share(trace, "mean-weight")
    )
    with pytest.raises(InputError, match="hidden"):
        attnlens.Trace(trace.data.assign(hidden=trace.data["hidden"].isel(head=0)))


def test_a_trace_of_a_knockout_from_before_hidden_keys_were_counted(tiny, one, tmp_path):
    """Its keys are counted as if they were seen: what needs counts is refused, masses are right."""
    trace = attnlens.run(tiny, one, NEW, Knockout(when=AtStep(4)), **OPTIONS)
    old = attnlens.Trace(trace.data.drop_vars("hidden"))
    plain = attnlens.run(tiny, one, NEW, **OPTIONS)
    for name, made in (("old", old), ("plain", plain)):
        made.save(tmp_path / name)
        manifest = json.loads((tmp_path / name / MANIFEST).read_text())
        (tmp_path / name / MANIFEST).write_text(json.dumps({**manifest, "version": 1}))
    loaded = attnlens.Trace.load(tmp_path / "old")
    np.testing.assert_array_equal(visual_share(loaded, "mass"), visual_share(trace, "mass"))
    for measure in (log_odds, evenness, lambda one: visual_share(one, "mean-weight")):
        with pytest.raises(InputError, match="make it anew"):
            measure(loaded)
    again = attnlens.Trace.load(tmp_path / "plain")
    np.testing.assert_array_equal(
        visual_share(again, "mean-weight"), visual_share(plain, "mean-weight")
    )


def test_dependence_refuses_a_trace_with_hidden_keys(tiny, one):
    with (
        attnlens.record(tiny, one) as recorder,
        attnlens.interventions.intervene(tiny, one, Knockout(when=AtStep(2))),
    ):
        tiny.model.generate(**one.inputs, max_new_tokens=NEW, do_sample=False)
    with pytest.raises(InputError, match="under an intervention"):
        attnlens.dependence(tiny, recorder.trace, prompt=one)


def test_recovery_counts_visible_keys(tiny, one):
    knocked = Knockout(when=AtStep(3), layers=[0, 2])
    result = attnlens.recover(
        tiny, [one], [knocked], max_new_tokens=NEW, detail="head", do_sample=False
    )
    free = attnlens.run(tiny, one, NEW, do_sample=False)
    twin = attnlens.force(tiny, one, trace_ids(free), knocked)
    got = result.data["share_by_head"].sel(run="knockout", definition="mean-weight").isel(sample=0)
    want = visual_share(twin, "mean-weight", reduction="none")
    np.testing.assert_allclose(got.values[: len(want)], want, atol=1e-6)
    assert (want.values[3:, [0, 2]] == 0).all()


def test_dilution_is_that_of_the_visible_keys():
    """Heads that see fewer keys get the exponent, counts and preference of a run without them."""
    attention = random_attention(steps=12, layers=2, heads=3, spread=1.0)
    weights, visible, labels = attention.weights, attention.visible, attention.labels
    visual = np.flatnonzero(labels == "visual")
    gone = visual[: len(visual) // 2]
    cut = weights.copy()
    cut[:, 1, 2, gone] = 0
    cut /= cut.sum(-1, keepdims=True)
    data = dataset_of_attention(type(attention)(cut, visible, labels))
    hidden = np.zeros((12, 2, 3, len(SEGMENTS)), np.int32)
    hidden[:, 1, 2, SEGMENTS.index("visual")] = len(gone)
    data["hidden"] = (("step", "layer", "head", "segment"), hidden)
    kept = np.setdiff1d(np.arange(len(labels)), gone)
    without = dataset_of_attention(type(attention)(cut[..., kept], visible[:, kept], labels[kept]))
    one_head = {"layer": [1], "head": [2]}
    alone = dilution(without.isel(one_head))
    found = dilution(data)
    row = found.by_head.set_index(["layer", "head"]).loc[(1, 2)]
    want = alone.by_head.iloc[0]
    for name in ("exponent", "counts", "preference", "log_odds", "evenness_visual"):
        np.testing.assert_allclose(row[name], want[name], atol=1e-5, err_msg=name)
    whole = dilution(data.drop_vars("hidden"))
    others = whole.by_head.set_index(["layer", "head"]).drop((1, 2))
    same = found.by_head.set_index(["layer", "head"]).drop((1, 2))
    np.testing.assert_allclose(same["exponent"], others["exponent"], atol=1e-9)
    share = found.curves["key_share"].to_numpy()
    seen = visible_keys(data)
    each = (seen.sel(segment="visual") / seen.sum("segment")).values
    np.testing.assert_allclose(share, each.reshape(12, -1).mean(1))


def test_exponents_take_a_share_for_each_curve():
    share = np.log(np.array([[0.5, 0.9], [0.4, 0.5], [0.2, 0.3], [0.1, 0.2]]))
    np.testing.assert_allclose(exponents(share * [1.5, -2.0], share), [1.5, -2.0])


def test_all_keys_hidden_at_every_step(tiny, one):
    trace = attnlens.run(tiny, one, NEW, Knockout(when=AtStep(0)), **OPTIONS)
    assert (visual_share(trace, "mass").values == 0).all()
    assert (visual_share(trace, "mean-weight").values == 0).all()
    with pytest.raises(InputError, match="hidden from every head"):
        log_odds(trace)


@pytest.mark.parametrize(
    ("below", "lost_in"),
    [(15.0, ()), (19.0, ("float16",)), (95.0, ("float16", "bfloat16")), (110.0, None)],
)
def test_when_a_visual_weight_is_zero_in_low_precision(below, lost_in):
    """One key far below the others: in a trace, and in weights cast as eager attention casts."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        queries = torch.ones(1, 1, 1, 1, dtype=dtype)
        keys = torch.zeros(1, 1, 4, 1, dtype=dtype)
        keys[0, 0, 2] = -below
        columns, visual = torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[1, 2]])
        (found,) = attention_mass(
            AttentionRows([queries], [keys], torch.tensor([3]), 1.0),
            KeyColumns(columns, 1, visual),
        )
        assert found.visual_nonzero.item() == (1 if lost_in is None else 2)
        scores = queries[0, 0] @ keys[0, 0].T
        cast = scores.softmax(-1, dtype=torch.float32).to(dtype)
        lost = lost_in is None or str(dtype).removeprefix("torch.") in lost_in
        assert (cast[0, 2] == 0) == lost
