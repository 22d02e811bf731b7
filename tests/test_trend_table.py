"""The table beside the pictures of one question, against eager attention and as text."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import attnlens
from attnlens.cli.main import main
from attnlens.reports.table import OF_A_FILE, steps_table, write_csv
from attnlens.runs.dataset import Question
from attnlens.testbed import held_out_sample

READ = {"keep_default_na": False, "na_values": [""]}
"""Options of pandas with which only an empty cell is missing, not the token "NA"."""


def reference_curves(vlm, image, text):
    """Follow Look-Back's recipe on the attention matrices that eager ``generate`` returns.

    Nothing of attnlens measures or labels here: places are found in the prompt's token ids.

    Returns
    -------
    curves
        [response token, curve]: image, query text, generated text, from the pass that is fed that
        token; the end token has no pass.
    ids
        The response, end token included.
    """
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]},
    ]
    prompt = vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = vlm.processor(
        text=[prompt], images=[image], return_tensors="pt", return_mm_token_type_ids=True
    )
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    output = model.generate(
        **inputs,
        max_new_tokens=400,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    ids = inputs["input_ids"][0].tolist()
    places = {
        name: [
            i for i, token in enumerate(ids) if token == vlm.tokenizer.convert_tokens_to_ids(name)
        ]
        for name in ("<|vision_start|>", "<|vision_end|>", "<|im_end|>")
    }
    first, end = places["<|vision_start|>"][0] + 1, places["<|vision_end|>"][0]
    answer = places["<|im_end|>"][1] + 5  # after it: line break, header of three tokens
    assert answer == len(ids)
    curves = []
    for layers in output.attentions[1:]:
        rows = torch.stack([layer[0, :, -1].double().mean(0) for layer in layers])
        parts = (rows[:, first:end], rows[:, end + 1 : answer], rows[:, answer:])
        shares = [part.sum(-1) / rows[:, first:].sum(-1) for part in parts]
        curves.append([share.mean().item() for share in shares])
    return np.array(curves), output.sequences[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("index", "mode"), [(0, "back"), (1, "cot")])
def test_the_written_table_equals_the_reference_recipe(index, mode, testbed, tmp_path):
    sample = held_out_sample(5, index, mode)
    sample.scene.draw().save(tmp_path / "scene.png")
    asked = ["--image_path", str(tmp_path / "scene.png"), "--question", sample.question.text]
    assert main(["trend", *asked, "--mode", mode, "--save_folder", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "scene" / f"{mode}_steps.csv", **READ)

    text = testbed.prompt(tmp_path / "scene.png", sample.question.text, mode).text
    text = text.split("<|vision_end|>")[1].split("<|im_end|>")[0]
    with Image.open(tmp_path / "scene.png") as image:
        curves, ids = reference_curves(testbed, image.convert("RGB"), text)
    assert ids[-1] == testbed.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(table) == len(ids)  # a row for each token that was predicted, from step 0
    columns = ["look-back", "look-back_query", "look-back_response"]
    assert table.loc[0, columns].isna().all()
    np.testing.assert_array_equal(table["step"], np.arange(len(ids)))
    np.testing.assert_allclose(table.loc[1:, columns], curves, rtol=0, atol=1e-6)
    # row t stands for response token t - 1, which is fed in at step t
    fed = [testbed.tokenizer.decode([token]) for token in ids[:-1]]
    assert table.loc[1:, "query_token"].fillna("").tolist() == fed
    assert set(curves.argmax(1)) == {0, 1, 2}  # so that none stands in for another


def test_the_table_of_one_question_is_that_of_a_file_of_one(tmp_path):
    image = tmp_path / "scene.png"
    held_out_sample(3, 0, "back").scene.draw().save(image)
    question = {"image": "scene.png", "question": "Is there a red circle, or “none”?"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    short = ["--mode", "cot", "--max_new_tokens", "12", "--save_folder", str(tmp_path / "out")]
    assert main(["trend", "--data", str(tmp_path / "q.jsonl"), *short]) == 0
    asked = ["--image_path", str(image), "--question", question["question"]]
    assert main(["trend", *asked, *short]) == 0
    many = pd.read_parquet(tmp_path / "out" / "cot_steps.parquet")
    one = pd.read_csv(tmp_path / "out" / "scene" / "cot_steps.csv", **READ)
    assert one.columns.tolist() == [name for name in many.columns if name not in OF_A_FILE]
    for name in one.columns:
        if pd.api.types.is_numeric_dtype(many[name]):
            # as many digits as tell one number from the next: nothing is lost
            np.testing.assert_array_equal(one[name].astype(many[name].dtype), many[name])
        else:
            read, written = (frame[name].astype("string").fillna("") for frame in (one, many))
            assert read.tolist() == written.tolist(), name
    # the questions of a file have their steps in one place
    assert not list((tmp_path / "out").glob("trend*/**/*.csv"))


HOSTILE = ["\r", "a\rb", "\r\n", "\n", '"', ",", ";", "NA", "null", "nan", "=1+1", "\x00", "\t"]
HOSTILE += ["\u2028", "\x85", "猫", "\U0001f600", "\x1a", "", " ", "\ufeff", "'", "\\"]


def test_any_token_comes_back_from_the_table(tiny, tmp_path):
    image = held_out_sample(3, 0, "back").scene.draw()
    trace = attnlens.run(tiny, tiny.prompt(image, "What?", "cot"), len(HOSTILE))
    names = HOSTILE[:]
    random.Random(0).shuffle(names)
    trace.data["predicted_token"] = ("step", np.array(names, dtype=object))
    write_csv(tmp_path / "t.csv", steps_table(trace, Question("a.png", 'One, "two"\nthree?')))
    back = pd.read_csv(tmp_path / "t.csv", **READ)
    assert back["predicted_token"].fillna("").tolist() == names
    assert set(back["question"]) == {'One, "two"\nthree?'}
