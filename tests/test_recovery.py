"""Recovery against untouched twins, and dependence on the image."""

from __future__ import annotations

import copy
import dataclasses
import json
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import attnlens
from attnlens import plots
from attnlens.answers import boxed_answer
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.dependence import load_dependence
from attnlens.experiments.recovery import Recovery
from attnlens.interventions import (
    At,
    AtStep,
    Boost,
    Copy,
    Every,
    ForceTokens,
    Inject,
    Knockout,
    Route,
    WhenVisualBelow,
)
from attnlens.interventions.base import parse_intervention
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.interventions.triggers import parse_trigger
from attnlens.measures import correlation, visual_share
from attnlens.measures.definitions import DEFINITIONS
from attnlens.measures.recovery import divergences, half_life, mean_from
from attnlens.measures.statistics import holm, mcnemar
from attnlens.models.families import parts_of
from attnlens.reports.recovery import as_text
from attnlens.text import shortened

NEW = 14
OPTIONS = {"min_new_tokens": NEW}


@pytest.fixture(scope="module")
def prompts(tiny):
    return [
        tiny.prompt(picture(140, 112, seed), f"Is there a {c} circle?", "back")
        for seed, c in ((1, "red"), (2, "blue"), (3, "green"))
    ]


@pytest.fixture(scope="module")
def result(tiny, prompts):
    chosen = [
        Copy(when=AtStep(5)),
        Boost(when=AtStep(5), log_odds=1.0),
        Boost(when=AtStep(5), log_odds=0.0),
        Inject("red", when=AtStep(3)),
        Knockout(when=At("<nowhere>")),
    ]
    return attnlens.recover(tiny, prompts, chosen, NEW, expected=["yes", "no", "yes"], **OPTIONS)


@contextmanager
def kept_log_probabilities(vlm):
    """Keep each step's next-token log-probabilities, float32 [vocabulary].

    Opened before a session, so that what the session forces is not seen here.
    """
    kept = []

    def keep(_module, _args, output):
        kept.append(output.logits[0, -1].float().log_softmax(-1).cpu())

    handle = parts_of(vlm.model).generator.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def test_the_forced_twin_has_the_untouched_runs_tokens(tiny, prompts, result):
    """Each step against a recording of its own and the model's own logits."""
    for sample, prompt in enumerate(prompts):
        trace = attnlens.run(tiny, prompt, NEW, do_sample=False, **OPTIONS)
        untouched = result.data.sel(run="untouched").isel(sample=sample)
        want = trace.data["mass"].sel(segment="visual").values
        assert np.allclose(untouched["visual"].values[:NEW], want, atol=1e-5)
        ids = trace.data["predicted_token_id"].values.tolist()
        twin = result.data.sel(run="boost:1").isel(sample=sample)
        # the boost's own law, in the first layer at its first step
        boosted, plain = (m.astype(np.float64) for m in (twin["visual"].values, want))
        law = 1 / (1 + (1 - plain) / plain * np.exp(-1.0))  # log-odds rise by 1
        assert np.allclose(boosted[5, 0], law[5, 0], atol=1e-5)
        assert np.allclose(twin["visual"][:5], want[:5], atol=1e-5)
        # the distribution of the untouched run, from one full pass
        whole = torch.cat([prompt.inputs["input_ids"], torch.tensor([ids[:-1]])], 1)
        with torch.no_grad():
            logits = tiny.model(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                mm_token_type_ids=(whole == tiny.model.config.image_token_id).int(),
                pixel_values=prompt.inputs["pixel_values"],
                image_grid_thw=prompt.inputs["image_grid_thw"],
            ).logits[0, len(prompt.segments) - 1 :]
        assert logits.argmax(-1).tolist()[0] == ids[0]
        nothing = result.data.sel(run="boost:0").isel(sample=sample)
        assert np.allclose(nothing["kl"].values, 0, atol=1e-6)
        assert np.allclose(nothing["mass_rise"].values, 0, atol=1e-5)
        kl = result.data.sel(run="copy").isel(sample=sample)["kl"].values
        assert np.allclose(kl[:5], 0, atol=1e-6)
        assert (kl[5:] > 1e-4).all()


@pytest.mark.parametrize(
    "chosen",
    [
        Copy(when=AtStep(5)),
        Copy(when=AtStep(4), positions="original", repeat=2),
        Copy(when=Every(4), positions="frozen-cache", wrap=False),
        Route(when=AtStep(6), percent=40),
        Boost(when=AtStep(0), log_odds=1.5, until=AtStep(7)),
        Copy(when=AtStep(3)) + Knockout(when=AtStep(5), heads=[(1, 0)]),
        Route(when=WhenVisualBelow(0.99, definition="mass", patience=2), percent=30),
        Knockout(when=At("<nowhere>")),
    ],
    ids=lambda chosen: chosen.name,
)
def test_forcing_many_tokens_to_a_pass_is_forcing_one_at_a_time(tiny, prompts, chosen):
    trace = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    ids = trace.data["predicted_token_id"].values.tolist()
    twin = ForceTokens(tuple(ids), when=AtStep(0)) + chosen
    with kept_log_probabilities(tiny) as kept:
        slow = attnlens.run(tiny, prompts[0], NEW, twin, do_sample=False, eos_token_id=None)
    before = (tiny.model.model.rope_deltas, dict(tiny.model.__dict__))
    with (
        attnlens.record(tiny, prompts[0]) as recorder,
        ForcedSession(tiny, prompts[0], chosen) as session,
    ):
        found = session.force(ids)
    assert (tiny.model.model.rope_deltas, dict(tiny.model.__dict__)) == before
    fast = recorder.trace
    assert np.allclose(fast.data["mass"], slow.data["mass"], atol=1e-5)
    assert torch.allclose(found, torch.stack(kept), atol=1e-4)
    for name in ("keys", "step", "query_token_id", "predicted_token_id", "region"):
        assert np.array_equal(fast.data[name], slow.data[name]), name
    acted = [e for e in slow.attrs["interventions"] if not e["intervention"].startswith("force")]
    for event, known in zip(session.events, acted, strict=True):
        noted = asdict(event) | {"seconds": 0.0, "kept": list(event.kept)}
        assert noted == known | {"seconds": 0.0}
    assert bool(acted) == (chosen.name != "knockout")


