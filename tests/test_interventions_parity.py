"""Insertion on a running cache against one full pass over the stitched sequence."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from conftest import VISION, picture, tiny_vlm
from transformers import StaticCache

import attnlens
from attnlens.interventions import (
    At,
    AtStep,
    Boost,
    Copy,
    Every,
    Inject,
    Knockout,
    Route,
    intervene,
)
from attnlens.models.cache import with_cache
from attnlens.segments import SEGMENTS

NEW = 24


def generated(vlm, prompt, intervention, **options):
    """Trace, response ids, the logits of every step, and the session of one greedy run."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    with (
        attnlens.record(vlm, prompt) as recorder,
        intervene(vlm, prompt, intervention) as session,
    ):
        output = vlm.model.generate(
            **prompt.inputs, **options, output_logits=True, return_dict_in_generate=True
        )
    ids = output.sequences[0, len(prompt.segments) :].tolist()
    return recorder.trace, ids, torch.stack(output.logits, 1)[0], session


def stitched_pass(vlm, prompt, response, insertions, *, policy="fresh", wrap=True):
    """One eager pass over prompt, response and insertions: logits and weights of the steps.

    ``insertions`` are (step, image, kept) in order. Positions come from transformers'
    ``get_rope_index``; for a part of an image, from the whole one with the other tokens left out.
    Returns logits [steps, vocabulary], weights [layer, head, step, key], and the keys' segments.
    """
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    config = model.config
    inputs = prompt.inputs
    counts = [r * c for r, c in prompt.grids]
    with torch.no_grad():
        features = torch.cat(
            tuple(
                model.get_image_features(
                    inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
                ).pooler_output
            )
        )
    starts = np.cumsum([0, *counts])
    ids = inputs["input_ids"][0].tolist()
    segments = list(map(str, prompt.segments))
    visual = list(range(sum(counts)))  # which feature stands at each image token
    grids = inputs["image_grid_thw"].tolist()
    dropped, step_of, original = [], [None] * (len(ids) - 1) + [0], {}
    at_prompt = np.flatnonzero(prompt.image_of_key >= 0)
    for t, token in enumerate(response[:-1]):
        for step, image, kept in insertions:
            if step != t + 1:
                continue
            whole = range(counts[image])
            if wrap:
                ids.append(config.vision_start_token_id)
                segments.append("response")
            for j in whole:
                if j not in kept:
                    dropped.append(len(ids))
                original[len(ids)] = at_prompt[starts[image] + j]
                ids.append(config.image_token_id)
                segments.append("copied")
                visual.append(starts[image] + j)
            if wrap:
                ids.append(config.vision_end_token_id)
                segments.append("response")
            grids.append(inputs["image_grid_thw"][image].tolist())
            step_of += [None] * (len(ids) - len(step_of))
        ids.append(token)
        segments.append("response")
        step_of.append(t + 1)
    whole = torch.tensor([ids])
    positions, _ = model.model.get_rope_index(
        whole,
        mm_token_type_ids=(whole == config.image_token_id).int(),
        image_grid_thw=torch.tensor(grids),
        attention_mask=torch.ones_like(whole),
    )
    if policy == "original":  # text goes on as if the image had not come between
        text = positions[0, 0, len(segments_of(prompt)) - 1] - len(segments_of(prompt)) + 1
        for slot in range(len(segments_of(prompt)), len(ids)):
            before = sum(s in original for s in range(slot))
            positions[:, 0, slot] = text + slot - before
            if slot in original:
                positions[:, 0, slot] = positions[:, 0, original[slot]]
    left = [i for i in range(len(ids)) if i not in dropped]
    with torch.no_grad():
        embedded = model.get_input_embeddings()(whole)
        embedded[0, whole[0] == config.image_token_id] = features[visual]
        output = model.model.language_model(
            inputs_embeds=embedded[:, left],
            position_ids=positions[:, :, left],
            output_attentions=True,
            use_cache=False,
        )
        logits = model.lm_head(output.last_hidden_state)[0]
    rows = [i for i, slot in enumerate(left) if step_of[slot] is not None]
    weights = torch.stack(output.attentions)[:, 0][:, :, rows].numpy()
    return logits[rows], weights, np.array(segments)[left]


