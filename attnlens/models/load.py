"""Loading a vision-language model with its processor."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from attnlens.errors import InputError
from attnlens.models.families import family_of
from attnlens.models.family import Family, SpecialTokens
from attnlens.models.prompt import Prompt, PromptBatch, batch_prompts, build_prompt
from attnlens.models.videos import Video
from attnlens.progress import transformers_bars_on_terminal_only
from attnlens.text import printable, shortened

TESTBED = Path(__file__).parent.parent / "testbed" / "weights"
HUB = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
"""Options of ``from_pretrained`` about where the files are."""
OPTIONS = (
    *HUB,
    "attn_implementation",
    "quantization_config",
    "max_memory",
    "offload_folder",
    "offload_buffers",
    "use_safetensors",
    "variant",
    "key_mapping",
    "tp_plan",
    "use_kernels",
)
"""Options that ``load`` passes on to ``from_pretrained``."""
PARTS = {
    "image processor": (
        ("preprocessor_config.json", "processor_config.json"),
        "preprocessor_config.json or processor_config.json",
    ),
    "tokenizer": (
        ("tokenizer.json", "vocab.json"),
        "tokenizer.json (or vocab.json and merges.txt) and tokenizer_config.json",
    ),
}
"""Parts of a checkpoint other than its weights: files that may hold them, and what to copy."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class VLM:
    """A vision-language model, ready to run.

    Attributes
    ----------
    model, processor
        The plain Hugging Face objects.
    name
        What it was loaded by.
    family
        Its model family.
    """

    model: Any
    processor: Any
    name: str
    family: Family

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def special_tokens(self) -> SpecialTokens:
        """Ids of the tokens that stand for images and around them."""
        return self.family.special_tokens(self.model.config, self.tokenizer)

    def prompt(
        self,
        image: Any = None,
        question: str | None = None,
        mode: str | None = "normal",
        *,
        video: Any = None,
        fps: float | None = None,
        max_frames: int | None = None,
        system: str | None = None,
        template: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Prompt:
        r"""Build a prompt about images, a video, or text alone, or from chat messages.

        Parameters
        ----------
        image
            A path, a ``file://`` or ``data:`` URL, bytes, a ``PIL.Image`` or an array of uint8 (see
            ``attnlens.models.images.open_image`` for what is white, transparent and animated), a
            list of them, or None for text alone.

            Or chat messages in Hugging Face's form, instead of image, question and mode: a list of
            ``{"role": ..., "content": ...}`` with role ``system`` (first), ``user`` or
            ``assistant``, and as content a text or a list of ``{"type": "text", "text": ...}`` and
            ``{"type": "image", "image": ...}`` (or ``url``, ``path``, ``base64``) and
            ``{"type": "video", "video": ...}`` (or ``url``, ``path``; with ``fps`` and
            ``max_frames``). The last message is the user's. They contain their own instruction:
            ``mode`` stays ``normal`` or None, and ``prompt.mode`` is ``messages``. All keys before
            the first image are ``system``, whatever their role, and all text after it is ``query``,
            including earlier answers of the assistant: they are part of the prompt, and
            ``response`` is only what is generated.
        question
            The question.
        mode
            Format of the answer, in words of our own: ``normal``, ``cot`` (think inside
            ``<think>``), ``back`` (Look-Back: verify inside ``<back>``) or ``reflection``
            (Qwen-LookAgain's five parts). Or in Look-Back's words: as its evaluation asks its
            checkpoints (``semantic-back``, ``solution-back``, ``look-back-cot``: the instruction
            after the question in the user's turn; with the ending ``-grpo`` as system text, with
            ``-hint`` before the question), or as its trend script does (``trend-back``,
            ``trend-cot``, ``trend-normal``); see ``attnlens.models.modes``.
        video
            A video, after the images: the path of a file (needs PyAV: ``pip install
            'attnlens[video]'``) or of a folder of frames, a list of pictures, or an array of uint8
            [frames, height, width, 3]. Its visual tokens are those of ``tiles``: one grid for each
            pair of frames.
        fps
            Of a file: frames shown of each second. Of frames: how many of them make a second. 2
            when not given. See ``attnlens.models.videos.open_video`` for which are shown.
        max_frames
            Most frames that are shown; 768 when not given.
        system
            System prompt; the mode's ("You are a helpful assistant.") when not given.
        template
            Your own user text instead of the mode's, with ``{question}`` in it.
        min_pixels, max_pixels
            Limits of an image's area after resizing, in pixels; those of ``load``, else the
            checkpoint's, when not given. The image processor keeps the shape and rounds sides to
            visual tokens (28 pixels in Qwen2.5-VL). Look-Back's evaluation uses 262,144 and
            1,000,000, but resizes twice, to that area and then to whole visual tokens; its grid
            often differs by a row or a column. For that very grid, resize the picture yourself.
            They hold for frames of a video, too; where they are not given, a frame has 128 to 768
            visual tokens, fewer in long videos (as qwen-vl-utils has it), and no more than an
            image.

        Returns
        -------
        Prompt
            With ``inputs`` for ``generate``, the segment of every key, the grid of each image and
            the pixel box of each visual token.

        Raises
        ------
        InputError
            If an image or a video cannot be read or has an extreme aspect ratio, videos are not
            verified for the family, the question is empty, the
            mode is unknown, the template has no place for the question, the text holds one of the
            model's special tokens, messages are in another form or come with another question,
            or limits of pixels cannot hold.
        """
        return build_prompt(
            self,
            image,
            question,
            mode,
            video=_video(video, fps, max_frames),
            system=system,
            template=template,
            limits=(min_pixels, max_pixels),
        )

    def batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad prompts on the left to one length, to be generated together."""
        return batch_prompts(self.family, prompts, self.tokenizer.pad_token_id)


def _video(source: Any, fps: float | None, max_frames: int | None) -> Video | None:
    if source is not None:
        return Video(source, fps, max_frames)
    for name, value in (("fps", fps), ("max_frames", max_frames)):
        if value is not None:
            raise InputError(f"{name}={value!r} was given without a video: give video=")
    return None


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    **options: Any,
) -> VLM:
    """Load a checkpoint of a supported family (``attnlens families`` lists them).

    Parameters
    ----------
    name
        ``"testbed"`` (ships with the package), a folder, or a Hub name such as
        ``"Qwen/Qwen2.5-VL-7B-Instruct"``; fine-tuned checkpoints load the same way.
    device
        ``"auto"`` (the first GPU where there is one, else the CPU), or a torch device.
    dtype
        ``"auto"`` (the checkpoint's own), ``"float32"``, ``"bfloat16"``, ``"float16"`` or a torch
        dtype.
    device_map
        Passed on to ``from_pretrained``; ``device`` is then not used.
    min_pixels, max_pixels
        Limits of an image's area after resizing, in pixels, for all prompts; the checkpoint's own
        when not given. See ``VLM.prompt``.
    options
        Passed on to ``from_pretrained`` unchanged: those of ``OPTIONS`` (``attn_implementation``,
        ``revision``, ``quantization_config``, ...). No attention implementation is chosen for you.

    Raises
    ------
    InputError
        If there is no checkpoint of that name, it is of no supported family, an adapter alone,
        damaged or incomplete (weights, tokenizer, image processor, chat template), its layers use
        sliding-window attention, the device is not there, or an option is unknown.
    """
    _check_options(options, name)
    chosen = _dtype(dtype)
    target = None if device_map is not None else find_device(device)
    label = str(name)
    source = TESTBED if label == "testbed" else label
    if isinstance(source, str) and Path(source).is_dir():
        source = Path(source)
    inside = options.get("subfolder", "")
    if isinstance(source, Path):
        _check_folder(source / inside, str(Path(label) / inside))
    hub: dict[str, Any] = {k: options[k] for k in HUB if k in options}
    config = _config(source, label, hub)
    family = family_of(config, label)
    family.check_layers(config, repr(label))
    if isinstance(source, Path):
        _check_parts(source / inside, str(Path(label) / inside))
    with _loading(label):
        processor = family.load_processor(source, **hub)
    if not processor.chat_template:
        raise InputError(
            f"{label!r} cannot be loaded: it has no chat template; put the chat_template.jinja (or "
            "chat_template.json) of the checkpoint it was trained from into it"
        )
    limits = family.pixel_limits(processor, min_pixels, max_pixels)
    if limits is not None and (min_pixels, max_pixels) != (None, None):
        family.set_pixel_limits(processor, limits)
    with _loading(label), transformers_bars_on_terminal_only():
        model, report = family.model_class().from_pretrained(
            source, dtype=chosen, device_map=device_map, output_loading_info=True, **options
        )
        if target is not None:
            model = model.to(target)
    if missing := _missing_weights(model, report):
        # transformers fills them with random numbers and goes on
        raise InputError(
            f"{label!r} cannot be loaded: {len(missing)} of its weights are missing, such as "
            f"{missing[0]}"
        )
    return VLM(model=model.eval(), processor=processor, name=label, family=family)


@contextmanager
def _loading(label: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # readers of damaged files raise errors of all kinds
        raise InputError(f"{label!r} cannot be loaded: {_first_line(error)}") from error


def _check_options(options: dict[str, Any], name: str | Path) -> None:
    """Refuse options that transformers would swallow or that are misspelled."""
    if "trust_remote_code" in options:
        raise InputError("trust_remote_code is not supported: attnlens runs no code of checkpoints")
    known = ("device", "dtype", "device_map", "min_pixels", "max_pixels", *OPTIONS)
    for option in options:
        if option not in OPTIONS:
            alike = difflib.get_close_matches(option, known, 1)
            advice = f"give {alike[0]}=" if alike else f"give some of {', '.join(known)}"
            raise InputError(
                f"{str(name)!r} cannot be loaded with {option}=, which is not an option: {advice}"
            )


def _check_folder(folder: Path, label: str) -> None:
    """Refuse a folder that holds an adapter or no model."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{label!r} holds an adapter (adapter_config.json), which would be left out: load its "
            "base model as vlm, merge with peft, PeftModel.from_pretrained(vlm.model, adapter)"
            ".merge_and_unload().save_pretrained(folder), add vlm.processor.save_pretrained(folder)"
            ", and load that folder; where the weights hold it already, move adapter_config.json "
            "away"
        )
    if not (folder / "config.json").is_file():
        raise InputError(f"{label!r} holds no model: no config.json is in it")


def _check_parts(folder: Path, label: str) -> None:
    """Refuse a folder that lacks a part other than the weights."""
    for what, (names, advice) in PARTS.items():
        if not any((folder / name).is_file() for name in names):
            raise InputError(
                f"{label!r} cannot be loaded: it has no {what}; copy {advice} of the checkpoint "
                "it was trained from into it"
            )


def _missing_weights(model: Any, report: dict[str, Any]) -> list[str]:
    """Name the weights that the checkpoint lacks, in order.

    A quantised checkpoint stores a layer's weight under other names (``qweight``,
    ``weight_packed``, scales): there a layer counts as found if any of its tensors, except the
    bias, is in the checkpoint.
    """
    missing = set(report["missing_keys"])
    if missing and getattr(model.config, "quantization_config", None):
        found = {*report["unexpected_keys"], *model.state_dict()} - missing
        modules = {name.rpartition(".")[0] for name in found if not name.endswith(".bias")}
        missing = {name for name in missing if name.rpartition(".")[0] not in modules}
    return sorted(missing)


def _config(source: str | Path, label: str, hub: dict[str, Any]) -> Any:
    try:
        # by default transformers asks at the keyboard whether to run code
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)
    except Exception as error:  # configurations are checked by code of each model type
        if isinstance(source, Path):
            raise InputError(
                f"{label!r} cannot be loaded: its config.json cannot be used ({_first_line(error)})"
            ) from error
        raise InputError(
            f"there is no checkpoint {label!r}: give 'testbed', a folder with a "
            f"checkpoint, or its name on the Hugging Face Hub ({_first_line(error)})"
        ) from error


def find_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, or the CPU.

    Raises
    ------
    InputError
        If the device is not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()  # the meta device holds no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(
            f"device {shortened(repr(device), 80)} is not there: use auto, cpu, cuda, cuda:N (its "
            f"number) or mps; this machine has {', '.join(found)}"
        ) from error
    return target


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: use 'auto' or one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
