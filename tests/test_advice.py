"""The advice of refusals works: what each message says to do is done, and goes through."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import picture
from transformers import StaticCache

import attnlens
from attnlens import measures, plots
from attnlens.cli.arguments import parse_layers
from attnlens.cli.dilution import parse_window
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.experiments.force import twins
from attnlens.experiments.recovery import Recovery
from attnlens.interventions import (
    At,
    AtStep,
    Boost,
    Copy,
    Every,
    ForceTokens,
    Inject,
    Knockout,
    Route,
    WhenVisualBelow,
    intervene,
)
from attnlens.interventions.base import parse_intervention
from attnlens.interventions.triggers import parse_trigger
from attnlens.models.load import find_device

NEW = {"do_sample": False, "min_new_tokens": 6}


@pytest.fixture(scope="module")
def it(tiny, tmp_path_factory):
    """What the cases need: prompts, traces, results."""
    folder = tmp_path_factory.mktemp("advice")
    picture(140, 112).save(folder / "a.png")
    prompt = tiny.prompt(folder / "a.png", "How many?", "back")
    two = tiny.prompt([picture(), picture(seed=1)], "How many?")
    trace = attnlens.run(tiny, prompt, 6, visual_map=True, **NEW)
    tagged, first_tag = copy.deepcopy(trace), copy.deepcopy(trace)
    tagged.data["predicted_token"] = ("step", ["a", "<back>", "b", "c", "</back>", "d"])
    first_tag.data["predicted_token"] = ("step", ["<back>", "b", "c", "</back>", "d", "e"])
    return SimpleNamespace(
        vlm=tiny,
        folder=folder,
        prompt=prompt,
        two=two,
        trace=trace,
        tagged=tagged,
        first_tag=first_tag,
        copied=attnlens.run(tiny, prompt, 6, Copy(when=AtStep(3)), **NEW),
        short=attnlens.run(tiny, prompt, 2, do_sample=False, min_new_tokens=2),
        greedy=attnlens.dependence(tiny, trace, references=("removed",)),
        heads=attnlens.recover(tiny, prompt, [Copy(when=AtStep(3))], 6, detail="head", **NEW),
        recovery=attnlens.recover(tiny, prompt, [Copy(when=AtStep(3))], 6, detail="step", **NEW),
    )


def run(it, intervention=None, prompt=None, steps=6, **options):
    return attnlens.run(it.vlm, prompt or it.prompt, steps, intervention, **{**NEW, **options})


def generate(it, prompt=None, model=None, **options):
    given = (prompt or it.prompt).inputs
    options = {"max_new_tokens": 6, **NEW, **options}
    return (model or it.vlm.model).generate(**given, **options)


def recorded(it, generating, *, model=None, prompt=None, **options):
    with attnlens.record(model or it.vlm, prompt or it.prompt, **options) as recorder:
        generating()
    return recorder


def with_cache(it, room, intervention):
    cache = StaticCache(it.vlm.model.config.get_text_config(), max_cache_len=room)
    return run(it, intervention, past_key_values=cache)


def with_beams(it, **options):
    """Record a model that searches with beams unless it is told otherwise."""
    model = copy.deepcopy(it.vlm.model)
    model.generation_config.num_beams = 3
    with attnlens.record(model, it.prompt) as recorder:
        generate(it, model=model, **options)
    return recorder.trace


def flash(it):
    """A model whose attention is one under which scores cannot be changed."""
    vlm = replace(it.vlm, model=copy.deepcopy(it.vlm.model))
    vlm.model.config.text_config._attn_implementation = "flash_attention_2"
    vlm.model.model.language_model.config._attn_implementation = "flash_attention_2"
    return vlm


def under(it, name):
    vlm = replace(it.vlm, model=copy.deepcopy(it.vlm.model))
    vlm.model.set_attn_implementation(name)
    return vlm


def saved(it, name, value):
    value.save(it.folder / name)
    return it.folder / name


def same_response(it):
    return [it.trace, attnlens.force(it.vlm, it.prompt, it.trace, Copy(when=AtStep(3)))]


def sampled(it, **options):
    trace = attnlens.run(it.vlm, it.prompt, 6, seed=0, **options)
    return [[attnlens.dependence(it.vlm, trace, references=("removed",))]]


STORED = {"max_new_tokens": 6, **NEW}
PLAIN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

CASES = {
    # recording
    "beams": (
        lambda it: recorded(it, lambda: generate(it, num_beams=2)),
        "use greedy or sampled generation (num_beams=1)",
        lambda it: recorded(it, lambda: generate(it, num_beams=1)).trace,
    ),
    "beams of the model's own": (
        lambda it: with_beams(it),
        "use greedy or sampled generation (num_beams=1)",
        lambda it: with_beams(it, num_beams=1),
    ),
    "lookup": (
        lambda it: recorded(it, lambda: generate(it, prompt_lookup_num_tokens=2)),
        "use greedy or sampled generation",
        lambda it: recorded(it, lambda: generate(it, do_sample=True)).trace,
    ),
    "another length": (
        lambda it: recorded(it, lambda: generate(it, it.two)),
        "record the prompt that you generate",
        lambda it: recorded(it, lambda: generate(it, it.two), prompt=it.two).trace,
    ),
    "several sequences": (
        lambda it: recorded(
            it, lambda: generate(it, do_sample=True, num_return_sequences=2)
        ).trace,
        "use recorder.traces",
        lambda it: recorded(
            it, lambda: generate(it, do_sample=True, num_return_sequences=2)
        ).traces,
    ),
    "several sequences of run": (
        lambda it: run(it, num_return_sequences=2),
        "use attnlens.record and recorder.traces",
        lambda it: recorded(
            it, lambda: generate(it, do_sample=True, num_return_sequences=2)
        ).traces,
    ),
    "nothing": (
        lambda it: recorded(it, lambda: None).trace,
        "call model.generate(**prompt.inputs) inside the block",
        lambda it: recorded(it, lambda: it.vlm.model.generate(**it.prompt.inputs, **STORED)).trace,
    ),
    "no image": (
        lambda it: run(it, prompt=it.vlm.prompt(None, "How many?")),
        "give a prompt with an image",
        lambda it: run(it),
    ),
    "prompt rows": (
        lambda it: run(it, prompt_rows="first"),
        "use one of last, query, all",
        lambda it: [run(it, prompt_rows=rows) for rows in ("last", "query", "all")],
    ),
    "layers": (
        lambda it: run(it, layers=[3]),
        "the model has layers 0 to 2",
        lambda it: run(it, layers=[0, 2]),
    ),
    "segments of other lengths": (
        lambda it: attnlens.record(it.vlm.model, [["sink", "visual"], ["sink"]]),
        "pad shorter prompts on the left with 'padding'",
        lambda it: attnlens.record(it.vlm.model, [["sink", "visual"], ["padding", "sink"]]),
    ),
    "unknown segment": (
        lambda it: attnlens.record(it.vlm.model, ["sink", "image"]),
        "use sink, system, visual, vision_end, query or padding",
        lambda it: attnlens.record(
            it.vlm.model, ["padding", "sink", "system", "visual", "vision_end", "query"]
        ),
    ),
    "another model": (
        lambda it: attnlens.record(torch.nn.Linear(1, 1), it.prompt),
        "give one of Qwen2.5-VL, Qwen2-VL",
        lambda it: recorded(it, lambda: generate(it), model=it.vlm.model).trace,
    ),
    # the model
    "device": (
        lambda it: find_device("gpu"),
        "use auto, cpu, cuda",
        lambda it: [find_device(name) for name in ("auto", "cpu")],
    ),
    "score under another attention": (
        lambda it: intervene(flash(it), it.prompt, Knockout(when=AtStep(2))).__enter__(),
        "load the model with attn_implementation='sdpa' or 'eager'",
        lambda it: [
            attnlens.run(under(it, name), it.prompt, 4, Knockout(when=AtStep(2)), min_new_tokens=4)
            for name in ("sdpa", "eager")
        ],
    ),
    # interventions
    "several images": (
        lambda it: run(it, Copy(when=AtStep(2)), it.two),
        "say which by image=0 to 1",
        lambda it: [run(it, Copy(when=AtStep(2), image=i), it.two) for i in (0, 1)],
    ),
    "before the prompt's end": (
        lambda it: run(it, Copy(when=AtStep(0))),
        "use a step of at least 1",
        lambda it: run(it, Copy(when=AtStep(1))),
    ),
    "a place of another image": (
        lambda it: run(it, Copy(when=AtStep(2), source=picture(), positions="original")),
        "use 'fresh'",
        lambda it: run(it, Copy(when=AtStep(2), source=picture(), positions="fresh")),
    ),
    "no trigger": (
        lambda it: run(it, Copy(when="<back>")),
        "give one of attnlens.interventions, such as At('<back>')",
        lambda it: run(it, Copy(when=At("<back>"))),
    ),
    "no intervention": (
        lambda it: run(it, "copy"),
        "such as Copy(when=At('<back>'))",
        lambda it: run(it, Copy(when=At("<back>"))),
    ),
    "two open": (
        lambda it: two_open(it),
        "join the two by +, or close one first",
        lambda it: run(it, Copy(when=AtStep(2)) + Knockout(when=AtStep(2))),
    ),
    "a batch": (
        lambda it: intervene(it.vlm, it.vlm.batch([it.prompt]), Copy(when=AtStep(2))),
        "run the prompts one after the other",
        lambda it: [run(it, Copy(when=AtStep(2)), p) for p in (it.prompt, it.prompt)],
    ),
    "no cache": (
        lambda it: run(it, Copy(when=AtStep(2)), use_cache=False),
        "call model.generate(**prompt.inputs) with use_cache on",
        lambda it: run(it, Copy(when=AtStep(2)), use_cache=True),
    ),
    "a full static cache": (
        lambda it: with_cache(it, len(it.prompt.segments) + 7, Copy(when=AtStep(2))),
        "pass a larger one, past_key_values=StaticCache(config, max_cache_len=...)",
        lambda it: with_cache(it, len(it.prompt.segments) + 60, Copy(when=AtStep(2))),
    ),
    "a static cache that transformers makes": (
        lambda it: run(it, Copy(when=AtStep(2)), cache_implementation="static"),
        "pass a larger one, past_key_values=StaticCache(config, max_cache_len=...)",
        lambda it: attnlens.run(
            it.vlm,
            it.prompt,
            6,
            Copy(when=AtStep(2)),
            **NEW,
            past_key_values=StaticCache(it.vlm.model.config, max_cache_len=400),
        ),
    ),
    "forced text that calls itself": (
        lambda it: run(it, Inject(text="So <back>", when=At("<back>"))),
        "give its trigger times=1",
        lambda it: run(it, Inject(text="So <back>", when=At("<back>", times=1))),
    ),
    "forced text kept out": (
        lambda it: run(it, ForceTokens(ids=(300,), when=AtStep(2)), suppress_tokens=[300]),
        "leave that out, or force other text",
        lambda it: [
            run(it, ForceTokens(ids=(300,), when=AtStep(2))),
            run(it, ForceTokens(ids=(301,), when=AtStep(2)), suppress_tokens=[300]),
        ],
    ),
    "a boost of both kinds": (
        lambda it: run(it, Boost(when=AtStep(2), log_odds=1.0, alpha=0.5)),
        "give one of the two",
        lambda it: [
            run(it, Boost(when=AtStep(2), log_odds=1.0, alpha=None)),
            run(it, Boost(when=AtStep(2), alpha=0.5, log_odds=None)),
        ],
    ),
    "an endless boost": (
        lambda it: run(it, Boost(when=AtStep(2), log_odds=float("-inf"))),
        "give a finite number; Knockout hides keys",
        lambda it: run(it, Knockout(when=AtStep(2))),
    ),
    "a layer as a number": (
        lambda it: run(it, Knockout(when=AtStep(2), layers=1)),
        "give a list, such as [1]",
        lambda it: run(it, Knockout(when=AtStep(2), layers=[1])),
    ),
    "layers beside pairs": (
        lambda it: run(it, Knockout(when=AtStep(2), layers=[1], heads=[(1, 0)])),
        "pairs name their layers, leave layers out",
        lambda it: run(it, Knockout(when=AtStep(2), heads=[(1, 0)])),
    ),
    "a picture for ROUTE": (
        lambda it: run(it, Route(when=AtStep(2), source="blank")),
        "source is for Copy",
        lambda it: run(it, Copy(when=AtStep(2), source="blank")),
    ),
    "a share of another definition": (
        lambda it: WhenVisualBelow(0.5, definition="no-sink"),
        "use 'mass' or 'look-back'",
        lambda it: [
            run(it, Copy(when=WhenVisualBelow(0.5, definition=name)))
            for name in ("mass", "look-back")
        ],
    ),
    "every nothing": (
        lambda it: Every(0),
        "give a number of steps of at least 1",
        lambda it: run(it, Copy(when=Every(2))),
    ),
    "an unknown trigger": (
        lambda it: parse_trigger("step:two"),
        "give a whole number, or text:step:two to look for",
        lambda it: [
            parse_trigger(text) for text in ("text:step:two", "step:2", "every:2", "below:0.5")
        ],
    ),
    "a trigger that looks like one": (
        lambda it: parse_trigger("note:3"),
        "give step:N, every:N or below:SHARE; to look for these very characters, text:note:3",
        lambda it: run(it, Copy(when=parse_trigger("text:note:3"))),
    ),
    "a box beside the image": (
        lambda it: run(it, Knockout(when=AtStep(2), box=(500, 500, 600, 600))),
        "give one inside the image's 140 x 112 pixels",
        lambda it: run(it, Knockout(when=AtStep(2), box=(100, 100, 139, 111))),
    ),
    "a boost without an image": (
        lambda it: intervene(
            it.vlm, it.vlm.prompt(None, "How many?"), Boost(when=AtStep(2), log_odds=1.0)
        ),
        "give one with an image",
        lambda it: run(it, Boost(when=AtStep(2), log_odds=1.0)),
    ),
    "an answer of one token": (
        lambda it: twins(it.vlm, it.prompt, run(it, steps=1, min_new_tokens=1)),
        "give one of several tokens",
        lambda it: twins(it.vlm, it.prompt, it.short),
    ),
    "an unknown intervention": (
        lambda it: parse_intervention("glue", AtStep(2), "fresh"),
        "route:PERCENT",
        lambda it: [
            intervene(it.vlm, it.prompt, parse_intervention(text, AtStep(2), "fresh"))
            for text in (
                "copy", "copy:blank", "copy:text", f"copy:{it.folder / 'a.png'}", "route:50",
                "route:50:random", "route:50:bottom", "inject:So", "boost:1", "pai:0.5", "knockout",
                "copy+knockout",
            )
        ],
    ),
    # experiments
    "two of one name": (
        lambda it: attnlens.recover(
            it.vlm, it.prompt, [Copy(when=AtStep(2)), Copy(when=AtStep(3))], 6
        ),
        "recover(vlm, prompt, {'early': ..., 'late': ...})",
        lambda it: attnlens.recover(
            it.vlm, it.prompt, {"early": Copy(when=AtStep(2)), "late": Copy(when=AtStep(3))}, 6
        ),
    ),
    "reuse of sampled answers": (
        lambda it: attnlens.recover(
            it.vlm, it.prompt, [Copy(when=AtStep(2))], 6, reuse=True, do_sample=True
        ),
        "only plain greedy decoding",
        lambda it: attnlens.recover(it.vlm, it.prompt, [Copy(when=AtStep(2))], 6, reuse=True),
    ),
    "recording options of recover": (
        lambda it: attnlens.recover(it.vlm, it.prompt, [Copy(when=AtStep(2))], 6, layers=[0]),
        "options are those of model.generate",
        lambda it: attnlens.recover(
            it.vlm, it.prompt, [Copy(when=AtStep(2))], 6, repetition_penalty=1.1
        ),
    ),
    "rises that were not kept": (
        lambda it: it.recovery.by_head("copy"),
        "call recover with detail='head'",
        lambda it: it.heads.by_head("copy"),
    ),
    "heads of a definition without": (
        lambda it: it.heads.by_head("copy", "look-back"),
        "use 'mass'",
        lambda it: it.heads.by_head("copy", "mass"),
    ),
    "a trace of another prompt": (
        lambda it: attnlens.force(it.vlm, it.two, it.trace),
        "trace.data['predicted_token_id'].values to force the tokens all the same",
        lambda it: [
            attnlens.force(it.vlm, it.two, it.trace.data["predicted_token_id"].values),
            attnlens.force(it.vlm, it.prompt, it.trace),
        ],
    ),
    "no file of the image": (
        lambda it: attnlens.dependence(it.vlm, run(it, prompt=it.two)),
        "give the prompt that was generated",
        lambda it: attnlens.dependence(it.vlm, run(it, prompt=it.two), prompt=it.two),
    ),
    "dependence of a changed run": (
        lambda it: attnlens.dependence(it.vlm, it.copied),
        "give one of an untouched run",
        lambda it: attnlens.dependence(it.vlm, it.trace),
    ),
    "a reference that is none": (
        lambda it: attnlens.dependence(it.vlm, it.trace, references=["noise"]),
        "use removed, blank",
        lambda it: attnlens.dependence(it.vlm, it.trace, references=["removed", "blank"]),
    ),
    # measures
    "a definition": (
        lambda it: measures.visual_share(it.trace, "gaze"),
        "known: mass, look-back, mean-weight, lookback-ratio, reflection-v, no-sink",
        lambda it: [
            measures.visual_share(it.trace, name)
            for name in measures.definitions()
        ],
    ),
    "copied tokens that cannot be counted": (
        lambda it: measures.visual_share(it.copied, "reflection-v", include_copied=True),
        "use include_copied=False or another definition",
        lambda it: [
            measures.visual_share(it.copied, "reflection-v", include_copied=False),
            measures.visual_share(it.copied, "mass", include_copied=True),
        ],
    ),
    "a reduction": (
        lambda it: measures.visual_share(it.trace, "look-back", reduction="none"),
        "available: mean, layer",
        lambda it: [
            measures.visual_share(it.trace, "look-back", reduction=name)
            for name in ("mean", "layer")
        ],
    ),
    "a region and steps": (
        lambda it: measures.decay(it.tagged, region="back", steps=(0, 4)),
        "give one",
        lambda it: [
            measures.decay(it.tagged, region="back"),
            measures.decay(it.tagged, steps=(0, 4)),
        ],
    ),
    "a region that starts with the answer": (
        lambda it: measures.refocus(it.first_tag, region="back"),
        "give a trace that goes on for at least a step on both sides of the start",
        lambda it: measures.refocus(it.tagged, region="back"),
    ),
    "correlation of what was not measured": (
        lambda it: measures.correlation(it.greedy, reference="blank"),
        "use removed",
        lambda it: measures.correlation(it.greedy, reference="removed"),
    ),
    "bins": (
        lambda it: measures.agreement([it.trace], bins=0),
        "give a whole number from 1 to",
        lambda it: measures.agreement([it.trace], bins=1),
    ),
    "windows": (
        lambda it: measures.dilution([it.trace], between="all"),
        "((0, 40), (40, 80)) or ((0.0, 0.25), (0.75, 1.0))",
        lambda it: [
            measures.dilution([it.tagged], between=("back", "back")),
            measures.dilution([it.trace], between=((0, 2), (3, 5))),
            measures.dilution([it.trace], between=((0.0, 0.25), (0.75, 1.0))),
            measures.dilution([it.trace], between=[((0, 2), (3, 5))]),
        ],
    ),
    "few steps": (
        lambda it: measures.dilution([it.short]),
        "give runs of at least three",
        lambda it: measures.dilution([run(it, steps=3, min_new_tokens=3)]),
    ),
    "one group": (
        lambda it: measures.insertion(dict(zip("ab", same_response(it), strict=True))),
        "insertion([",
        lambda it: measures.insertion([dict(zip("ab", same_response(it), strict=True))]),
    ),
    "twins that say something else": (
        lambda it: measures.insertion([{"untouched": it.trace, "copy": run(
            it, Copy(when=AtStep(2)), do_sample=True, seed=3
        )}]),
        "give forced twins (attnlens.force)",
        lambda it: measures.insertion([dict(zip("ab", same_response(it), strict=True))]),
    ),
    "answers that were not sampled": (
        lambda it: measures.mutual_information([[it.greedy]]),
        "generate with do_sample=True, temperature=1.0, top_k=0, top_p=1.0",
        lambda it: measures.mutual_information(sampled(it, **PLAIN)),
    ),
    # plots
    "no visual map": (
        lambda it: plots.overlay(run(it, visual_map=False), step=2),
        "record with visual_map=True",
        lambda it: plots.overlay(run(it, visual_map=True), step=2),
    ),
    "a picture that is gone": (
        lambda it: plots.overlay(run(it, prompt=it.two, visual_map=True), step=2),
        "give image=",
        lambda it: plots.overlay(
            run(it, prompt=it.two, visual_map=True), step=2, image=it.two.pictures[0]
        ),
    ),
    "boxes": (
        lambda it: plots.overlay(it.trace, step=2, boxes=(1, 2, 3, 4)),
        "give a list of boxes, each (left, top, right, bottom)",
        lambda it: plots.overlay(it.trace, step=2, boxes=[(1, 2, 3, 4)]),
    ),
    "a width": (
        lambda it: plots.trend(it.trace, width="wide"),
        "or inches from 1 to 100",
        lambda it: [plots.trend(it.trace, width=w) for w in ("one-column", "two-column", 5)],
    ),
    "the format of a figure": (
        lambda it: plots.save(plots.trend(it.trace), it.folder / "figure"),
        "end it in one of",
        lambda it: [
            plots.save(plots.trend(it.trace), it.folder / f"f.{end}") for end in ("png", "svg")
        ],
    ),
    # files
    "a folder that is there": (
        lambda it: [it.trace.save(it.folder / "t.zarr"), it.trace.save(it.folder / "t.zarr")],
        "exists already",
        lambda it: it.trace.save(it.folder / "another.zarr"),
    ),
    "a file that is no recovery": (
        lambda it: Recovery.load(it.folder / "a.png"),
        "give a folder that Recovery.save has written",
        lambda it: Recovery.load(saved(it, "r.zarr", it.recovery)),
    ),
    # the command
    "layers of the command": (
        lambda it: parse_layers("a"),
        "give indices such as 0,2,-1 or 4-7",
        lambda it: [parse_layers("0,2,-1"), parse_layers("4-7")],
    ),
    "windows of the command": (
        lambda it: parse_window("40-0%"),
        "steps such as 0-40, or a part of the run such as 0%-25%",
        lambda it: [parse_window(text) for text in ("0-40", "0%-25%", "back", "think")],
    ),
}  # fmt: skip


def two_open(it):
    with intervene(it.vlm, it.prompt, Copy(when=AtStep(2))):
        run(it, Knockout(when=AtStep(2)))


@pytest.mark.parametrize("name", CASES)
def test_advice(it, name):
    refused, words, follow = CASES[name]
    with pytest.raises((InputError, RuntimeError)) as error:
        refused(it)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    follow(it)


@pytest.mark.parametrize("twice", [("copy", "copy"), ("boost:1", "boost:1.0")])
def test_an_intervention_is_given_once_on_the_command_line(it, twice, capsys):
    """There they cannot be named, which is what attnlens.recover advises."""
    arguments = ["recover", "--image_path", str(it.folder / "a.png"), "--question", "How many?"]
    arguments += ["--max_new_tokens", "4", "--when", "step:2", "--save_folder", str(it.folder)]
    both = [word for one in twice for word in ("--intervention", one)]
    assert main([*arguments, *both]) == 2
    assert f"--intervention {twice[0]} is given twice: give each" in capsys.readouterr().err
    assert main([*arguments, *both[:2]]) == 0
