"""The plug-in for lmms-eval, against a stand-in of the interface that lmms-eval 0.7.3 has."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import picture

import attnlens
from attnlens.errors import InputError

TEXT = "What is in the picture?"


class Lmms:
    """``lmms_eval.api.model.lmms``, as far as the evaluator and the plug-in use it."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}
        self.cached = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *what: self.cached.append(what))

    @classmethod
    def create_from_arg_string(cls, text, more):
        """Read numbers from the command line as numbers."""
        pairs = dict(pair.split("=", 1) for pair in text.split(","))
        given = {name: int(v) if v.isnumeric() else v for name, v in pairs.items()}
        return cls(**given, **{name: v for name, v in more.items() if v is not None})

    @property
    def rank(self):
        return self._rank

    def clean(self):
        self.cleaned = True


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclass
class Instance:
    arguments: tuple
    metadata: dict = field(default_factory=dict)
    task_name: str = "pope"

    @property
    def args(self):
        return self.arguments


def turn(doc, text=TEXT):
    """A conversation as ``ConfigurableMessagesTask`` makes one."""
    seen = [{"type": "image", "url": one} for one in doc]
    return [{"role": "user", "content": [*seen, {"type": "text", "text": text}]}]


def request(number=0, text=TEXT, metadata=None, **given):
    arguments = (text, partial(turn, text=text), given, number, "pope", "test")
    return Instance(arguments, metadata or {})


@pytest.fixture
def plugin(monkeypatch):
    stand_ins = {
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *stand_ins):
        module = ModuleType(name)
        vars(module).update(stand_ins.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    name = "attnlens.runs.lmms_eval"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name)


@pytest.fixture
def loaded(plugin, tiny, tmp_path, monkeypatch):
    """Start a model as the evaluator does, on documents with one picture, another, and none."""
    monkeypatch.setattr("attnlens.models.load.load", lambda name, **options: tiny)

    def start(arguments=""):
        text = f"pretrained=tiny,save_folder={tmp_path}{arguments}"
        found = plugin.RecordedModel.create_from_arg_string(
            text, {"batch_size": "1", "max_batch_size": None, "device": None}
        )
        docs = [[picture(seed=1)], [picture(seed=2)], []]
        found.task_dict["pope"] = {"test": docs}
        return found

    return start


@pytest.fixture
def runs(monkeypatch):
    """Collect the calls of ``attnlens.run`` that are made."""
    calls = []
    original = attnlens.run

    def run(vlm, prompt, **options):
        calls.append(options)
        return original(vlm, prompt, **options)

    monkeypatch.setattr("attnlens.experiments.run.run", run)
    return calls


def live_prompt(vlm, number):
    parts = [{"type": "image", "image": picture(seed=number + 1)}] if number < 2 else []
    return vlm.prompt([{"role": "user", "content": [*parts, {"type": "text", "text": TEXT}]}])


def test_the_entry_point_names_a_chat_model(plugin):
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    name, value = re.findall(r'entry-points."lmms_eval.models"\]\n(\w+) = "(.+)"', project)[0]
    manifest = EntryPoint(name, value, "lmms_eval.models").load()
    module, _, name = manifest.chat_class_path.rpartition(".")
    model = getattr(importlib.import_module(module), name)
    assert manifest.model_id == "attnlens"
    assert issubclass(model, Lmms)
    assert not model.is_simple


def test_answers_are_those_of_live_runs(loaded, tiny, tmp_path, capsys):
    model = loaded()
    asked = [request(n, max_new_tokens=5 + n) for n in (1, 2, 0)]
    by_number = dict(zip((1, 2, 0), model.generate_until(asked), strict=True))
    for number in (0, 1):
        prompt = live_prompt(tiny, number)
        live = attnlens.run(tiny, prompt, 5 + number, do_sample=False)
        folder = tmp_path / "pope" / "test" / f"{number + 1:05d}_{number}"
        kept = attnlens.Trace.load(folder / "trace.zarr")
        assert by_number[number] == live.text == kept.text
        np.testing.assert_array_equal(kept.data["mass"], live.data["mass"])
        assert json.loads((folder / "settings.json").read_text())["settings"]["question"] == TEXT
    prompt = live_prompt(tiny, 2)  # without a picture
    ids = tiny.model.generate(**prompt.inputs, max_new_tokens=7, do_sample=False)
    new = ids[0, prompt.inputs["input_ids"].shape[1] :]
    assert by_number[2] == tiny.tokenizer.decode(new, skip_special_tokens=True)
    assert len(list(tmp_path.rglob("trace.zarr"))) == 2
    assert "1 of 3 answers are to text alone, and are not recorded" in capsys.readouterr().err
    assert [what[2] for what in model.cached] == [by_number[n] for n in (1, 2, 0)]
    assert model.device == tiny.model.device
    model.clean()
    assert model.cleaned
    assert tiny not in vars(model).values()


