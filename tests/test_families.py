"""Every family, on a small random model of its own class and its own image processor."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import picture, same_inputs
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import attnlens
from attnlens import plots
from attnlens.errors import InputError
from attnlens.interventions import AtStep, Boost, Copy, Route, intervene
from attnlens.models import paligemma
from attnlens.models.families import FAMILIES
from attnlens.models.family import Shape
from attnlens.models.llava import small_clip
from attnlens.models.small import PICTURE, SMALL, TEMPLATE, small_tokenizer, small_vlm

NEW = 5
FOUR_LAYERS = dataclasses.replace(SMALL, layers=4)
"""Two layers with softmax where every other one has it."""
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
each = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def vlms():
    """Small models by family, each built once."""
    made = {}

    def get(family):
        if family not in made:
            mixed = "none" in FAMILIES[family].other_layers
            made[family] = small_vlm(family, shape=FOUR_LAYERS if mixed else SMALL, seed=1)
        return made[family]

    return get


def eager(vlm, prompt, new=NEW):
    """Tokens and attention weights [step][layer] of an eager generation."""
    model = vlm.model
    model.set_attn_implementation("eager")
    try:
        output = model.generate(
            **prompt.inputs,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    finally:
        model.set_attn_implementation("sdpa")
    return output.sequences, output.attentions


def generate(vlm, prompt, new=NEW):
    return vlm.model.generate(
        **prompt.inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False
    )


@each
def test_mass_is_that_of_eager_attention(vlms, family):
    """For every step, layer, head and segment; and tokens are those without recording."""
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    plain = generate(vlm, prompt)
    with attnlens.record(vlm, prompt) as recorder:
        tokens = generate(vlm, prompt)
    assert torch.equal(plain, tokens)
    trace = recorder.trace
    _, attentions = eager(vlm, prompt)
    layers = trace.data["layer"].values
    assert len(layers) == len(attentions[0])
    for step in range(NEW):
        whole = np.array([*prompt.segments, *["response"] * step])
        for layer, weights in zip(layers, attentions[step], strict=True):
            row = weights[0, :, -1].double().numpy()
            segments = whole[len(whole) - row.shape[1] :]  # a window's cache has dropped the rest
            for segment in np.unique(whole):
                mass = row[:, segments == segment].sum(-1)
                found = trace.data["mass"].sel(step=step, layer=layer, segment=segment).values
                assert np.abs(found - mass).max() < 1e-5, (step, layer, segment)


@each
def test_a_batch_is_recorded_as_its_prompts_alone(vlms, family):
    vlm = vlms(family)
    prompts = [vlm.prompt(picture(112, 84), "How many?"), vlm.prompt(picture(84, 112, 3), "Which?")]
    batch = vlm.batch(prompts)
    plain = generate(vlm, batch)
    with attnlens.record(vlm, batch) as recorder:
        tokens = generate(vlm, batch)
    assert torch.equal(plain, tokens)
    for prompt, trace in zip(prompts, recorder.traces, strict=True):
        with attnlens.record(vlm, prompt) as alone:
            generate(vlm, prompt)
        one = alone.trace
        assert trace.data["predicted_token_id"].equals(one.data["predicted_token_id"])
        assert float(abs(trace.data["mass"] - one.data["mass"]).max()) < 1e-5


@each
def test_several_images_are_told_apart(vlms, family):
    vlm = vlms(family)
    prompt = vlm.prompt([picture(112, 84), picture(84, 112, 3)], "How many?")
    trace = attnlens.run(vlm, prompt, NEW, do_sample=False)
    _, attentions = eager(vlm, prompt)
    for image in (0, 1):
        keys = np.flatnonzero(prompt.image_of_key == image)
        assert len(keys) == prompt.images[image].places().shape[1]
        layer = int(trace.data["layer"][1])
        mass = attentions[2][1][0, :, -1, keys].double().sum(-1)
        found = trace.data["mass_by_image"].sel(step=2, layer=layer, image=image)
        assert np.abs(found.values - mass.numpy()).max() < 1e-5


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "llava_onevision"])
def test_the_share_of_one_image_of_several(vlms, family):
    """Each definition, by weights of eager attention summed here."""
    vlm = vlms(family)
    prompt = vlm.prompt([picture(112, 84), picture(84, 112, 3)], "How many?")
    trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
    _, attentions = eager(vlm, prompt)
    names, length = prompt.segments, len(prompt.segments)
    for item in (0, 1):
        ours = prompt.image_of_key == item
        for step in (1, 3):
            rows = [w[0, :, -1].double().numpy() for w in attentions[step]]
            mass = np.mean([r[:, :length][:, ours].sum(-1).mean() for r in rows])
            found = attnlens.measures.visual_share(trace, "mass", item=item).sel(step=step)
            assert float(found) == pytest.approx(mass, abs=1e-6)
            found = attnlens.measures.visual_share(trace, "mean-weight", item=item).sel(step=step)
            assert float(found) == pytest.approx(mass / ours.sum(), abs=1e-6)
            first = int(np.flatnonzero(names == "visual")[0])
            parts = [
                r[:, :length][:, ours].sum(-1).mean() / r[:, first:].sum(-1).mean() for r in rows
            ]
            found = attnlens.measures.visual_share(trace, "look-back", item=item).sel(step=step)
            assert float(found) == pytest.approx(np.mean(parts), abs=1e-6)
    with pytest.raises(InputError, match="item=2: the trace has 2 images, counted from 0"):
        attnlens.measures.visual_share(trace, item=2)
    with pytest.raises(InputError, match="reflection-v"):
        attnlens.measures.visual_share(trace, "reflection-v", item=1)


@pytest.mark.parametrize("family", [n for n in FAMILIES if not FAMILIES[n].other_layers])
def test_a_planted_bias_moves_mass_as_algebra_says(vlms, family):
    """Log-odds of visual mass rise by the bias in the first layer, whose queries stay the same."""
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    plain = attnlens.run(vlm, prompt, 2, do_sample=False)
    boost = Boost(when=AtStep(1), log_odds=0.7)
    boosted = attnlens.run(vlm, prompt, 2, boost, do_sample=False)
    odds = [
        np.log(m / (1 - m))
        for m in (
            t.data["mass"].sel(step=1, layer=0, segment="visual").values.astype(float)
            for t in (plain, boosted)
        )
    ]
    assert np.abs(odds[1] - odds[0] - 0.7).max() < 1e-3


def local_features(vlm, prompt):
    """Vision features without attention among patches: each token shows its own pixels."""
    handles = []

    def nothing(_module, _args, output):
        return (
            (torch.zeros_like(output[0]), *output[1:])
            if isinstance(output, tuple)
            else (torch.zeros_like(output))
        )

    vision = vlm.family.parts(vlm.model).vision
    for module in vision.modules():
        if type(module).__name__.endswith("Attention"):
            handles.append(module.register_forward_hook(nothing))
    try:
        with torch.no_grad():
            return vlm.family.image_features(vlm.model, prompt.inputs)
    finally:
        for handle in handles:
            handle.remove()


def check_squares(vlm, sizes):
    """A bright square changes the features of those tokens whose boxes show it, in every tile."""
    greys = [Image.new("RGB", size, (90, 90, 90)) for size in sizes]
    prompt = vlm.prompt(greys, "How many?")
    before = local_features(vlm, prompt)
    assert len(before) == (prompt.segments == "visual").sum()
    rng = np.random.default_rng(0)
    start = 0
    for which, grey in enumerate(greys):
        boxes, (tile, _, column) = prompt.boxes[which], prompt.images[which].places()
        for number in range(len(prompt.images[which].tiles)):
            inside = np.flatnonzero((tile == number) & (column >= 0) & ~np.isnan(boxes[:, 0]))
            if not len(inside):
                continue
            target = int(rng.choice(inside))
            left, top, right, bottom = boxes[target]
            x, y = (right - left) / 4, (bottom - top) / 4
            square = np.array([left + x, top + y, right - x, bottom - y])
            bright = grey.copy()
            bright.paste((250, 240, 20), tuple(int(v) for v in np.round(square)))
            pictures = [bright if i == which else one for i, one in enumerate(greys)]
            after = local_features(vlm, vlm.prompt(pictures, "How many?"))
            change = (after - before).norm(dim=-1).numpy()
            others = np.delete(change, np.arange(start, start + len(boxes)))
            assert not others.any()
            change = change[start : start + len(boxes)]
            assert change[inside].argmax() == np.flatnonzero(inside == target)[0]
            changed = change > 0.3 * change[inside].max()
            overlap = (
                (boxes[:, 0] < square[2])
                & (boxes[:, 2] > square[0])
                & (boxes[:, 1] < square[3])
                & (boxes[:, 3] > square[1])
            )
            assert not (changed & ~overlap)[inside].any()
        start += len(boxes)


@each
@pytest.mark.parametrize(
    "sizes", [[(448, 336)], [(300, 420)], [(360, 360)], [(448, 300), (200, 400)]]
)
def test_a_bright_square_changes_the_tokens_that_show_it(vlms, family, sizes):
    check_squares(vlms(family), sizes)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_pad": True, "size": {"shortest_edge": 28}},
        {"size": {"height": 28, "width": 28}},
        {"size": {"shortest_edge": 56}},
        {"size": {"height": 28, "width": 28}, "do_center_crop": False},
    ],
)
def test_what_llava_sees_of_a_picture(vlms, settings):
    """Padded, stretched, or cut, as the image processor is set."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    vlm = vlms("llava")
    made = copy.copy(vlm.processor)
    made.image_processor = LlavaImageProcessorPil(
        **{"crop_size": {"height": 28, "width": 28}} | settings
    )
    check_squares(dataclasses.replace(vlm, processor=made), [(300, 150)])


