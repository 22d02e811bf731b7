"""Chat messages in Hugging Face's form: inputs, the segment of every key, and what is refused."""

from __future__ import annotations

import base64
import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import attnlens
from attnlens.errors import InputError
from attnlens.interventions import AtStep, Copy, Route
from attnlens.models.prompt import with_pictures

FEW = settings(max_examples=25, deadline=None)
SIZES = ((112, 112), (168, 140), (112, 168))  # 4 x 4, 5 x 6 and 6 x 4 visual tokens


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(number: int = 0) -> dict:
    return {"type": "image", "image": picture(*SIZES[number], number)}


def few_shot() -> list[dict]:
    """Two answered examples, the first of which is text alone, and a question with two pictures."""
    return [
        {"role": "system", "content": "Answer with one number."},
        {"role": "user", "content": "How many legs has a cat?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": [image(0), text("How many circles?")]},
        {"role": "assistant", "content": [text("2")]},
        {"role": "user", "content": [text("Look:"), image(1), text("and"), image(2), text("Sum?")]},
    ]


def by_the_processor(vlm, messages) -> dict[str, torch.Tensor]:
    return vlm.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )


def by_hand(vlm, messages, grids) -> tuple[list[int], list[str], list[int]]:
    """Write the chat down piece by piece: ids, segment and image of every key."""
    keys: list[tuple[int, str, int]] = []
    seen = 0

    def add(words: str, number: int = -1, segment: str = "") -> None:
        inside = segment or ("query" if seen else "system")
        keys.extend((i, inside, number) for i in vlm.tokenizer(words).input_ids)

    for message in messages:
        add("<|im_start|>")
        # the processor's tokenizer joins role, line end and what follows as one text
        said = f"{message['role']}\n"
        parts = message["content"]
        for part in [text(parts)] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                said += part["text"]
                continue
            add(said)
            said = ""
            add("<|vision_start|>")
            rows, columns = grids[seen]
            seen += 1
            add("<|image_pad|>" * (rows * columns), seen - 1, "visual")
            add("<|vision_end|>", -1, "vision_end")
        add(said)
        add("<|im_end|>")
        add("\n")
    add("<|im_start|>")
    add("assistant\n")
    keys[0] = (keys[0][0], "sink", -1)
    ids, segments, images = zip(*keys, strict=True)
    if not seen:
        segments = ("sink", *["query"] * (len(ids) - 1))
    return list(ids), list(segments), list(images)


def check(vlm, messages) -> None:
    prompt = vlm.prompt(messages)
    expected = by_the_processor(vlm, messages)
    assert set(prompt.inputs) == set(expected)
    for name, value in expected.items():
        assert torch.equal(prompt.inputs[name], value), name
    ids, segments, images = by_hand(vlm, messages, prompt.grids)
    assert prompt.inputs["input_ids"].tolist() == [ids]
    assert prompt.segments.tolist() == segments
    assert prompt.image_of_key.tolist() == images
    assert prompt.mode == "messages"


def test_few_shot_pictures_and_several_turns(tiny):
    check(tiny, few_shot())
    prompt = tiny.prompt(few_shot())
    assert prompt.grids == ((4, 4), (5, 6), (6, 4))
    assert prompt.question == "Look:\nand\nSum?"
    assert np.bincount(prompt.image_of_key[prompt.segments == "visual"]).tolist() == [16, 30, 24]
    tokens = tiny.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    # an earlier answer before the first image, and one after it
    answers = [at for at, token in enumerate(tokens) if token in ("4", "2")]
    assert [prompt.segments[at] for at in answers] == ["system", "query"]


WORDS = st.text(st.sampled_from("ab 12,?<>{}\n"), min_size=1, max_size=8)


