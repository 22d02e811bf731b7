"""Triggers, forced text, boosts and knock-outs, and what an intervention leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import compiles, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import StaticCache, TextStreamer

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import (
    At,
    AtStep,
    Boost,
    Copy,
    Every,
    ForceTokens,
    Inject,
    InsertAndClose,
    Knockout,
    Route,
    WhenVisualBelow,
    intervene,
)
from attnlens.interventions.triggers import Moment
from attnlens.measures import visual_share
from attnlens.models.cache import with_cache

NEW = 20
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def one(tiny):
    return tiny.prompt(picture(140, 112), "Is there a red circle?", "back")


@pytest.fixture(scope="module")
def two(tiny):
    return tiny.prompt([picture(112, 140, 1), picture(168, 112, 2)], "How many?", "cot")


@pytest.fixture(scope="module")
def plain(tiny, one):
    return attnlens.run(tiny, one, **GREEDY)


def run(vlm, prompt, intervention, **options):
    return attnlens.run(vlm, prompt, intervention=intervention, **{**GREEDY, **options})


def same(trace, other):
    return trace.tokens == other.tokens and np.array_equal(
        trace.data["mass"].values, other.data["mass"].values
    )


# Triggers


def moments(tokenizer, text, pieces=None):
    ids = tokenizer(text)["input_ids"] if pieces is None else pieces
    counts = {}
    for step in range(1, len(ids) + 1):
        yield Moment(step, ids[:step], tokenizer, lambda *_: [], counts)


@settings(max_examples=80, deadline=None)
@given(
    before=st.text(alphabet="abc <>/bk\né回", max_size=12),
    tag=st.sampled_from(["<back>", " <back>\n", "é回", "a", "ck>"]),
    after=st.text(alphabet="xyz <", max_size=6),
)
def test_a_text_is_found_whatever_its_tokens(tokenizer, before, tag, after):
    """Every occurrence whose last character a token brings, against a search in the prefixes."""
    from attnlens.recording.response import token_texts

    text = before + tag + after
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    for moment in moments(tokenizer, text):
        known = "".join(texts[: moment.step])
        earlier = "".join(texts[: moment.step - 1])
        # a character that is cut in two belongs to the token that ends it
        if token_texts(tokenizer, ids[: moment.step]) != texts[: moment.step]:
            continue
        ends = [i + len(tag) for i in range(len(known)) if known.startswith(tag, i)]
        new = [end for end in ends if end > len(earlier)]
        answer = At(tag).fires(moment)
        if not new:
            assert answer is None
        else:
            starts = np.cumsum([0, *map(len, texts)])
            first = int(np.searchsorted(starts, new[0] - len(tag), side="right")) - 1
            while not texts[first]:
                first += 1
            assert answer == first + 1


def test_triggers_fire_when_they_say_and_as_often(tokenizer):
    def fired(trigger, steps=12):
        counts, found = {}, []
        for step in range(steps):
            moment = Moment(step, [1] * step, tokenizer, lambda *_: [0.2, 0.2], counts)
            answer = trigger.answer(moment)
            if answer is not None:
                trigger.count(moment)
                found.append(answer)
        return found

    assert fired(AtStep(0)) == [0]
    assert fired(AtStep(4)) == [4]
    assert fired(Every(3)) == [3, 6, 9]
    assert fired(Every(3, times=2)) == [3, 6]
    assert fired(WhenVisualBelow(0.3, patience=2)) == [1]
    assert fired(WhenVisualBelow(0.1, patience=2)) == []
    assert fired(WhenVisualBelow(0.3, patience=3)) == []
    assert fired(AtStep(4) | Every(5)) == [4, 5, 10]
    assert fired(AtStep(4) | Every(5, times=1)) == [4, 5]
    assert fired(Every(2) & Every(3)) == [6]
    assert fired(Every(2) & Every(3, times=1)) == [6]


def test_an_edit_may_end_by_visual_share(tiny, one, plain):
    level = float(visual_share(plain, "mass").values[4:8].max()) + 1e-6
    chosen = Boost(when=AtStep(2), log_odds=0.0, until=WhenVisualBelow(level, "mass"))
    assert run(tiny, one, chosen).tokens == plain.tokens


def test_what_ends_an_edit_ends_it_as_often_as_it_may(tiny, one):
    for times, seeing in ((1, {0, 1, 5}), (None, {0, 1, 5, 10, 15})):
        chosen = Knockout(when=Every(2) | AtStep(11), until=Every(5, times=times))
        mass = run(tiny, one, chosen).data["mass"].sel(segment="visual").values
        assert {step for step in range(NEW) if (mass[step] > 0).any()} == seeing


def test_online_shares_are_those_of_the_measures(tiny, one, plain):
    for definition in ("mass", "look-back"):
        share = visual_share(plain, definition)
        level = float(np.sort(share.values)[2:4].mean())  # between two, far from rounding
        steps = share["step"].values[share.values < level]
        trace = run(tiny, one, Boost(when=WhenVisualBelow(level, definition), log_odds=0.0))
        (event,) = trace.attrs["interventions"]
        assert event["step"] == steps[0] + 1


@pytest.mark.slow
def test_patience_and_several_thresholds_are_those_of_the_measures(tiny, one, plain):
    """What is known of a share for one trigger is enough for no other with a higher threshold."""
    for definition in ("mass", "look-back"):
        share = visual_share(plain, definition)
        values, steps = share.values, share["step"].values
        for patience in (1, 2, 3):
            for level in np.quantile(values, [0.2, 0.5, 0.9]):
                below = [
                    int(steps[i])
                    for i in range(patience - 1, len(values))
                    if (values[i - patience + 1 : i + 1] < level).all()
                ]
                below = [step + 1 for step in below if step + 1 < NEW]
                high = Boost(
                    when=WhenVisualBelow(level, definition, patience, times=3), log_odds=0.0
                )
                low = Boost(when=WhenVisualBelow(1e-6, definition, patience), log_odds=0.0)
                for chosen in (high, low + high, high + low):
                    found = [e["step"] for e in run(tiny, one, chosen).attrs["interventions"]]
                    assert found == below[:1]  # an edit that acts already does not act again


def test_steps_count_for_patience_whoever_asked(tiny, one, plain):
    """What ends an edit that begins late has seen the steps before; so has a replayed step."""
    values = visual_share(plain, "mass").values
    level = float(np.median(values))
    below = values < level
    ends = next(t + 1 for t in range(9, NEW - 1) if below[t] and below[t - 1])
    until = WhenVisualBelow(level, "mass", patience=2)
    hidden = {}
    for bystander in (None, Boost(when=WhenVisualBelow(1e-6, "mass"), log_odds=0.0)):
        edit = Boost(when=AtStep(9), log_odds=0.0, until=until)
        chosen = edit if bystander is None else bystander + edit
        with attnlens.interventions.intervene(tiny, one, chosen) as session:
            tiny.model.generate(**one.inputs, **GREEDY)
            reach = next(s.scope for s in session._running.triggers.states if s.part is edit)
        hidden[bystander is None] = reach.stop
    first = len(one.segments) - 1
    assert hidden == {True: first + ends, False: first + ends}

    text = plain.tokens[5] + plain.tokens[6]  # known with token 6, stepped back to token 5
    steps = {}
    for chosen in (Copy(when=At(text, times=1)), None):
        watcher = Boost(when=WhenVisualBelow(1.0, "mass", patience=9), log_odds=0.0)
        trace = run(tiny, one, watcher if chosen is None else chosen + watcher)
        steps[chosen is None] = trace.attrs["interventions"][-1]["step"]
    assert steps == {True: 9, False: 9}


def test_a_share_far_above_its_threshold_costs_few_layers(tiny, one, plain, monkeypatch):
    from attnlens.interventions.share_recorder import ShareRecorder

    computed = []
    whole = ShareRecorder._compute

    def counted(self, layers):
        computed.append(len(layers))
        return whole(self, layers)

    monkeypatch.setattr(ShareRecorder, "_compute", counted)
    counts = {}
    for level in (1e-9, 1.0):
        computed.clear()
        run(tiny, one, Copy(when=WhenVisualBelow(level, "mass", patience=10**6)))
        counts[level] = sum(computed)
    layers = plain.data.sizes["layer"]
    asked = NEW - 2  # not at step 0, which the prompt's pass gives, nor after the last
    assert counts == {1e-9: asked, 1.0: asked * layers}


# What is left alone


@pytest.mark.parametrize(
    "intervention",
    [
        Copy(when=At("<nowhere>")),
        Route(when=At("<nowhere>")),
        Inject("x", when=AtStep(500)),
        Boost(when=At("<nowhere>"), log_odds=3.0),
        Knockout(when=At("<nowhere>")) + Copy(when=WhenVisualBelow(1e-9)),
    ],
)
def test_a_trigger_that_never_fires_changes_nothing_and_is_said(tiny, one, plain, intervention):
    trace = run(tiny, one, intervention)
    assert same(trace, plain)
    assert trace.attrs["interventions"] == []
    assert trace.attrs["never_fired"] == [part.name for part in intervention.parts]


def test_runs_leave_nothing_behind(tiny, one, two, plain):
    model = tiny.model
    config = model.config.text_config
    before = (config._attn_implementation, list(model.__dict__), len(model._forward_hooks))
    for intervention in (
        Copy(when=AtStep(5)),
        Route(when=AtStep(5)) + Boost(when=AtStep(0), log_odds=1.0),
        Knockout(when=AtStep(3)),
    ):
        run(tiny, one, intervention)
        assert same(run(tiny, one, None), plain)
    attnlens.run(tiny, two, **GREEDY)
    assert same(run(tiny, one, None), plain)
    after = (config._attn_implementation, list(model.__dict__), len(model._forward_hooks))
    assert after == before
    assert not model._forward_pre_hooks
    assert not model.model.visual._forward_hooks


def test_an_exception_inside_leaves_the_model_as_found(tiny, one, plain):
    class Stop(Exception):
        pass

    class Stopper(TextStreamer):
        def put(self, value):
            if value.numel() == 1:
                self.count = getattr(self, "count", 0) + 1
                if self.count == 9:
                    raise Stop

    chosen = Copy(when=AtStep(5)) + Boost(when=AtStep(2), log_odds=1.0)
    with pytest.raises(Stop):
        run(tiny, one, chosen, streamer=Stopper(tiny.tokenizer))
    assert same(run(tiny, one, None), plain)
    assert not tiny.model._forward_pre_hooks


def test_generate_keeps_what_it_offers(tiny, one, plain):
    """Sampling, penalties, criteria and streamers see the response without the insertion."""
    seen = []

    class Streamer:
        def put(self, value):
            seen.extend(value.flatten().tolist())

        def end(self):
            seen.append("end")

    options = {"do_sample": True, "temperature": 0.8, "top_k": 40, "repetition_penalty": 1.3}
    lengths = []

    def stop(ids, scores, **_):
        lengths.append(ids.shape[1])
        return torch.tensor([ids.shape[1] == len(one.segments) + 15])

    trace = run(
        tiny, one, Copy(when=AtStep(6)), seed=3, streamer=Streamer(), stopping_criteria=[stop],
        **options,
    )  # fmt: skip
    untouched = run(tiny, one, None, seed=3, stopping_criteria=[stop], **options)
    ids = trace.data["predicted_token_id"].values.tolist()
    assert len(ids) == 15
    assert seen == [*one.inputs["input_ids"][0].tolist(), *ids, "end"]
    assert lengths[:15] == [len(one.segments) + 1 + i for i in range(15)]
    # the copy acts from step 6 on: up to there the same draws give the same tokens
    assert trace.tokens[:6] == untouched.tokens[:6]
    assert trace.tokens != untouched.tokens


def test_forced_text_comes_whatever_the_model_would_say(tiny, one):
    for options in ({}, {"do_sample": True, "top_p": 0.5}):
        trace = run(tiny, one, Inject(" <back> red", when=AtStep(4)), seed=1, **options)
        ids = trace.data["predicted_token_id"].values.tolist()
        forced = tiny.tokenizer(" <back> red", add_special_tokens=False)["input_ids"]
        assert ids[4 : 4 + len(forced)] == forced
        assert len(ids) == NEW
    first = run(tiny, one, Inject("red", when=AtStep(0)))
    assert first.text.startswith("red")


def test_a_forced_token_that_is_banned_is_an_error(tiny, one):
    ids = tiny.tokenizer(" red", add_special_tokens=False)["input_ids"]
    with pytest.raises(InputError, match=f"forced token {ids[0]} did not come"):
        run(tiny, one, Inject(" red", when=AtStep(4)), bad_words_ids=[ids])


def test_insert_and_close_is_a_copy_and_the_closing_tag(tiny, one):
    chosen = Inject("<back>", when=AtStep(3)) + InsertAndClose(At("<back>"), close=" </back>")
    trace = run(tiny, one, chosen)
    assert "<back> </back>" in trace.text
    tag = trace.data["region"].values.tolist().index("back")
    assert (trace.data["keys"].sel(segment="copied").values[tag + 1 :] == 20).all()


# Boosts and knock-outs


def log_odds(mass):
    return np.log(mass / (1 - mass))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_boost_raises_log_odds_of_the_first_layer_by_itself(tiny, one, implementation):
    tiny.model.set_attn_implementation({"text_config": implementation})
    try:
        untouched = run(tiny, one, None)
        chosen = Boost(when=AtStep(6), log_odds=1.5, heads=[1, 3])
        boosted = run(tiny, one, chosen)
    finally:
        tiny.model.set_attn_implementation({"text_config": "sdpa"})
    a, b = (t.data["mass"].sel(segment="visual").values for t in (untouched, boosted))
    assert np.array_equal(a[:6], b[:6])
    rise = log_odds(b[6, 0]) - log_odds(a[6, 0])
    assert np.allclose(rise, [0, 1.5, 0, 1.5], atol=1e-5)
    total = boosted.data["mass"].sum("segment").values
    assert np.allclose(total, 1, atol=1e-5)


def test_a_boost_can_begin_with_the_last_prompt_row_and_spare_layers(tiny, one, plain):
    trace = run(tiny, one, Boost(when=AtStep(0), log_odds=-2.0, layers=[2]))
    a, b = (t.data["mass"].sel(segment="visual").values for t in (plain, trace))
    assert np.array_equal(a[0, :2], b[0, :2])
    assert np.allclose(log_odds(b[0, 2]) - log_odds(a[0, 2]), -2.0, atol=1e-4)


def test_a_boost_of_the_prompt_row_spares_the_others_in_a_static_cache(tiny, one):
    """The buffer reaches beyond the prompt; its rows must not see what is not written yet."""
    room = len(one.segments) + NEW + 4
    cache = StaticCache(tiny.model.config.text_config, max_cache_len=room)
    chosen = Boost(when=AtStep(0), log_odds=1.0)
    dynamic, static = (
        run(tiny, one, chosen),
        run(tiny, one, chosen, **with_cache(tiny.model, cache)),
    )
    assert static.tokens == dynamic.tokens
    assert np.allclose(static.data["mass"], dynamic.data["mass"], atol=1e-5)


def test_layers_are_counted_from_the_last_too_and_read_once(tiny, one):
    by_name = run(tiny, one, Knockout(when=AtStep(3), layers=[2]))
    for layers in ([-1], iter([2]), (2,)):
        trace = run(tiny, one, Knockout(when=AtStep(3), layers=layers))
        assert same(trace, by_name)
    mass = by_name.data["mass"].sel(segment="visual").values
    assert (mass[3:, 2] == 0).all()
    assert (mass[:, :2] > 0).all()


def test_the_reach_of_an_edit_moves_with_its_tokens(tiny, one):
    """The tag is stepped back to, and tokens are inserted, after the bounds were set."""
    tag = Inject("<back>", when=AtStep(4))
    hidden = Knockout(when=AtStep(1), until=At("<back>"))
    alone = run(tiny, one, tag + hidden).data["mass"].sel(segment="visual").values
    assert [s for s in range(NEW) if (alone[s] == 0).all()] == list(range(1, 7))
    both = run(tiny, one, tag + hidden + Copy(when=At("<back>")))
    mass = both.data["mass"].sel(segment="visual").values
    assert [s for s in range(NEW) if (mass[s] == 0).all()] == list(range(1, 7))
    late = run(tiny, one, tag + Knockout(when=AtStep(6)) + Copy(when=At("<back>")))
    mass = late.data["mass"].sel(segment="visual").values
    assert [s for s in range(NEW) if (mass[s] == 0).all()] == list(range(6, NEW))


def test_frozen_copies_inside_wraps_in_a_static_cache(tiny, one):
    chosen = Copy(when=AtStep(5), positions="frozen-cache")
    room = len(one.segments) + NEW + 30
    cache = StaticCache(tiny.model.config.text_config, max_cache_len=room)
    dynamic, static = (
        run(tiny, one, chosen),
        run(tiny, one, chosen, **with_cache(tiny.model, cache)),
    )
    assert static.tokens == dynamic.tokens
    assert static.data.sizes["step"] == NEW
    assert np.allclose(static.data["mass"], dynamic.data["mass"], atol=1e-5)
    assert np.array_equal(static.data["keys"], dynamic.data["keys"])


def test_pai_raises_scores_by_their_absolute_value(tiny, one, plain):
    trace = run(tiny, one, Boost(when=AtStep(0), alpha=0.4))
    model = copy.deepcopy(tiny.model)
    caught = {}

    def catch(attention, query, key, value, attention_mask, scaling, **_):
        grouped = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        caught.setdefault("scores", (query @ grouped.mT) * scaling)
        raise RuntimeError

    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    real = module.eager_attention_forward

    def text_only(attention, *args, **options):
        if hasattr(attention, "layer_idx"):
            return catch(attention, *args, **options)
        return real(attention, *args, **options)

    model.set_attn_implementation("eager")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(RuntimeError),
        torch.no_grad(),
    ):
        patch.setattr(module, "eager_attention_forward", text_only)
        model(**one.inputs)
    scores = caught["scores"][0, :, -1]
    visual = torch.from_numpy(one.segments == "visual")
    raised = torch.where(visual, scores + 0.4 * scores.abs(), scores)
    expected = raised.softmax(-1)[:, visual].sum(-1).numpy()
    assert np.allclose(trace.data["mass"].sel(segment="visual").values[0, 0], expected, atol=1e-5)


def test_a_knockout_takes_a_box_or_an_image_away(tiny, one, two):
    trace = run(tiny, two, Knockout(when=AtStep(4), image=1))
    by_image = trace.data["mass_by_image"].values
    assert (by_image[4:, ..., 1] == 0).all()
    assert (by_image[4:, ..., 0] > 0).all()
    assert (by_image[:4] > 0).all()
    # grid of 5 x 4 tokens, 28 pixels each: the lower right two by two, and what they touch
    chosen = Knockout(when=AtStep(0), box=(84.0, 57.0, 139.0, 111.0))
    trace = attnlens.run(tiny, one, intervention=chosen, visual_map=True, **GREEDY)
    weights = trace.data["visual_map"].values
    rows, columns = trace.data["visual_row"].values, trace.data["visual_column"].values
    inside = (columns >= 3) & (rows >= 2)
    assert (weights[..., inside] == 0).all()
    assert (weights[..., ~inside] > 0).all()


# ROUTE


def brute_force(vlm, prompt, response, step, percent, layers=None, heads=None, sign=-1, image=0):
    """Eq. (5) from full eager matrices, and Python's own sort."""
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt.inputs["input_ids"][0].tolist() + response[: step - 1]])
    with torch.no_grad():
        found = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=prompt.inputs["pixel_values"],
            image_grid_thw=prompt.inputs["image_grid_thw"],
            output_attentions=True,
        ).attentions
    weights = torch.stack(found)[:, 0].double()
    if layers is not None:
        weights = weights[layers]
    if heads is not None:
        weights = weights[:, heads]
    visual = np.flatnonzero(prompt.image_of_key == image)
    rows = slice(len(prompt.segments), None)
    a = weights[:, :, rows][..., visual].mean((0, 1, 2)).tolist()
    count = -(-len(a) * percent // 100)
    return tuple(sorted(sorted(range(len(a)), key=lambda j: (sign * a[j], j))[:count]))


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({}, {}),
        ({"select": "bottom"}, {"sign": 1}),
        ({"layers": [0, 2]}, {"layers": [0, 2]}),
        ({"heads": [3]}, {"heads": [3]}),
    ],
)
def test_route_chooses_by_attention_so_far(tiny, one, options, reach):
    for percent in (5, 30, 80):
        trace = run(tiny, one, Route(when=AtStep(12), percent=percent, **options))
        (event,) = trace.attrs["interventions"]
        response = trace.data["predicted_token_id"].values.tolist()
        assert tuple(event["kept"]) == brute_force(tiny, one, response, 12, percent, **reach)