@each
def test_a_checkpoint_is_loaded_from_its_folder(vlms, family, tmp_path):
    vlm = vlms(family)
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    loaded = attnlens.load(tmp_path, device="cpu")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    again = loaded.prompt(picture(112, 84), "How many?")
    assert again.text == prompt.text
    assert same_inputs(again.inputs, prompt.inputs)
    assert torch.equal(generate(loaded, prompt), generate(vlm, prompt))


@each
def test_attention_of_a_small_model_is_far_from_uniform(vlms, family):
    """Heads and layers differ in how much they look at the image, and none looks there alone."""
    vlm = vlms(family)
    trace = attnlens.run(vlm, vlm.prompt(picture(112, 84), "How many?"), 2, do_sample=False)
    mass = trace.data["mass"].sel(segment="visual", step=1).values
    assert mass.max() - mass.min() > 0.2
    assert 0.02 < mass.mean() < 0.98


def test_a_wider_small_model_is_as_far_from_uniform():
    wide = Shape(layers=2, width=512, heads=4, key_heads=2, mlp=512, vocabulary=2000)
    vlm = small_vlm("llava", shape=wide)
    assert vlm.model.config.text_config.vocab_size == 2000
    trace = attnlens.run(vlm, vlm.prompt(picture(112, 84), "How many?"), 2, do_sample=False)
    mass = trace.data["mass"].sel(segment="visual", step=1).values
    assert 0.05 < mass.max() - mass.min() < 0.95


