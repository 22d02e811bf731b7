"""What measures and plots of results are given by mistake: one error that says what would work."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import picture
from test_measures_information import answer

import attnlens
from attnlens import measures, plots
from attnlens.errors import InputError
from attnlens.measures.theorems.synthetic import synthetic_attention


def one_answer(**attrs):
    found = answer([-1.0, -2.0], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    return found.assign_attrs(attrs)


def run(**options):
    return synthetic_attention(12, visual=8, text=4, **options)


def over_runs():
    return measures.averages([run(), run()])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.mutual_information([one_answer()]), "a list of answers is no list of l"),
        (lambda: measures.mutual_information(one_answer()), "a Dataset of answers is no list"),
        (lambda: measures.mutual_information([[run()]]), "a Dataset without log-ratios"),
        (
            lambda: measures.mutual_information([[one_answer(altered_by="top_k=1")]]),
            "generated with top_k=1",
        ),
        (
            lambda: measures.mutual_information([[one_answer().drop_vars("key_share")]]),
            "a Dataset without log-ratios",
        ),
        (
            lambda: measures.mutual_information([[one_answer().isel(reference=0)]]),
            "a Dataset without log-ratios",
        ),
        (lambda: measures.dilution(5), "5 was given: give traces"),
        (lambda: measures.averages(None), "None was given: give traces"),
        (lambda: measures.agreement(5), "5 was given: give traces"),
        (lambda: measures.insertion(5), "5 was given: give mappings of traces"),
        (lambda: measures.dilution(run(), confidence="9"), "Confidence '9'"),
        (lambda: measures.averages(run(), confidence=-1), "Confidence -1"),
        (lambda: measures.agreement(run(), confidence=95), "Confidence 95"),
        (lambda: measures.insertion([], confidence=0), "Confidence 0"),
        (lambda: measures.mutual_information([], confidence=1), "Confidence 1 is not"),
        (lambda: measures.correlation(one_answer()), "Dataset was given"),
        (lambda: plots.averages({1: over_runs()}), "dict was given"),
        (lambda: plots.save(None, 5), "cannot write a figure to 5"),
        (lambda: measures.insertion({"a": run(), "b": run()}), "one mapping of traces"),
        (lambda: measures.insertion([[run(), run()]]), "group 0 is a list"),
        (lambda: measures.correlation([one_answer()] * 2), "list was given"),
        (lambda: measures.correlation(one_answer(), "k1"), "dependence_name='k1': use one of kl"),
        (lambda: measures.correlation(one_answer(), share="all"), "share='all': use one of mass"),
        (lambda: measures.averages([run()], region="bakc"), "no trace has a region 'bakc'"),
        (lambda: plots.averages(over_runs()), "Averages was given"),
        (lambda: plots.averages({"a": run()}), "Dataset was given"),
        (lambda: plots.dilution([run()]), "list was given: give what attnlens.measures.dilution"),
        (lambda: plots.insertion(run()), "what attnlens.measures.insertion returns"),
        (lambda: plots.information([1]), "what attnlens.measures.mutual_information returns"),
        (lambda: plots.recovery(run()), "what attnlens.recover returns"),
        (lambda: plots.routes(run(), {"a": 1}), "what attnlens.recover returns"),
    ],
)
def test_one_error_says_what_would_work(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_known_region_that_no_run_has_is_averaged_as_a_whole():
    assert over_runs().with_region == 0  # cot answers beside back ones


def test_a_trace_of_another_prompt_is_not_forced(tiny):
    image, other = picture(140, 112), picture(112, 140)
    prompt = tiny.prompt(image, "Is there a red circle?", "back")
    said = attnlens.run(tiny, prompt, 6)
    again = tiny.prompt(image, "Is there a red circle?", "back")
    assert attnlens.force(tiny, again, said).tokens == said.tokens
    asked = tiny.prompt(image, "Is there a blue circle?", "back")
    with pytest.raises(InputError, match=r"another prompt \(its prompt differ"):
        attnlens.force(tiny, asked, said)
    shown = tiny.prompt(other, "Is there a red circle?", "back")
    with pytest.raises(InputError, match="images differ"):
        attnlens.force(tiny, shown, said)
    ids = said.data["predicted_token_id"].values
    assert attnlens.force(tiny, shown, ids).tokens == said.tokens
    with pytest.raises(InputError, match="str was given as prompt"):
        attnlens.force(tiny, "Is there a red circle?", said)
    for wrong in (5, ["a"], [0.5]):
        with pytest.raises(InputError, match="give a trace, the ids of its tokens, or its text"):
            attnlens.force(tiny, prompt, wrong)
    with pytest.raises(InputError, match="the token id -1: give ids from 0"):
        attnlens.force(tiny, prompt, [1, -1])


def test_a_picture_and_its_file_are_one_image(tiny, tmp_path):
    """Their hashes are of different things."""
    picture(140, 112).save(tmp_path / "a.png")
    picture(112, 140).save(tmp_path / "b.png")
    question = "Is there a red circle?"
    said = attnlens.run(tiny, tiny.prompt(tmp_path / "a.png", question, "back"), 3)
    opened = tiny.prompt(picture(140, 112), question, "back")
    assert attnlens.force(tiny, opened, said).tokens == said.tokens
    assert attnlens.dependence(tiny, said, prompt=opened).sizes["step"] == 3
    for other in (tmp_path / "b.png", picture(112, 140), [picture(140, 112)] * 2):
        with pytest.raises(InputError, match="differ"):
            attnlens.force(tiny, tiny.prompt(other, question, "back"), said)


def test_dependence_knows_what_kept_a_response_from_being_sampled_freely(tiny):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    free = {"do_sample": True, "top_k": 0}
    words = tiny.tokenizer(" red circle")["input_ids"]
    for options, said in (
        ({"do_sample": False}, "do_sample=False"),
        ({"do_sample": True}, "top_k=50"),  # what transformers takes
        ({"do_sample": True, "top_k": 1, "temperature": 0.1}, "temperature=0.1, top_k=1"),
        ({**free, "repetition_penalty": 1.05}, "repetition_penalty=1.05"),
        (
            {**free, "logits_processor": [TemperatureLogitsWarper(0.5)]},
            "logits_processor=['TemperatureLogitsWarper']",
        ),
        ({**free, "sequence_bias": {(5,): 0.5}}, "sequence_bias=dict"),
        (
            {**free, "prefix_allowed_tokens_fn": lambda row, ids: words},
            "prefix_allowed_tokens_fn=function",
        ),
        ({**free, "logits_processor": []}, ""),
        ({**free, "temperature": 1.0, "top_p": 1.0}, ""),
        ({**free, "temperature": np.float32(1.0)}, ""),
        (free, ""),
    ):
        trace = attnlens.run(tiny, prompt, 4, seed=0, **options)
        found = attnlens.dependence(tiny, trace, prompt=prompt, references=("removed",))
        assert found.attrs == {"model": tiny.name, "altered_by": said}
    with attnlens.record(tiny, prompt) as recorder:  # without names
        processors = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
        inputs = dict(prompt.inputs)
        ids = inputs.pop("input_ids")
        tiny.model.generate(ids, None, processors, max_new_tokens=4, **free, **inputs)
    found = attnlens.dependence(tiny, recorder.trace, prompt=prompt, references=("removed",))
    assert found.attrs["altered_by"] == "logits_processor=['TemperatureLogitsWarper']"
    forced = attnlens.force(tiny, prompt, trace)
    assert "altered_by" not in attnlens.dependence(tiny, forced, prompt=prompt).attrs


def test_a_trace_knows_whether_its_answer_was_cut_off(tiny):
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    said = attnlens.run(tiny, prompt, 6, do_sample=False, eos_token_id=[])
    assert attnlens.run(tiny, prompt, 6, min_new_tokens=6).cut_off is True
    last = int(said.data["predicted_token_id"][3])
    ended = attnlens.run(tiny, prompt, 6, do_sample=False, eos_token_id=[last])
    assert ended.data.sizes["step"] <= 4
    assert ended.cut_off is False
    assert attnlens.force(tiny, prompt, said).cut_off is said.cut_off is True
    ids = said.data["predicted_token_id"].values
    assert attnlens.force(tiny, prompt, ids).cut_off is None
    assert attnlens.run(tiny, prompt, 6, eos_token_id=None).cut_off is None


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (1, ""),
        (7, ""),
        (8, "95% interval over runs."),
    ],
)
def test_captions_say_over_what_intervals_are(runs, said):
    found = measures.dilution([run(gap=0.1 * i) for i in range(runs)])
    caption = " ".join(t.get_text() for t in plots.dilution(found).texts).replace("\n", " ")
    assert (said in caption) if said else ("interval" not in caption)
    assert ("the one run" in caption) == (runs == 1)


def test_captions_name_the_level_of_their_intervals_and_pass_over_lone_runs():
    groups = [
        {str(k): run(copied=(k, 4 if k else 0), gap=0.1 * i) for k in (0, 8)} for i in range(20)
    ]
    answers = [[one_answer()] for _ in range(20)]
    lone = {"a": measures.averages(run()), "b": measures.averages([run()] * 20)}
    for figure, said in (
        (plots.insertion(measures.insertion(groups, confidence=0.9)), "Bars: 90% interval"),
        (
            plots.information(measures.mutual_information(answers, confidence=0.5)),
            "Bars: 50% interval",
        ),
        (plots.averages(lone), "Bands: 95% interval over runs."),
    ):
        assert said in " ".join(t.get_text() for t in figure.texts).replace("\n", " ")


def test_answers_that_are_the_same_are_said():
    two = answer([-1.0, -2.0], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    other = answer([-1.0, -2.5], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    same = measures.mutual_information([[two, two], [two, other]])
    assert (same.answers, same.distinct) == (4, 3)
    assert any("Of 4 sampled answers 3 are different" in line for line in same.verdict())
    assert not any("different" in s for s in measures.mutual_information([[two]]).verdict())
    words = [two.assign_coords(predicted_token_id=("step", ids)) for ids in ([5, 9], [6, 9])]
    assert measures.mutual_information([words]).distinct == 2  # as likely as each other


def test_an_estimate_below_zero_is_called_so():
    low = answer([-2.0, -3.0], np.zeros((0, 2)), without=np.array([-1.0, -2.0]))
    found = measures.mutual_information([[low]] * 8)
    assert found.nats == -2
    assert any("below 0" in sentence for sentence in found.verdict())