def test_half_precision_is_forced_as_it_was_generated(tiny, prompts):
    """One token to a pass: an intervention that does nothing changes nothing, bit for bit."""
    half = copy.deepcopy(tiny.model).to(torch.bfloat16)
    vlm = dataclasses.replace(tiny, model=half)
    prompt = vlm.prompt(picture(140, 112, 1), "Is there a red circle?", "back")
    chosen = [Boost(when=AtStep(5), log_odds=0.0), Copy(when=AtStep(5))]
    result = attnlens.recover(vlm, prompt, chosen, NEW, **OPTIONS)
    nothing = result.data.sel(run="boost:0").isel(sample=0)
    copied = result.data.sel(run="copy").isel(sample=0)
    assert (nothing["kl"].values[:5] == 0).all()
    assert (copied["kl"].values[:5] == 0).all()
    assert np.allclose(copied["mass_rise"].values[:5], 0, atol=1e-6)
    assert (np.abs(copied["mass_rise"].values[5:]) > 1e-3).any()


def test_forced_text_stands_between_the_untouched_tokens(tiny, prompts):
    """Against one full pass over prompt, response and the text in its place."""
    trace = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    ids = trace.data["predicted_token_id"].values.tolist()
    chosen = Inject(" red circle", when=AtStep(4)) + Boost(when=AtStep(0), log_odds=0.0)
    with (
        attnlens.record(tiny, prompts[0]) as recorder,
        ForcedSession(tiny, prompts[0], chosen) as session,
    ):
        found = session.force(ids)
    text = tiny.tokenizer(" red circle", add_special_tokens=False)["input_ids"]
    assert [(e.step, e.forced) for e in session.events][1:] == [(5, len(text))]
    inputs = prompts[0].inputs
    whole = torch.cat([inputs["input_ids"], torch.tensor([[*ids[:4], *text, *ids[4:-1]]])], 1)
    with torch.no_grad():
        output = copy.deepcopy(tiny.model)
        output.set_attn_implementation("eager")
        output = output(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == tiny.model.config.image_token_id).int(),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            output_attentions=True,
        )
    first = len(prompts[0].segments) - 1
    rows = [first + t + (len(text) if t > 4 else 0) for t in range(NEW)]
    want = output.logits[0, rows].log_softmax(-1)
    assert torch.allclose(found, want, atol=1e-4)
    visual = np.flatnonzero(prompts[0].segments == "visual")
    weights = torch.stack(output.attentions)[:, 0][:, :, rows][..., visual].sum(-1)
    mass = recorder.trace.data["mass"].sel(segment="visual").values
    assert np.allclose(mass, weights.permute(2, 0, 1).numpy(), atol=1e-5)
    assert recorder.trace.tokens == trace.tokens
    with ForcedSession(tiny, prompts[0], chosen) as session, pytest.raises(InputError):
        session.force([])


def test_text_forced_first_stands_after_the_prompt(tiny, prompts):
    trace = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    ids = trace.data["predicted_token_id"].values.tolist()
    text = tiny.tokenizer(" red circle", add_special_tokens=False)["input_ids"]
    with ForcedSession(tiny, prompts[0], Inject(" red circle", when=AtStep(0))) as session:
        found = session.force(ids)
    inputs = prompts[0].inputs
    whole = torch.cat([inputs["input_ids"], torch.tensor([[*text, *ids[:-1]]])], 1)
    with torch.no_grad():
        logits = tiny.model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == tiny.model.config.image_token_id).int(),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
        ).logits[0, len(prompts[0].segments) - 1 :]
    rows = [0, *range(len(text) + 1, len(text) + NEW)]
    assert torch.allclose(found, logits[rows].log_softmax(-1), atol=1e-4)
    assert session.events[0].step == 1


@pytest.mark.parametrize(
    "others",
    [
        Copy(when=At("<back>")),
        Route(when=At("<back>"), percent=30) + Boost(when=At("ck"), log_odds=1.0, until=AtStep(9)),
        Knockout(when=AtStep(6), until=At(">")) + Copy(when=Every(5), wrap=False),
        Copy(when=At("<back>")) + Boost(when=At("<back>"), log_odds=2.0),
        Knockout(when=AtStep(3), until=At(" <")) + Copy(when=At("<back>")),
        Boost(when=At("<back>"), log_odds=2.0) + Copy(when=At("<back>")),
        Inject(" red", when=At("<back>")) + Copy(when=At(" re", times=1)),
    ],
    ids=lambda others: others.name,
)
def test_forced_text_sets_off_what_it_would_in_a_generation(tiny, prompts, others):
    """The same tokens, one by one, as a generation that says all of them."""
    trace = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    ids = trace.data["predicted_token_id"].values.tolist()
    texts = [" <back>"] + [p.text for p in others.parts if isinstance(p, Inject)]
    text = [t for one in texts for t in tiny.tokenizer(one, add_special_tokens=False)["input_ids"]]
    rest = [p for p in others.parts if not isinstance(p, Inject)]
    said = ForceTokens((*ids[:4], *text, *ids[4:]), when=AtStep(0))
    for part in rest:
        said = said + part
    with kept_log_probabilities(tiny) as kept:
        new = NEW + len(text)
        slow = attnlens.run(tiny, prompts[0], new, said, do_sample=False, eos_token_id=None)
    chosen = Inject(" <back>", when=AtStep(4)) + others
    with (
        attnlens.record(tiny, prompts[0]) as recorder,
        ForcedSession(tiny, prompts[0], chosen) as session,
    ):
        found = session.force(ids)
    rows = [t + (len(text) if t > 4 else 0) for t in range(NEW)]
    assert torch.allclose(found, torch.stack(kept)[rows], atol=1e-4)
    own, all_steps = recorder.trace.data["mass"], slow.data["mass"].isel(step=rows)
    for segment in ("visual", "copied"):
        one, other = (m.sel(segment=segment).values for m in (own, all_steps))
        assert np.allclose(one, other, atol=1e-5), segment
    assert recorder.trace.tokens == trace.tokens
    names = [e.intervention for e in session.events if not e.forced]
    due = [e for e in slow.attrs["interventions"] if not e["forced"]]
    assert names == [e["intervention"] for e in due]
    assert [e.inserted for e in session.events if not e.forced] == [e["inserted"] for e in due]
    assert session.never_fired == slow.attrs["never_fired"] == []


