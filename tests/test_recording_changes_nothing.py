"""Recording leaves tokens, logits, settings and hooks as they are, whatever happens inside."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import compiles, picture, tiny_model
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import attnlens
from attnlens.models.cache import returned_cache, with_cache
from attnlens.recording import compiled, tap

SIZES_AND_TEXTS = (((112, 140), "Is there a red circle?"), ((112, 112), "Which mark is it now?"))


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt([picture(), picture(140, 112, 4)], "Is there a red circle?", "cot")


def state(model):
    """Everything about a model and the registries that recording could leave behind."""
    modules = dict(model.named_modules())
    return {
        "implementations": [
            m.config._attn_implementation for m in modules.values() if hasattr(m, "config")
        ],
        "hooks": {
            name: [
                {k: id(v) for k, v in getattr(m, table).items()}
                for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
            ]
            for name, m in modules.items()
        },
        "attributes": {name: sorted(m.__dict__) for name, m in modules.items()},
        "config": model.config.to_json_string(),
        "functions": dict(AttentionInterface._global_mapping),
        "masks": dict(AttentionMaskInterface._global_mapping),
        "taps": dict(tap._taps),
    }


def generate(vlm, prompt, **options):
    options = {"max_new_tokens": 36, "min_new_tokens": 36, "do_sample": False, **options}
    return vlm.model.generate(**prompt.inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_tokens_and_logits_are_identical(tiny, prompt, dtype, implementation):
    model = copy.deepcopy(tiny.model).to(dtype)
    model.set_attn_implementation(implementation)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    keep = {"output_logits": True, "return_dict_in_generate": True}
    plain = generate(vlm, prompt, **keep)
    with attnlens.record(vlm, prompt, visual_map=True, prompt_rows="all") as recorder:
        recorded = generate(vlm, prompt, **keep)
    assert torch.equal(plain.sequences, recorded.sequences)
    assert torch.equal(torch.stack(plain.logits), torch.stack(recorded.logits))
    mass = recorder.trace.data["mass"].values
    assert mass.dtype == "float32"
    assert abs(mass.sum(-1) - 1).max() < 1e-5
    assert recorder.trace.attrs["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 1.5},
        {"cache_implementation": "static"},
        {"do_sample": True, "num_return_sequences": 2},
        {"repetition_penalty": 1.3},
    ],
)
def test_tokens_are_identical_under_other_settings(tiny, prompt, options):
    torch.manual_seed(5)
    plain = generate(tiny, prompt, **options)
    torch.manual_seed(5)
    with attnlens.record(tiny, prompt):
        recorded = generate(tiny, prompt, **options)
    assert torch.equal(plain, recorded)


def test_tokens_of_a_padded_batch_are_identical(tiny, prompt):
    other = tiny.prompt(picture(112, 140, 9), "Which mark?", "normal")
    batch = tiny.batch([prompt, other])
    plain = generate(tiny, batch)
    with attnlens.record(tiny, batch):
        assert torch.equal(plain, generate(tiny, batch))


def test_the_model_is_left_as_it_was_found(tiny, prompt):
    before = state(tiny.model)
    with attnlens.record(tiny, prompt):
        generate(tiny, prompt)
        assert state(tiny.model) != before
    assert state(tiny.model) == before


def test_eager_weights_still_come_out(tiny, prompt):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    with attnlens.record(vlm, prompt), torch.no_grad():
        output = model(**prompt.inputs, output_attentions=True)
    assert len(output.attentions) == 3
    assert output.attentions[0].shape[-1] == len(prompt.segments)


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("layer", [0, 2])
def test_an_exception_inside_leaves_nothing_behind(tiny, prompt, error, layer):
    before = state(tiny.model)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 20:
            raise error

    handle = tiny.model.model.language_model.layers[layer].mlp.register_forward_pre_hook(fail)
    recorder = attnlens.record(tiny, prompt)
    try:
        with pytest.raises(error), recorder:
            generate(tiny, prompt)
    finally:
        handle.remove()
    assert state(tiny.model) == before
    # what was computed before is not lost; the pass that broke off is left out unless the last
    # layer had seen it
    with attnlens.record(tiny, prompt) as whole:
        generate(tiny, prompt)
    steps = recorder.trace.data.sizes["step"]
    assert steps == (19 if layer == 0 else 20)
    assert (
        abs(recorder.trace.data["mass"].values - whole.trace.data["mass"].values[:steps]).max()
        < 1e-5
    )


def test_an_exception_before_the_first_pass(tiny, prompt):
    before = state(tiny.model)
    recorder = attnlens.record(tiny, prompt)
    with pytest.raises(Broken), recorder:
        raise Broken
    assert state(tiny.model) == before
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        _ = recorder.trace


def test_autocast_and_gradients_do_not_reach_the_record(tiny, prompt):
    options = {"max_new_tokens": 12, "min_new_tokens": 12}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = generate(tiny, prompt, **options)
        with attnlens.record(tiny, prompt, every=5) as recorder:
            assert torch.equal(plain, generate(tiny, prompt, **options))
    mass = recorder.trace.data["mass"].values
    assert abs(mass.sum(-1) - 1).max() < 1e-5
    with attnlens.record(tiny, prompt) as recorder:  # a loop of one's own, gradients on
        output = tiny.model(**prompt.inputs, use_cache=True)
        for token in (301, 302):
            output = tiny.model(
                input_ids=torch.tensor([[token]]), **with_cache(tiny.model, returned_cache(output))
            )
    assert recorder.trace.data.sizes["step"] == 3


def test_rows_of_a_batch_end_where_their_response_ends(tiny, prompt):
    """Also when the caller's configuration leaves the end of a response to the model's."""
    from transformers import GenerationConfig

    other = tiny.prompt(picture(112, 140, 9), "Which mark?", "normal")
    batch = tiny.batch([prompt, other])
    model = copy.deepcopy(tiny.model)
    plain = model.generate(**batch.inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    # make the third token of the first row the end of a response
    model.generation_config.eos_token_id = int(plain[0, batch.segments.shape[1] + 2])
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    with attnlens.record(vlm, batch) as recorder:
        settings = GenerationConfig(max_new_tokens=12, do_sample=False)
        model.generate(**batch.inputs, generation_config=settings)
    assert recorder.traces[0].data.sizes["step"] <= 3
    for trace in recorder.traces:
        ids = trace.data["predicted_token_id"].values.tolist()
        assert model.generation_config.pad_token_id not in ids
    with pytest.raises(attnlens.InputError, match="num_beams=2"), attnlens.record(vlm, batch):
        model.generation_config.num_beams = 2
        model.generate(**batch.inputs, generation_config=settings)


def test_nested_and_interleaved_recordings(tiny, prompt):
    before = state(tiny.model)
    with attnlens.record(tiny, prompt) as alone:
        generate(tiny, prompt)
    outer, inner = attnlens.record(tiny, prompt, every=5), attnlens.record(tiny, prompt, layers=[1])
    with outer, inner:
        tokens = generate(tiny, prompt)
    assert state(tiny.model) == before
    assert torch.equal(tokens, generate(tiny, prompt))
    want = alone.trace.data["mass"].values
    assert abs(outer.trace.data["mass"].values - want).max() < 1e-6
    assert abs(inner.trace.data["mass"].values - want[:, 1:2]).max() < 1e-6
    assert inner.trace.tokens == outer.trace.tokens == alone.trace.tokens
    first, second = attnlens.record(tiny, prompt), attnlens.record(tiny, prompt)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    generate(tiny, prompt)
    second.__exit__(None, None, None)
    assert state(tiny.model) == before
    assert abs(second.trace.data["mass"].values - want).max() < 1e-6


def test_hooks_of_others_stay_and_work(tiny, prompt):
    seen = []
    attention = tiny.model.model.language_model.layers[1].self_attn
    handle = attention.register_forward_hook(lambda *_: seen.append(1))
    before = state(tiny.model)
    try:
        with attnlens.record(tiny, prompt):
            generate(tiny, prompt)
        assert state(tiny.model) == before
        assert len(seen) == 36
    finally:
        handle.remove()


def test_a_setting_changed_inside_the_block_stays(tiny, prompt):
    model = copy.deepcopy(tiny.model)
    with attnlens.record(model, prompt.segments):
        model.generate(**prompt.inputs, max_new_tokens=2)
        model.set_attn_implementation("eager")
    assert model.config.text_config._attn_implementation == "eager"
    assert not tap._taps
    assert not [n for n in AttentionInterface._global_mapping if n.startswith("attnlens")]


def test_vision_blocks_and_other_models_are_left_alone(tiny, prompt, tokenizer):
    twin = tiny_model(tokenizer, seed=0)
    # a model that shares the configuration object sees the same name and must not be recorded
    twin.model.language_model.config = tiny.model.model.language_model.config
    for layer in twin.model.language_model.layers:
        layer.self_attn.config = twin.model.language_model.config
    with attnlens.record(tiny, prompt) as recorder:
        assert tiny.model.model.visual.config._attn_implementation == "sdpa"
        twin(**prompt.inputs)
        generate(tiny, prompt)
    assert recorder.trace.data.sizes["step"] == 36


def test_a_flash_implementation_sees_its_own_name(tiny, prompt):
    """FlashAttention loads its kernel by the name in the configuration."""
    names = []

    def forward(module, query, key, value, attention_mask, **options):
        names.append(module.config._attn_implementation)
        # FlashAttention's mask is [batch, keys]; spell it out for SDPA
        if attention_mask is not None:
            assert attention_mask.ndim == 2
            keys = torch.arange(key.shape[2])
            rows = keys[-query.shape[2] :]
            causal = keys[None, :] <= rows[:, None]
            attention_mask = attention_mask[:, None, None, :].bool() & causal
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    name = "test_flash_attention_2"
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    model = copy.deepcopy(tiny.model)
    try:
        model.set_attn_implementation({"text_config": name})
        vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
        other = tiny.prompt(picture(112, 140, 9), "Which mark?", "normal")
        for given in (prompt, tiny.batch([prompt, other])):
            with attnlens.record(tiny, given) as want:
                generate(tiny, given)
            names.clear()
            with attnlens.record(vlm, given) as recorder:
                generate(vlm, given)
                assert "flash" in model.config.text_config._attn_implementation
            assert set(names) == {name}
            for trace, expected in zip(recorder.traces, want.traces, strict=True):
                assert trace.tokens == expected.tokens
                mass = trace.data["mass"].values - expected.data["mass"].values
                assert abs(mass).max() < 1e-5
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name)


@compiles
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_flex_attention_gives_the_mass_of_eager(family):
    """Its masks are functions of query and key; also with padding, and where layers have windows.

    transformers 5.23 offers it for these families, and not for the Qwen ones.
    """
    vlm = attnlens.testbed.small_vlm(family)
    batch = vlm.batch([vlm.prompt(picture(*size, 3), text) for size, text in SIZES_AND_TEXTS])
    options = {"max_new_tokens": 3, "min_new_tokens": 3}
    rows = "last" if vlm.family.both_ways else "query"
    with attnlens.record(vlm, batch, prompt_rows=rows) as want:
        expected = generate(vlm, batch, **options)
    vlm.model.set_attn_implementation({"text_config": "flex_attention"})
    with torch.compiler.set_stance("force_eager"):  # what is computed is the same
        plain = generate(vlm, batch, **options)
        with attnlens.record(vlm, batch, prompt_rows=rows) as recorder:
            assert torch.equal(generate(vlm, batch, **options), plain)
    assert torch.equal(plain, expected)
    names = ["mass", "keys", *(["prompt_mass"] if rows == "query" else [])]
    for trace, sdpa in zip(recorder.traces, want.traces, strict=True):
        for name in names:
            assert abs(trace.data[name].values - sdpa.data[name].values).max() < 1e-5


@pytest.mark.slow
@compiles
def test_compiled_decoding(tiny, prompt):
    from transformers import CompileConfig

    torch._dynamo.reset()
    options = {
        "cache_implementation": "static",
        "compile_config": CompileConfig(backend="aot_eager", mode=None, fullgraph=False),
        "max_new_tokens": 12,
        "min_new_tokens": 12,
    }
    model = copy.deepcopy(tiny.model)
    model.generation_config.disable_compile = False
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    heads = [(0, 1), (2, 3)]
    with attnlens.record(tiny, prompt, map_heads=heads) as want:
        tokens = generate(tiny, prompt, max_new_tokens=12, min_new_tokens=12)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    with attnlens.record(vlm, prompt, map_heads=heads) as recorder:
        assert torch.equal(generate(vlm, prompt, **options), tokens)
    for name in ("mass", "visual_map_by_head"):
        difference = recorder.trace.data[name].values - want.trace.data[name].values
        assert abs(difference).max() < 1e-5


@compiles
def test_a_compiled_graph_computes_what_it_did_without_recording(tiny, prompt):
    """Inductor rounds to half precision wherever a graph is split."""
    graphs = []

    def keep(graph, _inputs):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    def compiled_graphs(recorded):
        torch._dynamo.reset()
        graphs.clear()
        model = copy.deepcopy(tiny.model)
        vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
        model.forward = torch.compile(model.forward, backend=keep)
        options = {"cache_implementation": "static", "max_new_tokens": 3, "min_new_tokens": 3}
        with attnlens.record(vlm, prompt) if recorded else nullcontext():
            generate(vlm, prompt, **options)
        return list(graphs)

    plain = compiled_graphs(recorded=False)
    recorded = compiled_graphs(recorded=True)
    ours = "attnlens.call"
    assert any(ours in graph for graph in recorded)
    assert [[name for name in graph if name != ours] for graph in recorded] == plain
    torch._dynamo.reset()


@pytest.mark.slow
@compiles
def test_a_compiled_model_is_compiled_once_for_all_recordings(tiny, prompt):
    """Dynamo gives up after eight compilations, and the model would run uncompiled."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    model.forward = torch.compile(model.forward, backend=count)
    options = {"cache_implementation": "static", "max_new_tokens": 3, "min_new_tokens": 3}
    counts, masses = [], []
    for _ in range(4):
        with attnlens.record(vlm, prompt) as recorder:
            generate(vlm, prompt, **options)
        counts.append(len(graphs))
        masses.append(recorder.trace.data["mass"].values)
        generate(tiny, prompt)  # another model in between has hooks of its own
    assert counts[0] > 0
    assert counts[1:] == counts[:1] * 3
    assert all(np.array_equal(mass, masses[0]) for mass in masses)
    torch._dynamo.reset()


def test_nothing_of_a_model_is_kept_when_it_is_gone(tiny, prompt):
    model = copy.deepcopy(tiny.model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    before = set(compiled._functions)
    with attnlens.record(vlm, prompt):
        generate(vlm, prompt, max_new_tokens=2)
    kept = weakref.ref(model)
    del model, vlm
    gc.collect()
    assert kept() is None
    assert set(compiled._functions) <= before