def test_a_small_model_follows_its_seed_alone():
    before = torch.random.get_rng_state()
    same, again, other = (small_vlm("llava", seed=s).model.lm_head.weight for s in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    half = small_vlm("llava", shape=dataclasses.replace(SMALL, dtype="bfloat16")).model
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_the_template_of_a_small_model_has_a_place_for_videos_where_the_family_has(vlms):
    parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Which?"}]
    for family, written in (
        ("qwen3_vl", "<|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>Which"),
        ("gemma3", "<start_of_image>Which"),
    ):
        vlm = vlms(family)
        text = vlm.family.write(vlm.processor, [{"role": "user", "content": parts}])
        assert written in text


def test_a_small_model_that_cannot_be_built_is_refused(monkeypatch):
    def missing():
        raise ImportError("it needs num2words")

    with pytest.raises(InputError, match="unknown family 'clip': use one of qwen2_5_vl, "):
        small_vlm("clip")
    monkeypatch.setattr(
        FAMILIES["smolvlm"], "plain_processor_class", lambda: lambda *_, **__: missing()
    )
    with pytest.raises(InputError, match="the processor of SmolVLM cannot be built: it needs num"):
        small_vlm("smolvlm")


def features_of(vlm, prompt):
    """Features of the image as the model's own forward takes them, [layers, tokens, width]."""
    options = {
        name: value
        for name, value in prompt.inputs.items()
        if name not in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    }
    found = vlm.model.get_image_features(**options, return_dict=True)
    layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    return torch.stack([torch.cat([p.reshape(-1, p.shape[-1]) for p in one]) for one in layers])


@torch.no_grad()
def stitched_pass(vlm, prompt, response, event, policy):
    """One eager pass over prompt, insertion and response: logits and weights of the steps."""
    model = vlm.model
    special = vlm.special_tokens
    features = features_of(vlm, prompt)
    slots = np.flatnonzero(prompt.segments == "visual")
    length, kept = len(prompt.segments), list(event.kept)
    image = [special.image] * len(kept)
    block = [*special.start, *image, *special.end]
    segments = ["copied" if i == special.image else "response" for i in block]
    before, after = response[: event.step - 1], response[event.step - 1 : -1]
    ids = torch.tensor([[*prompt.inputs["input_ids"][0].tolist(), *before, *block, *after]])
    names = np.array(
        [*prompt.segments, *["response"] * len(before), *segments, *["response"] * len(after)]
    )
    copied = names == "copied"
    chosen = torch.cat([features, features[:, kept]], dim=1)
    embedded = model.get_input_embeddings()(ids)
    visual = torch.from_numpy((names == "visual") | copied)
    embedded[0, visual] = chosen[0]
    more = {}
    if len(features) > 1:
        more = {"visual_pos_masks": visual[None], "deepstack_visual_embeds": list(chosen[1:])}
    if hasattr(model.model, "get_rope_index"):
        positions = rope_by_hand(vlm, prompt, ids, event, policy)
    else:
        positions = torch.arange(len(names))
        if policy == "original":
            positions -= torch.from_numpy(np.cumsum(copied))
            positions[copied] = torch.from_numpy(slots[kept])
        positions = positions[None]
    model.set_attn_implementation("eager")
    try:
        output = vlm.family.parts(model).text(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=torch.ones_like(ids),
            output_attentions=True,
            use_cache=False,
            **more,
        )
    finally:
        model.set_attn_implementation("sdpa")
    rows = [length - 1 + t for t in range(event.step)]
    rows += list(range(length - 1 + len(before) + len(block) + 1, len(names)))
    logits = model.lm_head(output.last_hidden_state)[0, rows]
    return logits, torch.stack(output.attentions)[:, 0][:, :, rows].numpy(), names


def rope_by_hand(vlm, prompt, ids, event, policy):
    """Positions by the model's own function, on the sequence with the whole image."""
    special = vlm.special_tokens
    length, count = len(prompt.segments), int((prompt.segments == "visual").sum())
    start = length + event.step - 1 + len(special.start)
    whole = torch.cat(
        [
            ids[:, :start],
            torch.full((1, count), special.image),
            ids[:, start + len(event.kept) :],
        ],
        dim=1,
    )
    positions, _ = vlm.model.model.get_rope_index(
        whole,
        mm_token_type_ids=(whole == special.image).int(),
        image_grid_thw=torch.cat([prompt.inputs["image_grid_thw"]] * 2),
        attention_mask=torch.ones_like(whole),
    )
    left = [*range(start), *(start + k for k in event.kept)]
    left += list(range(start + count, whole.shape[1]))
    positions = positions[:, :, left]
    if policy == "original":
        positions[:, :, start : start + len(event.kept)] = positions[
            :, :, np.flatnonzero(prompt.segments == "visual")[list(event.kept)]
        ]
        first = int(positions[0, 0, start - 1]) + 1
        later = positions.shape[2] - start - len(event.kept)
        positions[:, :, start + len(event.kept) :] = torch.arange(first, first + later)
    return positions


@pytest.mark.parametrize("family", [n for n in FAMILIES if not FAMILIES[n].no_insertion])
@pytest.mark.parametrize(
    ("intervention", "policy"),
    [
        (Copy(when=AtStep(3)), "fresh"),
        (Copy(when=AtStep(3), positions="original"), "original"),
        (Route(when=AtStep(3), percent=50), "fresh"),
        (Route(when=AtStep(3), percent=50, positions="original"), "original"),
    ],
)
def test_insertions_equal_the_stitched_sequence(vlms, family, intervention, policy):
    """Logits and masses of every step, by one full pass of the text model."""
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    new = 7
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    with (
        attnlens.record(vlm, prompt) as recorder,
        intervene(vlm, prompt, intervention) as session,
    ):
        output = vlm.model.generate(
            **prompt.inputs, **options, output_logits=True, return_dict_in_generate=True
        )
    (event,) = session.events
    ids = output.sequences[0, len(prompt.segments) :].tolist()
    logits, weights, names = stitched_pass(vlm, prompt, ids, event, policy)
    assert (torch.stack(output.logits, 1)[0] - logits).abs().max() < 1e-4
    for segment in np.unique(names):
        mass = weights[..., names == segment].sum(-1).transpose(2, 0, 1)
        found = recorder.trace.data["mass"].sel(segment=segment).values
        assert np.abs(found - mass).max() < 1e-5, segment


@each
def test_a_forced_pass_is_the_run(vlms, family):
    """And what predictions owe to the image can be asked."""
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
    ids = trace.data["predicted_token_id"].values.tolist()
    forced = attnlens.force(vlm, prompt, ids)
    assert float(abs(forced.data["mass"] - trace.data["mass"]).max()) < 1e-5
    found = attnlens.dependence(vlm, trace, prompt=prompt)
    assert np.isfinite(found["kl"].values).all()
    assert float(found["kl"].max()) > 0


def test_paligemma_has_no_place_for_system_text(vlms):
    vlm = vlms("paligemma")
    written = dataclasses.replace(vlm, processor=copy.copy(vlm.processor))
    written.processor.chat_template = paligemma.TEMPLATE
    with pytest.raises(InputError, match="PaliGemma has no place for system text"):
        written.prompt(picture(), "How many?", system="Answer in German.")
    prompt = written.prompt(picture(112, 84), "How many?")
    assert prompt.text.startswith("<image>How many?\n")
    assert written.prompt(None, "How many?").text.startswith("How many?\n")


@pytest.mark.parametrize("family", ["llava", "idefics3", "mistral3", "llava_onevision"])
def test_controls_insert_as_many_tokens(vlms, family):
    vlm = vlms(family)
    prompt = vlm.prompt([picture(112, 84), picture(84, 112, 3)], "How many?")
    counts = set()
    for source in (None, "text", "blank"):
        intervention = Copy(when=AtStep(2), image=1, source=source)
        with intervene(vlm, prompt, intervention) as session:
            vlm.model.generate(**prompt.inputs, max_new_tokens=4, min_new_tokens=4)
        counts.add(session.events[0].inserted)
    assert len(counts) == 1


@pytest.mark.parametrize("family", ["llava", "internvl", "mistral3", "gemma3", "idefics3"])
def test_tokens_of_images_are_no_text(vlms, family):
    vlm = vlms(family)
    special = vlm.special_tokens
    around = [special.image, *special.start, *special.end]
    for token in [vlm.processor.image_token, *vlm.tokenizer.convert_ids_to_tokens(around)]:
        content = [{"type": "image", "image": picture()}, {"type": "text", "text": f"a {token} b"}]
        with pytest.raises(InputError, match="the text holds the model's special token"):
            vlm.prompt([{"role": "user", "content": content}])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_nnsight_gives_the_same_trace(vlms, family):
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    options = {"min_new_tokens": NEW, "do_sample": False}
    ours = attnlens.run(vlm, prompt, NEW, **options)
    (theirs,) = attnlens.lenses.nnsight.record(vlm, prompt, NEW, **options)
    assert float(abs(ours.data["mass"] - theirs.data["mass"]).max()) < 1e-5


def test_other_libraries_are_refused_where_they_were_not_verified(vlms):
    for family in ("llava", "qwen3_vl", "gemma3"):
        with pytest.raises(InputError, match="has not been verified in TransformerLens"):
            attnlens.lenses.transformer_lens.bridge(vlms(family))
    vlm = vlms("gemma3")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    with pytest.raises(InputError, match="attend to a window, which is not supported here"):
        attnlens.lenses.nnsight.record(vlm, prompt, 4)


def test_a_static_cache_with_windows_is_refused(vlms):
    vlm = vlms("gemma3")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    with (
        pytest.raises(RuntimeError, match="record with a dynamic cache"),
        attnlens.record(vlm, prompt),
    ):
        vlm.model.generate(**prompt.inputs, max_new_tokens=4, cache_implementation="static")


def test_a_window_loses_sight_of_the_picture(vlms):
    """By layer and step: what the last keys of a window are, counted here."""
    vlm = vlms("gemma3")
    prompt = vlm.prompt(picture(112, 84), "How many?", "back")
    new, window = 12, 24
    trace = attnlens.run(vlm, prompt, new, min_new_tokens=new, visual_map=True, do_sample=False)
    assert trace.attrs["windows"] == {"0": window, "2": window}
    assert trace.untouched
    length = len(prompt.segments)
    assert length > window
    for step in range(new):
        whole = np.array([*prompt.segments, *["response"] * step])
        for layer in range(3):
            seen = whole if layer == 1 else whole[-window:]
            for segment in np.unique(whole):
                at = {"step": step, "segment": segment}
                keys = int(trace.data["keys"].sel(at))
                hidden = trace.data["hidden"].sel(at, drop=True).sel(layer=layer).values
                assert (keys - hidden == (seen == segment).sum()).all(), (step, layer, segment)
    mapped = trace.data["visual_map"].sum("visual")
    mass = trace.data["mass"].sel(segment="visual").mean("head")
    assert float(abs(mapped - mass).max()) < 1e-5


@pytest.fixture(scope="module")
def wide_window():
    """A window that is wider than a prompt, so that it begins to drop keys during generation."""
    vlm = small_vlm("gemma3", shape=dataclasses.replace(SMALL, width=192))
    prompt = vlm.prompt(picture(112, 84), "How many?")
    return vlm, prompt, eager(vlm, prompt, new=32)[1]


@pytest.mark.parametrize("every", [1, 7, 64])
def test_mass_in_a_window_that_fills_up_during_generation(wide_window, every):
    """Of steps before and after, whose mass is computed together."""
    vlm, prompt, attentions = wide_window
    window, length = 72, len(prompt.segments)
    assert length < window < length + 20
    heads = [(0, 1), (1, 0), (2, 1)]  # a layer with a window, one without, and one with
    with attnlens.record(vlm, prompt, every=every, visual_map=True, map_heads=heads) as recorder:
        generate(vlm, prompt, 32)
    data = recorder.trace.data
    visual = np.flatnonzero(prompt.segments == "visual")
    for step in range(32):
        whole = np.array([*prompt.segments, *["response"] * step])
        for layer in range(3):
            row = attentions[step][layer][0, :, -1].double().numpy()
            dropped = len(whole) - row.shape[1]
            assert dropped == (0 if layer == 1 else max(0, len(whole) - window))
            for segment in np.unique(whole):
                at = {"step": step, "segment": segment}
                mass = row[:, whole[dropped:] == segment].sum(-1)
                found = data["mass"].sel(at).sel(layer=layer).values
                assert np.abs(found - mass).max() < 1e-5, (step, layer, segment)
                hidden = data["hidden"].sel(at, drop=True).sel(layer=layer).values
                assert (hidden == (whole[:dropped] == segment).sum()).all()
            full = np.pad(row.mean(0), (dropped, 0))[visual]
            found = data["visual_map"].sel(step=step, layer=layer).values
            assert np.abs(found - full).max() < 1e-5, (step, layer)
            own = np.pad(row[heads[layer][1]], (dropped, 0))[visual]
            found = data["visual_map_by_head"].sel(step=step).values[layer]
            assert np.abs(found - own).max() < 1e-5, (step, layer)


def test_a_padded_batch_in_a_window_that_fills_up_during_generation(wide_window):
    vlm, prompt, _ = wide_window
    longer = vlm.prompt(picture(84, 112, 3), "How many of the objects are red?")
    assert len(longer.segments) < 72
    batch = vlm.batch([prompt, longer])
    with attnlens.record(vlm, batch) as recorder:
        generate(vlm, batch, 32)
    for one, trace in zip([prompt, longer], recorder.traces, strict=True):
        with attnlens.record(vlm, one, every=1) as alone:
            generate(vlm, one, 32)
        assert float(abs(trace.data["mass"] - alone.trace.data["mass"]).max()) < 1e-5
        assert trace.data["hidden"].equals(alone.trace.data["hidden"])


@pytest.mark.parametrize("layers", [[0, 2], [0, 1]])
@pytest.mark.parametrize("swapped", [5, 25])
def test_a_reordered_cache_is_noticed_where_layers_attend_to_windows(wide_window, layers, swapped):
    """As beam search reorders it, before and after keys were dropped."""
    vlm, prompt, _ = wide_window
    batch = vlm.batch([prompt, vlm.prompt(picture(84, 112, 3), "How many?")])
    sampled = {"do_sample": True, "return_dict_in_generate": True}
    torch.manual_seed(0)

    def swap(_module, _arguments, output):
        if output.past_key_values.get_seq_length() == len(prompt.segments) + swapped:
            output.past_key_values.reorder_cache(torch.tensor([1, 0]))

    handle = vlm.model.register_forward_hook(swap)
    try:
        with (
            pytest.raises(RuntimeError, match="no longer holds the keys of earlier steps"),
            attnlens.record(vlm, batch, layers=layers),
        ):
            vlm.model.generate(**batch.inputs, max_new_tokens=32, min_new_tokens=32, **sampled)
    finally:
        handle.remove()


def test_layers_without_softmax_are_named(vlms):
    vlm = vlms("qwen3_5")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    trace = attnlens.run(vlm, prompt, 3, do_sample=False)
    assert trace.attrs["layers_without_attention"] == [0, 2]
    assert trace.data["layer"].values.tolist() == [1, 3]
    with pytest.raises(InputError, match="layer 2 attends without softmax"):
        attnlens.record(vlm, prompt, layers=[1, 2])
    with pytest.raises(InputError, match="layer 0 of this model attends without softmax"):
        attnlens.lenses.logit_lens(vlm, prompt, trace)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_interventions_are_refused_where_they_are_not_verified(vlms, family):
    vlm = vlms(family)
    prompt = vlm.prompt(picture(112, 84), "How many?")
    with pytest.raises(InputError, match="interventions are not verified for"):
        attnlens.run(vlm, prompt, 4, Boost(when=AtStep(2), log_odds=1.0), do_sample=False)


def test_a_family_that_takes_no_insertion_says_why(vlms):
    vlm = vlms("paligemma")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    with pytest.raises(InputError, match="which PaliGemma does not take: its prompt attends both"):
        attnlens.run(vlm, prompt, 4, Copy(when=AtStep(2)), do_sample=False)
    with pytest.raises(InputError, match="tokens of this model's prompt see later ones"):
        attnlens.record(vlm, prompt, prompt_rows="query")


@each
def test_an_overlay_adds_up_to_the_mass_of_what_is_shown(vlms, family):
    vlm = vlms(family)
    image = picture(300, 200)
    prompt = vlm.prompt(image, "How many?")
    trace = attnlens.run(vlm, prompt, 2, visual_map=True, do_sample=False)
    figure = plots.overlay(trace, 1, image=image)
    (cells,) = [one for one in figure.axes[0].images if one.get_array().ndim == 2]
    drawn = np.asarray(cells.get_array())
    weights = trace.data["visual_map"].sel(step=1).mean("layer").values
    boxes = prompt.boxes[0]
    shown = ~np.isnan(boxes[:, 0])
    areas = (boxes[shown, 2] - boxes[shown, 0]) * (boxes[shown, 3] - boxes[shown, 1])
    total = drawn.mean() * 300 * 200 / areas.min()
    assert total == pytest.approx(weights[shown].sum(), rel=0.03)


# Families that are not known by name


def aya():
    """A tiny model of a family that has no file here, and its stock processor."""
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, AyaVisionProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    names = ("START_OF_IMG", "END_OF_IMG", "IMG_PATCH")
    tokens = {n.lower(): f"<|{n}|>" for n in names} | {"image_token": "<image>"}
    read = small_tokenizer(tokens)
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(read)}
    kinds = {"layer_types": ["full_attention"] * 3, "sliding_window": 512}
    config = AyaVisionConfig(
        text_config=TEXT | ends | kinds | {"model_type": "cohere2"},
        vision_config=small_clip("siglip_vision_model", 56),
        image_token_index=read.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
    )
    model = AyaVisionForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = read.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = 0
    images = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    written = TEMPLATE.replace(PICTURE, "<image>")
    made = AyaVisionProcessor(
        images, read, patch_size=7, img_size=56, downsample_factor=2, chat_template=written
    )
    return model, made