def test_rounding_is_no_effect(result):
    nothing = result.table("mass").set_index("intervention").loc["boost:0"]
    assert nothing["p_value"] == 1.0
    assert nothing["effect_size"] == nothing["rise"] == 0.0
    heads = result.by_head("boost:0")
    assert (heads["p_value"] == 1.0).all()
    moved = result.by_head("boost:1")
    assert moved["p_value"].isna().all()  # three samples cannot reject at 5%
    assert (moved["effect_size"] != 0).all()


@pytest.mark.slow
def test_a_twin_that_says_the_same_stands_for_the_free_run(tiny, prompts, monkeypatch):
    chosen = [
        Boost(when=AtStep(5), log_odds=0.01),
        Boost(when=AtStep(2), log_odds=6.0),
        Inject(" red", when=AtStep(3)),
    ]
    full = attnlens.recover(tiny, prompts, chosen, NEW)
    quick = attnlens.recover(tiny, prompts, chosen, NEW, reuse=True)
    reused = np.isnan(quick.data["seconds"].values)
    assert reused[:, 1].any()
    assert not reused[:, [0, 3]].any()
    assert full.data["text"].equals(quick.data["text"])
    same = full.data["text"] == full.data["text"].sel(run="untouched")
    assert not (reused & ~same.values).any()
    for name in ("free_rise", "rise", "inserted", "fired", "steps", "first_step"):
        assert np.allclose(full.data[name], quick.data[name], atol=1e-5, equal_nan=True), name
    with pytest.raises(InputError, match="reuse=True with temperature"):
        attnlens.recover(tiny, prompts, chosen, NEW, reuse=True, temperature=2.0)
    monkeypatch.setattr(tiny.model.generation_config, "repetition_penalty", 1.05)
    with pytest.raises(InputError, match="reuse=True with repetition_penalty"):
        attnlens.recover(tiny, prompts, chosen, NEW, reuse=True)


@pytest.mark.parametrize(
    "expected", [[6, 7], [" 6", "7."], np.array([6, 7]), (6.0, r"\text{7}"), ["6", None]], ids=str
)
def test_right_answers_are_told_from_wrong_ones(tiny, prompts, monkeypatch, expected):
    """The first prompt is answered rightly in two spellings, the second wrongly, then not."""
    pairs = [(r"\boxed{\text{6}.}", r"\boxed{ 6 }"), (r"\boxed{77}", "no box")]
    # asked of each run and of its untouched one: untouched, then under the intervention
    said = iter([text for one, other in pairs for text in (one, one, other, one)])
    name = "attnlens.experiments.comparison.final_answer"
    monkeypatch.setattr(name, lambda _: boxed_answer(next(said)))
    chosen = Boost(when=AtStep(3), log_odds=1.0)
    result = attnlens.recover(tiny, prompts[:2], chosen, 4, expected=expected, min_new_tokens=4)
    want = [[1, 1], [np.nan] * 2 if expected[1] is None else [0, 0]]
    assert np.array_equal(result.data["right"].values, want, equal_nan=True)
    assert result.data["answer_changed"].sel(run="boost:1").values.tolist() == [0, 1]


def test_interventions_may_be_named(tiny, prompts):
    chosen = {"early": Copy(when=AtStep(3)), "late": Copy(when=AtStep(8))}
    result = attnlens.recover(tiny, prompts[0], chosen, NEW, detail="layer", **OPTIONS)
    assert result.interventions == ["early", "late"]
    one = result.data.isel(sample=0)
    assert one["first_step"].sel(run=["early", "late"]).values.tolist() == [3, 8]
    assert "share_by_head" not in result.data
    assert "visual" not in result.data
    with pytest.raises(InputError, match="detail='head'"):
        result.by_head("early")
    with pytest.raises(InputError, match="'untouched'"):
        attnlens.recover(tiny, prompts[0], {"untouched": Copy(when=AtStep(3))}, NEW)
    with pytest.raises(InputError, match="layers: recover records every layer"):
        attnlens.recover(tiny, prompts[0], chosen, NEW, layers=[0])
    with pytest.raises(InputError, match="detail='gaze'"):
        attnlens.recover(tiny, prompts[0], chosen, NEW, detail="gaze")


def test_each_prompt_may_have_interventions_of_its_own(tiny, prompts):
    sources = [picture(112, 112, seed) for seed in (8, 9, 10)]

    def ways(number):
        return {"another": Copy(when=AtStep(3), source=sources[number])}

    together = attnlens.recover(tiny, prompts, ways, NEW, detail="step", **OPTIONS)
    assert together.interventions == ["another"]
    for number, prompt in enumerate(prompts):
        alone = attnlens.recover(tiny, prompt, ways(number), NEW, detail="step", **OPTIONS)
        for name in ("share_with_copied", "kl"):
            got = together.data[name].isel(sample=number).sel(run="another").values
            want = alone.data[name].isel(sample=0).sel(run="another").values
            assert np.allclose(got, want, atol=1e-6, equal_nan=True), name

    def others(number):
        return {f"way {number}": Copy(when=AtStep(3))}

    with pytest.raises(InputError, match="prompt 1 has interventions called way 1"):
        attnlens.recover(tiny, prompts, others, NEW)


