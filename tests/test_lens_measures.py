"""Attribution, logit lens, patching and knock-out by edge, against other ways to compute them."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from conftest import picture, tiny_vlm
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import AtStep, Copy, Knockout
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.lenses import (
    Edges,
    PromptPair,
    activation_patching,
    direct_logit_attribution,
    edge_knockout,
    head_outputs,
    logit_lens,
    looking_heads,
    path_patching,
    text_pass,
    transformer_lens,
    window_sweep,
)
from attnlens.lenses import edges as edges_module
from attnlens.lenses.text_pass import TextPass
from attnlens.recording.response import token_texts
from attnlens.testbed.studies.scoring import prompt_of
from attnlens.testbed.world.pairs import held_out_pair

NEW = 6


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt(picture(), "How many?", "back")


@pytest.fixture(scope="module")
def other(tiny):
    return tiny.prompt(picture(seed=7), "How many?", "back")


@pytest.fixture(scope="module")
def trace(tiny, prompt):
    return attnlens.run(tiny, prompt, NEW, do_sample=False)


@pytest.fixture(scope="module")
def ids(trace):
    return trace.data["predicted_token_id"].values.tolist()


@pytest.fixture(scope="module")
def pair(prompt, other, ids):
    return PromptPair(prompt, other, ids, 3, ids[3], ids[1])


def whole_inputs(vlm, prompt, ids):
    return vlm.family.append(vlm.model.config, prompt.inputs, ids)


@torch.no_grad()
def logits_of(vlm, prompt, ids, **options):
    """Logits of the steps, by the model's own forward pass."""
    output = vlm.model(**whole_inputs(vlm, prompt, ids[:-1]), use_cache=False, **options)
    return output.logits[0, len(prompt.segments) - 1 :]


# The pass


def test_the_pass_is_the_models(tiny, prompt, ids):
    whole = TextPass(tiny, prompt, ids)
    expected = logits_of(tiny, prompt, ids)
    assert (whole.run()[0] - expected).abs().max() < 1e-5
    for row in whole.run(batch=3):
        assert (row - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ([], "has no token"),
        ([4, -1], "response holds -1: give token ids from 0 to"),
        ([4, 10**6], "response holds 1000000: give token ids from 0 to"),
    ],
)
def test_a_response_that_cannot_be_fed_is_refused(tiny, prompt, response, message):
    with pytest.raises(InputError, match=message):
        TextPass(tiny, prompt, response)
    with pytest.raises(InputError, match=r"give what attnlens\.load and vlm\.prompt return"):
        TextPass(tiny.model, prompt, [3])


def test_a_trace_must_be_that_of_the_prompt_untouched(tiny, prompt, other, trace):
    """What was inserted is not fed again, so that nothing would be what happened."""
    changed = attnlens.run(tiny, prompt, NEW, Copy(when=AtStep(3)), do_sample=False)
    with pytest.raises(InputError, match="made under an intervention"):
        logit_lens(tiny, prompt, changed)
    with pytest.raises(InputError, match="the prompt is not that of the trace"):
        edge_knockout(tiny, other, trace, [Edges()])
    ids = changed.data["predicted_token_id"].values.tolist()
    assert edge_knockout(tiny, prompt, ids, [Edges()]).sizes["step"] == NEW