def test_an_answer_that_is_there_is_not_generated_again(loaded, runs, tmp_path, capsys):
    asked = [request(0, max_new_tokens=4), request(1, max_new_tokens=4)]
    texts = loaded().generate_until(asked)
    assert len(runs) == 2
    shutil.rmtree(tmp_path / "pope/test/00002_1/trace.zarr/mass")
    assert loaded().generate_until(asked) == texts
    assert len(runs) == 3  # the damaged one
    assert "1 of 2 answers were recorded before" in capsys.readouterr().err
    for changed in ({"max_new_tokens": 5}, {"max_new_tokens": 4, "text": "Is it red?"}):
        loaded().generate_until([request(0, **changed)])
    loaded(",system_prompt=Be brief.").generate_until([request(0, max_new_tokens=4)])
    assert len(runs) == 6
    assert len(list(tmp_path.rglob("trace.zarr"))) == 2


def test_sampled_repeats_differ_and_padding_is_not_asked(loaded, runs, tmp_path):
    one = request(0, max_new_tokens=6, temperature=1.5, top_p=None)
    padding = replace(one, metadata={"__padding_only__": True})
    texts = loaded(",seed=3").generate_until([one, one, padding])
    assert [(call["seed"], call["temperature"], call["top_k"]) for call in runs] == [
        (3, 1.5, 0),
        (4, 1.5, 0),
    ]
    assert texts[0] != texts[1] == texts[2]
    assert len(list(tmp_path.glob("pope/test-2/00001_0/trace.zarr"))) == 1


def test_until_ends_an_answer(loaded, tiny, plugin, tmp_path):
    whole = attnlens.run(tiny, live_prompt(tiny, 0), 12, do_sample=False)
    stop = next(t for t in whole.tokens[4:] if t.strip() and t not in whole.tokens[:4])
    asked = request(0, max_new_tokens=12, until=["\n\n", stop])
    (text,) = loaded().generate_until([asked])
    assert text == whole.text.split(stop)[0]
    kept = attnlens.Trace.load(tmp_path / "pope/test/00001_0/trace.zarr")
    assert kept.tokens == whole.tokens[: whole.tokens.index(stop) + 1]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {"do_sample": False, "max_new_tokens": 2048}),
        ({"until": "\n\n", "temperature": 0.0, "top_p": 0.9}, {"do_sample": False}),
        ({"until": "END"}, {"stop_strings": ["END"]}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        ({"temperature": 0.7, "top_k": 5}, {"do_sample": True, "temperature": 0.7, "top_k": 5}),
        ({"num_beams": 1, "image_aspect_ratio": "pad"}, {"num_beams": 1}),
    ],
)
def test_what_a_task_asks_for_goes_to_generate(plugin, given, taken):
    options = plugin._options(given)
    assert taken.items() <= options.items()
    plain = {"max_new_tokens", "do_sample"}
    sampling = {"temperature", "top_k", "top_p"} if options["do_sample"] else set()
    assert set(options) == plain | sampling | set(taken)


def test_what_cannot_be_recorded_is_refused(loaded, plugin, tmp_path):
    model = loaded()
    for kind in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(InputError, match=f"pope asks for {kind}.*give tasks whose output_type"):
            getattr(model, kind)([request()])
    sound = request()
    sound.arguments = (TEXT, lambda doc: turn(doc) + turn(["a"]), {}, 0, "pope", "test")
    with pytest.raises(InputError, match=r"document 0 of pope \(test\): there is no image at 'a'"):
        model.generate_until([sound])
    with pytest.raises(InputError, match=r"document 0 of pope.*num_beams=2"):
        model.generate_until([request(num_beams=2)])
    folder = tmp_path / "pope/test/00001_0"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than a recorded answer"):
        loaded().generate_until([request(max_new_tokens=2)])
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"save_folder": "x"}, "pretrained is missing: give --model_args pretrained="),
        ({"pretrained": "testbed"}, "save_folder is missing"),
        (
            {"pretrained": "testbed", "save_folder": "x", "batch_size": "8"},
            "batch_size 8: .* give 1",
        ),
        ({"pretrained": "testbed", "save_folder": "x", "max_frames": 8}, "with max_frames="),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(plugin, arguments, said):
    with pytest.raises(InputError, match=said):
        plugin.RecordedModel(**arguments)