def test_an_unknown_family_is_recorded_after_a_probe(tmp_path):
    model, made = aya()
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    vlm = attnlens.load(tmp_path, device="cpu")
    prompt = vlm.prompt(picture(112, 84), "How many?")
    plain = generate(vlm, prompt)
    trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, visual_map=True, do_sample=False)
    assert trace.attrs["verified_family"] is False
    assert trace.data["predicted_token_id"].values.tolist() == plain[0, -NEW:].tolist()
    _, attentions = eager(vlm, prompt)
    for step in range(NEW):
        whole = np.array([*prompt.segments, *["response"] * step])
        for layer, weights in enumerate(attentions[step]):
            row = weights[0, :, -1].double().numpy()
            for segment in np.unique(whole):
                at = {"step": step, "layer": layer, "segment": segment}
                mass = row[:, whole == segment].sum(-1)
                assert np.abs(trace.data["mass"].sel(at).values - mass).max() < 1e-5
    with pytest.raises(InputError, match="in the picture is not known for this family"):
        plots.overlay(trace, 1, image=picture(112, 84))
    with pytest.raises(InputError, match="its positions have not been verified"):
        attnlens.run(vlm, prompt, 4, Copy(when=AtStep(2)), do_sample=False)
    trace.save(tmp_path / "run.zarr")
    assert attnlens.Trace.load(tmp_path / "run.zarr").attrs["verified_family"] is False