def test_free_rises_are_those_of_the_free_run(tiny, prompts, result):
    """Also where text is forced, and what is said is another thing."""
    for name, chosen, first in (
        ("inject:red", Inject("red", when=AtStep(3)), 3),
        ("copy", Copy(when=AtStep(5)), 5),
    ):
        free = attnlens.run(tiny, prompts[1], NEW, chosen, do_sample=False, **OPTIONS)
        plain = attnlens.run(tiny, prompts[1], NEW, do_sample=False, **OPTIONS)
        got = result.data.sel(run=name).isel(sample=1)
        assert got["text"].item() == free.text
        for definition in ("mass", "look-back"):
            for counted, variable in ((False, "free_rise"), (True, "free_rise_with_copied")):
                shares = [
                    visual_share(t, definition, include_copied=counted).sel(step=slice(first, None))
                    for t in (free, plain)
                ]
                want = float(shares[0].mean() - shares[1].mean())
                assert float(got[variable].sel(definition=definition)) == pytest.approx(want)
    never = result.data.sel(run="knockout")["free_rise"]
    assert np.isnan(never.values).all()


def test_steps_inside_a_tag_have_no_divergence(tiny, prompts):
    """They were predicted before the tag was known; the steps after it come under the insertion."""
    text = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    ids = text.data["predicted_token_id"].values.tolist()
    tag = tiny.tokenizer.decode(ids[4:7])
    result = attnlens.recover(tiny, prompts[0], Copy(when=At(tag, times=1)), NEW, **OPTIONS)
    one = result.data.sel(run="copy").isel(sample=0)
    first = int(one["first_step"])
    assert first <= 6
    undefined = np.flatnonzero(np.isnan(one["kl"].values))
    assert undefined.tolist() == list(range(first, first + len(undefined)))
    assert len(undefined) >= 1
    assert np.allclose(one["kl"].values[:first], 0, atol=1e-6)
    assert one["kl"].values[first + len(undefined)] > 1e-4
    assert np.isfinite(result.per_sample()["kl"]).all()


def test_shares_are_those_of_the_measures(tiny, prompts, result):
    trace = attnlens.run(tiny, prompts[0], NEW, do_sample=False, **OPTIONS)
    twin = {"untouched": trace, "copy": None}
    with (
        attnlens.record(tiny, prompts[0]) as recorder,
        ForcedSession(tiny, prompts[0], Copy(when=AtStep(5))) as session,
    ):
        session.force(trace.data["predicted_token_id"].values.tolist())
    twin["copy"] = recorder.trace
    axes = {"share": "mean", "share_by_layer": "layer", "share_by_head": "none"}
    for run in twin:
        for name, definition in DEFINITIONS.items():
            for variable, reduction in axes.items():
                for counted in (False, True):
                    whole = f"{variable}_with_copied" if counted else variable
                    got = result.data[whole].sel(run=run, definition=name).isel(sample=0)
                    none = counted and not definition.counts_copied
                    if none or (reduction == "none" and not definition.per_head):
                        assert np.isnan(got.values).all()
                        continue
                    share = visual_share(
                        twin[run], name, include_copied=counted, reduction=reduction
                    )
                    here = got.values[share["step"].values]
                    assert np.allclose(here, share.values, equal_nan=True, atol=1e-6), (run, whole)
    both = result.data["share_with_copied"].sel(run="copy", definition="mass").isel(sample=1)
    one = result.data.sel(run="copy").isel(sample=1)
    assert np.allclose(both, (one["visual"] + one["copied"]).mean(("layer", "head")), atol=1e-6)


def test_tables_say_what_acted_and_what_did_not(result):
    table = result.table("mass").set_index("intervention")
    assert table.loc["copy", "samples"] == 3
    assert table.loc["knockout", "samples"] == 0
    assert table.loc["inject:red", "samples"] == 3
    assert np.isnan(table.loc["knockout", "rise"])
    assert table.loc["copy", "inserted"] == 22
    assert table.loc["boost:1", "inserted"] == 0
    assert table.loc["boost:1", "rise"] > 0
    assert np.isnan(table.loc["boost:1", "rise_low"])  # three samples give no interval
    assert table.loc["boost:0", "rise"] == pytest.approx(0, abs=1e-6)
    for name in ("area", "kl", "hellinger", "free_rise"):
        ends = [table.loc["boost:1", f"{name}_{end}"] for end in ("low", "high")]
        assert np.isnan(ends).all()
        assert np.isfinite(table.loc["boost:1", name])
    assert np.isnan(table.loc["boost:1", "half_life_low"])  # three are too few
    assert table[["right_p_value", "right_p_adjusted"]].isna().all(axis=None)
    per_sample = result.per_sample("mass")
    rises = per_sample[per_sample["run"] == "copy"]["rise"].to_numpy()
    by_hand = result.data["rise"].sel(run="copy", definition="mass").values[:, 5:NEW].mean(1)
    assert np.allclose(rises, by_hand)
    assert table.loc["copy", "rise"] == pytest.approx(by_hand.mean())
    per_token = 2 * 3 * 2 * 16 * 4  # keys and values, layers, key heads, dimension, bytes
    assert table.loc["copy", "cache_bytes"] == 22 * per_token
    heads = result.by_head("boost:1")
    assert len(heads) == 12
    layers = result.by_layer("boost:1", "look-back")
    named = ["layer", "rise", "rise_samples", "effect_size", "p_value", "p_adjusted"]
    assert layers.columns.tolist() == named
    by_hand = result.data["rise_by_layer"].sel(run="boost:1", definition="look-back")
    assert np.allclose(layers["rise"], np.nanmean(by_hand.values[:, 5:NEW], (0, 1)))
    counted = result.table("reflection-v", include_copied=True)
    assert counted.set_index("intervention").loc["copy", "samples"] == 3
    assert np.isnan(counted["rise"]).all()
    rises = result.data["mass_rise"].sel(run="boost:1").values[:, 5:NEW].mean((0, 1))
    assert np.allclose(heads["rise"].to_numpy().reshape(3, 4), rises, atol=1e-6)
    ratios = result.by_head("boost:1", "lookback-ratio")["rise"]
    assert np.isfinite(ratios).all()
    assert not np.allclose(ratios, heads["rise"])
    with pytest.raises(InputError, match="'look-back' reduces heads"):
        result.by_head("boost:1", "look-back")
    assert heads["p_adjusted"].isna().all()
    with pytest.raises(InputError, match="no intervention 'glue'"):
        result.by_head("glue")
    with pytest.raises(InputError, match="'gaze'"):
        result.table("gaze")
    assert json.loads(json.dumps(result.summary()))["samples"] == 3