def test_what_is_read_in_pieces_is_read_whole(tiny, prompt, ids, pair, monkeypatch):
    edges = [Edges("query", "visual", heads=[(1, 2), (2, 0)]), Edges()]
    whole = edge_knockout(tiny, prompt, ids, edges)
    heads = looking_heads(tiny, prompt, ids, [2])
    paths = path_patching(tiny, pair, layers=[1])
    monkeypatch.setattr(head_outputs, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(edges_module, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(text_pass, "CHUNK_ELEMENTS", 1)
    pieces = edge_knockout(tiny, prompt, ids, edges)
    assert float(abs(pieces["change"] - whole["change"]).max()) < 1e-5
    assert (pieces["kept"] == whole["kept"]).all()
    assert float(abs(looking_heads(tiny, prompt, ids, [2])["mass"] - heads["mass"]).max()) < 1e-6
    again = path_patching(tiny, pair, layers=[1], batch=3)
    assert float(abs(again["path"] - paths["path"]).max()) < 1e-5


def test_a_prompt_without_an_image_is_refused(tiny, ids):
    text = tiny.prompt(None, "How many?", "back")
    for call in (
        lambda: logit_lens(tiny, text, ids, where="visual"),
        lambda: looking_heads(tiny, text, ids, [1]),
        lambda: activation_patching(tiny, PromptPair(text, text, ids, 3, ids[3], ids[1])),
    ):
        with pytest.raises(InputError, match="the prompt has no image"):
            call()


def test_the_other_family_is_looked_into_alike(tokenizer):
    vlm = tiny_vlm(tokenizer, "qwen2_vl")
    prompt, other = (vlm.prompt(picture(seed=s), "How many?", "back") for s in (0, 7))
    trace = attnlens.run(vlm, prompt, NEW, do_sample=False)
    ids = trace.data["predicted_token_id"].values.tolist()
    expected = logits_of(vlm, prompt, ids)
    found = direct_logit_attribution(vlm, prompt, trace, 2)
    total = found["by_head"].sum() + found["by_mlp"].sum() + found["embedding"] + found["bias"]
    assert float(total) == pytest.approx(float(expected[2, ids[2]]), abs=1e-4)
    assert logit_lens(vlm, prompt, trace)["top_id"][-1, :, 0].values.tolist() == ids
    same = activation_patching(vlm, PromptPair(prompt, prompt, trace, 3, ids[3], 5))
    assert not same["residual"].values.any()
    pair = PromptPair(prompt, other, trace, 3, ids[3], 5)
    patched = activation_patching(vlm, pair, layers=[0])
    assert abs(patched["residual"]).max() > 1e-4
    assert abs(path_patching(vlm, pair, layers=[0])["path"]).max() > 1e-5
    assert abs(looking_heads(vlm, prompt, trace, [3])["change"]).max() > 1e-4


def test_a_pass_that_starts_at_a_layer_is_the_whole_one(tiny, prompt, ids):
    whole = TextPass(tiny, prompt, ids)
    expected = whole.run()
    assert whole.first_plain_layer == 0
    for layer in (1, 2):
        calls: list[int] = []
        hooks = [(b.layer, "pre", lambda *_, c=calls: c.append(1)) for b in whole.parts.blocks]
        found = whole.run(hooks, batch=2, first_layer=layer)
        assert len(calls) == 3 - layer
        assert (found - expected).abs().max() < 1e-5


def test_a_model_that_adds_features_between_layers_is_run_from_the_start(tiny, prompt, ids):
    """As Qwen3-VL does: what enters layer 2 is not what layer 1 returned."""
    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)

    text, inside = model.model.language_model, []

    def add(_module, args):
        return (args[0] + 0.1, *args[1:]) if inside else None

    text.register_forward_pre_hook(lambda *_: inside.append(True))
    text.register_forward_hook(lambda *_: inside.clear())
    text.layers[2].register_forward_pre_hook(add)
    expected = logits_of(vlm, prompt, ids)
    assert (expected - logits_of(tiny, prompt, ids)).abs().max() > 1e-2
    whole = TextPass(vlm, prompt, ids)
    assert whole.first_plain_layer == 2
    for layer in range(3):
        assert (whole.run(first_layer=layer)[0] - expected).abs().max() < 1e-5


def test_attention_that_is_no_softmax_mean_is_not_cut(tiny, prompt, pair, ids):
    """A gate on the heads' outputs, as some families have."""
    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    projection = model.model.language_model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda _module, args: (args[0] * 0.5,))
    message = "its attention does more, and cannot be cut or patched by edge"
    with pytest.raises(InputError, match=message):
        edge_knockout(vlm, prompt, ids, [Edges()])
    with pytest.raises(InputError, match=message):
        path_patching(vlm, pair)


