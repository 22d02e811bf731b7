"""Loading checkpoints, and one clear error for what is none."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import picture, same_inputs, tiny_vlm
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import attnlens
from attnlens.errors import InputError
from attnlens.models import qwen2_5_vl
from attnlens.models.load import OPTIONS, find_device
from attnlens.models.qwen2_5_vl import QWEN2_5_VL, ImageTextProcessor

QUESTION = "How many objects are left?"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """Copy the checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "tiny"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def tokens(vlm, mode="cot") -> list[int]:
    prompt = vlm.prompt(picture(140, 112), QUESTION, mode)
    options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    return vlm.model.generate(**prompt.inputs, **options)[0].tolist()


def refuse(name, words, **options) -> str:
    """Check that loading fails with one line that repeats what was given."""
    with pytest.raises(InputError, match=words) as refused:
        attnlens.load(name, **options)
    assert len(str(refused.value).splitlines()) == 1
    assert "\x1b" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("as_path", [False, True])
def test_a_saved_model_gives_the_same_tokens(tiny, checkpoint, as_path):
    vlm = attnlens.load(checkpoint if as_path else str(checkpoint), device="cpu")
    assert type(vlm.model) is type(tiny.model)
    assert vlm.name == str(checkpoint)
    assert vlm.family == tiny.family
    assert vlm.tokenizer is vlm.processor.tokenizer
    assert not vlm.model.training
    assert vlm.model.device == torch.device("cpu")
    expected = tiny.model.state_dict()
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for mode in ("cot", "reflection"):
        one, other = (v.prompt(picture(140, 112), QUESTION, mode) for v in (vlm, tiny))
        assert one.text == other.text
        assert one.segments.tolist() == other.segments.tolist()
        assert same_inputs(one.inputs, other.inputs)
    assert tokens(vlm) == tokens(tiny)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("auto", torch.float32),
    ],
)
def test_dtype(checkpoint, dtype, expected):
    vlm = attnlens.load(checkpoint, device="cpu", dtype=dtype)
    assert {p.dtype for p in vlm.model.parameters()} == {expected}


