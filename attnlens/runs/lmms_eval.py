"""A model for lmms-eval: it answers the documents of its tasks and keeps a trace of each answer.

lmms-eval finds ``MANIFEST`` by the entry point group ``lmms_eval.models``. Nothing in attnlens
imports this file, as it needs lmms-eval. Source of the interface:
https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3, ``lmms_eval/api/model.py``,
``lmms_eval/models/registry_v2.py`` and ``lmms_eval/evaluator.py``.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from attnlens._version import __version__
from attnlens.errors import InputError
from attnlens.files import check_results, check_writable, clear_leftover_folders
from attnlens.progress import progress
from attnlens.runs.cache import SETTINGS, Entry
from attnlens.stores import located
from attnlens.text import counted, shortened

if TYPE_CHECKING:
    from attnlens.models.prompt import Prompt

MANIFEST = ModelManifest(
    model_id="attnlens", chat_class_path="attnlens.runs.lmms_eval.RecordedModel"
)
MAX_NEW_TOKENS = 2048
"""Longest answer where a task sets none, in tokens."""
DEFAULT_UNTIL = "\n\n"
"""What lmms-eval takes for ``until`` where a task sets none. It is left out, as by lmms-eval's own
model of Qwen2.5-VL: it would cut answers after their first paragraph."""


class RecordedModel(lmms):
    """A vision-language model whose answers are recorded.

    Parameters
    ----------
    pretrained
        What ``attnlens.load`` takes.
    save_folder
        Where traces go: ``TASK/SPLIT/LINE_DOC/trace.zarr``. ``DOC`` is the number of the document,
        and ``LINE`` that of its line in a samples file of all documents. A second answer to the
        same document goes into ``TASK/SPLIT-2``.
    device, dtype
        As in ``attnlens.load``. In one process of several, ``auto`` and ``cuda`` are its own GPU.
    batch_size
        1: answers are generated one at a time.
    seed
        Seed of the first answer to each document, where the task samples.
    system_prompt
        System text for conversations that have none; the chat template's own when not given.
    options
        Other options of ``attnlens.load``.

    Raises
    ------
    InputError
        If an argument is missing or cannot be used, or as ``attnlens.load``.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        save_folder: str = "",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        seed: int = 0,
        system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("pretrained", pretrained), ("save_folder", save_folder)):
            if not value:
                raise InputError(
                    f"{name} is missing: give --model_args pretrained=CHECKPOINT,save_folder=FOLDER"
                )
        if str(batch_size) != "1":
            raise InputError(
                f"batch_size {batch_size}: answers are recorded one at a time, so give 1"
            )
        self._root = located(str(save_folder))
        check_writable(self._root)
        self._seed = seed
        self._system = system_prompt
        self._asked: Counter[tuple[str, str, int]] = Counter()
        from attnlens.models.load import load
        from attnlens.runs.provenance import model_provenance

        self._vlm = load(str(pretrained), device=_own_device(device), dtype=dtype, **options)
        self._provenance = model_provenance(self._vlm)

    @property
    def device(self) -> Any:
        """Device of the model."""
        return self._vlm.model.device

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the model."""
        return self._vlm.tokenizer

    def clean(self) -> None:
        """Let go of the model, when all answers are there."""
        del self._vlm
        super().clean()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: nothing is generated."""
        raise _not_recorded("loglikelihood", requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: later rounds depend on earlier answers."""
        raise _not_recorded("generate_until_multi_round", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests in their order; an answer that is there is not generated again.

        Raises
        ------
        InputError
            If a document cannot be asked about; the answers before it are kept.
        """
        texts: list[str] = []
        notes: Counter[str] = Counter()
        for request in progress(requests, description="answers") if not self.rank else requests:
            context, to_messages, given, number, task, split = request.args
            options = _options(given or {})
            try:
                messages = to_messages(self.task_dict[task][split][number])
                prompt = self._vlm.prompt(self._messages(messages))
                if prompt.images:
                    text = self._recorded(request, prompt, options, notes)
                else:  # there is no attention to an image to record
                    notes["are to text alone, and are not recorded"] += 1
                    text = self._unrecorded(prompt, options)
            except InputError as error:
                raise InputError(f"document {number} of {task} ({split}): {error}") from error
            for stop in options.get("stop_strings", ()):
                text = text.split(stop)[0]
            self.cache_hook.add_partial("generate_until", (context, given), text)
            texts.append(text)
        for note, count in notes.items():
            of = counted(len(texts), "answer")
            print(f"attnlens: {count} of {of} {note}", file=sys.stderr)
        return texts

    def _messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages in the form of ``vlm.prompt``."""
        chat = [
            {"role": one["role"], "content": [_part(part) for part in one["content"]]}
            for one in messages
        ]
        if self._system is not None and chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": self._system})
        return chat

    def _recorded(
        self, request: Any, prompt: Prompt, options: dict[str, Any], notes: Counter[str]
    ) -> str:
        """Return an answer from its trace, which is made where it is not there."""
        from attnlens.experiments.run import run
        from attnlens.runs.recordings import TRACE, read_trace

        context, *_, number, task, split = request.args
        document = (task, split, number)
        # processes with fewer documents than others are given their last request again, marked
        self._asked[document] += "__padding_only__" not in request.metadata
        times = max(self._asked[document], 1)
        seed = self._seed + times - 1 if options["do_sample"] else None
        split = _file_name(split) if times == 1 else f"{_file_name(split)}-{times}"
        entry = Entry(
            self._root / _file_name(task) / split / f"{number + 1:05d}_{number}",
            {
                "attnlens": __version__,
                "question": context,
                "prompt": prompt.text,
                "images": [image.sha256 for image in prompt.images],
                "limits": prompt.limits,
                "generation": options,
                "seed": seed,
                "model": self._provenance,
            },
        )
        if entry.is_there():
            notes["were recorded before"] += 1
            return read_trace(entry).text
        clear_leftover_folders([entry.folder])
        if entry.folder.exists():
            check_results(entry.folder, SETTINGS, "a recorded answer")
        with entry.write() as folder:
            given = {"seed": seed, "visual_map": False, "tokenizer": self.tokenizer}
            trace = run(self._vlm, prompt, **given, **options)
            trace.save(folder / TRACE)
        return trace.text

    def _unrecorded(self, prompt: Prompt, options: dict[str, Any]) -> str:
        """Generate an answer without a trace."""
        from attnlens.experiments.force import decoded

        ids = self._vlm.model.generate(**prompt.inputs, tokenizer=self.tokenizer, **options)
        return decoded(self._vlm, ids[0, prompt.inputs["input_ids"].shape[1] :], special=False)


def _own_device(device: str) -> str:
    """Return the GPU of this process, where several were launched and none was named."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda"):
        return device
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else device


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a message in the form of ``vlm.prompt``: its picture is in ``url`` here."""
    held = {name: value for name, value in part.items() if name != "url"}
    return held | {part["type"]: part["url"]} if "url" in part else held


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``generate`` takes of a task's ``generation_kwargs``.

    Sampled is at a temperature above 0, unless ``do_sample`` is false.
    """
    names = ("num_beams", "repetition_penalty")
    options: dict[str, Any] = {n: given[n] for n in names if given.get(n) is not None}
    options["max_new_tokens"] = given.get("max_new_tokens") or MAX_NEW_TOKENS
    temperature = given.get("temperature")
    if temperature is None:
        temperature = 1.0 if given.get("do_sample") else 0.0
    options["do_sample"] = temperature > 0 and given.get("do_sample") is not False
    if options["do_sample"]:
        # a checkpoint's own top_k or top_p would cut what the temperature spreads
        options |= {
            "temperature": temperature,
            "top_k": given.get("top_k") or 0,
            "top_p": given.get("top_p") or 1.0,
        }
    until = given.get("until") or []
    stops = [until] if isinstance(until, str) else until
    stops = [stop for stop in stops if stop not in ("", DEFAULT_UNTIL)]
    return options | ({"stop_strings": stops} if stops else {})


def _file_name(text: str) -> str:
    """Return a name for a folder."""
    return re.sub(r"[^\w.-]", "_", text)


def _not_recorded(kind: str, requests: Sequence[Any]) -> InputError:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return InputError(
        f"{shortened(tasks, 80)} asks for {kind}: the model attnlens records generated answers "
        "alone, so give tasks whose output_type is generate_until"
    )