def segments_of(prompt):
    return prompt.inputs["input_ids"][0]


def check(vlm, prompt, intervention, insertions=None, *, policy="fresh", wrap=True, **options):
    trace, ids, logits, session = generated(vlm, prompt, intervention, **options)
    acted = [e for e in session.events if e.inserted]
    if insertions is None:
        insertions = [(e.step, 0, e.kept) for e in acted]
    assert len(insertions) == len(acted) > 0
    want, weights, segments = stitched_pass(vlm, prompt, ids, insertions, policy=policy, wrap=wrap)
    mass = np.stack([weights[..., segments == s].sum(-1) for s in SEGMENTS], -1)
    assert np.allclose(trace.data["mass"].values, mass.transpose(2, 0, 1, 3), atol=1e-5)
    seen = weights[0, 0] > -1
    seen = (
        np.arange(len(segments))[None]
        <= np.array(
            [
                len(prompt.segments) - 1 + s + sum(e.inserted for e in acted if e.step <= s)
                for s in range(len(ids))
            ]
        )[:, None]
    )
    keys = np.stack([(seen & (segments == s)).sum(1) for s in SEGMENTS], 1)
    assert np.array_equal(trace.data["keys"].values, keys)
    # what was chosen before the trigger was known was chosen without the insertion
    known = [t for e in acted for t in range(e.step, e.known_at)]
    forced = [t for e in session.events for t in range(e.step, e.step + e.forced)]
    clean = [t for t in range(len(ids)) if t not in known + forced]
    assert torch.allclose(logits[clean], want[clean], atol=1e-4)
    assert trace.data["predicted_token_id"].values.tolist() == ids
    return trace, session


@pytest.fixture(scope="module", params=list(VISION))
def tiny(request, tokenizer):
    """A small model of each family: every test below is of all of them."""
    return tiny_vlm(tokenizer, request.param)


@pytest.fixture(scope="module")
def one(tiny):
    return tiny.prompt(picture(140, 112), "Is there a red circle?", "back")


@pytest.fixture(scope="module")
def two(tiny):
    images = [picture(112, 140, 1), picture(168, 112, 2)]
    return tiny.prompt(images, "How many objects remain?", "cot")


@pytest.mark.parametrize("policy", ["fresh", "original"])
@pytest.mark.parametrize("wrap", [True, False])
def test_copy_equals_the_stitched_sequence(tiny, one, policy, wrap):
    chosen = Copy(when=AtStep(7), positions=policy, wrap=wrap)
    trace, _ = check(tiny, one, chosen, policy=policy, wrap=wrap)
    assert (trace.data["keys"].sel(segment="copied").values[7:] == 20).all()
    assert (trace.data["mass"].sel(segment="copied").values[:7] == 0).all()
    assert (trace.data["mass"].sel(segment="copied").values[7:] > 0).any()


@pytest.mark.parametrize("policy", ["fresh", "original"])
@pytest.mark.parametrize("select", ["top", "bottom", "random"])
def test_route_equals_the_stitched_sequence(tiny, one, policy, select):
    chosen = Route(when=AtStep(9), percent=30, select=select, positions=policy)
    _, session = check(tiny, one, chosen, policy=policy)
    assert len(session.events[0].kept) == 6
    assert session.events[0].inserted == 8


def test_the_first_step_can_see_an_insertion(tiny, one):
    check(tiny, one, Copy(when=AtStep(1)))


def test_a_tag_is_stepped_back_to(tiny, one):
    """The forced tag is known when its last token has come; the insertion stands before it."""
    chosen = Inject(" <back>", when=AtStep(6)) + Copy(when=At("<back>"))
    trace, session = check(tiny, one, chosen)
    event = session.events[1]
    assert (event.step, event.known_at) == (7, 9)
    assert "".join(trace.tokens[6:9]).endswith("<back>")


