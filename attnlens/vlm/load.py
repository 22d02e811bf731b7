"""Loading a vision-language model with its processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from attnlens.errors import InputError
from attnlens.progress import transformers_bars_on_terminal_only
from attnlens.text import printable, shortened
from attnlens.vlm.family import Family, family_of
from attnlens.vlm.processor import load_processor
from attnlens.vlm.prompt import Prompt, PromptBatch, batch_prompts, build_prompt

TESTBED = Path(__file__).parent.parent / "testbed" / "weights"
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

    def prompt(
        self,
        image: Any,
        question: str,
        mode: str = "normal",
        *,
        system: str | None = None,
        template: str | None = None,
    ) -> Prompt:
        r"""Build a prompt about one image, several images, or none.

        Parameters
        ----------
        image
            A path or a ``PIL.Image``, a list of them, or None for text alone.
        question
            The question.
        mode
            ``normal``, ``cot`` (think inside ``<think>``), ``back`` (Look-Back: verify inside
            ``<back>``) or ``reflection`` (Qwen-LookAgain's five parts).
        system
            System prompt; "You are a helpful assistant." when not given.
        template
            Your own user text in place of the mode's, with ``{question}`` in it.

        Returns
        -------
        Prompt
            With ``inputs`` for ``generate``, the segment of every key, the grid of each image and
            the pixel box of each visual token.

        Raises
        ------
        InputError
            If an image cannot be read or has an extreme aspect ratio, the question is empty, the
            mode is unknown, the template has no place for the question, or the text holds one of
            the model's special tokens.
        """
        return build_prompt(self, image, question, mode, system=system, template=template)

    def batch(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """Pad prompts on the left to one length, to be generated together."""
        return batch_prompts(prompts, self.tokenizer.pad_token_id)


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    **options: Any,
) -> VLM:
    """Load a Qwen2.5-VL checkpoint.

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
    options
        Passed on to ``from_pretrained`` as they are (``attn_implementation``, ``revision``,
        ``quantization_config``, ...). No attention implementation is chosen for you.

    Raises
    ------
    InputError
        If there is no checkpoint of that name, it is not Qwen2.5-VL, damaged or incomplete, or
        the device is not there.
    """
    if "trust_remote_code" in options:
        raise InputError("trust_remote_code is not supported: attnlens runs no code of checkpoints")
    chosen = _dtype(dtype)
    target = None if device_map is not None else find_device(device)
    given = str(name)
    source = TESTBED if given == "testbed" else given
    if isinstance(source, str) and Path(source).is_dir():
        source = Path(source)
    inside = options.get("subfolder", "")
    if isinstance(source, Path) and not (source / inside / "config.json").is_file():
        raise InputError(f"{str(Path(given) / inside)!r} holds no model: no config.json is in it")
    hub: dict[str, Any] = {
        k: options[k]
        for k in ("revision", "token", "cache_dir", "subfolder", "local_files_only")
        if k in options
    }
    family = family_of(_config(source, given, hub), given)
    try:
        with transformers_bars_on_terminal_only():
            model, report = family.model_class().from_pretrained(
                source, dtype=chosen, device_map=device_map, output_loading_info=True, **options
            )
        if target is not None:
            model = model.to(target)
        processor = load_processor(source, **hub)
    except Exception as error:  # readers of damaged files raise errors of all kinds
        raise InputError(f"{given!r} cannot be loaded: {_first_line(error)}") from error
    if missing := _missing_weights(model, report):
        # transformers fills them with random numbers and goes on
        raise InputError(
            f"{given!r} cannot be loaded: {len(missing)} of its weights are missing, such as "
            f"{missing[0]}"
        )
    return VLM(model=model.eval(), processor=processor, name=given, family=family)


def _missing_weights(model: Any, report: dict[str, Any]) -> list[str]:
    """Names of weights that the checkpoint lacks, in order.

    A quantised checkpoint stores a layer's weight under other names (``qweight``,
    ``weight_packed``, scales): there, a layer counts as found once any of its tensors but the bias
    is in the checkpoint.
    """
    missing = set(report["missing_keys"])
    if missing and getattr(model.config, "quantization_config", None):
        found = {*report["unexpected_keys"], *model.state_dict()} - missing
        modules = {_module(name) for name in found if not name.endswith(".bias")}
        missing = {name for name in missing if _module(name) not in modules}
    return sorted(missing)


def _module(name: str) -> str:
    """Name of the module that a weight belongs to."""
    return name.rpartition(".")[0]


def _config(source: str | Path, given: str, hub: dict[str, Any]) -> Any:
    try:
        # without a word about it, transformers asks at the keyboard whether to run code
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)
    except Exception as error:  # configurations are checked by code of each model type
        if isinstance(source, Path):
            raise InputError(
                f"{given!r} cannot be loaded: its config.json cannot be used ({_first_line(error)})"
            ) from error
        raise InputError(
            f"there is no checkpoint {given!r}: give 'testbed', a folder with a Qwen2.5-VL "
            f"checkpoint, or its name on the Hugging Face Hub ({_first_line(error)})"
        ) from error


def find_device(device: str) -> torch.device:
    """Turn a name into a device that is there; ``auto`` is the first GPU, or the CPU.

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