def test_rises_are_told_from_rounding_in_the_unit_of_their_definition(result):
    """A mean weight is a mass over the number of visual keys: so is what counts as rounding."""
    small = result.data.copy(deep=True)
    for name in ("share", "rise", "share_with_copied", "rise_with_copied"):
        small[name] = small[name] / 4096
    scaled = Recovery(small).table("mass").set_index("intervention")
    table = result.table("mass").set_index("intervention")
    for run in ("copy", "boost:1"):
        assert scaled.loc[run, "rise"] == pytest.approx(table.loc[run, "rise"] / 4096)
        assert scaled.loc[run, "half_lives"] == table.loc[run, "half_lives"]
    assert scaled.loc["boost:0", "rise"] == 0


def test_a_sample_without_a_value_is_left_out_by_head(result):
    holed = result.data.copy(deep=True)
    holed["rise_by_head"].values[0, :, :, :, 1, 2] = np.nan
    table = Recovery(holed).by_head("boost:1").set_index(["layer", "head"])
    assert np.isfinite(table["rise"]).all()
    whole = result.by_head("boost:1").set_index(["layer", "head"])
    others = result.data["mass_rise"].sel(run="boost:1").values[1:, 5:NEW, 1, 2].mean()
    assert table.loc[(1, 2), "rise"] == pytest.approx(others, abs=1e-6)
    assert table.loc[(1, 2), "rise_samples"] == 2
    assert table.loc[(0, 0), "rise_samples"] == 3
    assert table.loc[(0, 0), "rise"] == whole.loc[(0, 0), "rise"]


@pytest.fixture(scope="module")
def uneven(tiny, prompts):
    """Acts in two of three prompts, and of two the true answer is known."""

    def ways(number):
        early, never = AtStep(5), At("<nowhere>")
        return {
            "some": Boost(when=early if number else never, log_odds=1.0),
            "all": Copy(when=early),
            "late": Copy(when=AtStep(NEW - 1)),
        }

    expected = ["yes", None, "no"]
    options = {"detail": "head", "expected": expected, **OPTIONS}
    return attnlens.recover(tiny, prompts, ways, NEW, **options)


def test_every_mean_says_over_how_many_samples_it_is(uneven):
    data = uneven.data.copy(deep=True)
    data["right"].values[0] = [1, 0, 1, 1]
    data["right"].values[2] = [0, 1, 1, 0]
    data["answer_changed"].values[:, 1] = [0, 1, 0]
    data["seconds"].values[1, 1] = np.nan  # its twin stood for it
    changed = Recovery(data)
    table = changed.table("mass").set_index("intervention")
    some = table.loc["some"]
    assert some["samples"] == 2
    for name in ("rise", "area", "free_rise", "kl", "hellinger"):
        assert some[f"{name}_samples"] == 2, name
    for name in ("inserted", "cache_bytes", "answer_changed"):
        assert some[f"{name}_samples"] == 3, name
    for name in ("right", "right_untouched", "seconds_ratio"):
        assert some[f"{name}_samples"] == 2, name
    rises = data["rise"].sel(run="some", definition="mass").values[1:, 5:NEW]
    assert some["rise"] == pytest.approx(rises.mean())
    assert some["right"] == 0.5
    assert some["right_untouched"] == 0.5
    assert some["answer_changed"] == pytest.approx(1 / 3)
    assert table.loc["all", "rise_samples"] == 3
    # a mean is that of so many values: those of the samples that have one
    per_sample = changed.per_sample().set_index("run")
    for run in table.index:
        for name in ("rise", "area", "kl", "hellinger"):
            known = per_sample.loc[run, name].dropna()
            assert table.loc[run, f"{name}_samples"] == len(known)
            assert table.loc[run, name] == pytest.approx(known.mean())
    assert changed.by_layer("some")["rise_samples"].tolist() == [2] * 3


def test_the_printed_table_says_over_how_many_prompts_a_mean_is(uneven):
    lines = as_text(uneven, "mass").split("\n")
    assert "3 prompts" in lines[0]
    some, all_, _ = lines[2:5]
    table = uneven.table().set_index("intervention")
    for name, layout in (("rise", ".3f"), ("kl", ".4f")):
        assert f" {table.loc['some', name]:{layout}} (2) " in some
        assert f" {table.loc['all', name]:{layout}} " in all_
        assert f" {table.loc['all', name]:{layout}} (" not in all_
    assert " 0% (2) " in some  # right, of two whose true answer is known
    assert some.endswith(" 0")  # inserted, over all
    assert lines[-1].startswith("(n): over n prompts")
    whole = Recovery(uneven.data.sel(run=["untouched", "all", "late"]).isel(sample=[0, 2]))
    assert "(" not in "".join(as_text(whole, "mass").split("\n")[2:-1])


def test_the_figure_says_over_how_many_samples_it_is(uneven):
    data = uneven.data.copy(deep=True)
    data["rise"].values[1, :, :, 9:] = np.nan  # this answer ends before the others
    figure = attnlens.plots.recovery(Recovery(data))
    caption = " ".join(" ".join(t.get_text() for t in figure.texts).split())
    assert "it acted (2 to 3 of 3)" in caption
    assert "so long (1 to 3)" in caption


def test_parts_that_never_fired_are_named(tiny, prompts):
    chosen = {"both": Copy(when=AtStep(3)) + Boost(when=At("<nope>"), log_odds=1.0)}
    result = attnlens.recover(tiny, prompts[0], chosen, NEW, detail="step", **OPTIONS)
    assert result.never_fired == ["boost:1 (of both)"]
    assert result.summary()["never_fired"] == ["boost:1 (of both)"]