@pytest.mark.parametrize("policy", ["fresh", "original"])
def test_insertions_repeat(tiny, one, policy):
    chosen = Copy(when=Every(5, times=3), positions=policy)
    _, session = check(tiny, one, chosen, policy=policy)
    assert [e.step for e in session.events] == [5, 10, 15]


def test_two_insertions_at_one_moment_and_tags_inside_each_other(tiny, one):
    chosen = (
        Inject("<back>", when=AtStep(6))
        + Copy(when=At("<back>"))
        + Route(when=AtStep(9), percent=25)
        + Copy(when=At("back>"))
    )
    _, session = check(tiny, one, chosen)
    assert sorted((e.step, e.inserted) for e in session.events) == [
        (6, 0),
        (7, 22),
        (8, 22),
        (9, 7),
    ]


def test_each_of_two_images_of_different_sizes(tiny, two):
    for image in (0, 1):
        rows, columns = two.grids[image]
        kept = tuple(range(rows * columns))
        check(tiny, two, Copy(when=AtStep(5), image=image), [(5, image, kept)])
    both = Copy(when=AtStep(4), image=1) + Copy(when=AtStep(11), image=0)
    whole = [tuple(range(r * c)) for r, c in two.grids]
    check(tiny, two, both, [(4, 1, whole[1]), (11, 0, whole[0])])
    chosen = Route(when=AtStep(8), image=1, percent=40)
    _, session = check_route_of(tiny, two, chosen, image=1)
    assert max(session.events[0].kept) < len(whole[1])


@pytest.mark.parametrize("image", [0, 1])
def test_each_of_two_images_at_its_own_positions(tiny, two, image):
    kept = tuple(range(two.grids[image][0] * two.grids[image][1]))
    chosen = Copy(when=AtStep(5), image=image, positions="original")
    check(tiny, two, chosen, [(5, image, kept)], policy="original")
    routed = Route(when=AtStep(8), image=image, percent=40, positions="original")
    check_route_of(tiny, two, routed, image, policy="original")


def check_route_of(vlm, prompt, chosen, image, **options):
    _, _, _, session = generated(vlm, prompt, chosen)
    insertions = [(e.step, image, e.kept) for e in session.events]
    return check(vlm, prompt, chosen, insertions, **options)


def test_a_static_cache_gives_the_same(tiny, one):
    chosen = Inject("<back>", when=AtStep(6)) + Copy(when=At("<back>"))
    cache = StaticCache(tiny.model.config.text_config, max_cache_len=len(one.segments) + NEW + 40)
    static, _ = check(tiny, one, chosen, **with_cache(tiny.model, cache))
    dynamic, _ = check(tiny, one, chosen)
    assert static.tokens == dynamic.tokens
    original = Route(when=AtStep(9), percent=60, positions="original")
    cache = StaticCache(tiny.model.config.text_config, max_cache_len=len(one.segments) + NEW + 40)
    check(tiny, one, original, policy="original", **with_cache(tiny.model, cache))


def test_eager_attention_gives_the_same(tiny, one):
    tiny.model.set_attn_implementation({"text_config": "eager"})
    try:
        check(tiny, one, Copy(when=AtStep(7)))
    finally:
        tiny.model.set_attn_implementation({"text_config": "sdpa"})