# Direct logit attribution


@pytest.mark.parametrize("against", [None, 17])
def test_attributions_add_up_to_the_logit(tiny, prompt, trace, ids, against):
    expected = logits_of(tiny, prompt, ids).double()
    for step in range(NEW):
        found = direct_logit_attribution(tiny, prompt, trace, step, against=against)
        total = found["by_head"].sum() + found["by_mlp"].sum() + found["embedding"] + found["bias"]
        logit = expected[step, ids[step]] - (0 if against is None else expected[step, against])
        assert float(total) == pytest.approx(float(logit), abs=1e-4)
        assert float(found["logit"]) == pytest.approx(float(logit), abs=1e-4)
        by_head = found["by_segment"].sum("segment")
        assert np.allclose(by_head, found["by_head"], atol=1e-9)
        visual = found["by_visual"].sum("visual")
        assert np.allclose(visual, found["by_segment"].sel(segment="visual"), atol=1e-9)
    assert found["visual_row"].values.tolist()[:5] == [0, 0, 0, 0, 1]


def test_attributions_of_heads_are_those_of_transformer_lens(tiny, prompt, trace, ids):
    from transformer_lens.tools.analysis import direct_logit_attribution as theirs

    bridge = transformer_lens.bridge(tiny)
    bridge.enable_compatibility_mode()
    _, cache = transformer_lens.activation_cache(bridge, prompt, ids[:3])
    answers = {"answer_tokens": ids[3], "incorrect_tokens": 17}
    by_head = theirs(bridge, cache=cache, unit="head", **answers)
    by_part = theirs(bridge, cache=cache, unit="component", **answers)
    found = direct_logit_attribution(tiny, prompt, trace, 3, against=17)
    heads = by_head.attribution.detach().numpy()[:12, 0].reshape(3, 4)
    assert np.abs(heads - found["by_head"].values).max() < 1e-4
    parts = dict(zip(by_part.labels, by_part.attribution.detach().numpy()[:, 0], strict=True))
    for layer in range(3):
        assert parts[f"{layer}_mlp_out"] == pytest.approx(float(found["by_mlp"][layer]), abs=1e-4)


def test_an_adapter_that_is_not_merged_is_found_in_bfloat16(tiny, prompt, ids):
    """Single products are rounded, and what a layer adds is still compared closely."""
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    vlm = attnlens.VLM(model, tiny.processor, "half", tiny.family)
    direct_logit_attribution(vlm, prompt, ids, 2)
    projection = model.model.language_model.layers[1].self_attn.o_proj
    projection.register_forward_hook(lambda _module, _args, output: output * 1.15)
    with pytest.raises(InputError, match=r"what attention adds in layer 1 differs by 1[234]"):
        direct_logit_attribution(vlm, prompt, ids, 2)


