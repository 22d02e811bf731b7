"""What cannot be recorded is refused with one clear error, before or as it happens."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import picture

import attnlens
from attnlens.errors import InputError
from attnlens.models.cache import returned_cache, with_cache


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt(picture(), "Is there a red circle?", "cot")


def generate(vlm, prompt, **options):
    return vlm.model.generate(
        **prompt.inputs, **{"max_new_tokens": 8, "min_new_tokens": 8, **options}
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    ],
)
def test_generation_that_reorders_or_crops_the_cache(tiny, prompt, options, words):
    with pytest.raises(InputError, match=words), attnlens.record(tiny, prompt):
        generate(tiny, prompt, **options)


def test_beams_from_the_generation_config(tiny, prompt):
    model = copy.deepcopy(tiny.model)
    model.generation_config.num_beams = 3
    with pytest.raises(InputError, match="num_beams=3"), attnlens.record(model, prompt.segments):
        model.generate(**prompt.inputs, max_new_tokens=4)


def test_a_reordered_cache_is_noticed(tiny, prompt):
    """Beam search by hand, past the watch on generate: rows of the cache change places."""
    other = tiny.prompt(picture(), "Is there a blue square?", "cot")
    batch = tiny.batch([prompt, other])
    with torch.no_grad():
        recorder = attnlens.record(tiny, batch)
        with pytest.raises(RuntimeError, match="no longer holds the keys"), recorder:
            output = tiny.model(**batch.inputs, use_cache=True)
            mask = batch.inputs["attention_mask"]
            for token in (301, 302, 303):
                ids = torch.tensor([[token], [token + 50]])
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                output = tiny.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=torch.full((3, 2, 1), mask.shape[1]),
                    **with_cache(tiny.model, returned_cache(output)),
                )
                returned_cache(output).reorder_cache(torch.tensor([1, 0]))


def test_a_cropped_cache_is_noticed(tiny, prompt):
    recorder = attnlens.record(tiny, prompt)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"second one|no longer"), recorder:
        output = tiny.model(**prompt.inputs, use_cache=True)
        for token in (301, 302, 303):
            output = tiny.model(
                input_ids=torch.tensor([[token]]), **with_cache(tiny.model, returned_cache(output))
            )
        cache = returned_cache(output)
        cache.crop(-2)
        tiny.model(input_ids=torch.tensor([[310]]), **with_cache(tiny.model, cache))


def test_a_second_generation_in_one_recording(tiny, prompt):
    with attnlens.record(tiny, prompt) as recorder:
        generate(tiny, prompt)
        with pytest.raises(RuntimeError, match="open a new"):
            generate(tiny, prompt)
    assert recorder.trace.data.sizes["step"] == 8
    with attnlens.record(tiny, prompt) as recorder, torch.no_grad():
        tiny.model(**prompt.inputs)
        with pytest.raises(RuntimeError, match="open a new"):
            tiny.model(**prompt.inputs)


def test_a_recorder_is_used_once(tiny, prompt):
    recorder = attnlens.record(tiny, prompt)
    with recorder:
        generate(tiny, prompt)
        with pytest.raises(RuntimeError, match="has ended"):
            _ = recorder.trace
    with pytest.raises(RuntimeError, match="used once"), recorder:
        pass


def test_another_prompt_than_the_recorded_one(tiny, prompt):
    longer = tiny.prompt(picture(168, 168), "Is there a red circle?", "cot")
    recorder = attnlens.record(tiny, prompt)
    with pytest.raises(InputError, match="record the prompt that you generate"), recorder:
        generate(tiny, longer)


def test_another_prompt_of_the_same_length(tiny, prompt):
    """Segments and images would be those of the wrong question, without a sign of it."""
    a = tiny.prompt(picture(112, 140, 3), "Is there a red circle?", "back")
    b = tiny.prompt(picture(140, 112, 4), "Is there a red square?", "back")
    assert len(a.segments) == len(b.segments)
    with (
        pytest.raises(InputError, match="another prompt"),
        attnlens.record(tiny, a),
    ):
        generate(tiny, b)
    with (
        pytest.raises(InputError, match=r"another prompt .* \(row 0\)"),
        attnlens.record(tiny, tiny.batch([prompt, a])),
    ):
        generate(tiny, tiny.batch([a, prompt]))


def test_another_batch_than_the_recorded_one(tiny, prompt):
    recorder = attnlens.record(tiny, tiny.batch([prompt, prompt]))
    with pytest.raises(RuntimeError, match="batch of 1 where the prompt has 2"), recorder:
        generate(tiny, prompt)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [3]}, "no layer 3: the model has layers 0 to 2"),
        ({"layers": [-4]}, "no layer -4"),
        ({"layers": ["a"]}, "no layer 'a'"),
        ({"layers": []}, "layers is empty"),
        ({"prompt_rows": "some"}, "unknown prompt_rows 'some'"),
        ({"every": 0}, "every=0"),
    ],
)
def test_unusable_settings(tiny, prompt, options, words):
    with pytest.raises(InputError, match=words):
        attnlens.record(tiny, prompt, **options)


def test_a_prompt_without_an_image(tiny):
    text = tiny.prompt(None, "Is there a red circle?", "cot")
    with pytest.raises(InputError, match="no visual token"):
        attnlens.record(tiny, text)


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([], "no segments"),
        (["sink", "picture"], "unknown segment 'picture'"),
        (["sink", "response"], "unknown segment 'response'"),
        ([["sink", "visual"], ["sink"]], "differ in length"),
        (["sink", "padding", "visual"], "for the left of a prompt"),
        (["padding", "padding"], "for the left of a prompt"),
    ],
)
def test_unusable_segments(tiny, segments, words):
    with pytest.raises(InputError, match=words):
        attnlens.record(tiny.model, segments)


def test_models_that_are_not_supported(tiny, prompt):
    with pytest.raises(InputError, match=r"Linear is no supported model: give one of Qwen2\.5-VL"):
        attnlens.record(torch.nn.Linear(2, 2), prompt.segments)
    model = copy.deepcopy(tiny.model)
    model.model.language_model.config.layer_types[1] = "sliding_attention"
    with pytest.raises(InputError, match="sliding-window"):
        attnlens.record(model, prompt.segments)


def test_run_refuses_no_tokens_and_what_is_no_intervention(tiny, prompt):
    with pytest.raises(InputError, match="max_new_tokens=0"):
        attnlens.run(tiny, prompt, 0)
    with pytest.raises(InputError, match="'copy' is no intervention"):
        attnlens.run(tiny, prompt, 4, intervention="copy")


def test_run_is_generate_and_seeds_are_scoped(tiny, prompt):
    trace = attnlens.run(tiny, prompt, 8, min_new_tokens=8, do_sample=False)
    ids = generate(tiny, prompt, do_sample=False)[0, len(prompt.segments) :]
    assert trace.data["predicted_token_id"].values.tolist() == ids.tolist()
    before = torch.get_rng_state()
    options = {"min_new_tokens": 8, "do_sample": True, "temperature": 3.0}
    traces = [attnlens.run(tiny, prompt, 8, seed=s, **options) for s in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert traces[0].tokens == traces[1].tokens != traces[2].tokens
    assert traces[0].attrs["seed"] == 1
    assert traces[0].attrs["generation"]["temperature"] == 3.0