def test_small_numbers_keep_their_digits_in_the_summary(result):
    exact = result.table("mean-weight")
    for row, plain in zip(
        exact.to_dict("records"), result.summary("mean-weight")["interventions"], strict=True
    ):
        for name, value in row.items():
            if isinstance(value, float):
                assert plain[name] == (value if np.isfinite(value) else None), name


def test_results_are_saved_whole(result, tmp_path):
    result.save(tmp_path / "r.zarr")
    back = xr.open_zarr(tmp_path / "r.zarr", zarr_format=2)
    for name in ("rise", "kl", "copied"):
        assert np.array_equal(back[name].values, result.data[name].values, equal_nan=True)
    with pytest.raises(InputError, match=r"exists already.*replace=True"):
        result.save(tmp_path / "r.zarr")
    result.save(tmp_path / "r.zarr", replace=True)
    xr.testing.assert_identical(Recovery.load(tmp_path / "r.zarr").data, result.data)


def test_a_netcdf_file_of_an_earlier_version_is_still_read(result, tmp_path):
    (tmp_path / "r.nc").write_bytes(bytes(result.data.to_netcdf(engine="scipy")))
    old = Recovery.load(tmp_path / "r.nc")
    xr.testing.assert_identical(old.data, result.data)
    old.save(tmp_path / "r.zarr")
    xr.testing.assert_identical(Recovery.load(tmp_path / "r.zarr").data, result.data)


def test_a_netcdf_file_is_no_longer_written(result, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.zarr, such as 'r\.zarr'"):
        result.save(tmp_path / "r.nc")
    assert not list(tmp_path.iterdir())


def test_what_is_no_recovery_or_damaged_is_refused(result, tmp_path):
    path = tmp_path / "r.zarr"
    result.save(path)
    with pytest.raises(InputError, match="is no attnlens trace"):
        attnlens.Trace.load(path)
    with pytest.raises(InputError, match="is no attnlens dependence"):
        load_dependence(path)
    (chunk,) = (path / "kl").glob("0*")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"the recovery .* is damaged: 'kl/0\.0\.0' has changed"):
        Recovery.load(path)
    chunk.unlink()
    with pytest.raises(InputError, match=r"the recovery .* is incomplete"):
        Recovery.load(path)


def test_an_array_of_any_size_is_saved(tmp_path):
    large = xr.Dataset({"visual": (("a",), np.broadcast_to(np.float32(0), (2**29,)))})
    Recovery(large).save(tmp_path / "r.zarr")
    with xr.open_zarr(tmp_path / "r.zarr", zarr_format=2) as back:
        assert back["visual"].nbytes == 2**31
        assert not back["visual"][-3:].values.any()


def test_the_figure_is_drawn(result, tmp_path):
    figure = attnlens.plots.recovery(result)
    left, right = figure.axes
    assert len([line for line in left.lines if len(line.get_xdata()) > 2]) == 4
    labels = [t.get_text() for t in right.get_yticklabels()]
    assert labels == ["inject:red", "boost:0", "boost:1", "copy"]
    attnlens.plots.save(figure, tmp_path / "recovery.pdf")
    with pytest.raises(InputError, match="'gaze'"):
        attnlens.plots.recovery(result, "gaze")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"prompt": []}, "no prompt"),
        (lambda p: {"interventions": []}, "no intervention"),
        (lambda p: {"interventions": [Copy(when=AtStep(3)), Copy(when=AtStep(4))]}, "'copy'"),
        (lambda p: {"expected": ["1"] * 2}, "2 true answers for 1 prompts"),
        (lambda p: {"expected": []}, "0 true answers for 1 prompts"),
        (lambda p: {"expected": {"1"}}, r"expected is \{'1'\}: give a list"),
        (lambda p: {"expected": {0: "1"}}, r"expected is \{0: '1'\}: give a list"),
        (lambda p: {"expected": [["1"]]}, r"the true answer is \['1'\]: give a text"),
        (lambda p: {"expected": True}, "the true answer is True"),
        (lambda p: {"expected": float("nan")}, "the true answer is nan"),
        (lambda p: {"expected": [" "]}, "the true answer ' ' is empty"),
        (lambda p: {"max_new_tokens": 1}, "max_new_tokens=1"),
        (lambda p: {"interventions": [Route(when=AtStep(3), percent=200)]}, "percent=200"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(tiny, prompts, change, message, monkeypatch):
    monkeypatch.setattr(tiny.model, "generate", lambda *_, **__: pytest.fail("ran"), raising=False)
    given_ = {
        "prompt": prompts[0],
        "interventions": [Copy(when=AtStep(3))],
        "max_new_tokens": 8,
        **change(prompts),
    }
    with pytest.raises(InputError, match=message):
        attnlens.recover(tiny, **given_)


# Measures


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.1, 40))
def test_divergences_are_those_of_scipy(seed, spread):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (2, 4, 9))
    p, q = (np.exp(a - np.logaddexp.reduce(a, -1)[:, None]) for a in logits)
    with np.errstate(divide="ignore"):
        kl, hellinger = divergences(np.log(p), np.log(q))
    assert np.allclose(kl, stats.entropy(p, q, axis=-1), rtol=1e-6, atol=1e-9)
    by_hand = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2)
    assert np.allclose(hellinger, by_hand, atol=1e-6)
    same, none = divergences(np.log(p), np.log(p))
    assert np.allclose(same, 0)
    assert np.allclose(none, 0, atol=1e-6)


def test_half_lives_and_means():
    series = np.array([9.0, 0.0, 1.0, 4.0, 3.0, 2.0, 1.0, np.nan])
    assert half_life(series, 1) == 2.0
    assert half_life(series, 6) == float("inf")
    assert np.isnan(half_life(-series, 1))
    assert np.isnan(half_life(series, 8))
    assert mean_from(series, 3) == 2.5
    assert np.isnan(mean_from(series, 7))