def test_a_visual_tokens_part_is_its_weight_times_its_value(tiny, prompt, ids):
    """By eager weights and projections written out, in one layer."""
    found = direct_logit_attribution(tiny, prompt, ids, 2)
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    inputs = whole_inputs(tiny, prompt, ids[:-1])
    row = len(prompt.segments) - 1 + 2
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        text, layer = model.model.language_model, 1
        attention = text.layers[layer].self_attn
        states = text.layers[layer].input_layernorm(output.hidden_states[layer])
        values = attention.v_proj(states)[0].reshape(-1, 2, 16)
        direction = model.lm_head.weight[ids[2]] * text.norm.weight
        last = []
        text.norm.register_forward_pre_hook(lambda _, args: last.append(args[0][0, row]))
        model(**inputs, use_cache=False)
        direction = direction / (last[0].pow(2).mean() + 1e-6).sqrt()
        for head in range(4):
            for place in (0, 7):
                key = int(np.flatnonzero(prompt.segments == "visual")[place])
                weight = output.attentions[layer][0, head, row, key]
                through = attention.o_proj.weight[:, head * 16 : head * 16 + 16]
                part = weight * (through @ values[key, head // 2]) @ direction
                expected = float(found["by_visual"][layer, head, place])
                assert float(part) == pytest.approx(expected, abs=1e-5)


def test_logits_that_are_no_sum_of_parts_are_refused(tiny, prompt, ids):
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "other", tiny.family)
    vlm.model.model.language_model.norm = torch.nn.LayerNorm(64)
    with pytest.raises(InputError, match=r"last norm \(LayerNorm\) does more than scale"):
        direct_logit_attribution(vlm, prompt, ids, 1)
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "other", tiny.family)
    vlm.model.lm_head.register_forward_hook(lambda _m, _a, logits: 2 * torch.tanh(logits / 2))
    with pytest.raises(InputError, match=r"parts add up to .*, and the logit is"):
        direct_logit_attribution(vlm, prompt, ids, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": NEW}, f"there is no step {NEW}: the response has steps 0 to 5"),
        ({"step": 0, "token": 10**6}, "token=1000000: give a token id from 0"),
        ({"step": 0, "against": -1}, "against=-1"),
    ],
)
def test_what_cannot_be_attributed_is_refused(tiny, prompt, ids, options, message):
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(tiny, prompt, ids, **options)


# Logit lens


@pytest.mark.parametrize("where", ["response", "visual"])
def test_the_logit_lens_reads_hidden_states(tiny, prompt, ids, where):
    inputs = whole_inputs(tiny, prompt, ids[:-1])
    with torch.no_grad():
        output = tiny.model(**inputs, output_hidden_states=True, use_cache=False)
        text = tiny.model.model.language_model
        streams = [*(text.norm(s) for s in output.hidden_states[1:-1]), output.hidden_states[-1]]
        logs = torch.stack([tiny.model.lm_head(s)[0].log_softmax(-1) for s in streams])
    start = len(prompt.segments) - 1
    rows = np.arange(start, start + NEW)
    rows = rows if where == "response" else np.flatnonzero(prompt.segments == "visual")
    found = logit_lens(tiny, prompt, ids, where=where, tokens=[9, 3], top=4)
    best = logs[:, rows].topk(4)
    assert (found["top_id"].values == best.indices.numpy()).all()
    assert np.abs(found["top_log_probability"].values - best.values.numpy()).max() < 1e-4
    chosen = logs[:, rows][..., [9, 3]].numpy()
    assert np.abs(found["log_probability"].values - chosen).max() < 1e-4
    entropy = -(logs.exp() * logs).sum(-1)[:, rows].numpy()
    assert np.abs(found["entropy"].values - entropy).max() < 1e-4
    if where == "response":
        assert found["top_id"][-1, :, 0].values.tolist() == ids  # greedy: the model's own
        assert np.allclose(found["of_response"][-1], found["top_log_probability"][-1, :, 0])
    else:
        assert found["visual_column"].values.tolist()[:5] == [0, 1, 2, 3, 0]
    texts = [token_texts(tiny.tokenizer, [i])[0] for i in found["top_id"].values.ravel().tolist()]
    assert found["top_token"].values.ravel().tolist() == texts


def test_the_logit_lens_works_through_many_rows_in_pieces(tiny, prompt, ids, monkeypatch):
    whole = logit_lens(tiny, prompt, ids, where="visual")
    monkeypatch.setattr(sys.modules["attnlens.lenses.logit_lens"], "CHUNK_ELEMENTS", 2000)
    pieces = logit_lens(tiny, prompt, ids, where="visual")
    assert (whole["top_id"] == pieces["top_id"]).all()
    assert np.allclose(whole["entropy"], pieces["entropy"], atol=1e-5)