def test_route_chooses_in_long_answers_and_among_images(tiny, two):
    """Beyond what is recorded in one go (32 steps), and for the image that is named."""
    for image in (0, 1):
        chosen = Route(when=AtStep(45), percent=30, image=image)
        trace = run(tiny, two, chosen, max_new_tokens=50, min_new_tokens=50)
        (event,) = trace.attrs["interventions"]
        response = trace.data["predicted_token_id"].values.tolist()
        assert tuple(event["kept"]) == brute_force(tiny, two, response, 45, 30, image=image)


def test_route_chooses_by_all_steps_also_after_an_insertion(tiny, one):
    """From the recorded visual map: the mean over the response tokens before the second one."""
    trace = attnlens.run(
        tiny,
        one,
        intervention=Route(when=Every(8, times=2), percent=30),
        visual_map=True,
        **GREEDY,
    )
    first, second = trace.attrs["interventions"]
    assert (first["step"], second["step"]) == (8, 16)
    a = trace.data["visual_map"].values[1:16].mean((0, 1))
    count = -(-len(a) * 30 // 100)
    assert second["kept"] == sorted(np.argsort(-a, kind="stable")[:count].tolist())


def test_percentages_are_of_numbers_not_of_floats(tiny, one):
    chosen = Route(when=AtStep(3), percent=64.4, select="random")

    class Session:
        class prompt:
            grids = ((10, 25),)

        class images:
            checksum = staticmethod(lambda: 0)

    assert len(chosen.chosen(Session, 3, 0)) == 161


def test_all_of_it_is_copy_and_none_of_it_is_nothing(tiny, one, plain):
    copied = run(tiny, one, Copy(when=AtStep(8)))
    assert same(run(tiny, one, Route(when=AtStep(8), percent=100)), copied)
    assert same(run(tiny, one, Route(when=AtStep(8), percent=0)), plain)
    random = [
        run(tiny, one, Route(when=AtStep(8), percent=40, select="random", seed=s)).attrs
        for s in (0, 0, 1)
    ]
    kept = [attrs["interventions"][0]["kept"] for attrs in random]
    assert kept[0] == kept[1] != kept[2]
    assert all(len(k) == 8 and k == sorted(set(k)) for k in kept)
    # another picture, another draw
    other = tiny.prompt(picture(140, 112, 7), "Is there a red circle?", "back")
    drawn = run(tiny, other, Route(when=AtStep(8), percent=40, select="random"))
    assert drawn.attrs["interventions"][0]["kept"] != kept[0]


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Route(when=AtStep(3), percent=101), "percent=101"),
        (lambda: Route(when=AtStep(3), percent=-1), "percent=-1"),
        (lambda: Route(when=AtStep(3), select="best"), "'best'"),
        (lambda: Route(when=AtStep(3), layers=[9]), "no layer 9"),
        (lambda: Route(when=AtStep(3), source="blank"), "source is for Copy"),
        (lambda: Copy(when=AtStep(0)), "step of at least 1"),
        (lambda: Copy(when=AtStep(0) | AtStep(5)), "step of at least 1"),
        (lambda: Copy(when=AtStep(-4)), "inside the prompt"),
        (lambda: Copy(when=AtStep(3), image=1), "no image 1"),
        (lambda: Copy(when=AtStep(3), source="/nowhere/cat.png"), "cat.png"),
        (lambda: Copy(when=AtStep(3), positions="last"), "'last'"),
        (lambda: Copy(when=AtStep(3), source="blank", positions="original"), "own image"),
        (lambda: Copy(when=AtStep(3), repeat=0), "repeat=0"),
        (lambda: Boost(when=AtStep(3)), "one of the two"),
        (lambda: Boost(when=AtStep(3), log_odds=1.0, alpha=1.0), "one of the two"),
        (lambda: Boost(when=AtStep(3), log_odds=1.0, heads=[7]), "no head 7"),
        (lambda: Boost(when=AtStep(3), log_odds=float("nan")), "log_odds=nan"),
        (lambda: Boost(when=AtStep(3), log_odds=1.0, layers=2), r"layers=2: give a list"),
        (lambda: Boost(when=AtStep(3), log_odds=1.0, layers=[2], heads=[(0, 1)]), "leave layers"),
        (lambda: Knockout(when=AtStep(3), box=(0, 0, 9)), r"\(0, 0, 9\)"),
        (lambda: Route(when=AtStep(3), select="random", seed=-1), "seed=-1"),
        (lambda: ForceTokens((1, 10**9), when=AtStep(3)), "no token 1000000000"),
        (lambda: ForceTokens((-1,), when=AtStep(3)), "whole numbers from 0"),
        (lambda: Inject("let me look at the image again", when=Every(5)), "again and again"),
        (
            lambda: Inject("x", when=At("y")) + Inject("y", when=At("x")),
            "again and again",
        ),
        (lambda: Boost(when=AtStep(3), alpha=float("inf")), "alpha=inf"),
        (lambda: Knockout(when=AtStep(3), heads=[(5, 0)]), "no layer 5"),
        (lambda: Knockout(when=AtStep(3), heads=[]), "no head is in reach"),
        (lambda: Knockout(when=AtStep(3), box=(900, 900, 990, 990)), "overlaps"),
        (lambda: Inject("", when=AtStep(3)), "text to force in"),
        (lambda: Inject("x", when=At("")), "text to look for"),
        (lambda: Inject("see x", when=At("x")), "again and again"),
        (lambda: Inject("x y", when=At("x") | AtStep(3)), "again and again"),
        (lambda: Inject("x", when=Every(0)), r"Every\(0\)"),
        (lambda: Inject("x", when=At("y", times=0)), "times=0"),
        (lambda: Inject("x", when=WhenVisualBelow(0.1, "no-sink")), "'no-sink'"),
        (lambda: Inject("x", when=WhenVisualBelow(1.5)), r"1\.5"),
        (lambda: Inject("x", when=WhenVisualBelow(0.5, patience=0)), "patience=0"),
        (lambda: "copy", "'copy'"),
        (lambda: Copy(when="<back>"), "has no trigger"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(tiny, one, make, message, monkeypatch):
    monkeypatch.setattr(tiny.model, "generate", lambda *_, **__: pytest.fail("ran"), raising=False)
    with pytest.raises(InputError, match=message):
        run(tiny, one, make())


def test_prompts_that_do_not_fit_are_refused(tiny, one, two):
    text = tiny.prompt(None, "How many?", "cot")
    by_share = Inject("x", when=WhenVisualBelow(0.1))
    forced = Inject("x", when=AtStep(3))
    for chosen in (Copy(when=AtStep(3)), Boost(when=AtStep(3), log_odds=1.0), by_share, forced):
        with pytest.raises(InputError, match="no image"):
            intervene(tiny, text, chosen)
    with pytest.raises(InputError, match="has 2 images: say which"):
        intervene(tiny, two, Route(when=AtStep(3)))
    with pytest.raises(InputError, match="say which"):
        intervene(tiny, two, Knockout(when=AtStep(3), box=(0, 0, 9, 9)))
    with pytest.raises(InputError, match="one prompt"):
        intervene(tiny, tiny.batch([one, two]), Copy(when=AtStep(3), image=0))
    with (
        intervene(tiny, one, Copy(when=AtStep(3))),
        pytest.raises(InputError, match="tokens of another prompt"),
    ):
        other = tiny.prompt(picture(140, 112), "Is there a red square?", "back")
        assert len(other.segments) == len(one.segments)
        tiny.model.generate(**other.inputs, max_new_tokens=4)
    with (
        intervene(tiny, one, Copy(when=AtStep(3))),
        pytest.raises(InputError, match="2 sequences"),
    ):
        tiny.model.generate(**one.inputs, do_sample=True, num_return_sequences=2, max_new_tokens=4)
    with (
        intervene(tiny, one, Copy(when=AtStep(3))),
        pytest.raises(InputError, match="use_cache"),
    ):
        tiny.model.generate(**one.inputs, use_cache=False, max_new_tokens=4)
    room = len(one.segments) + 12
    cache = StaticCache(tiny.model.config.text_config, max_cache_len=room)
    with (
        intervene(tiny, one, Copy(when=AtStep(3))),
        pytest.raises(InputError, match=f"holds {room} tokens"),
    ):
        tiny.model.generate(**one.inputs, **with_cache(tiny.model, cache), max_new_tokens=10)


def test_one_intervention_at_a_time_is_open_on_a_model(tiny, one, plain):
    chosen = Copy(when=AtStep(3))
    with intervene(tiny, one, chosen):
        with pytest.raises(InputError, match="join the two by"), intervene(tiny, one, chosen):
            pytest.fail("opened")
        twin = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "twin", tiny.family)
        with intervene(twin, one, chosen):
            pass
    with intervene(tiny, one, Copy(when=At("<never>"))):
        assert attnlens.run(tiny, one, **GREEDY).tokens == plain.tokens