def test_adjusted_p_values_and_mcnemar():
    # Holm's own procedure by hand: 0.01 x 3, 0.02 x 2, 0.9 x 1
    got = holm(np.array([0.02, np.nan, 0.9, 0.01]))
    assert np.allclose(got[[0, 2, 3]], [0.04, 0.9, 0.03])
    assert np.isnan(got[1])
    before = np.array([1, 1, 0, 0, 0, 0, 0, np.nan, *[1] * 6])
    after = np.array([1, 0, 1, 1, 1, 1, 1, 1, *[1] * 6], dtype=float)
    # one lost of six that changed: twice the probability of none, and of one that of half
    assert mcnemar(before, after) == pytest.approx((2 * 1 + 6) / 2**6)
    assert mcnemar(np.tile([0, 1], 3), np.tile([1, 0], 3)) == 1.0
    assert np.isnan(mcnemar(before[:5], after[:5]))  # four changed


# Dependence


def test_dependence_is_the_difference_of_two_full_passes(tiny, prompts):
    prompt = prompts[0]
    trace = attnlens.run(tiny, prompt, NEW, do_sample=False, **OPTIONS)
    other = picture(60, 60, 8)
    data = attnlens.dependence(tiny, trace, prompt=prompt, other=other)
    assert data["reference"].values.tolist() == ["removed", "blank", "other"]
    ids = trace.data["predicted_token_id"].values
    shown = other.resize((140, 112))
    for name, image in (("other", shown), ("removed", None)):
        alone = tiny.prompt(image, prompt.question, "back")
        log_p = []
        for asked in (prompt, alone):
            kept = asked.inputs["input_ids"].shape[1]
            whole = torch.cat([asked.inputs["input_ids"], torch.tensor(ids[None, :-1])], 1)
            inputs = {**asked.inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
            inputs["mm_token_type_ids"] = (whole == tiny.model.config.image_token_id).int()
            with torch.no_grad():
                log_p.append(tiny.model(**inputs).logits[0, kept - 1 :].log_softmax(-1).numpy())
        p, q = np.exp(log_p[0]), np.exp(log_p[1])
        row = data.sel(reference=name)
        assert np.allclose(row["kl"], stats.entropy(p, q, axis=-1), rtol=1e-3, atol=1e-5)
        at = np.arange(NEW), ids
        assert np.allclose(row["log_ratio"], log_p[0][at] - log_p[1][at], atol=1e-4)
        assert np.allclose(data["log_probability"], log_p[0][at], atol=1e-4)
        assert np.allclose(data["entropy"], stats.entropy(p, axis=-1), atol=1e-4)
        assert np.allclose(row["entropy_without"], stats.entropy(q, axis=-1), atol=1e-4)
    visual = (prompt.segments == "visual").sum()
    assert np.allclose(data["key_share"], visual / (len(prompt.segments) + np.arange(NEW)))
    several = attnlens.dependence(tiny, trace, prompt=prompt, references=(), other=[other] * 2)
    assert several["reference"].values.tolist() == ["other 1", "other 2"]
    for name in ("other 1", "other 2"):
        np.testing.assert_array_equal(
            several["kl"].sel(reference=name), data["kl"].sel(reference="other")
        )
    assert np.allclose(data["mass"], visual_share(trace, "mass"), atol=1e-7)
    assert np.isnan(data["look_back"].values[0])
    assert np.allclose(data["look_back"][1:], visual_share(trace, "look-back"))
    found = correlation(data, "kl", "mass")
    removed = data.sel(reference=["removed"])
    assert correlation(removed) == correlation(data, reference="removed")
    with pytest.raises(InputError, match="'blank' was not measured: use removed"):
        correlation(removed, reference="blank")
    known = stats.spearmanr(data["kl"].sel(reference="blank"), data["mass"]).statistic
    assert found["rho"] == pytest.approx(known)
    assert found["steps"] == NEW


def test_the_prompt_is_built_again_from_a_file(tiny, tmp_path):
    path = tmp_path / "scene.png"
    picture(140, 112, 4).save(path)
    prompt = tiny.prompt(path, "How many?", "cot")
    trace = attnlens.run(tiny, prompt, 6, do_sample=False, min_new_tokens=6)
    by_file = attnlens.dependence(tiny, trace)
    assert by_file.equals(attnlens.dependence(tiny, trace, prompt=prompt))
    picture(140, 112, 5).save(path)
    with pytest.raises(InputError, match="has changed"):
        attnlens.dependence(tiny, trace)


@pytest.mark.parametrize("mode", ["cot", "semantic-back-grpo"])
def test_dependence_with_words_and_limits_of_the_users_own(tiny, tmp_path, mode):
    path = tmp_path / "scene.png"
    picture(300, 200, 4).save(path)
    own = {"template": "Look: {question} Say a number.", "min_pixels": 30 * 784}
    own |= {"system": "Be brief."} if mode == "cot" else {}
    prompt = tiny.prompt(path, "How many?", mode, **own)
    trace = attnlens.run(tiny, prompt, 4, do_sample=False, min_new_tokens=4)
    found = attnlens.dependence(tiny, trace, references=("removed",))
    assert found.equals(attnlens.dependence(tiny, trace, prompt=prompt, references=("removed",)))
    without = tiny.prompt(None, "How many?", mode, **own)
    ids = found["predicted_token_id"].values
    whole = torch.cat([without.inputs["input_ids"], torch.tensor(ids)[None]], dim=1)
    with torch.no_grad():
        logits = tiny.model(input_ids=whole, mm_token_type_ids=torch.zeros_like(whole)).logits
    log_q = logits[0, -len(ids) - 1 : -1].log_softmax(-1)[torch.arange(len(ids)), ids].numpy()
    ratio = found["log_ratio"].sel(reference="removed")
    np.testing.assert_allclose(found["log_probability"] - ratio, log_q, atol=1e-3)


def test_a_copy_of_another_picture_keeps_the_limits_of_the_prompt(tiny):
    small = {"min_pixels": 16 * 784, "max_pixels": 20 * 784}
    prompt = tiny.prompt(picture(300, 200), "How many?", **small)
    for source, shown in ((picture(600, 600, 1), 16), ("blank", len(prompt.boxes[0]))):
        copied = Copy(when=AtStep(2), source=source, wrap=False)
        trace = attnlens.run(tiny, prompt, 4, copied, do_sample=False, min_new_tokens=4)
        assert trace.data["keys"].sel(segment="copied").max() == shown


def test_dependence_refuses_what_does_not_fit(tiny, prompts):
    trace = attnlens.run(tiny, prompts[0], 4, do_sample=False, min_new_tokens=4)
    with pytest.raises(InputError, match="no image file"):
        attnlens.dependence(tiny, trace)
    with pytest.raises(InputError, match="not that of the trace"):
        attnlens.dependence(tiny, trace, prompt=prompts[1])
    with pytest.raises(InputError, match="'noise'"):
        attnlens.dependence(tiny, trace, prompt=prompts[0], references=["noise"])
    with pytest.raises(InputError, match="no reference"):
        attnlens.dependence(tiny, trace, prompt=prompts[0], references=[])
    moved = attnlens.run(tiny, prompts[0], 4, Copy(when=AtStep(2)), min_new_tokens=4)
    with pytest.raises(InputError, match="under an intervention"):
        attnlens.dependence(tiny, moved, prompt=prompts[0])


# The command


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("copy", "copy"),
        ("copy:blank", "copy:blank"),
        ("copy:some/cat.png", "copy:some/cat.png"),
        ("route:25", "route:25"),
        ("route:25:random", "route:25:random"),
        ("inject:Let me look + see", "inject:Let me look + see"),
        ("close: </back>", "insert-and-close:</back>"),
        ("boost:-1.5", "boost:-1.5"),
        ("pai:0.2", "pai:0.2"),
        ("knockout", "knockout"),
        ("copy+boost:2", "copy+boost:2"),
    ],
)
def test_words_of_the_command_line(text, name):
    assert parse_intervention(text, At("<back>")).name == name


