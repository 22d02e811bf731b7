"""Recorded mass against eager attention matrices, teacher-forced on the same tokens."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import VISION, picture, tiny_vlm

import attnlens
from attnlens.models.cache import with_cache
from attnlens.recording import mass as mass_module
from attnlens.recording import recorder as recorder_module
from attnlens.recording.mass import attention_mass
from attnlens.segments import SEGMENTS

NEW = 40  # more than one flush


def generate(vlm, prompt, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    # random weights may say an image's placeholder, for which a full pass would want an image
    options.setdefault("suppress_tokens", [vlm.processor.image_token_id])
    return vlm.model.generate(**prompt.inputs, **options)


def eager_rows(vlm, prompt, sequences):
    """Attention [layer][batch, head, query, key] of one full pass over prompt and response."""
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    extra = sequences.shape[1] - prompt.inputs["input_ids"].shape[1]
    pad = torch.nn.functional.pad
    with torch.no_grad():
        output = model(
            input_ids=sequences,
            attention_mask=pad(prompt.inputs["attention_mask"], (0, extra), value=1),
            mm_token_type_ids=pad(prompt.inputs["mm_token_type_ids"], (0, extra)),
            pixel_values=prompt.inputs["pixel_values"],
            image_grid_thw=prompt.inputs["image_grid_thw"],
            output_attentions=True,
            use_cache=False,
        )
    return torch.stack(output.attentions).numpy()


def expected_mass(weights, segments, first):
    """Sum eager rows by segment: [step, layer, head, segment]; keys after the prompt: response."""
    labels = np.concatenate([segments, np.repeat("response", weights.shape[-1] - len(segments))])
    rows = weights[:, :, first:-1]
    return np.stack([rows[..., labels == s].sum(-1) for s in SEGMENTS], -1).transpose(2, 0, 1, 3)


@pytest.fixture(scope="module", params=list(VISION))
def tiny(request, tokenizer):
    """A small model of each family: every test below is of all of them."""
    return tiny_vlm(tokenizer, request.param)


@pytest.fixture(scope="module")
def one(tiny):
    return tiny.prompt(picture(), "Is there a red circle?", "back")


@pytest.fixture(scope="module")
def several(tiny):
    images = [picture(112, 140, 1), picture(168, 112, 2), picture(112, 112, 3)]
    return tiny.prompt(images, "How many objects remain?", "cot")


def check(vlm, prompt, trace, sequences, row=0, layers=None):
    weights = eager_rows(vlm, prompt, sequences)[:, row]
    segments = np.atleast_2d(prompt.segments)[row]
    want = expected_mass(weights, segments, len(segments) - 1)
    if layers is not None:
        want = want[:, layers]
    got = trace.data["mass"].values
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got.sum(-1) - 1).max() < 1e-5
    return weights


@pytest.mark.parametrize("which", ["one", "several"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_mass_equals_eager_attention(which, implementation, tiny, request):
    prompt = request.getfixturevalue(which)
    vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
    vlm.model.set_attn_implementation(implementation)
    with attnlens.record(vlm, prompt) as recorder:
        sequences = generate(vlm, prompt)
    check(vlm, prompt, recorder.trace, sequences)
    assert recorder.trace.attrs["attention"] == implementation


def test_mass_of_each_image_and_each_visual_token(tiny, several):
    with attnlens.record(tiny, several, visual_map=True) as recorder:
        sequences = generate(tiny, several)
    trace = recorder.trace
    weights = check(tiny, several, trace, sequences)
    first = len(several.segments) - 1
    for image in range(3):
        keys = np.flatnonzero(several.image_of_key == image)
        want = weights[:, :, first:-1][..., keys].sum(-1).transpose(2, 0, 1)
        np.testing.assert_allclose(trace.data["mass_by_image"].values[..., image], want, atol=1e-5)
    keys = np.flatnonzero(several.segments == "visual")
    want = weights[:, :, first:-1][..., keys].mean(1).transpose(1, 0, 2)
    np.testing.assert_allclose(trace.data["visual_map"].values, want, atol=1e-5)
    nonzero = (weights[:, :, first:-1][..., keys].sum(1) > 0).sum(-1).T
    np.testing.assert_array_equal(trace.data["visual_nonzero"].values, nonzero)
    rows, columns = several.grids[1]
    second = trace.data["visual_map"].sel(visual=trace.data["visual_image"] == 1)
    assert second["visual_row"].values.tolist() == np.repeat(np.arange(rows), columns).tolist()
    assert second["visual_column"].values.tolist() == np.tile(np.arange(columns), rows).tolist()


def test_left_padded_batch(tiny, one, several):
    other = tiny.prompt(picture(140, 112, 5), "Hi?", "normal")
    batch = tiny.batch([one, other, several])
    with attnlens.record(tiny, batch) as recorder:
        sequences = generate(tiny, batch)
    for row, trace in enumerate(recorder.traces):
        check(tiny, batch, trace, sequences, row)
        # and each row is what it is alone
        with attnlens.record(tiny, batch.prompts[row]) as alone:
            generate(tiny, batch.prompts[row])
        np.testing.assert_allclose(
            trace.data["mass"].values, alone.trace.data["mass"].values, atol=1e-5
        )
        assert trace.tokens == alone.trace.tokens
        np.testing.assert_array_equal(trace.data["keys"].values, alone.trace.data["keys"].values)


def test_visual_maps_of_a_left_padded_batch(tiny, one, several):
    """Grids of other sizes in each row; each map is that of its prompt alone."""
    batch = tiny.batch([one, several])
    with attnlens.record(tiny, batch, visual_map=True) as recorder:
        generate(tiny, batch)
    for row, trace in enumerate(recorder.traces):
        with attnlens.record(tiny, batch.prompts[row], visual_map=True) as alone:
            generate(tiny, batch.prompts[row])
        for name in ("visual_map", "visual_nonzero", "visual_image", "visual_row"):
            np.testing.assert_allclose(
                trace.data[name].values, alone.trace.data[name].values, atol=1e-5, err_msg=name
            )


def test_steps_know_their_tokens(tiny, one):
    """Step t is fed response token t - 1, step 0 the last prompt token; each predicts the next."""
    with attnlens.record(tiny, one) as recorder:
        sequences = generate(tiny, one)
    data, ids = recorder.trace.data, sequences[0].tolist()
    first = len(one.segments) - 1
    assert data["step"].values.tolist() == list(range(NEW))
    assert data["query_token_id"].values.tolist() == ids[first:-1]
    assert data["predicted_token_id"].values.tolist() == ids[first + 1 :]
    texts = [tiny.tokenizer.decode([i]) for i in ids[first:]]
    whole = [n for n, text in enumerate(texts) if "\ufffd" not in text]
    for n in whole[1:]:
        if n - 1 in whole:  # a cut character belongs to its last token
            assert data["predicted_token"].values[n - 1] == texts[n]
    assert data["query_token"].values[1:].tolist() == data["predicted_token"].values[:-1].tolist()


def test_a_trace_says_where_it_comes_from(tiny, one):
    trace = attnlens.run(tiny, one, 3, seed=5, do_sample=True, temperature=0.7)
    attrs = trace.attrs
    assert attrs["device"] == str(tiny.model.device)
    assert (attrs["mode"], attrs["question"]) == ("back", one.question)
    assert attrs["prompt"] == one.text
    (image,) = attrs["images"]
    assert image["sha256"] == one.images[0].sha256
    assert (image["rows"], image["columns"]) == one.grids[0]
    assert attrs["generation"]["temperature"] == 0.7
    assert attrs["seed"] == 5
    again = attnlens.run(tiny, one, 3).attrs["config_hash"]
    other = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
    other.model.config.text_config.rms_norm_eps = 1e-3
    assert len(again) == 16
    assert attrs["config_hash"] == again != attnlens.run(other, one, 3).attrs["config_hash"]


def test_a_response_without_an_end_is_recorded_past_it(tiny, one):
    """With eos_token_id=None transformers goes on past the end token, and so does the trace."""
    bare = tiny.model.generate(**one.inputs, max_new_tokens=NEW, do_sample=False)
    end = int(bare[0, len(one.segments) + 3])  # a token that does come is made the end
    config = copy.deepcopy(tiny.model.generation_config)
    tiny.model.generation_config.eos_token_id = end
    try:
        with attnlens.record(tiny, one) as cut:
            tiny.model.generate(**one.inputs, max_new_tokens=NEW, do_sample=False)
        with attnlens.record(tiny, one) as recorder:
            sequences = tiny.model.generate(
                **one.inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None
            )
    finally:
        tiny.model.generation_config = config
    assert cut.trace.data.sizes["step"] <= 4
    assert sequences.shape[1] == len(one.segments) + NEW
    assert recorder.trace.data.sizes["step"] == NEW


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_the_softmax_of_its_own_queries_and_keys(tiny, one, dtype):
    """In float32 from what the layer was given, not from the half-precision weights."""
    vlm = attnlens.VLM(copy.deepcopy(tiny.model).to(dtype), tiny.processor, "tiny", tiny.family)
    prompt = vlm.prompt(picture(), "Is there a red circle?", "back")
    seen = []

    def spy(module, query, key, value, attention_mask, scaling=None, **options):
        if hasattr(module, "layer_idx") and query.shape[2] == 1:
            grouped = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
            scores = (query.float() @ grouped.mT) * scaling
            seen.append((module.layer_idx, scores.softmax(-1)[0, :, 0].numpy()))
        return real(module, query, key, value, attention_mask, scaling=scaling, **options)

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    real = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
        with attnlens.record(vlm, prompt) as recorder:
            generate(vlm, prompt)
    mass = recorder.trace.data["mass"].sel(segment="visual").values
    visual = np.flatnonzero(prompt.segments == "visual")
    steps = {layer: 0 for layer in range(3)}
    assert len(seen) == 3 * (NEW - 1)
    for layer, weights in seen:
        steps[layer] += 1
        want = weights[:, visual].sum(-1)
        np.testing.assert_allclose(mass[steps[layer], layer], want, atol=1e-5)


def test_static_cache_and_no_cache(tiny, one):
    for options in ({"cache_implementation": "static"}, {"use_cache": False}):
        with attnlens.record(tiny, one) as recorder:
            sequences = generate(tiny, one, **options)
        check(tiny, one, recorder.trace, sequences)


def test_layer_subset(tiny, one):
    with attnlens.record(tiny, one, layers=[-1, 0]) as recorder:
        sequences = generate(tiny, one)
    check(tiny, one, recorder.trace, sequences, layers=[0, 2])
    assert recorder.trace.data["layer"].values.tolist() == [0, 2]


@pytest.mark.parametrize("every", [1, 7, 64])
def test_mass_does_not_depend_on_the_flush_interval(tiny, one, every):
    with attnlens.record(tiny, one, every=every) as recorder:
        sequences = generate(tiny, one)
    check(tiny, one, recorder.trace, sequences)


@pytest.mark.parametrize("rows", ["query", "all"])
def test_prompt_rows(tiny, several, rows):
    with attnlens.record(tiny, several, prompt_rows=rows) as recorder:
        sequences = generate(tiny, several)
    weights = check(tiny, several, recorder.trace, sequences)
    data = recorder.trace.data
    slots = data["prompt_row"].values
    length = len(several.segments)
    if rows == "all":
        assert slots.tolist() == list(range(length))
    else:
        assert slots.tolist() == np.flatnonzero(several.segments == "query").tolist()
    for s, name in enumerate(SEGMENTS):
        keys = np.flatnonzero(several.segments == name)
        want = weights[:, :, slots][..., keys].sum(-1).transpose(2, 0, 1)
        np.testing.assert_allclose(data["prompt_mass"].values[..., s], want, atol=1e-5)


def test_prompt_rows_keep_no_visual_map(tiny, several, monkeypatch):
    """And they are cut into pieces once, whether the pass has a mask or not."""
    with attnlens.record(tiny, several, visual_map=True) as plain:
        generate(tiny, several)
    whole = plain.trace.data
    calls = []

    def counted(*args, **options):
        calls.append(args[0].queries[0].shape[2])
        return attention_mass(*args, **options)

    monkeypatch.setattr(recorder_module, "attention_mass", counted)
    monkeypatch.setattr(mass_module, "CHUNK_ELEMENTS", 5000)
    for implementation in ("sdpa", "eager"):
        vlm = attnlens.VLM(copy.deepcopy(tiny.model), tiny.processor, "tiny", tiny.family)
        vlm.model.set_attn_implementation(implementation)
        calls.clear()
        with attnlens.record(vlm, several, visual_map=True, prompt_rows="all") as recorder:
            sequences = generate(vlm, several)
        check(vlm, several, recorder.trace, sequences)
        assert calls[:3] == [len(several.segments)] * 3  # one call for each layer's prompt rows
        for rows in recorder._recorder.rows().values():
            assert len(rows.positions) == len(several.segments) - 1 + NEW
            assert rows.visual_weight.shape[1] == rows.visual_nonzero.shape[1] == NEW
        for name in ("visual_map", "visual_nonzero"):
            np.testing.assert_allclose(recorder.trace.data[name], whole[name], atol=1e-5)


def test_prompt_rows_of_a_padded_batch(tiny, one, several):
    batch = tiny.batch([one, several])
    with attnlens.record(tiny, batch, prompt_rows="query") as recorder:
        generate(tiny, batch)
    with attnlens.record(tiny, one, prompt_rows="query") as alone:
        generate(tiny, one)
    padded, plain = recorder.traces[0].data, alone.trace.data
    assert set(plain["prompt_row"].values) <= set(padded["prompt_row"].values)
    own = padded.sel(prompt_row=plain["prompt_row"].values)
    assert own["prompt_token"].values.tolist() == plain["prompt_token"].values.tolist()
    np.testing.assert_allclose(own["prompt_mass"].values, plain["prompt_mass"].values, atol=1e-5)


def test_one_teacher_forced_pass_equals_generation(tiny, one):
    with attnlens.record(tiny, one) as recorder:
        sequences = generate(tiny, one)
    extra = sequences.shape[1] - len(one.segments)
    inputs = dict(one.inputs)
    inputs["input_ids"] = sequences[:, :-1]
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, extra - 1), value=value)
    with attnlens.record(tiny, one) as forced, torch.no_grad():
        tiny.model(**inputs)
    np.testing.assert_allclose(
        forced.trace.data["mass"].values, recorder.trace.data["mass"].values, atol=1e-5
    )
    # the last predicted token was never fed in, and no generate told it
    assert forced.trace.tokens[:-1] == recorder.trace.tokens[:-1]
    assert forced.trace.data["predicted_token_id"].values[-1] == -1


def test_chunked_prefill(tiny, one):
    with attnlens.record(tiny, one, prompt_rows="all", visual_map=True) as whole:
        generate(tiny, one, max_new_tokens=3, min_new_tokens=3)
    ids, length = one.inputs["input_ids"], len(one.segments)
    positions, delta = tiny.model.model.get_rope_index(
        ids, one.inputs["mm_token_type_ids"], image_grid_thw=one.inputs["image_grid_thw"]
    )
    features = tiny.model.model.get_image_features(
        one.inputs["pixel_values"], one.inputs["image_grid_thw"], return_dict=True
    ).pooler_output[0]
    embedded = tiny.model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter((ids == tiny.processor.image_token_id)[..., None], features)
    from transformers import DynamicCache

    cache = DynamicCache(config=tiny.model.config.text_config)
    recorder = attnlens.record(tiny, one, prompt_rows="all", visual_map=True)
    with recorder, torch.no_grad():
        for start in range(0, length, 13):
            piece = slice(start, start + 13)
            tiny.model.model.language_model(
                inputs_embeds=embedded[:, piece],
                position_ids=positions[:, :, piece],
                use_cache=True,
                **with_cache(tiny.model.model.language_model, cache),
            )
    del delta
    for name in ("prompt_mass",):
        np.testing.assert_allclose(
            recorder.trace.data[name].values, whole.trace.data[name].values, atol=1e-5
        )
    np.testing.assert_allclose(
        recorder.trace.data["visual_map"].values[0],
        whole.trace.data["visual_map"].values[0],
        atol=1e-5,
    )


def test_several_return_sequences(tiny, one):
    torch.manual_seed(3)
    with attnlens.record(tiny, one) as recorder:
        sequences = generate(tiny, one, do_sample=True, num_return_sequences=3)
    assert len(recorder.traces) == 3
    assert len({trace.text for trace in recorder.traces}) > 1
    for row, trace in enumerate(recorder.traces):
        check(tiny, one, trace, sequences[row : row + 1])
        assert trace.data["predicted_token_id"].values.tolist() == (
            sequences[row, len(one.segments) :].tolist()
        )


def test_a_bare_model_with_segments(tiny, one):
    with attnlens.record(tiny.model, one.segments.tolist()) as recorder:
        sequences = generate(tiny, one)
    check(tiny, one, recorder.trace, sequences)