def test_weights_under_their_older_names_and_in_shards(tiny, folder):
    """As published checkpoints have them: ``visual.*``, ``model.layers.*``, several files."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    older = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for name, value in weights.items()
    }
    assert any(name.startswith("visual.") for name in older)
    assert any(name.startswith("model.layers.") for name in older)
    (folder / WEIGHTS).unlink()
    names = sorted(older)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: older[name] for name in part}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )
    config = json.loads((folder / "config.json").read_text())
    flat = {**config, **config.pop("text_config")}  # the text model's settings beside the rest
    flat |= {"model_type": "qwen2_5_vl", "architectures": config["architectures"]}
    (folder / "config.json").write_text(json.dumps(flat))
    assert tokens(attnlens.load(folder, device="cpu")) == tokens(tiny)


def test_a_folder_inside_the_one_that_is_named(tiny, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "all" / "step_100")
    vlm = attnlens.load(tmp_path / "all", subfolder="step_100", device="cpu")
    assert tokens(vlm) == tokens(tiny)
    with pytest.raises(InputError, match="step_200"):
        attnlens.load(tmp_path / "all", subfolder="step_200")


def test_auto_keeps_the_type_of_the_checkpoint(tiny, folder):
    model = attnlens.load(folder, device="cpu", dtype="bfloat16").model
    model.save_pretrained(folder)
    assert attnlens.load(folder, device="cpu").model.dtype == torch.bfloat16
    assert len(tokens(attnlens.load(folder, device="cpu"))) == len(tokens(tiny))


def test_options_are_passed_on(checkpoint):
    vlm = attnlens.load(checkpoint, device="cpu", attn_implementation="eager")
    assert vlm.model.config._attn_implementation == "eager"
    plain = attnlens.load(checkpoint, device="cpu")
    assert plain.model.config._attn_implementation == "sdpa"  # transformers' own choice
    mapped = attnlens.load(checkpoint, device_map={"": "cpu"}, device="cuda:7")
    assert mapped.model.device == torch.device("cpu")
    refuse(checkpoint, "cannot be loaded", device="cpu", no_such_option=1)


def test_the_processor_loads_without_torchvision(tiny, checkpoint, monkeypatch):
    monkeypatch.setattr(qwen2_5_vl, "is_torchvision_available", lambda: False)
    processor = QWEN2_5_VL.load_processor(checkpoint)
    assert isinstance(processor, ImageTextProcessor)
    vlm = attnlens.load(checkpoint, device="cpu")
    assert isinstance(vlm.processor, ImageTextProcessor)
    assert processor.chat_template == tiny.processor.chat_template
    assert processor.image_token_id == tiny.model.config.image_token_id


class Stock:
    """Stands for the stock processor, which needs torchvision to be imported."""

    def __init__(self, folder, chat_template, options) -> None:
        self.folder, self.options = folder, options
        self.chat_template = chat_template
        self.tokenizer = types.SimpleNamespace(chat_template="of the tokenizer")


@pytest.mark.parametrize(("template", "used"), [("own", "own"), (None, "of the tokenizer")])
def test_the_stock_processor_is_used_with_torchvision(monkeypatch, template, used):
    stock = types.SimpleNamespace(
        from_pretrained=lambda folder, **options: Stock(folder, template, options)
    )
    monkeypatch.setattr(transformers, "Qwen2_5_VLProcessor", stock)
    monkeypatch.setattr(qwen2_5_vl, "is_torchvision_available", lambda: True)
    processor = QWEN2_5_VL.load_processor("owner/model", revision="main")
    assert type(processor) is Stock
    assert (processor.folder, processor.options) == ("owner/model", {"revision": "main"})
    assert processor.chat_template == used


@pytest.mark.parametrize("error", [OSError, ValueError, TypeError])
def test_ours_is_used_where_the_stock_one_finds_no_settings_for_videos(
    tiny, checkpoint, monkeypatch, error
):
    asked = []

    def fail(folder, **_):
        asked.append(folder)
        raise error("Can't load video processor: there is no video_preprocessor_config.json")

    monkeypatch.setattr(
        transformers, "Qwen2_5_VLProcessor", types.SimpleNamespace(from_pretrained=fail)
    )
    monkeypatch.setattr(qwen2_5_vl, "is_torchvision_available", lambda: True)
    processor = QWEN2_5_VL.load_processor(checkpoint)
    assert asked == [checkpoint]
    assert isinstance(processor, ImageTextProcessor)
    assert processor.chat_template == tiny.processor.chat_template


@pytest.mark.parametrize("template", ["chat_template.json", "chat_template.jinja"])
def test_a_folder_as_the_hub_has_it(tiny, folder, template):
    """Qwen's own layout: preprocessor_config.json and the stock class names."""
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    size = tiny.processor.image_processor.size
    stock = {
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(stock))
    chat = tiny.processor.chat_template
    if template == "chat_template.json":
        chat = json.dumps({"chat_template": chat})
    (folder / template).write_text(chat)
    change(folder / "tokenizer_config.json", processor_class="Qwen2_5_VLProcessor")
    vlm = attnlens.load(folder, device="cpu")
    one, other = (v.prompt(picture(300, 200), QUESTION, "back") for v in (vlm, tiny))
    assert one.text == other.text
    assert one.grids == other.grids
    assert same_inputs(one.inputs, other.inputs)
    assert tokens(vlm) == tokens(tiny)


def test_folders_without_a_model(tmp_path, monkeypatch):
    assert repr(str(tmp_path)) in refuse(tmp_path, "holds no model")
    assert repr(str(tmp_path)) in refuse(str(tmp_path), "holds no model")
    # a folder of that name comes before the Hub
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refuse("owner/model", "'owner/model' holds no model")


def test_names_that_lead_nowhere(tmp_path):
    for name in (
        "nobody/no-such-model",
        str(tmp_path / "missing"),
        "no such model",
        "a/b/c",
        "../../etc",
        "",
        "\x1b[31mred",
        "two\nlines",
    ):
        refuse(name, "there is no checkpoint|holds no model")