@FEW
@given(st.data())
def test_any_conversation(tiny, data):
    messages = []
    if data.draw(st.booleans()):
        messages.append({"role": "system", "content": data.draw(WORDS)})
    turns = data.draw(st.integers(1, 3))
    for turn in range(turns):
        part = st.one_of(WORDS.map(text), st.integers(0, 2).map(image))
        content = data.draw(st.one_of(WORDS, st.lists(part, min_size=1, max_size=3)))
        messages.append({"role": "user", "content": content})
        if turn < turns - 1:
            messages.append({"role": "assistant", "content": data.draw(WORDS)})
    prompt = tiny.prompt(messages)
    for name, value in by_the_processor(tiny, messages).items():
        assert torch.equal(prompt.inputs[name], value), name
    count = sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )
    assert len(prompt.grids) == count
    ids = prompt.inputs["input_ids"][0].numpy()
    visual = ids == tiny.model.config.image_token_id
    assert (prompt.segments[visual] == "visual").all()
    first = int(np.argmax(visual)) if visual.any() else 0
    assert set(prompt.segments[1:first]) <= {"system"}
    assert set(prompt.segments[first or 1 :]) <= {"visual", "vision_end", "query"}


def test_one_turn_is_what_image_and_question_give(tiny):
    asked = tiny.prompt(picture(), "How many?", "cot", system="Be brief.")
    words = asked.text.split("<|vision_end|>")[1].split("<|im_end|>")[0]
    given_messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image(0), text(words)]},
    ]
    prompt = tiny.prompt(given_messages)
    assert prompt.text == asked.text
    assert prompt.segments.tolist() == asked.segments.tolist()
    for name, value in asked.inputs.items():
        assert torch.equal(prompt.inputs[name], value), name


def test_a_system_prompt_that_the_template_adds(tiny):
    """As Qwen's own template does where the messages hold none."""
    processor = copy.deepcopy(tiny.processor)
    own = processor.chat_template
    start = "{%- if messages[0].role != 'system' -%}<|im_start|>system\nBe good.<|im_end|>\n"
    processor.chat_template = start + "{% endif -%}\n" + own
    vlm = replace(tiny, processor=processor)
    messages = [{"role": "user", "content": [image(0), text("How many?")]}]
    prompt = vlm.prompt(messages)
    assert "Be good." in prompt.text
    for name, value in by_the_processor(vlm, messages).items():
        assert torch.equal(prompt.inputs[name], value), name
    ids, segments, _ = by_hand(
        tiny, [{"role": "system", "content": "Be good."}, *messages], prompt.grids
    )
    assert prompt.inputs["input_ids"].tolist() == [ids]
    assert prompt.segments.tolist() == segments