def test_numbers_may_be_numpys(tiny, one):
    chosen = Boost(
        when=AtStep(3), log_odds=1.0, layers=np.arange(1, 3), heads=np.array([0]), image=np.int64(0)
    )
    same_numbers = Boost(when=AtStep(3), log_odds=1.0, layers=[1, 2], heads=[0], image=0)
    assert same(run(tiny, one, chosen), run(tiny, one, same_numbers))


def test_scores_are_changed_under_sdpa_and_eager_alone(tiny, one, monkeypatch):
    config = tiny.model.config.text_config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(InputError, match="'flash_attention_2'"):
        intervene(tiny, one, Boost(when=AtStep(3), log_odds=1.0))


def test_a_copied_source_may_be_a_file(tiny, one, tmp_path):
    path = tmp_path / "other.png"
    picture(112, 112, 5).save(path)
    by_path = run(tiny, one, Copy(when=AtStep(5), source=path))
    by_name = run(tiny, one, Copy(when=AtStep(5), source=str(path)))
    by_image = run(tiny, one, Copy(when=AtStep(5), source=Image.open(path)))
    assert same(by_path, by_image)
    assert same(by_name, by_image)
    assert Copy(when=AtStep(5), source=path).name == f"copy:{path}"
    blank = run(tiny, one, Copy(when=AtStep(5), source="blank"))
    assert blank.attrs["interventions"][0]["inserted"] == 22
    text = run(tiny, one, Copy(when=AtStep(5), source="text"))
    assert text.attrs["interventions"][0]["inserted"] == 22
    assert (text.data["keys"].sel(segment="copied").values == 0).all()
    assert text.data["keys"].sel(segment="response").values[-1] == NEW - 1 + 22
    bare = run(tiny, one, Copy(when=AtStep(5), source="text", wrap=False))
    assert bare.attrs["interventions"][0]["inserted"] == 20
    for trace in (by_path, blank, text):  # what was inserted is not of the prompt's image
        assert trace.attrs["interventions"][0]["kept"] == []


@pytest.mark.slow
@compiles
def test_compiled_decoding_gives_the_same(tiny, one):
    torch._dynamo.reset()
    chosen = Copy(when=AtStep(2)) + Boost(when=AtStep(3), log_odds=1.0) + Inject("x", AtStep(5))
    want = run(tiny, one, chosen, max_new_tokens=8, min_new_tokens=8)
    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    model.forward = torch.compile(model.forward, backend="eager")
    got = run(vlm, one, chosen, max_new_tokens=8, min_new_tokens=8)
    assert got.tokens == want.tokens
    assert np.allclose(got.data["mass"], want.data["mass"], atol=1e-5)
    torch._dynamo.reset()