def test_a_file_name_is_taken_whole_where_the_file_is_there(tmp_path):
    path = tmp_path / "cat+boost:2.png"
    picture(112, 112).save(path)
    (part,) = parse_intervention(f"copy:{path}", At("<back>")).parts
    assert part.source == str(path)
    joined = parse_intervention(f"copy:{tmp_path}/cat.png+boost:2", At("<back>"))
    assert joined.name == f"copy:{tmp_path}/cat.png+boost:2"


def test_triggers_of_the_command_line():
    assert parse_trigger("<back>") == At("<back>")
    assert parse_trigger("step:7") == AtStep(7)
    assert parse_trigger("every:7").steps == 7
    assert parse_trigger("below:0.2").share == 0.2
    assert parse_trigger("note: see") == At("note: see")
    assert parse_trigger("text:step:7") == At("step:7")
    with pytest.raises(InputError, match=r"unknown trigger 'evry:40'.*text:evry:40"):
        parse_trigger("evry:40")


@pytest.mark.slow
def test_long_names_are_told_apart_in_table_and_figure(tiny, prompts, tmp_path):
    chosen = {
        f"copy:some/long/folder/of/pictures/scene_{i}.png": Copy(when=AtStep(3 + i))
        for i in range(8)
    }
    result = attnlens.recover(tiny, prompts, chosen, NEW, detail="step", **OPTIONS)
    lines = as_text(result, "mass").splitlines()[2:10]
    assert len({line[:41] for line in lines}) == 8
    assert all(f"scene_{i}.png" in line for i, line in enumerate(lines))
    for width in ("one-column", "two-column"):
        figure = plots.recovery(result, width=width)
        plots.save(figure, tmp_path / f"{width}.png")
        (legend,) = figure.legends
        box = legend.get_window_extent(figure.canvas.get_renderer())
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert [t.get_text()[-11:] for t in legend.get_texts()] == [
            f"scene_{i}.png" for i in range(8)
        ]


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [("copy", 8, "copy"), ("abcdefghij", 7, "ab…ghij"), ("abcdefgh", 8, "abcdefgh")],
)
def test_the_middle_of_a_long_name_is_cut(text, width, short):
    assert shortened(text, width) == short
    assert len(short) <= width


def test_recover_writes_table_numbers_figure_and_summary(tmp_path, capsys):
    from attnlens.testbed import held_out_sample

    sample = held_out_sample(0, 0, "back", grid=(6, 6), objects=2, kind="existence", looks=1)
    path = tmp_path / "scene.png"
    sample.scene.draw().save(path)
    command = [
        "recover", "--image_path", str(path), "--question", sample.question.text,
        "--intervention", "copy", "--intervention", "route:50", "--when", "<back>",
        "--save_folder", str(tmp_path / "out"), "--max_new_tokens", "120",
    ]  # fmt: skip
    assert main(command) == 0
    folder = tmp_path / "out" / "scene_recovery"
    names = {p.name for p in folder.iterdir()}
    tables = {"table.csv", "layers.csv", "steps.parquet"}
    assert names == {*tables, "recovery.zarr", "recovery.png", "summary.json"}
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["intervention"] for row in summary["interventions"]] == ["copy", "route:50"]
    assert summary["interventions"][0]["rise"] is not None
    assert set(summary["questions"][0]["answers"]) == {"untouched", "copy", "route:50"}
    printed = capsys.readouterr().out
    assert "route:50" in printed
    # a trigger that never fires is said, and costs nothing that was computed
    quiet = [*command, "--when", "<nowhere>", "--max_new_tokens", "8"]
    assert main(quiet) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["never_fired"] == ["copy", "route:50"]
    assert "'<nowhere>' never fired" in capsys.readouterr().out
    assert not (folder / "recovery.png").exists()
    # again: it gives way to the new run; something else does not
    assert main(command) == 0
    (folder / "summary.json").unlink()
    assert main(command) == 2
    assert "holds something other than" in capsys.readouterr().err
