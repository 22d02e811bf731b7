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

FEW = {"resamples": 200}


def one_answer(**attrs):
    found = answer([-1.0, -2.0], np.zeros((0, 2)), without=np.array([-2.0, -3.0]))
    return found.assign_attrs(attrs)


def run(**options):
    return synthetic_attention(12, visual=8, text=4, **options)


def over_runs():
    return measures.averages([run(), run(seed=1)], **FEW)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.mutual_information([one_answer()]), "a list of answers is no list of l"),
        (lambda: measures.mutual_information(one_answer()), "a Dataset of answers is no list"),
        (lambda: measures.mutual_information([[run()]]), "a Dataset without log-ratios"),
        (lambda: measures.mutual_information([[one_answer(sampled=0)]]), "decoded greedily"),
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


def test_dependence_knows_whether_the_response_was_sampled(tiny):
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    for sampled in (False, True):
        said = attnlens.run(tiny, prompt, 4, do_sample=sampled, seed=0)
        found = attnlens.dependence(tiny, said, prompt=prompt, references=("removed",))
        assert found.attrs == {"model": tiny.name, "sampled": int(sampled)}
    forced = attnlens.force(tiny, prompt, said)
    assert "sampled" not in attnlens.dependence(tiny, forced, prompt=prompt).attrs


def test_a_trace_knows_whether_its_answer_was_cut_off(tiny):
    prompt = tiny.prompt(picture(140, 112), "Is there a red circle?", "back")
    said = attnlens.run(tiny, prompt, 6, do_sample=False, eos_token_id=[])
    assert attnlens.run(tiny, prompt, 6, min_new_tokens=6).cut_off is True
    last = int(said.data["predicted_token_id"][3])
    ended = attnlens.run(tiny, prompt, 6, do_sample=False, eos_token_id=[last])
    assert ended.data.sizes["step"] <= 4
    assert ended.cut_off is False
    assert attnlens.force(tiny, prompt, said).cut_off is None
    assert attnlens.run(tiny, prompt, 6, eos_token_id=None).cut_off is None


@pytest.mark.parametrize(
    ("runs", "said"),
    [(1, ""), (3, "over runs; of 3, it is too narrow."), (10, "bootstrap interval over runs.")],
)
def test_captions_say_what_intervals_are_worth(runs, said):
    found = measures.dilution([run(gap=0.1 * i, seed=i) for i in range(runs)], **FEW)
    caption = " ".join(t.get_text() for t in plots.dilution(found).texts).replace("\n", " ")
    assert (said in caption) if said else ("interval" not in caption)
    assert ("the one run" in caption) == (runs == 1)


def test_an_estimate_below_zero_is_called_so():
    low = answer([-2.0, -3.0], np.zeros((0, 2)), without=np.array([-1.0, -2.0]))
    found = measures.mutual_information([[low], [low]], **FEW)
    assert found.nats == -2
    assert any("below 0" in sentence for sentence in found.verdict())
    assert any("fewer than 10 prompts" in sentence for sentence in found.verdict())