def decoder(kind, **options):
    """A tiny text model."""
    config = CONFIG_MAPPING[kind](**(TEXT | {"vocab_size": 64, "pad_token_id": 0} | options))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_bare_decoder_is_recorded_after_a_probe():
    model = decoder("qwen3")
    ids = torch.arange(3, 15)[None]
    segments = ["sink", "system", *["visual"] * 5, *["query"] * 5]
    with attnlens.record(model, segments) as recorder:
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
        )
    trace = recorder.trace
    assert trace.data["predicted_token_id"].values.tolist() == output[0, 12:].tolist()
    model.set_attn_implementation("eager")
    whole = model(output[:, :-1], output_attentions=True)
    for layer, weights in enumerate(whole.attentions):
        for step in range(trace.data.sizes["step"]):
            mass = weights[0, :, 11 + step, 2:7].sum(-1).detach().numpy()
            found = trace.data["mass"].sel(step=step, layer=layer, segment="visual").values
            assert np.abs(found - mass).max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "gpt_oss",
            {"layer_types": ["full_attention"] * 3, "num_local_experts": 4},
            "it does more, such as sinks",
        ),
        ("gpt2", {}, "is not built as most models of transformers are"),
        ("bloom", {"n_head": 4, "hidden_size": 64}, "is not built as most|cannot be recorded"),
        ("gemma2", {"sliding_window": 16}, "sliding-window"),
    ],
)
def test_a_decoder_that_does_more_is_refused(kind, options, message):
    model = decoder(kind, **options)
    before = model.config._attn_implementation
    with pytest.raises(InputError, match=message):
        attnlens.record(model, ["sink", "visual", "query"])
    assert model.config._attn_implementation == before