def test_a_file_instead_of_a_folder(tmp_path, checkpoint):
    text = tmp_path / "notes.txt"
    text.write_text("no configuration")
    refuse(str(text), "there is no checkpoint")
    refuse(text, "there is no checkpoint")
    refuse(checkpoint / "config.json", "cannot be loaded")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"model_type": "nothing-known"}'])
def test_configurations_that_are_none(folder, text):
    (folder / "config.json").write_text(text)
    assert repr(str(folder)) in refuse(folder, "its config.json cannot be used")


def test_a_text_only_model(tmp_path):
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    message = refuse(
        tmp_path, "is a 'qwen2' checkpoint: attnlens reads checkpoints of Qwen2.5-VL, Qwen2-VL"
    )
    assert repr(str(tmp_path)) in message


def test_a_checkpoint_of_another_family_that_is_supported(tmp_path, tokenizer):
    saved = tiny_vlm(tokenizer, "qwen2_vl")
    saved.model.save_pretrained(tmp_path)
    saved.processor.save_pretrained(tmp_path)
    vlm = attnlens.load(tmp_path, device="cpu")
    assert vlm.family.name == "Qwen2-VL"
    assert tokens(vlm) == tokens(saved)
    prompt = vlm.prompt(picture(140, 112), QUESTION, "back")
    trace = attnlens.run(vlm, prompt, 6, min_new_tokens=6, do_sample=False)
    np.testing.assert_allclose(trace.data["mass"].sum("segment"), 1, atol=1e-5)
    with pytest.raises(InputError, match=r"give one of Qwen2\.5-VL, Qwen2-VL, "):
        attnlens.record(torch.nn.Linear(2, 2), ["sink", "visual"])


@pytest.mark.parametrize("model_type", ["blip-2", "git"])
def test_other_vision_language_models(folder, model_type):
    AutoConfig.for_model(model_type).save_pretrained(folder)
    refuse(folder, f"is a '{model_type}' checkpoint")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "processor_config.json"])
def test_a_checkpoint_that_lacks_a_part(folder, name):
    (folder / name).unlink()
    assert repr(str(folder)) in refuse(folder, "cannot be loaded")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint(folder, name, part):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(part * len(whole))])
    assert repr(str(folder)) in refuse(folder, "cannot be loaded")


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, "cannot be loaded")