# Patching


def test_two_prompts_without_a_difference_patch_nothing(tiny, prompt, ids):
    """Exactly, everywhere."""
    pair = PromptPair(prompt, prompt, ids, 3, ids[3], ids[1])
    found = activation_patching(tiny, pair, batch=7)
    assert not found["residual"].values.any()
    assert not found["by_head"].values.any()
    assert float(found["clean"]) == float(found["corrupted"])
    for rows in ("last", "text"):
        assert not path_patching(tiny, pair, rows=rows, batch=5)["path"].values.any()


def test_patched_streams_are_those_of_hooks_on_the_whole_model(tiny, pair):
    """By a plain forward pass of the whole model, with hooks written out here."""
    found = activation_patching(tiny, pair, batch=8)
    text = tiny.model.model.language_model
    fed = list(pair.response)[: pair.step + 1]

    def difference(prompt):
        logits = logits_of(tiny, prompt, fed)[-1]
        return float(logits[pair.clean_token] - logits[pair.corrupted_token])

    base = difference(pair.corrupted)
    assert float(found["corrupted"]) == pytest.approx(base, abs=1e-4)
    assert float(found["clean"]) == pytest.approx(difference(pair.clean), abs=1e-4)
    kept = {}
    for layer, position in ((0, 20), (1, 25), (2, len(pair.clean.segments) + 2)):
        decoder = text.layers[layer]

        def keep(_m, args, layer=layer):
            kept[layer] = args[0].clone()

        handle = decoder.register_forward_pre_hook(keep)
        difference(pair.clean)
        handle.remove()

        def patch(_m, args, layer=layer, position=position):
            states = args[0].clone()
            states[:, position] = kept[layer][:, position]
            return (states, *args[1:])

        handle = decoder.register_forward_pre_hook(patch)
        expected = difference(pair.corrupted) - base
        handle.remove()
        at = found["residual"].sel(layer=layer, position=position)
        assert float(at) == pytest.approx(expected, abs=1e-4)
        assert str(at["segment"].values) == ("visual" if layer < 2 else "response")
    projection = text.layers[1].self_attn.o_proj

    def keep_heads(_m, args):
        kept["heads"] = args[0].clone()

    handle = projection.register_forward_pre_hook(keep_heads)
    difference(pair.clean)
    handle.remove()
    visual = torch.from_numpy(np.flatnonzero(pair.clean.segments == "visual"))

    def patch_head(_m, args):
        outputs = args[0].clone()
        outputs[:, visual, 32:48] = kept["heads"][:, visual, 32:48]
        return (outputs,)

    handle = projection.register_forward_pre_hook(patch_head)
    expected = difference(pair.corrupted) - base
    handle.remove()
    assert abs(expected) > 1e-3
    at = found["by_head"].sel(layer=1, head=2, rows="visual")
    assert float(at) == pytest.approx(expected, abs=1e-4)


def test_chosen_layers_are_patched_as_among_all(tiny, pair):
    """The pass of each starts at its own layer."""
    whole = activation_patching(tiny, pair)
    found = activation_patching(tiny, pair, layers=[-1, 0])
    assert found["layer"].values.tolist() == [0, 2]
    for name in ("residual", "by_head"):
        assert float(abs(found[name] - whole[name].sel(layer=[0, 2])).max()) < 1e-5
    assert float(abs(whole["residual"].sel(layer=2)[-1])) > 1e-3