def test_every_spelling_of_an_image(tiny, tmp_path):
    path = tmp_path / "a.png"
    picture(140, 112).save(path)
    coded = base64.b64encode(path.read_bytes()).decode()
    url = f"data:image/png;base64,{coded}"
    for part in (
        {"type": "image", "image": picture(140, 112)},
        {"type": "image", "image": str(path)},
        {"type": "image", "image": path},
        {"type": "image", "image": path.as_uri()},
        {"type": "image", "image": np.asarray(picture(140, 112))},
        {"type": "image", "image": io.BytesIO(path.read_bytes())},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": str(path)},
        {"type": "image", "url": url},
        {"type": "image", "base64": coded},
        {"type": "image", "base64": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
    ):
        prompt = tiny.prompt([{"role": "user", "content": [part, text("How many?")]}])
        assert prompt.pictures[0].tobytes() == picture(140, 112).tobytes()
        assert prompt.grids == ((4, 5),)


def test_rows_of_a_data_set_have_empty_keys(tiny):
    """Arrow gives each part the keys of all others."""
    plain = [{"role": "user", "content": [image(0), text("How many?")]}]
    shown, said = ({"image": None, "text": None} | part for part in plain[0]["content"])
    filled = [{"role": "user", "content": [shown, said], "tool_calls": None}]
    prompt = tiny.prompt(filled)
    for name, value in tiny.prompt(plain).inputs.items():
        assert torch.equal(prompt.inputs[name], value), name


def test_record_run_and_interventions(tiny):
    """Few-shot pictures of different sizes: mass against eager attention, grids, copies."""
    prompt = tiny.prompt(few_shot())
    options = {"do_sample": False, "min_new_tokens": 6}
    trace = attnlens.run(tiny, prompt, 6, visual_map=True, **options)
    assert trace.attrs["mode"] == "messages"
    assert trace.attrs["prompt"] == prompt.text
    sizes = {int(n): 0 for n in range(3)}
    for number in trace.data["visual_image"].values.tolist():
        sizes[number] += 1
    assert sizes == {0: 16, 1: 30, 2: 24}
    assert trace.data["visual_row"].values.max() == 5
    eager = copy.deepcopy(tiny.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        rows = eager(**prompt.inputs, output_attentions=True).attentions
    for layer, row in enumerate(rows):
        for segment in ("sink", "system", "visual", "vision_end", "query"):
            mass = row[0, :, -1, prompt.segments == segment].sum(-1)
            found = trace.data["mass"].isel(step=0, layer=layer).sel(segment=segment).values
            np.testing.assert_allclose(found, mass.numpy(), atol=1e-5)
    by_image = trace.data["mass_by_image"].isel(step=0, layer=1, image=2).values
    expected = rows[1][0, :, -1, prompt.image_of_key == 2].sum(-1).numpy()
    np.testing.assert_allclose(by_image, expected, atol=1e-5)
    result = attnlens.recover(
        tiny, prompt, [Copy(when=AtStep(3), image=1), Route(when=AtStep(3), image=2)], 6, **options
    )
    assert result.table("mass")["inserted"].tolist() == [32, 14]  # 30 + 2, half of 24 + 2
    with pytest.raises(InputError, match="say which by image=0 to 2"):
        attnlens.run(tiny, prompt, 6, Copy(when=AtStep(3)))


def test_dependence_of_a_conversation(tiny, tmp_path):
    """The images are taken out of all turns, and the rest of the conversation stays."""
    messages = few_shot()
    for number, turn, place in ((0, 3, 0), (1, 5, 1), (2, 5, 3)):
        path = tmp_path / f"{number}.png"
        messages[turn]["content"][place].pop("image").save(path)
        messages[turn]["content"][place]["path"] = str(path)
    prompt = tiny.prompt(messages, min_pixels=20 * 28**2)
    trace = attnlens.run(tiny, prompt, 5, do_sample=False, min_new_tokens=5)
    found = attnlens.dependence(tiny, trace)
    assert found.equals(attnlens.dependence(tiny, trace, prompt=prompt))
    bare = [dict(m) for m in messages]
    for turn in (3, 5):
        bare[turn]["content"] = [p for p in messages[turn]["content"] if p["type"] == "text"]
    without = tiny.prompt(bare)
    ids = trace.data["predicted_token_id"].values
    with torch.no_grad():
        whole = torch.cat([without.inputs["input_ids"], torch.tensor(ids)[None]], dim=1)
        logits = tiny.model(input_ids=whole, mm_token_type_ids=torch.zeros_like(whole)).logits
    log_q = logits[0, -len(ids) - 1 : -1].log_softmax(-1)[torch.arange(len(ids)), ids].numpy()
    removed = found.sel(reference="removed")
    np.testing.assert_allclose(
        found["log_probability"] - removed["log_ratio"], log_q, atol=1e-3, rtol=1e-3
    )
    other = tiny.prompt(messages)  # resized to another grid
    assert other.grids != prompt.grids
    with pytest.raises(InputError, match="not that of the trace"):
        attnlens.dependence(tiny, trace, prompt=other)


def test_batches_of_conversations(tiny):
    prompts = [tiny.prompt(few_shot()), tiny.prompt(picture(), "How many?")]
    batch = tiny.batch(prompts)
    length = len(prompts[0].segments)
    assert batch.segments.shape == (2, length)
    assert batch.segments[0].tolist() == prompts[0].segments.tolist()
    with attnlens.record(tiny, batch) as recorder:
        tiny.model.generate(**batch.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(recorder.traces) == 2


USER = {"role": "user", "content": "How many?"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (USER, "one message was given: give a list"),
        ([USER, "and?"], "message 1 is 'and"),
        ([{"role": "user"}], "give role and content"),
        ([{**USER, "name": "Ann"}], "give role and content"),
        ([{**USER, "role": "tool"}], "the role 'tool': use one of system, user, assistant"),
        ([USER, {"role": "system", "content": "Be good."}], "message 1 is the system's"),
        ([USER, {"role": "assistant", "content": "3"}], "end with one of the user's"),
        ([{"role": "system", "content": "Be good."}], "end with one of the user's"),
        ([{**USER, "content": None}], "give role and content"),
        ([{**USER, "content": 3}], "the content 3"),
        ([{**USER, "content": ["How many?"]}], "has a part 'How many"),
        ([{**USER, "content": [{"text": "How many?"}]}], "has a part"),
        ([{**USER, "content": [{"type": "text", "text": None}]}], "has a part"),
        ([{**USER, "content": [{"type": "image"}]}], "has a part"),
        ([{**USER, "content": [{"type": "image", "image": "a", "path": "b"}]}], "has a part"),
        ([{**USER, "content": [{"type": "image", "image": "a", "max_pixels": 9}]}], "vlm.prompt"),
        ([{**USER, "content": [{"type": "audio", "audio": "a.wav"}]}], "has a part"),
        ([{**USER, "content": [{"type": "image", "image": None}]}], "has a part"),
        ([{**USER, "content": [{"type": "image", "image": 3}]}], "given as int"),
        ([{**USER, "content": [{"type": "image", "url": "https://a.b/c.png"}]}], "download it"),
        ([{**USER, "content": [{"type": "image", "base64": "x" * 200_001}]}], "holds no picture"),
        ([{**USER, "content": "<|image_pad|>"}], "special token"),
        ([{"role": "assistant", "content": "<|im_end|>"}, USER], "special token"),
    ],
)
def test_what_are_no_messages(tiny, messages, words):
    with pytest.raises(InputError) as refused:
        tiny.prompt(messages)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 500
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"question": "How many?"}, "question cannot be given with messages"),
        ({"system": "Be good."}, "system cannot be given with messages"),
        ({"template": "{question}"}, "template cannot be given with messages"),
        ({"mode": "cot"}, "mode 'cot' cannot be given with messages"),
    ],
)
def test_messages_say_all_themselves(tiny, beside, words):
    with pytest.raises(InputError, match=words):
        tiny.prompt([USER], **beside)
    for mode in ("normal", None):
        assert tiny.prompt([USER], mode=mode).mode == "messages"


