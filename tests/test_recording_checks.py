"""A recording knows when it would be wrong: what passes, layers, masks and tokens must agree on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import picture
from test_recording_changes_nothing import state
from transformers import ContinuousBatchingConfig, DynamicCache

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import AtStep, Copy, intervene
from attnlens.models import cache as cache_module
from attnlens.models.cache import (
    cache_of,
    cache_parameter,
    generates_with_cache,
    returned_cache,
    with_cache,
)
from attnlens.models.families import parts_of
from attnlens.recording.layout import key_layout
from attnlens.recording.masks import check_padding
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.tap import LayerAttention, Pass, attention_implementation

NEW = 12


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt(picture(), "Is there a red circle?", "cot")


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny.model)


def generate(model, prompt, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    return model.generate(**prompt.inputs, **options)


def with_response(prompt, ids):
    """Inputs of one forced pass over a prompt and the first tokens of a response."""
    pad = torch.nn.functional.pad
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = pad(inputs["attention_mask"], (0, len(ids)), value=1)
    inputs["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, len(ids)))
    return inputs


# How a pass carries its cache


class Older(torch.nn.Module):
    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **options):
        """Take the cache as transformers did up to 5.23."""


class Newer(torch.nn.Module):
    def forward(self, input_ids=None, attention_mask=None, cache=None, **options):
        """Take the cache as transformers does from 5.24 on."""


class Unknown(torch.nn.Module):
    def forward(self, input_ids=None, attention_mask=None, memory=None, **options):
        """Take the cache as nobody knows."""


@pytest.mark.parametrize(("kind", "name"), [(Older, "past_key_values"), (Newer, "cache")])
def test_a_cache_is_found_under_its_name_and_by_its_place(kind, name):
    cache = DynamicCache()
    assert cache_parameter(kind()) == name
    assert with_cache(kind(), cache) == {name: cache}
    assert cache_of(kind(), (), {name: cache}) is cache
    assert cache_of(kind(), (None, None, cache), {}) is cache
    # the other name is an alias in some versions
    assert cache_of(kind(), (), {"cache": None, "past_key_values": cache}) is cache
    assert cache_of(kind(), (), {}) is None
    compiled = torch.compile(kind(), backend="eager")
    assert with_cache(compiled, cache) == {name: cache}
    assert cache_of(compiled, (None, None, cache), {}) is cache


def test_a_cache_that_is_not_understood_is_no_first_pass():
    with pytest.raises(InputError, match=r"Unknown of transformers .* does not know"):
        cache_of(Unknown(), (), {"memory": DynamicCache()})
    with pytest.raises(InputError, match="keys in a tuple"):
        cache_of(Older(), (), {"past_key_values": ((torch.zeros(1), torch.zeros(1)),)})
    with pytest.raises(InputError, match="two caches"):
        cache_of(Newer(), (), {"cache": DynamicCache(), "past_key_values": DynamicCache()})


def test_a_model_whose_cache_has_an_unknown_name_is_refused_before_anything_changes(
    tiny, prompt, monkeypatch
):
    before = state(tiny.model)
    monkeypatch.setattr(cache_module, "NAMES", ("memory",))
    with pytest.raises(InputError, match="it knows memory"), attnlens.record(tiny, prompt):
        pytest.fail("the block was entered")
    assert state(tiny.model) == before


# Steps and tokens


def test_there_is_a_step_for_every_token_that_generate_returned(model, prompt):
    plain = type(model).generate

    def says_more(**options):
        tokens = plain(model, **options)
        return torch.cat([tokens, tokens[:, -1:]], dim=1)

    model.generate = says_more
    with attnlens.record(model, prompt.segments) as recorder:
        generate(model, prompt)
    with pytest.raises(RuntimeError, match=f"1 sequences of {NEW + 1} tokens, but {NEW} steps"):
        _ = recorder.trace


def test_two_forward_passes_are_two_generations(tiny, prompt):
    """The second is one token longer, as if it fed the first again, but says something else."""
    for first, second in (([350] * 5, [390] * 6), ([350] * 5, [350] * 5)):
        with (
            pytest.raises(RuntimeError, match="this is a second one"),
            attnlens.record(tiny, prompt),
            torch.no_grad(),
        ):
            tiny.model(**with_response(prompt, first))
            tiny.model(**with_response(prompt, second))
    with (
        pytest.raises(RuntimeError, match="this is a second one"),
        attnlens.record(tiny, prompt),
        torch.no_grad(),
    ):  # as a trainer does after its rollouts
        tokens = generate(tiny.model, prompt)[0, len(prompt.segments) :]
        tiny.model(**with_response(prompt, tokens.tolist()))


def test_continuous_batching_is_refused_before_it_starts(model, prompt, tiny):
    before = state(model)
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    passes = []
    model.model.language_model.register_forward_pre_hook(lambda *_: passes.append(1))
    ids = prompt.inputs["input_ids"][0].tolist()
    with pytest.raises(InputError, match="continuous batching"), attnlens.record(vlm, prompt):
        model.generate_batch([ids])
    assert not passes
    assert state(model)["attributes"] == before["attributes"]


def test_continuous_batching_under_an_intervention_fails_with_the_reason(model, prompt, tiny):
    vlm = attnlens.VLM(model, tiny.processor, "tiny", tiny.family)
    ids = prompt.inputs["input_ids"][0].tolist()
    with intervene(vlm, prompt, Copy(when=AtStep(2))):
        # the default cache takes most of the machine's memory
        small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
        # runs in a thread: errors are noted
        (output,) = model.generate_batch([ids], continuous_batching_config=small).values()
    assert "keys in a PagedAttentionCache" in output.error
    assert not output.generated_tokens


# Recomputation


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rows", ["last", "all"])
def test_a_backward_pass_with_gradient_checkpointing_is_recorded_once(
    model, prompt, reentrant, rows
):
    """Layers run again in the backward pass; masses and gradients are those without either."""
    inputs = with_response(prompt, [300 + 7 * i for i in range(NEW)])

    def loss_of():
        return model(**inputs, labels=inputs["input_ids"]).loss

    loss_of().backward()
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    gradient = weight.grad.clone()
    with attnlens.record(model, prompt.segments, prompt_rows=rows) as plain, torch.no_grad():
        model(**inputs)
    model.zero_grad()
    model.train()
    options = {"use_reentrant": reentrant}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if reentrant:
        model.enable_input_require_grads()
    calls = []
    layer = model.model.language_model.layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    with attnlens.record(model, prompt.segments, prompt_rows=rows) as recorder:
        loss_of().backward()
    assert len(calls) == 2
    data = recorder.trace.data
    assert data.sizes["step"] == NEW + 1
    np.testing.assert_allclose(data["mass"], plain.trace.data["mass"], atol=1e-5)
    if rows == "all":
        np.testing.assert_allclose(data["prompt_mass"], plain.trace.data["prompt_mass"], atol=1e-5)
    torch.testing.assert_close(weight.grad, gradient, atol=1e-5, rtol=1e-4)


def test_attention_outside_any_pass_is_no_step(tiny, prompt):
    language = tiny.model.model.language_model
    with attnlens.record(tiny, prompt) as recorder, torch.no_grad():
        generate(tiny.model, prompt)
        hidden = torch.randn(1, 1, 64)
        rotary = language.rotary_emb(hidden, torch.full((3, 1, 1), 90))
        language.layers[1].self_attn(hidden, position_embeddings=rotary)
    with attnlens.record(tiny, prompt) as plain:
        generate(tiny.model, prompt)
    np.testing.assert_array_equal(recorder.trace.data["mass"], plain.trace.data["mass"])


def test_generating_while_training_with_gradient_checkpointing(model, prompt):
    """Before transformers 5.24 no layer keeps a cache then."""
    right = generate(model, prompt)
    model.train()
    model.gradient_checkpointing_enable()
    # it is wrong without a recording too, or is right with one
    assert torch.equal(generate(model, prompt), right) == generates_with_cache(model)
    recorders = []

    def record(**options):
        recorders.append(attnlens.record(model, prompt.segments))
        with recorders[-1]:
            assert torch.equal(generate(model, prompt, **options), right)

    if generates_with_cache(model):
        record()
    else:
        passes = []
        language = model.model.language_model
        handle = language.register_forward_pre_hook(lambda *_: passes.append(1))
        with pytest.raises(InputError, match=r"model.eval\(\)"):
            record()
        handle.remove()
        assert not passes
        recorders.clear()
    # the ways out that the message names
    record(use_cache=False)
    model.eval()
    record()
    model.train()
    model.gradient_checkpointing_disable()
    record()
    for recorder in recorders[:-1]:
        assert np.allclose(recorder.trace.data["mass"], recorders[-1].trace.data["mass"], atol=1e-5)


def test_a_loop_of_ones_own_without_a_cache_that_grows_is_refused(model, prompt):
    """Gradient checkpointing takes the cache away from layers."""
    model.train()
    model.gradient_checkpointing_enable()
    with (
        pytest.raises(RuntimeError, match="starts from 0 cached keys, but"),
        attnlens.record(model, prompt.segments),
    ):
        output = model(**prompt.inputs, use_cache=True)
        cache = returned_cache(output) or DynamicCache()
        model(input_ids=torch.tensor([[301]]), **with_cache(model, cache))


# Caches that drop keys


@pytest.mark.parametrize(
    ("dropping", "recorded", "words"),
    [
        ([1, 2], None, r"layer 1 attends with 1 queries to \d+ keys"),
        ([2], None, r"layer 2 attends with 1 queries to \d+ keys"),
        ([2], [1, 2], r"layer 2 attends"),
        ([0], None, "no longer holds the keys"),
        ([0, 1, 2], None, "no longer holds the keys"),
        ([0, 1, 2], [1], "no longer holds the keys"),
        ([2], [0, 1], None),
    ],
)
def test_a_cache_that_drops_keys_in_some_layers(tiny, prompt, dropping, recorded, words):
    """As SnapKV and PyramidKV do after the prefill: layers whose keys are all there are right."""

    def run(drop):
        recorder = attnlens.record(tiny, prompt, layers=recorded)
        with recorder, torch.no_grad():
            output = tiny.model(**prompt.inputs, use_cache=True)
            cache = returned_cache(output)
            kept = [i for i in range(len(prompt.segments)) if not 10 <= i < 20]
            for layer in drop:
                one = cache.layers[layer]
                one.keys, one.values = one.keys[:, :, kept], one.values[:, :, kept]
            for place in range(3):
                tiny.model(
                    input_ids=torch.tensor([[301 + place]]),
                    position_ids=torch.full((3, 1, 1), 60 + place),
                    **with_cache(tiny.model, cache),
                )
        return recorder.trace.data["mass"].values

    if words is not None:
        with pytest.raises(RuntimeError, match=words):
            run(dropping)
    else:
        np.testing.assert_allclose(run(dropping), run([]), atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(5, 6), (6, 5), (6, 7)])
def test_every_layer_has_the_queries_and_keys_of_its_pass(queries, keys):
    layout = key_layout(["sink", "visual", "visual", "vision_end", "query", "query"])
    recorder = AttentionRecorder(layout, [0, 1])
    recorder.begin_pass(Pass(tokens=6, past=0, keys=6))
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 1, 6, 4)
    recorder.attention(LayerAttention(0, query, key, None, 1.0))
    wrong_query, wrong_key = torch.randn(1, 2, queries, 4), torch.randn(1, 1, keys, 4)
    with pytest.raises(RuntimeError, match=f"layer 1 attends with {queries} queries to {keys}"):
        recorder.attention(LayerAttention(1, wrong_query, wrong_key, None, 1.0))


def test_the_attention_implementation_under_a_tap_keeps_its_name(tiny, prompt, model):
    parts = parts_of(model)
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert attention_implementation(parts) == name
        with attnlens.record(model, prompt.segments.tolist()):
            assert parts.text.config._attn_implementation != name
            assert attention_implementation(parts) == name
        assert attention_implementation(parts) == name


# Padding


def rolled_right(batch):
    """Inputs of a batch with the padding moved to the right."""
    inputs = dict(batch.inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        rows = zip(inputs[name], inputs["attention_mask"], strict=True)
        inputs[name] = torch.stack([row.roll(-int((mask == 0).sum())) for row, mask in rows])
    return inputs


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_padding_is_labelled_where_the_mask_hides_keys(tiny, prompt, model, implementation, cache):
    model.set_attn_implementation(implementation)
    batch = tiny.batch([prompt, tiny.prompt(picture(140, 112, 5), "Hi?", "normal")])
    options = {"max_new_tokens": 3, "cache_implementation": cache}
    with attnlens.record(model, batch.segments.tolist()) as recorder:
        model.generate(**batch.inputs, **options)
    assert len(recorder.traces) == 2
    passes = []
    model.lm_head.register_forward_pre_hook(lambda *_: passes.append(1))
    with (
        pytest.raises(
            InputError, match=r"shows key 0 of sequence 1, .* 'padding': pad on the left"
        ),
        attnlens.record(model, batch.segments.tolist()),
    ):
        model.generate(**rolled_right(batch), **options)
    unlabelled = [["sink" if s == "padding" else s for s in row] for row in batch.segments]
    with (
        pytest.raises(InputError, match=r"hides key 0 of sequence 1, .* 'sink'"),
        attnlens.record(model, unlabelled),
    ):
        model.generate(**batch.inputs, **options)
    with (
        pytest.raises(InputError, match="shows key 0 of sequence 1"),
        attnlens.record(model, batch.segments.tolist()),
        torch.no_grad(),
    ):
        model(**{**batch.inputs, "attention_mask": None})
    assert not passes  # refused before there is a token


def test_a_mask_of_ones_own_may_hide_the_image(tiny, prompt):
    """Spelled out by row and key: what it hides is counted as hidden."""
    length = len(prompt.segments)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    visual = torch.from_numpy(prompt.segments == "visual")
    mask[-1] &= ~visual

    def run(given, own):
        inputs = dict(given.inputs)
        positions, _ = tiny.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs.pop("attention_mask"),
        )
        tiny.model(**inputs, position_ids=positions, attention_mask=own)

    with attnlens.record(tiny, prompt) as recorder, torch.no_grad():
        run(prompt, mask[None, None])
    data = recorder.trace.data
    assert (data["mass"].sel(segment="visual") == 0).all()
    assert (data["hidden"].sel(segment="visual") == int(visual.sum())).all()
    batch = tiny.batch([prompt, tiny.prompt(picture(140, 112, 5), "Hi?", "normal")])
    with (
        pytest.raises(InputError, match="shows key 0 of sequence 1"),
        attnlens.record(tiny, batch),
        torch.no_grad(),
    ):
        length = batch.segments.shape[1]
        seen = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
        run(batch, seen)


def test_padding_of_masks_of_every_kind():
    segments = np.array([["sink", "visual", "query"], ["padding", "sink", "visual"]])
    right = torch.tensor([[1, 1, 1], [0, 1, 1]])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    spelled = right[:, None, None, :].bool() & causal
    added = torch.zeros(2, 1, 3, 3).masked_fill_(~spelled, torch.finfo(torch.float32).min)
    for mask in (right, right.bool(), spelled, added, added.to(torch.bfloat16)):
        check_padding(segments, mask, 2)
        check_padding(segments, mask.repeat_interleave(2, 0), 2)  # two responses to each prompt
        with pytest.raises(InputError, match="hides key 0 of sequence 0"):
            check_padding(segments, mask.flip(0), 2)
    check_padding(segments[:1], None, 2)
    with pytest.raises(InputError, match="shows key 0 of sequence 1"):
        check_padding(segments, None, 2)
    with pytest.raises(InputError, match="has 3 sequences where the prompt has 2"):
        check_padding(segments, torch.ones(3, 3), 2)
    with pytest.raises(
        InputError, match="hides key 2 of sequence 0"
    ):  # too short: the rest is hidden
        check_padding(segments, right[:, :2], 2)
    check_padding(segments, torch.ones(1, 1, 3, 3).bool() & spelled[1:], 2, own=True)  # for both
    with pytest.raises(InputError, match="shows key 0 of sequence 1"):
        check_padding(segments, causal[None, None], 2, own=True)


def test_a_layer_is_seen_once_in_a_pass_and_not_after_it():
    layout = key_layout(["sink", "visual", "visual", "vision_end", "query", "query"])

    def masses(*calls):
        torch.manual_seed(0)
        first, again = (torch.randn(1, 2, 6, 4) for _ in range(2))
        key = torch.randn(1, 1, 6, 4)
        recorder = AttentionRecorder(layout, [0, 1])
        recorder.begin_pass(Pass(tokens=6, past=0, keys=6))
        for layer, which in calls:
            if which == "end":
                recorder.end_pass()
            else:
                query = {"first": first, "again": again}[which]
                recorder.attention(LayerAttention(layer, query, key, None, 1.0))
        return recorder.rows()

    once = masses((0, "first"), (1, "first"))
    for repeated in (
        ((0, "first"), (0, "again"), (1, "first"), (1, "again")),
        ((0, "first"), (1, "first"), (None, "end"), (0, "again"), (1, "again")),
    ):
        rows = masses(*repeated)
        for layer in (0, 1):
            np.testing.assert_array_equal(rows[layer].mass, once[layer].mass)
    assert not masses((0, "first"), (None, "end"), (1, "first"))[0].positions.size


@pytest.mark.parametrize("every", [1, 4, 32])
def test_a_window_may_drop_keys_between_the_rows_that_are_recorded(every):
    """Against a softmax over the last keys; passes of one token, of which some are left out."""
    window, length, wanted = 6, 20, [3, 4, 11, 12, 13]
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8)
    segments = ["sink", *["visual"] * 8, "vision_end", *["query"] * 6]
    layout = key_layout(np.array([segments]))
    recorder = AttentionRecorder(layout, {0: window}, prompt_positions=wanted, every=every)
    for slot in range(length):
        first = max(0, slot + 1 - window)
        recorder.tokens(torch.tensor([[slot]]))
        recorder.begin_pass(Pass(1, slot, slot + 1))
        key = keys[:, :, first : slot + 1].clone()
        recorder.attention(LayerAttention(0, queries[:, :, slot : slot + 1], key, None, 0.5))
        recorder.end_pass()
    recorder.flush()
    rows = recorder.rows()[0]
    assert rows.positions.tolist() == [*wanted, *range(len(segments) - 1, length)]
    columns = np.array([layout.names.index(s) for s in segments])
    columns = np.pad(columns, (0, length), constant_values=layout.response_column)
    for place, slot in enumerate(rows.positions):
        seen = np.arange(max(0, slot + 1 - window), slot + 1)
        scores = torch.einsum("hd,hkd->hk", queries[0, :, slot], keys[0].repeat_interleave(2, 0))
        weights = (0.5 * scores[:, seen]).softmax(-1).numpy()
        for column in range(len(layout.names)):
            mass = weights[:, columns[seen] == column].sum(-1)
            assert np.abs(rows.mass[0, place, :, column] - mass).max() < 1e-5