@pytest.mark.parametrize("rows", ["last", "text"])
def test_patched_paths_are_those_of_an_attention_function_of_ones_own(tiny, pair, rows):
    """Key and value of one token replaced for some rows of one head, inside the attention call."""
    layer, head, place = 1, 3, 5
    slot = int(np.flatnonzero(pair.clean.segments == "visual")[place])
    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    start = int(np.flatnonzero(pair.clean.segments == "visual")[-1]) + 1
    kept, replace = [], [False]

    def attend(module, query, key, value, mask, **options):
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
        if module.layer_idx == layer and key.shape[2] > 50:
            if not replace[0]:
                kept.append((key.clone(), value.clone()))
            else:
                new_key, new_value = key.clone(), value.clone()
                new_key[:, :, slot], new_value[:, :, slot] = (x[:, :, slot] for x in kept[0])
                changed, _ = sdpa_attention_forward(
                    module, query, new_key, new_value, mask, **options
                )
                first = start if rows == "text" else query.shape[2] - 1
                output = output.clone()
                output[:, first:, head] = changed[:, first:, head]
        return output, weights

    AttentionInterface.register("test_paths", attend)
    try:
        model.config.text_config._attn_implementation = "test_paths"
        fed = list(pair.response)[: pair.step + 1]

        def difference(prompt):
            logits = logits_of(vlm, prompt, fed)[-1]
            return float(logits[pair.clean_token] - logits[pair.corrupted_token])

        difference(pair.clean)
        base = difference(pair.corrupted)
        del kept[1:]
        replace[0] = True
        expected = difference(pair.corrupted) - base
    finally:
        AttentionInterface._global_mapping.pop("test_paths")
    assert abs(expected) > 1e-4
    found = path_patching(tiny, pair, rows=rows, layers=[layer])
    assert float(found["path"][0, head, place]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"corrupted": p["wide"]}, "differ in the content of the image alone"),
        (lambda p: {"corrupted": p["asked"]}, "the prompts differ in their text"),
        (lambda p: {"clean_token": 5, "corrupted_token": 5}, "are both 5"),
        (lambda p: {"step": 9}, "there is no step 9"),
        (lambda p: {"step": -1}, "there is no step -1"),
        (lambda p: {"step": 1.5}, r"there is no step 1\.5"),
        (lambda p: {"clean_token": -1}, "clean_token=-1: give a token id from 0 to"),
        (lambda p: {"corrupted_token": 10**6}, "corrupted_token=1000000: give a token id"),
    ],
)
def test_what_is_no_pair_is_refused(tiny, pair, change, message):
    prompts = {
        "wide": tiny.prompt(picture(140, 112), "How many?", "back"),
        "asked": tiny.prompt(picture(), "How much?", "back"),
    }
    fields = {**vars(pair), **change(prompts)}
    with pytest.raises(InputError, match=message):
        activation_patching(tiny, PromptPair(**fields))


def test_bad_options_of_patching_are_refused(tiny, pair):
    with pytest.raises(InputError, match="batch=0"):
        activation_patching(tiny, pair, batch=0)
    with pytest.raises(InputError, match="there is no layer 3"):
        activation_patching(tiny, pair, layers=[3])
    with pytest.raises(InputError, match="rows='all': use last or text"):
        path_patching(tiny, pair, rows="all")


# Knock-out by edge


def test_cutting_the_response_from_the_image_is_a_knock_out(tiny, prompt, ids):
    cases = {
        Edges(): Knockout(when=AtStep(0)),
        Edges(layers=(1,)): Knockout(when=AtStep(0), layers=[1]),
        Edges(heads=((0, 1), (2, 3))): Knockout(when=AtStep(0), heads=[(0, 1), (2, 3)]),
    }
    found = edge_knockout(tiny, prompt, ids, list(cases))
    own = torch.tensor(ids)[:, None]
    plain = logits_of(tiny, prompt, ids).log_softmax(-1).gather(1, own)[:, 0]
    assert np.abs(found["log_probability"].values - plain.numpy()).max() < 1e-5
    for place, intervention in enumerate(cases.values()):
        with ForcedSession(tiny, prompt, intervention) as session:
            logs = session.force(ids)
        expected = logs.gather(1, own)[:, 0] - plain
        assert expected.abs().max() > 1e-3
        assert np.abs(found["change"][place].values - expected.numpy()).max() < 1e-4
        kept = logs.argmax(-1).numpy() == np.array(ids)
        assert found["kept"][place].values.tolist() == kept.tolist()