def test_another_image_goes_in_as_the_stitched_sequence_has_it(tiny, one):
    """As a prompt of two images, of which the second stands in the response."""
    other = picture(112, 168, 9)
    trace, ids, logits, session = generated(tiny, one, Copy(when=AtStep(7), source=other))
    with_other = tiny.prompt([one.pictures[0], other], one.question, "back").inputs
    prompt_ids = one.inputs["input_ids"][0].tolist()
    config = tiny.model.config
    count = session.events[0].inserted - 2
    block = [
        config.vision_start_token_id,
        *[config.image_token_id] * count,
        config.vision_end_token_id,
    ]
    whole = torch.tensor([prompt_ids + ids[:6] + block + ids[6:-1]])
    with torch.no_grad():
        want = tiny.model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == config.image_token_id).int(),
            pixel_values=with_other["pixel_values"],
            image_grid_thw=with_other["image_grid_thw"],
        ).logits[0]
    first = len(prompt_ids) - 1
    rows = [first + t + (len(block) if t >= 7 else 0) for t in range(len(ids))]
    assert torch.allclose(logits, want[rows], atol=1e-4)
    assert (trace.data["keys"].sel(segment="copied").values[7:] == count).all()


@pytest.mark.parametrize("copies", [1, 3])
def test_frozen_copies_raise_log_odds_of_the_first_layer_by_log_of_one_more(tiny, one, copies):
    """And are, in every layer, the same as a bias of that much on the prompt's visual keys."""
    chosen = Copy(when=AtStep(7), positions="frozen-cache", wrap=False, repeat=copies)
    trace, ids, logits, _ = generated(tiny, one, chosen)
    first = len(one.segments) - 1
    whole = torch.tensor([one.inputs["input_ids"][0].tolist() + ids[:-1]])
    bias = torch.zeros((1, 1, whole.shape[1], whole.shape[1]))
    bias[..., first + 7 :, np.flatnonzero(one.segments == "visual")] = np.log(1 + copies)
    seen = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    bias.masked_fill_(~seen, torch.finfo(torch.float32).min)
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        features = torch.cat(
            tuple(
                model.get_image_features(
                    one.inputs["pixel_values"], one.inputs["image_grid_thw"], return_dict=True
                ).pooler_output
            )
        )
        embedded = model.get_input_embeddings()(whole)
        embedded[0, whole[0] == model.config.image_token_id] = features
        positions, _ = model.model.get_rope_index(
            whole,
            mm_token_type_ids=(whole == model.config.image_token_id).int(),
            image_grid_thw=one.inputs["image_grid_thw"],
        )
        output = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": bias},
            position_ids=positions,
            output_attentions=True,
            use_cache=False,
        )
        want = model.lm_head(output.last_hidden_state)[0, first:]
    assert torch.allclose(logits, want, atol=1e-4)
    visual = np.flatnonzero(one.segments == "visual")
    weights = torch.stack(output.attentions)[:, 0, :, first:, visual].sum(-1).permute(2, 0, 1)
    mass = trace.data["mass"].sel(segment=["visual", "copied"]).values
    assert np.allclose(mass.sum(-1), weights.numpy(), atol=1e-5)
    # the exact law, against the same run's own rows without the copies
    untouched = attnlens.run(tiny, one, NEW, min_new_tokens=NEW, do_sample=False)
    both, plain = mass[7, 0].sum(-1), untouched.data["mass"].sel(segment="visual").values[7, 0]
    assert untouched.tokens[:7] == trace.tokens[:7]
    rise = np.log(both / (1 - both)) - np.log(plain / (1 - plain))
    assert np.allclose(rise, np.log(1 + copies), atol=1e-5)


