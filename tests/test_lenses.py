"""nnsight and TransformerLens record what we record, and leave the model as it was."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import picture, tiny_vlm

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import At, AtStep, Boost, Copy, Knockout
from attnlens.lenses import nnsight, optional, transformer_lens
from attnlens.recording.mass import AttentionRows, KeyColumns, attention_mass

NEW = 6
LENSES = {"nnsight": nnsight, "transformer_lens": transformer_lens}


@pytest.fixture(scope="module")
def prompts(tiny):
    one = tiny.prompt(picture(), "How many?", "back")
    several = tiny.prompt([picture(), picture(140, 112, 3)], "How many?", "back")
    other = tiny.prompt(picture(140, 112, 1), "How many red things are there?", "back")
    return {"one": one, "several": several, "batch": tiny.batch([one, other])}


@pytest.fixture(scope="module")
def bridge(tiny):
    return transformer_lens.bridge(tiny)


def recorded(vlm, prompt, **options):
    with attnlens.record(vlm, prompt, **options) as recorder:
        vlm.model.generate(**prompt.inputs, max_new_tokens=NEW, do_sample=False)
    return recorder.traces


def difference(one, other, name="mass"):
    return float(abs(one.data[name] - other.data[name]).max())


def state(model):
    """Everything that a bridge might change, by name."""
    return {
        "attention": [
            m.config._attn_implementation for m in model.modules() if hasattr(m, "config")
        ],
        "modules": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "weights": [
            (name, id(p), float(p.detach().double().sum())) for name, p in model.named_parameters()
        ],
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
    }


@pytest.mark.parametrize("kind", ["one", "several", "batch"])
@pytest.mark.parametrize("lens", LENSES)
def test_a_lens_gives_the_recorders_traces(tiny, prompts, lens, kind):
    maps = {"visual_map": True, "map_heads": [(2, 1), (0, 3)]}
    ours = recorded(tiny, prompts[kind], **maps)
    before = state(tiny.model)
    theirs = LENSES[lens].record(tiny, prompts[kind], NEW, **maps, do_sample=False)
    assert state(tiny.model) == before
    assert len(theirs) == len(ours) == (2 if kind == "batch" else 1)
    for a, b in zip(theirs, ours, strict=True):
        assert difference(a, b) < 1e-5
        assert difference(a, b, "visual_map") < 1e-5
        assert difference(a, b, "visual_map_by_head") < 1e-5
        assert difference(a, b, "keys") == 0
        assert difference(a, b, "visual_nonzero") == 0
        assert a.data.coords.equals(b.data.coords)
        assert a.text == b.text
        assert {n for n in a.attrs if a.attrs[n] != b.attrs[n]} <= {"attention"}
    if kind == "several":
        assert difference(theirs[0], ours[0], "mass_by_image") < 1e-5


@pytest.mark.parametrize("lens", LENSES)
def test_layers_can_be_chosen(tiny, prompts, lens):
    (trace,) = LENSES[lens].record(tiny, prompts["one"], 3, layers=[-1, 0], do_sample=False)
    assert trace.data["layer"].values.tolist() == [0, 2]
    whole = recorded(tiny, prompts["one"])[0].data["mass"].sel(layer=[0, 2])[:3]
    assert float(abs(trace.data["mass"] - whole).max()) < 1e-5


@pytest.mark.parametrize("lens", LENSES)
def test_an_answer_that_ends_early_is_whole(tiny, prompts, lens):
    """As many steps as tokens, with the token that ended it."""
    end = int(recorded(tiny, prompts["one"])[0].data["predicted_token_id"][3])
    options = {"do_sample": False, "eos_token_id": end}
    (trace,) = LENSES[lens].record(tiny, prompts["one"], 20, **options)
    assert trace.data["predicted_token_id"].values.tolist()[-1] == end
    assert trace.data.sizes["step"] == 4
    assert not trace.cut_off


@pytest.fixture
def half(tiny):
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    return attnlens.VLM(model, tiny.processor, "half", tiny.family)


@pytest.mark.parametrize("name", ["one", "several", "batch"])
def test_nnsight_sees_the_same_queries_and_keys_in_bfloat16(half, prompts, name):
    traces = nnsight.record(half, prompts[name], NEW, do_sample=False)
    for trace, ours in zip(traces, recorded(half, prompts[name]), strict=True):
        assert difference(trace, ours) < 1e-5
        assert trace.attrs["dtype"] == "bfloat16"


def test_transformer_lens_shows_the_weights_of_eager_attention_in_bfloat16(half, prompts):
    """They are rounded to 8 bits, and so are the scores that they are the softmax of."""
    prompt = prompts["one"]
    (trace,) = transformer_lens.record(half, prompt, NEW, do_sample=False)
    half.model.set_attn_implementation("eager")
    options = {"output_attentions": True, "return_dict_in_generate": True, "do_sample": False}
    seen = half.model.generate(**prompt.inputs, max_new_tokens=NEW, **options).attentions
    visual = torch.from_numpy(prompt.segments == "visual")
    for step, layers in enumerate(seen):
        for layer, weights in enumerate(layers):
            mass = weights[0, :, -1, : len(visual)][:, visual].double().sum(-1).numpy()
            found = trace.data["mass"].sel(step=step, layer=layer, segment="visual")
            assert np.abs(found.values - mass).max() < 1e-6


def test_nnsight_records_the_other_family(tokenizer):
    vlm = tiny_vlm(tokenizer, "qwen2_vl")
    prompt = vlm.prompt(picture(), "How many?", "back")
    (trace,) = nnsight.record(vlm, prompt, NEW, do_sample=False)
    assert difference(trace, recorded(vlm, prompt)[0]) < 1e-5
    with pytest.raises(InputError, match=r"Qwen2VLForConditionalGeneration, .* no adapter"):
        transformer_lens.record(vlm, prompt, NEW)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [7]}, "there is no layer 7"),
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 is not supported here"),
        ({"cache_implementation": "static"}, "cache_implementation='static' is not supported"),
    ],
)
def test_what_a_lens_cannot_record_is_refused_first(tiny, prompts, lens, options, message):
    with pytest.raises(InputError, match=message):
        LENSES[lens].record(tiny, prompts["one"], NEW, **options)
    with pytest.raises(InputError, match=r"give what attnlens\.load returns"):
        LENSES[lens].record(tiny.model, prompts["one"], NEW)


@pytest.mark.parametrize("lens", LENSES)
def test_rows_that_do_not_add_up_to_one_are_refused(tiny, prompts, lens, monkeypatch):
    """Such as eager weights after a dropout, or a hook that scales them."""
    from attnlens.lenses.weights import WeightRows

    add = WeightRows.add
    monkeypatch.setattr(WeightRows, "add", lambda self, i, weights: add(self, i, weights * 0.9))
    with pytest.raises(Exception, match=r"layer 0 add up to 0\.9"):
        LENSES[lens].record(tiny, prompts["one"], 2, do_sample=False)


# nnsight


def test_recording_around_nnsights_generate_is_recording(tiny, prompts):
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
    model = nnsight.wrap(vlm)
    with (
        attnlens.record(vlm, prompts["one"]) as recorder,
        model.generate(dict(prompts["one"].inputs), max_new_tokens=NEW, do_sample=False),
    ):
        states = model.model.language_model.layers[1].output.save()
    assert states.shape[-1] == 64
    (ours,) = recorded(tiny, prompts["one"])
    assert difference(recorder.trace, ours) == 0
    assert recorder.trace.text == ours.text


def test_our_functions_work_on_the_values_of_a_running_trace(tiny, prompts):
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
    prompt = prompts["one"]
    model = nnsight.wrap(vlm)
    calls = nnsight.attention_calls(model)
    visual = torch.tensor([s == "visual" for s in prompt.segments])
    columns = KeyColumns(visual[None].long(), 2, visual.nonzero().T)
    masses = []
    with model.trace(dict(prompt.inputs)):
        for call in calls:
            (_, query, key, _, _), given = call.inputs
            positions = torch.arange(query.shape[2])
            rows = AttentionRows([query], [key], positions, given["scaling"])
            masses.append(attention_mass(rows, columns)[0].by_column)
    (ours,) = recorded(tiny, prompt)
    found = torch.stack(masses)[:, 0, -1, :, 1]  # layers, heads
    expected = torch.from_numpy(ours.data["mass"].sel(segment="visual").values[0])
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    "intervention",
    [
        Boost(when=AtStep(2), log_odds=1.0),
        Boost(when=AtStep(0), alpha=0.5, heads=[(0, 1), (2, 3)]),
        Knockout(when=AtStep(0)),
        Knockout(when=AtStep(1), layers=[1], heads=[0, 2]) + Boost(when=AtStep(3), log_odds=-1.0),
    ],
    ids=lambda one: one.name,
)
def test_score_edits_in_nnsight_are_ours(tiny, prompts, intervention):
    prompt = prompts["one"]
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ours = attnlens.run(tiny, prompt, NEW, intervention)
    with attnlens.interventions.intervene(tiny, prompt, intervention):
        logits = tiny.model.generate(**prompt.inputs, max_new_tokens=NEW, **options).logits
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
    model = nnsight.wrap(vlm)
    result = {}
    with (
        attnlens.record(vlm, prompt) as recorder,
        model.generate(max_new_tokens=NEW, **options) as tracer,
    ):
        with tracer.invoke(dict(prompt.inputs)):
            for _ in tracer.iter[:NEW]:
                nnsight.edit(model, prompt, intervention)
        with tracer.invoke():
            result["logits"] = tracer.result.logits
    assert difference(recorder.trace, ours) < 1e-6
    plain = recorded(tiny, prompt)[0]
    assert difference(recorder.trace, plain) > 1e-3
    for step, (a, b) in enumerate(zip(result["logits"], logits, strict=True)):
        assert (a - b).abs().max() < 1e-4, step


@pytest.mark.parametrize(
    "intervention", [Copy(when=AtStep(2)), Boost(when=At("<back>"), log_odds=1.0)]
)
def test_what_is_no_edit_is_refused(tiny, prompts, intervention):
    with pytest.raises(InputError, match="only Boost and Knockout from AtStep on"):
        nnsight.edit(nnsight.wrap(tiny), prompts["one"], intervention)


# TransformerLens


def test_a_bridge_leaves_everything_as_it_was(tiny, prompts, monkeypatch):
    """Model, tokenizer, environment and modules; nothing is installed."""
    transformer_lens.bridge(tiny)  # imports come first
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **_: pytest.fail(f"ran {a}"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **_: pytest.fail(f"ran {a}"))
    before = state(tiny.model)
    tokenizer = tiny.tokenizer
    tokens = (
        tokenizer.init_kwargs.copy(),
        tokenizer.special_tokens_map.copy(),
        tokenizer.padding_side,
        len(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
    )
    environment, modules = dict(os.environ), set(sys.modules)
    made = transformer_lens.bridge(tiny)
    inputs = dict(prompts["one"].inputs)
    with torch.no_grad():
        logits, _ = made.run_with_cache(inputs.pop("input_ids"), **inputs)
        assert (logits - tiny.model(**prompts["one"].inputs).logits).abs().max() < 1e-4
    made.enable_compatibility_mode()  # rewrites the weights that it has
    del made
    assert state(tiny.model) == before
    assert dict(os.environ) == environment
    assert not any(name.startswith("torchvision") for name in set(sys.modules) - modules)
    assert tokens == (
        tokenizer.init_kwargs,
        tokenizer.special_tokens_map,
        tokenizer.padding_side,
        len(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
    )
    transformer_lens.bridge(tiny)  # a second one can be made


def test_a_bridge_shares_the_weights_until_it_rewrites_them(tiny):
    made = transformer_lens.bridge(tiny)
    ours = {p.data_ptr() for p in tiny.model.parameters()}
    assert {p.data_ptr() for p in made.original_model.parameters()} == ours
    made.enable_compatibility_mode()
    assert not ours & {p.data_ptr() for p in made.original_model.parameters()}


def test_a_bridge_that_is_converted_leaves_the_model_as_it_was(tiny):
    made = transformer_lens.bridge(tiny)
    made.to(torch.bfloat16)
    assert {p.dtype for p in made.original_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}
    assert {b.dtype for b in tiny.model.buffers() if b.is_floating_point()} == {torch.float32}


def test_a_bridge_can_be_recorded(tiny, prompts, bridge):
    """Hooks of both see the same generation; what surrounds it is as before."""
    prompt, shapes = prompts["one"], []
    inputs = dict(prompt.inputs)
    ids = inputs.pop("input_ids")
    hook = ("blocks.1.attn.hook_pattern", lambda pattern, hook: shapes.append(pattern.shape[2:]))
    with bridge.hooks(fwd_hooks=[hook]), attnlens.record(bridge, prompt) as recorder:
        bridge.hf_generate(ids, **inputs, max_new_tokens=NEW, do_sample=False)
    (ours,) = recorded(tiny, prompt)
    assert difference(recorder.trace, ours) < 1e-5
    ids_seen = [t.data["predicted_token_id"].values.tolist() for t in (recorder.trace, ours)]
    assert ids_seen[0] == ids_seen[1]
    length = len(prompt.segments)
    assert shapes == [(length, length), *((1, length + step) for step in range(1, NEW))]
    assert bridge.original_model.config.text_config._attn_implementation == "eager"


def test_generate_of_a_bridge_is_refused_with_the_call_that_works(bridge, prompts):
    with pytest.raises(InputError, match=r"bridge\.hf_generate\(inputs\.pop\('input_ids'\)"):
        bridge.generate(prompts["one"].inputs["input_ids"], max_new_tokens=2)


def test_an_activation_cache_serves_the_tools_of_others(tiny, prompts):
    """TransformerLens's attribution adds up to the logits; CircuitsVis draws the pattern."""
    from circuitsvis.attention import attention_heads
    from transformer_lens.tools.analysis import direct_logit_attribution

    prompt = prompts["one"]
    (trace,) = recorded(tiny, prompt)
    model = transformer_lens.bridge(tiny)
    model.enable_compatibility_mode()
    logits, cache = transformer_lens.activation_cache(model, prompt, trace)
    length = len(prompt.segments)
    assert logits.shape[1] == length + NEW
    told = logits[0, length - 1 : -1].argmax(-1).tolist()
    assert told == trace.data["predicted_token_id"].values.tolist()
    first, second = logits[0, -1].topk(2).indices.tolist()
    found = direct_logit_attribution(
        model, cache=cache, answer_tokens=first, incorrect_tokens=second, unit="head"
    )
    gap = float(logits[0, -1, first] - logits[0, -1, second])
    assert float(found.attribution.detach().sum()) == pytest.approx(gap, abs=1e-4)
    pattern = cache["blocks.0.attn.hook_pattern"][0]
    steps = pattern[:, length - 1 : -1, :length]
    visual = steps[..., torch.from_numpy(prompt.segments == "visual")].sum(-1)
    mass = trace.data["mass"].sel(layer=0, segment="visual").values.T
    assert np.abs(visual.numpy() - mass).max() < 1e-5
    words = tiny.tokenizer.convert_ids_to_tokens(
        [*prompt.inputs["input_ids"][0].tolist(), *trace.data["predicted_token_id"].values.tolist()]
    )
    assert "AttentionHeads" in str(attention_heads(pattern, words))