def test_weights_that_are_not_all_there(tiny, folder):
    """Layers that the file lacks would be filled with random numbers."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    refuse(folder, "12 of its weights are missing, such as model.language_model.layers.3")


@pytest.fixture
def loaded(tiny, monkeypatch):
    """Make transformers report what a checkpoint lacks and what nothing asked for."""

    def stub(missing, unexpected, quantised):
        model = copy.deepcopy(tiny.model)
        if quantised:
            model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
        report = {"missing_keys": set(missing), "unexpected_keys": set(unexpected)}
        monkeypatch.setattr(
            Qwen2_5_VLForConditionalGeneration,
            "from_pretrained",
            classmethod(lambda *_, **__: (model, report)),
        )

    return stub


LAYER = "model.language_model.layers.0.self_attn."


def test_a_quantised_checkpoint_stores_weights_under_other_names(checkpoint, loaded):
    packed = [LAYER + "q_proj.qweight", LAYER + "q_proj.scales"]
    loaded([LAYER + "q_proj.weight"], packed, quantised=True)
    assert attnlens.load(checkpoint, device="cpu").model.config.quantization_config
    # the packed weight is the layer's own, and what its form leaves open is not in the file
    loaded([LAYER + "o_proj.weight_scale"], [], quantised=True)
    attnlens.load(checkpoint, device="cpu")
    loaded([LAYER + "q_proj.weight"], packed, quantised=False)
    refuse(checkpoint, "1 of its weights are missing", device="cpu")


def test_a_quantised_checkpoint_that_lacks_a_layer(checkpoint, loaded):
    # the bias of q_proj is there, and says nothing of the weight
    loaded([LAYER + "q_proj.weight"], [LAYER + "k_proj.qweight"], quantised=True)
    refuse(checkpoint, r"1 of its weights are missing, such as .*q_proj\.weight", device="cpu")


def test_devices_that_are_not_there(checkpoint):
    for device in ("cuda:7", "cuda:99", "gpu", "", "cpu:x", None):
        if device and device.startswith("cuda") and int(device[5:]) < torch.cuda.device_count():
            continue
        works = r"is not there: use auto, cpu, cuda, cuda:N \(its number\) or mps; this machine has"
        message = refuse(checkpoint, f"{works} cpu", device=device)
        assert ("cuda:0" in message) == torch.cuda.is_available()
        assert ("mps" in message.split("has")[1]) == torch.backends.mps.is_available()
        assert repr(device) in message
    assert find_device("cpu") == torch.device("cpu")
    found = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert find_device("auto") == torch.device(found)


def test_a_device_is_checked_before_anything_is_read():
    refuse("nobody/no-such-model", "device 'gpu' is not there", device="gpu")


@pytest.mark.parametrize("dtype", ["int8", "fp16", "", "Float32"])
def test_an_unknown_dtype(checkpoint, dtype):
    message = refuse(checkpoint, "unknown dtype .*float32, bfloat16, float16", dtype=dtype)
    assert repr(dtype) in message


@pytest.mark.parametrize("value", [True, False])
def test_trust_remote_code_is_refused(checkpoint, value):
    refuse(checkpoint, "runs no code of checkpoints", trust_remote_code=value)


CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Mine(PretrainedConfig):
    model_type = "mine"


class MyTokenizer(PreTrainedTokenizerFast):
    pass


class MyImages(Qwen2VLImageProcessorPil):
    pass
"""


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "mine.MyImages"}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "mine.MyImages"}}),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_never_run(folder, tmp_path, monkeypatch, name, entries, known):
    """Not even when whoever sits at the keyboard would say yes."""
    mark = tmp_path / "run"
    (folder / "mine.py").write_text(CODE.format(mark=str(mark)))
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    change(folder / name, **entries)
    if not known:  # no class of transformers could step in
        change(folder / "tokenizer_config.json", tokenizer_class="MyTokenizer")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    with contextlib.suppress(InputError):
        attnlens.load(folder, device="cpu")
    assert not mark.exists()
    assert not asked


class Canary:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_pickled_weights_run_nothing(folder, tmp_path):
    mark = tmp_path / "run"
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Canary(mark)}, folder / "pytorch_model.bin")
    refuse(folder, "cannot be loaded")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Canary(mark)))  # the trap works
    assert mark.exists()


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"torch_dtype": "bfloat16"}, "give dtype="),
        ({"attn_implementaton": "eager"}, "give attn_implementation="),
        ({"max_pixel": 9}, "give max_pixels="),
        ({"low_cpu_mem_usage": True}, "give some of device, dtype,"),
        ({"use_sliding_window": False}, "give some of"),
        ({"image_token_id": 5}, "give some of"),
        ({"temperature": 1.0}, "give some of"),
    ],
)
def test_options_that_transformers_would_swallow(checkpoint, option, advice):
    (name,) = option
    message = refuse(checkpoint, f"cannot be loaded with {name}=, which is not an option", **option)
    assert advice in message
    # the advice is one of what load takes
    assert advice.split("give ")[1].rstrip("=") in (*OPTIONS, "dtype", "max_pixels") or (
        set(message.split("give some of ")[1].split(", "))
        == {*OPTIONS, "device", "dtype", "device_map", "min_pixels", "max_pixels"}
    )


def test_every_option_is_one_of_transformers(checkpoint, monkeypatch):
    """None is swallowed: each comes to where weights are read."""
    seen = {}
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained

    def watch(source, **options):
        seen.update(options)
        return whole(source, dtype=options["dtype"], output_loading_info=True)

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "from_pretrained", watch)
    given = {"revision": "main", "use_safetensors": True, "attn_implementation": "sdpa"}
    attnlens.load(checkpoint, device="cpu", **given)
    assert given.items() <= seen.items()


PARTS_OF_A_FOLDER = {
    "image processor": ("processor_config.json",),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "chat template": ("chat_template.jinja",),
}