def frozen_pass(vlm, prompt, response, insertions, wrap):
    """One eager pass in which a key that was repeated n times has its scores raised by log(1 + n).

    ``insertions`` are (step, image, kept) in order; the tokens that wrap them stand in the
    sequence as text. Returns logits [steps, vocabulary] and visual mass [step, layer, head], of
    the prompt's keys and their copies together.
    """
    config, first = vlm.model.config, len(prompt.segments)
    ids, step_of = prompt.inputs["input_ids"][0].tolist(), [None] * (first - 1) + [0]
    repeated = []  # from which slot on, and which keys
    for t, token in enumerate(response[:-1]):
        for step, image, kept in insertions:
            if step == t + 1:
                slots = np.flatnonzero(prompt.image_of_key == image)[list(kept)]
                if wrap:
                    ids.append(config.vision_start_token_id)
                repeated.append((len(ids), slots))
                if wrap:
                    ids.append(config.vision_end_token_id)
                step_of += [None] * (len(ids) - len(step_of))
        ids.append(token)
        step_of.append(t + 1)
    whole = torch.tensor([ids])
    bias = torch.zeros((len(ids), len(ids)))
    counts = torch.ones((len(ids), len(ids)))
    for start, slots in repeated:
        counts[start:, slots] += 1
    bias = counts.log()
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    bias.masked_fill_(~seen, torch.finfo(torch.float32).min)
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    inputs = prompt.inputs
    with torch.no_grad():
        found = model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        )
        embedded = model.get_input_embeddings()(whole)
        embedded[0, whole[0] == config.image_token_id] = torch.cat(tuple(found.pooler_output))
        of_prompt, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=(inputs["input_ids"] == config.image_token_id).int(),
            image_grid_thw=inputs["image_grid_thw"],
        )
        later = int(of_prompt.max()) + 1 + torch.arange(len(ids) - first)
        output = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask={"full_attention": bias[None, None]},
            position_ids=torch.cat([of_prompt, later.expand(3, 1, -1)], dim=-1),
            output_attentions=True,
            use_cache=False,
        )
        logits = model.lm_head(output.last_hidden_state)[0]
    rows = [i for i, step in enumerate(step_of) if step is not None]
    visual = np.flatnonzero(prompt.segments == "visual")
    weights = torch.stack(output.attentions)[:, 0][:, :, rows][..., visual].sum(-1)
    return logits[rows], weights.permute(2, 0, 1).numpy()


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(
    "chosen",
    [
        lambda **o: Copy(when=AtStep(7), image=0, **o),
        lambda **o: Route(when=AtStep(7), percent=40, image=1, **o),
        lambda **o: (
            Copy(when=AtStep(4), image=1, **o) + Route(when=AtStep(11), percent=60, image=0, **o)
        ),
        lambda **o: Copy(when=Every(6, times=2), image=0, **o),
    ],
    ids=["copy", "route", "both images", "twice"],
)
def test_frozen_insertions_equal_a_pass_with_these_keys_raised(tiny, two, chosen, wrap):
    made = chosen(positions="frozen-cache", wrap=wrap)
    trace, ids, logits, session = generated(tiny, two, made)
    images = {part.name: part.image for part in made.parts}
    insertions = [(e.step, images[e.intervention], e.kept) for e in session.events]
    assert len(insertions) == (2 if "+" in made.name or made.when == Every(6, times=2) else 1)
    want, mass = frozen_pass(tiny, two, ids, insertions, wrap)
    assert torch.allclose(logits, want, atol=1e-4)
    both = trace.data["mass"].sel(segment=["visual", "copied"]).values.sum(-1)
    assert np.allclose(both, mass, atol=1e-5)


def test_routed_keys_of_the_cache_get_the_weight_of_the_keys_they_repeat(tiny, one):
    """The same key gets the same score: in every layer, whatever else has changed."""
    chosen = Route(when=AtStep(7), percent=40, positions="frozen-cache", wrap=False)
    with (
        attnlens.record(tiny, one, visual_map=True) as recorder,
        intervene(tiny, one, chosen) as session,
    ):
        tiny.model.generate(**one.inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    kept = list(session.events[0].kept)
    assert len(kept) == 8
    data = recorder.trace.data
    repeated = data["visual_map"].values[7:][:, :, kept].sum(-1)
    copied = data["mass"].sel(segment="copied").mean("head").values[7:]
    assert np.allclose(copied, repeated, atol=1e-5)
    assert (copied > 1e-4).any()


def test_the_laws_hold_in_bfloat16(tiny, one):
    """Copies of cached keys and boosts move first-layer log-odds by what algebra says."""
    half = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model).to(torch.bfloat16))
    prompt = half.prompt(picture(140, 112), "Is there a red circle?", "back")
    plain, _, _, _ = generated(half, prompt, Copy(when=At("<nowhere>")))

    def odds(trace):
        mass = trace.data["mass"].sel(segment=["visual", "copied"]).values.sum(-1)[7, 0]
        mass = mass.astype(np.float64)
        return np.log(mass / (1 - mass))

    frozen = Copy(when=AtStep(7), positions="frozen-cache", wrap=False, repeat=2)
    for chosen, rise in ((frozen, np.log(3)), (Boost(when=AtStep(7), log_odds=1.5), 1.5)):
        trace, _, _, _ = generated(half, prompt, chosen)
        assert trace.tokens[:7] == plain.tokens[:7]
        assert np.allclose(odds(trace) - odds(plain), rise, atol=1e-4)
    hidden, _, _, _ = generated(half, prompt, Knockout(when=AtStep(7)))
    assert (hidden.data["mass"].sel(segment="visual").values[7:] == 0).all()