def test_edges_are_those_of_a_mask_given_by_hand(tiny, prompt, ids):
    """Text after the image does not see the image, and a query still sees its own key."""
    length = len(prompt.segments) + NEW - 1
    names = np.array([*prompt.segments, *["response"] * (NEW - 1)])
    for queries, keys in (("query", "visual"), ("response", "response"), ([90, 92], [3, 90, 91])):
        hidden = np.zeros((length, length), dtype=bool)
        rows = np.flatnonzero(names == queries) if isinstance(queries, str) else queries
        columns = np.flatnonzero(names == keys) if isinstance(keys, str) else keys
        hidden[np.ix_(rows, columns)] = True
        np.fill_diagonal(hidden, False)
        seen = torch.from_numpy(np.tril(np.ones((length, length), dtype=bool)) & ~hidden)
        inputs = whole_inputs(tiny, prompt, ids[:-1])
        positions = tiny.family.rotary_positions(tiny.model, inputs)
        inputs["attention_mask"] = {"full_attention": seen[None, None]}
        with torch.no_grad():
            logits = tiny.model(**inputs, position_ids=positions, use_cache=False).logits[0]
        logs = logits[len(prompt.segments) - 1 :].log_softmax(-1)
        expected = logs.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
        found = edge_knockout(tiny, prompt, ids, [Edges(queries, keys)])
        after = found["log_probability"].values + found["change"][0].values
        assert np.abs(after - expected).max() < 1e-4


def test_a_window_of_all_layers_is_the_whole_cut(tiny, prompt, ids):
    whole = edge_knockout(tiny, prompt, ids, [Edges()])["change"].values
    swept = window_sweep(tiny, prompt, ids, window=3)
    assert swept["first_layer"].values.tolist() == [0]
    assert np.array_equal(swept["change"].values, whole)
    single = window_sweep(tiny, prompt, ids)
    assert single["first_layer"].values.tolist() == [0, 1, 2]
    assert single.attrs["window"] == 1


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (Edges(keys="picture"), "'picture' is no segment"),
        (Edges(keys="copied"), "no key of segment 'copied'"),
        (Edges(keys=[400]), r"slots \[400\]: give some from 0 to"),
        (Edges(layers=[8]), "there is no layer 8"),
        (Edges(heads=[9]), "there is no head 9"),
    ],
)
def test_edges_that_are_not_there_are_refused(tiny, prompt, ids, edges, message):
    with pytest.raises(InputError, match=message):
        edge_knockout(tiny, prompt, ids, [edges])


def test_options_that_name_nothing_are_refused(tiny, prompt, ids):
    with pytest.raises(InputError, match="window=4: give 1 to 3 layers"):
        window_sweep(tiny, prompt, ids, window=4)
    with pytest.raises(InputError, match="no step was given"):
        looking_heads(tiny, prompt, ids, [])
    with pytest.raises(InputError, match="there is no step 6"):
        looking_heads(tiny, prompt, ids, [6])
    with pytest.raises(InputError, match="where='image': use one of visual, response"):
        logit_lens(tiny, prompt, ids, where="image")
    with pytest.raises(InputError, match="top=0"):
        logit_lens(tiny, prompt, ids, top=0)


def test_heads_are_ranked_by_what_their_knock_out_does(tiny, prompt, ids, trace):
    found = looking_heads(tiny, prompt, ids, [1, 4])
    alone = edge_knockout(tiny, prompt, ids, [Edges(heads=((1, 2),)), Edges()])["change"]
    assert float(found["change"].sel(layer=1, head=2)) == pytest.approx(
        float(alone[0, [1, 4]].mean()), abs=1e-6
    )
    assert float(found["all_heads"]) == pytest.approx(float(alone[1, [1, 4]].mean()), abs=1e-6)
    mass = trace.data["mass"].sel(segment="visual").mean("step")
    assert float(abs(found["mass"] - mass).max()) < 1e-5