@pytest.mark.parametrize("part", PARTS_OF_A_FOLDER)
def test_a_folder_without_a_part_and_the_advice_for_it(tiny, checkpoint, folder, part):
    for name in PARTS_OF_A_FOLDER[part]:
        (folder / name).unlink()
    message = refuse(folder, f"it has no {part}", device="cpu")
    assert repr(str(folder)) in message
    for name in PARTS_OF_A_FOLDER[part]:
        assert name in message
        shutil.copy(checkpoint / name, folder)
    assert tokens(attnlens.load(folder, device="cpu")) == tokens(tiny)


def adapter(folder: Path) -> None:
    """What peft writes: settings and low-rank weights."""
    from safetensors.torch import save_file

    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    settings = {"peft_type": "LORA", "base_model_name_or_path": "owner/model", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights = {name.format("A"): torch.ones(2, 64), name.format("B"): torch.ones(64, 2)}
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("beside", ["nothing", "settings", "weights"])
def test_a_lora_adapter(tiny, folder, beside):
    """Alone it is no model, and beside weights it would be left out without a word."""
    adapter(folder)
    for name in {"nothing": (WEIGHTS, "config.json"), "settings": (WEIGHTS,)}.get(beside, ()):
        (folder / name).unlink()
    message = refuse(folder, r"holds an adapter \(adapter_config.json\)", device="cpu")
    assert repr(str(folder)) in message
    assert "merge_and_unload().save_pretrained" in message
    if beside == "weights":  # the advice for weights that hold it already
        (folder / "adapter_config.json").rename(folder / "was_adapter_config.json")
        assert tokens(attnlens.load(folder, device="cpu")) == tokens(tiny)


@pytest.mark.parametrize("flat", [False, True])
def test_sliding_windows_and_the_advice_for_them(tiny, folder, flat):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    text |= window | {"layer_types": ["full_attention", *["sliding_attention"] * 2]}
    if flat:  # as published: settings of the text model at the top, and no list of layers
        del text["layer_types"], config["text_config"]
        config = {**config, **text, "model_type": "qwen2_5_vl"}
    path.write_text(json.dumps(config))
    message = refuse(folder, "has layers with sliding-window attention", device="cpu")
    assert repr(str(folder)) in message
    place = config.get("text_config", config)
    place["use_sliding_window"] = False
    place.pop("layer_types", None)
    path.write_text(json.dumps(config))
    vlm = attnlens.load(folder, device="cpu")
    assert tokens(vlm) == tokens(tiny)
    attnlens.run(vlm, vlm.prompt(picture(), QUESTION), 2)


def test_limits_of_pixels_for_all_prompts(tiny, checkpoint):
    least, most = 20 * 28**2, 24 * 28**2
    vlm = attnlens.load(checkpoint, device="cpu", min_pixels=least, max_pixels=most)
    assert vlm.prompt(picture(56, 56), QUESTION).limits == (least, most)
    assert vlm.prompt(picture(56, 56), QUESTION).grids == ((5, 5),)
    trace = attnlens.run(vlm, vlm.prompt(picture(400, 300), QUESTION), 2)
    (noted,) = trace.attrs["images"]
    assert (noted["min_pixels"], noted["max_pixels"]) == (least, most)
    assert (noted["rows"], noted["columns"]) == (4, 5)
    assert vlm.prompt(picture(56, 56), QUESTION, max_pixels=30 * 784).limits == (least, 30 * 784)
    one = attnlens.load(checkpoint, device="cpu", max_pixels=most)
    assert one.prompt(picture(), QUESTION).limits == (16 * 784, most)
    refuse(
        checkpoint, "min_pixels=9000 is more than max_pixels=8000", min_pixels=9000, max_pixels=8000
    )
    refuse(checkpoint, "max_pixels='1M': give a whole number", max_pixels="1M")


def test_limits_of_pixels_are_kept_with_the_processor(checkpoint, tmp_path):
    vlm = attnlens.load(checkpoint, device="cpu", max_pixels=24 * 784)
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    again = attnlens.load(tmp_path, device="cpu")
    assert again.prompt(picture(), QUESTION).limits == (16 * 784, 24 * 784)