def test_an_activation_cache_needs_every_token(tiny, prompts, bridge):
    with pytest.raises(InputError, match="response holds -1: give token ids from 0 to"):
        transformer_lens.activation_cache(bridge, prompts["one"], [5, -1])


# Without the libraries


def test_without_the_libraries_the_message_says_what_to_install(tiny, prompts, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] in ("nnsight", "transformer_lens")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    prompt = prompts["one"]
    for call in (
        lambda: nnsight.wrap(tiny),
        lambda: nnsight.record(tiny, prompt, NEW),
        lambda: transformer_lens.bridge(tiny),
        lambda: transformer_lens.record(tiny, prompt, NEW),
    ):
        with pytest.raises(InputError, match=r"run pip install 'attnlens\[lenses\]'"):
            call()
    assert recorded(tiny, prompts["one"])[0].data.sizes["step"] == NEW


@pytest.mark.slow
def test_lenses_are_there_without_the_libraries():
    """Importing attnlens.lenses imports neither library."""
    code = (
        "import sys; sys.modules['nnsight'] = sys.modules['transformer_lens'] = None\n"
        "import attnlens; print(attnlens.lenses.nnsight.record.__name__)\n"
        "print(attnlens.lenses.transformer_lens.bridge.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["record", "bridge"]


def test_structure_is_copied_and_weights_are_shared(tiny):
    made = optional.copy_structure(tiny.model)
    for (name, ours), (_, theirs) in zip(
        tiny.model.named_parameters(), made.named_parameters(), strict=True
    ):
        assert ours.data_ptr() == theirs.data_ptr(), name
        assert ours is not theirs, name  # what converts one leaves the other
    assert not {id(m) for m in made.modules()} & {id(m) for m in tiny.model.modules()}
    assert made.config is not tiny.model.config