def test_hooks_and_taps_are_gone_afterwards(tiny, prompt, ids, pair):
    before = [sorted(m.__dict__) for m in tiny.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules()]
    activation_patching(tiny, pair, layers=[1])
    looking_heads(tiny, prompt, ids, [1])

    def fail(*_):
        raise ZeroDivisionError

    calls = {
        "first": lambda: logit_lens(tiny, prompt, ids),
        "attribution": lambda: direct_logit_attribution(tiny, prompt, ids, 2),
        "patching": lambda: activation_patching(tiny, pair),
        "paths": lambda: path_patching(tiny, pair),
        "edges": lambda: edge_knockout(tiny, prompt, ids, [Edges()]),
    }
    for call in calls.values():
        # fails in the last layer of the first pass, and of the second one
        for after in (0, 1):
            left = [after]

            def at_last(*_, left=left):
                left[0] -= 1
                return fail() if left[0] < 0 else None

            handle = tiny.model.model.language_model.layers[2].mlp.register_forward_hook(at_last)
            with pytest.raises(ZeroDivisionError):
                call()
            handle.remove()
    assert [sorted(m.__dict__) for m in tiny.model.modules()] == before
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules()
    ]
    assert tiny.model.config.text_config._attn_implementation == "sdpa"


# The testbed, where the truth is known


@pytest.fixture(scope="module")
def stated(testbed):
    """Pairs of scenes, with the truth, and what to patch."""
    found = []
    for index, attribute in enumerate(("mark", "mark", "size")):
        scenes = held_out_pair(0, index, attribute)
        read = testbed.tokenizer
        clean, corrupted = (
            read(s.answer, add_special_tokens=False)["input_ids"]
            for s in (scenes.clean, scenes.corrupted)
        )
        step = scenes.step(token_texts(read, clean))
        prompts = (prompt_of(testbed, s) for s in (scenes.clean, scenes.corrupted))
        assert clean[:step] == corrupted[:step]
        pair = PromptPair(*prompts, clean, step, clean[step], corrupted[step])
        found.append((scenes, pair))
    return found


@pytest.mark.slow
def test_the_patched_objects_patch_carries_the_difference(testbed, stated):
    """Patching it restores the fact; no other visual token does. One head reads it."""
    for scenes, pair in stated:
        found = activation_patching(testbed, pair, layers=[1], batch=64)
        restored = found["residual"] / (found["clean"] - found["corrupted"])
        on_image = restored.isel(position=np.flatnonzero(found["segment"] == "visual"))[0].values
        assert int(on_image.argmax()) == scenes.visual_token
        assert on_image.max() > 0.9
        assert np.sort(on_image)[-2] < 0.1
        paths = path_patching(testbed, pair, layers=[2], batch=64)
        part = (paths["path"] / (paths["clean"] - paths["corrupted"])).values[0]
        assert np.unravel_index(part.argmax(), part.shape) == (3, scenes.visual_token)
        assert part.max() > 0.7


def test_the_head_that_the_knock_out_study_found_is_found_again(testbed, stated):
    scenes, pair = stated[0]
    texts = token_texts(testbed.tokenizer, pair.response)
    truth = attnlens.testbed.token_truth(scenes.clean, texts)
    facts = [step for step, token in enumerate(truth) if token.states_fact]
    found = looking_heads(testbed, pair.clean, pair.response, facts)
    layer, head = np.unravel_index(found["change"].values.argmin(), found["change"].shape)
    assert (layer, head) == (2, 3)
    swept = window_sweep(testbed, pair.clean, pair.response)["change"][:, facts].mean("step")
    assert int(swept.argmin("first_layer")) == 2