def test_tags_that_a_model_has_as_special_tokens(tiny):
    processor = copy.deepcopy(tiny.processor)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<back>", "</back>"]})
    vlm = replace(tiny, processor=processor)
    assert "<back>" in vlm.prompt([{**USER, "content": "Check inside <back> </back>."}]).text


def test_a_template_that_writes_no_images(tiny):
    """A text model's: the picture would not be seen, and nothing would say so."""
    processor = copy.deepcopy(tiny.processor)
    processor.chat_template = "{% for m in messages %}{{ m.role }}: hello\n{% endfor %}"
    vlm = replace(tiny, processor=processor)
    with pytest.raises(InputError, match="0 placeholders for 1 images"):
        vlm.prompt(picture(), "How many?")


def test_text_to_insert_is_that_of_the_last_message(tiny):
    said = tiny.prompt([{"role": "user", "content": [image(0), text("How many?")]}])
    silent = tiny.prompt([{"role": "user", "content": [text("How many?")]},
                          {"role": "assistant", "content": "Of what?"},
                          {"role": "user", "content": [image(0)]}])  # fmt: skip
    copy_text = Copy(when=AtStep(2), source="text")
    trace = attnlens.run(tiny, said, 4, copy_text, do_sample=False, min_new_tokens=4)
    assert len(trace.attrs["interventions"]) == 1
    with pytest.raises(InputError, match="no text to insert; give another source"):
        attnlens.run(tiny, silent, 4, copy_text)
    attnlens.run(tiny, silent, 4, Copy(when=AtStep(2), source="blank"), min_new_tokens=4)
    assert isinstance(silent.pictures[0], Image.Image)


def test_the_same_prompt_with_other_pictures(tiny):
    """Same words, same limits of pixels: what ``dependence`` compares with."""
    limits = {"min_pixels": 40 * 784, "max_pixels": 60 * 784}
    prompt = tiny.prompt(few_shot(), **limits)
    again = with_pictures(tiny, prompt, prompt.pictures)
    assert again.grids == prompt.grids != tiny.prompt(few_shot()).grids
    assert again.limits == prompt.limits
    for name, value in prompt.inputs.items():
        assert torch.equal(again.inputs[name], value), name
    assert again.segments.tolist() == prompt.segments.tolist()