def test_scores_that_are_capped_are_found():
    """A softmax of capped scores, in layers that all see everything."""
    model = decoder("gemma2", layer_types=["full_attention"] * 3, attn_logit_softcapping=0.05)
    with pytest.raises(InputError, match=r"layer 0's products differs from its attention by"):
        attnlens.record(model, ["sink", "visual", "query"])


def test_segments_may_say_which_image_a_key_belongs_to(vlms):
    vlm = vlms("internvl")
    prompt = vlm.prompt([picture(112, 84), picture(84, 112, 3)], "How many?")
    whole = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
    items = prompt.image_of_key
    names = [f"visual:{i}" if i >= 0 else s for i, s in zip(items, prompt.segments, strict=True)]
    with attnlens.record(vlm.model, names) as recorder:
        generate(vlm, prompt)
    trace = recorder.trace
    assert float(abs(trace.data["mass_by_image"] - whole.data["mass_by_image"]).max()) < 1e-6
    for definition in ("mass", "mean-weight"):
        ours, theirs = (
            attnlens.measures.visual_share(t, definition, item=1) for t in (trace, whole)
        )
        assert np.allclose(ours, theirs, atol=1e-6)
    for wrong, words in (
        (["visual:0", "visual", "query"], "number all visual keys, or none"),
        (["visual:a", "query"], "unknown segment 'visual:a': number 1 images from visual:0"),
        (["visual:1", "query"], "unknown segment 'visual:1'"),
        (
            ["visual:0", "visual:2", "query"],
            "'visual:2': number 2 images from visual:0 to visual:1",
        ),
        (["visual:00", "query"], "unknown segment 'visual:00'"),
    ):
        with pytest.raises(InputError, match=words):
            attnlens.record(vlm.model, wrong)


def test_old_traces_are_read_or_refused(vlms):
    """Those saved before keys were counted by image: known where the images are."""
    vlm = vlms("internvl")
    prompt = vlm.prompt([picture(112, 84), picture(84, 112, 3)], "How many?")
    data = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False).data
    old = data.drop_vars("image_keys")
    share = attnlens.measures.visual_share
    assert np.array_equal(share(old, "mean-weight", item=1), share(data, "mean-weight", item=1))
    bare = old.assign_attrs(images=[])
    with pytest.raises(InputError, match="saved before keys were counted by image"):
        share(bare, item=0)
    assert np.array_equal(share(bare), share(data))


@pytest.mark.parametrize("tokens", [False, True])
def test_the_legend_of_many_images_stays_on_the_page(vlms, tokens):
    vlm = vlms("qwen3_vl")
    prompt = vlm.prompt([picture(112, 112)] * 9, "How many?")
    trace = attnlens.run(vlm, prompt, NEW, min_new_tokens=NEW, do_sample=False)
    figure = plots.trend(trace, items=True, tokens=tokens)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.get_figwidth() * figure.dpi