def test_a_knockout_over_a_span_equals_a_pass_with_these_keys_hidden(tiny, one):
    chosen = Knockout(when=AtStep(5), until=AtStep(12), heads=[(0, 1), (2, 3)])
    trace, ids, logits, _ = generated(tiny, one, chosen)
    first = len(one.segments) - 1
    visual = np.flatnonzero(one.segments == "visual")
    mass = trace.data["mass"].sel(segment="visual").values
    hidden = np.zeros(mass.shape, bool)
    for layer, head in [(0, 1), (2, 3)]:
        hidden[5:12, layer, head] = True
    assert (mass[hidden] == 0).all()
    assert (mass[~hidden] > 0).all()
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    whole = torch.tensor([one.inputs["input_ids"][0].tolist() + ids[:-1]])

    # an independent way: the scores of these heads are changed inside the eager function
    module = sys.modules[type(tiny.model).__module__]

    real = module.eager_attention_forward

    def hiding(attention, query, key, value, attention_mask, **options):
        if not hasattr(attention, "layer_idx"):  # a vision block
            return real(attention, query, key, value, attention_mask, **options)
        mask = attention_mask.expand(-1, query.shape[1], -1, -1).clone()
        for layer, head in [(0, 1), (2, 3)]:
            if attention.layer_idx == layer and query.shape[2] == whole.shape[1]:
                rows = np.arange(first + 5, first + 12)
                mask[:, head, rows[:, None], visual[None]] = float("-inf")
        return real(attention, query, key, value, mask, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "eager_attention_forward", hiding)
        want = model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == model.config.image_token_id).int(),
            pixel_values=one.inputs["pixel_values"],
            image_grid_thw=one.inputs["image_grid_thw"],
        ).logits[0, first:]
    assert torch.allclose(logits, want, atol=1e-4)


def test_passes_over_part_of_a_response_are_one_pass(tiny, one, monkeypatch):
    """In float32 to rounding, and in half precision many tokens to a pass where nothing acts."""
    from attnlens.experiments.force import forced
    from attnlens.interventions import Nothing, teacher_forcing

    trace = attnlens.run(tiny, one, NEW, min_new_tokens=NEW)
    ids = trace.data["predicted_token_id"].values
    chosen = Copy(when=AtStep(7))
    whole = [forced(tiny, one, ids.tolist(), way) for way in (Nothing(), chosen)]
    monkeypatch.setattr(teacher_forcing, "PASS_TOKENS", 3)
    parts = [forced(tiny, one, ids.tolist(), way) for way in (Nothing(), chosen)]
    for (one_pass, logs), (several, same) in zip(whole, parts, strict=True):
        assert np.allclose(one_pass.data["mass"], several.data["mass"], atol=1e-5)
        assert torch.allclose(logs, same, atol=1e-4)

    half = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model).to(torch.bfloat16))
    counted = []
    half.model.register_forward_pre_hook(lambda *_: counted.append(1))
    for way, passes in ((None, 1 + -(-(NEW - 1) // 3)), (Nothing(), NEW)):
        counted.clear()
        attnlens.force(half, one, ids, way)
        assert len(counted) == passes
