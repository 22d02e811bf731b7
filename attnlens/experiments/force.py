"""A known response fed again: of another engine, or under an intervention, step by step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from attnlens.errors import InputError
from attnlens.experiments.run import note_session
from attnlens.interventions import AtStep, Copy, Intervention, Route
from attnlens.interventions.base import Nothing
from attnlens.interventions.teacher_forcing import ForcedSession
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.record import record, with_map
from attnlens.recording.trace import Trace
from attnlens.text import shortened


def replay(
    vlm: VLM,
    prompt: Prompt,
    response: Trace | str | Sequence[int],
    intervention: Intervention | None = None,
    *,
    finished: bool | None = None,
    **recording: Any,
) -> Trace:
    """Feed a response's tokens again, many to a pass, and record them.

    The response may be another engine's. Attention is that of a generation of these tokens, up to
    rounding (less than 1e-5 in float32). At most ``PASS_TOKENS`` of
    ``attnlens.interventions.teacher_forcing`` go in one pass, so that memory grows with the length
    of the answer, and not with its square.

    Parameters
    ----------
    vlm, prompt
        The model, and what was asked.
    response
        A trace of an answer to the prompt, the ids of its tokens, or its text. Ids are used as they
        are. A text is tokenised again, without tokens added, which need not give the tokens that
        were generated.
    intervention
        What acts meanwhile; see ``attnlens.interventions.teacher_forcing.ForcedSession`` for
        text that it forces. In half precision tokens go one by one then, since many in a pass round
        otherwise: give ``attnlens.interventions.Nothing()`` for the run to compare with.
    finished
        Whether the answer ended by itself (True) or was cut at a longest length (False), where
        that is known. After a text that ended, the model's end token is fed, too; an answer of
        which this is not known has none.
    recording
        ``layers``, ``visual_map``, ``map_heads`` and ``prompt_rows``, as in ``attnlens.record``.
        When ``visual_map`` is not given, it is kept while it is small for this response.

    Returns
    -------
    Trace
        As ``attnlens.run`` returns it. Step t compares with step t of the untouched run: only the
        intervention differs. ``trace.attrs["replayed"]`` says what was fed (``source``: ``trace``,
        ``token ids`` or ``text``); ``drift``, how many characters of the text its tokens do not
        give back (``attnlens.experiments.force.drift``); ``cut_off``, None where it is not known;
        and, where a text spells special tokens out before its end, their number (``special``): it
        is they that are fed.

    Raises
    ------
    InputError
        If the response is none, has no token or an unknown one, is a trace of another prompt (give
        its ids where that is meant), or as in ``attnlens.interventions.intervene``.
    """
    check_prompt(prompt)
    ends = _end_ids(vlm)
    tokens: Any = response
    source, drifted, special = "token ids", 0, 0
    if isinstance(response, Trace):
        source = "trace"
        other = differing_parts(prompt, response)
        if other:
            raise InputError(
                f"the trace is of another prompt (its {' and '.join(other)} differ): give the "
                "prompt that was answered, or trace.data['predicted_token_id'].values to force the "
                "tokens all the same"
            )
        tokens = response.data["predicted_token_id"].values
        if finished is None and response.cut_off is not None:
            finished = not response.cut_off
    elif isinstance(response, str):
        source = "text"
        tokens = vlm.tokenizer(response, add_special_tokens=False)["input_ids"]
        drifted = drift(response, decoded(vlm, tokens))
        special = _count_special(vlm, tokens, ends)
        if finished and ends and tokens[-1:] and tokens[-1] not in ends:
            tokens = [*tokens, ends[0]]
    ids = _known_ids(vlm, tokens)
    alike = intervention is not None
    recording = with_map(vlm, prompt, len(ids), recording)
    trace = forced(vlm, prompt, ids, intervention or Nothing(), alike, False, **recording)[0]
    ended = (ids[-1] in ends or None) if finished is None else finished
    trace.attrs["replayed"] = {
        "source": source,
        "drift": drifted,
        "cut_off": None if ended is None else not ended,
        **({"special": special} if special else {}),
    }
    return trace


force = replay
"""The same, by the name that says what is done to a known answer under an intervention."""


def drift(text: str, given_back: str) -> int:
    """Count the characters between the first and the last difference of two texts.

    Where they have different lengths there, those of the longer one.
    """
    longest = min(len(text), len(given_back))
    pairs = zip(text, given_back, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), longest)
    backwards = zip(reversed(text[start:]), reversed(given_back[start:]), strict=False)
    same = next((i for i, (a, b) in enumerate(backwards) if a != b), longest - start)
    return max(len(text), len(given_back)) - start - same


def decoded(vlm: VLM, ids: Sequence[int], *, special: bool = True) -> str:
    """Return the text of tokens, with special ones or without."""
    return vlm.tokenizer.decode(
        ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )


def _end_ids(vlm: VLM) -> list[int]:
    """Ids that end the model's answers; the first one is that of its chat template."""
    ends = vlm.model.generation_config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _count_special(vlm: VLM, ids: Sequence[int], ends: Sequence[int]) -> int:
    """Count the special tokens of a text, but for one that ends it."""
    known = {i for i, token in vlm.tokenizer.added_tokens_decoder.items() if token.special}
    inner = ids[:-1] if ids and ids[-1] in ends else ids
    return sum(i in known for i in inner)


def _known_ids(vlm: VLM, tokens: Any) -> list[int]:
    known = vlm.model.get_input_embeddings().num_embeddings
    try:
        ids = [operator.index(i) for i in tokens]
    except TypeError as error:
        raise InputError(
            f"the response is {shortened(repr(tokens), 80)}: give a trace, the ids of its tokens, "
            "or its text"
        ) from error
    unknown = [i for i in ids if not 0 <= i < known]
    if unknown:
        raise InputError(
            f"the response has the token id {unknown[0]}: give ids from 0 to {known - 1}"
        )
    return ids


def forced(
    vlm: VLM,
    prompt: Prompt,
    ids: list[int],
    intervention: Intervention,
    alike: bool = True,
    log_probabilities: bool = True,
    **recording: Any,
) -> tuple[Trace, torch.Tensor]:
    """Return the trace, and what ``ForcedSession.force`` returns; as ``replay``.

    The visual map is kept only when asked for.
    """
    with (
        record(vlm, prompt, **{"visual_map": False, **recording}) as recorder,
        ForcedSession(vlm, prompt, intervention) as session,
    ):
        found = session.force(ids, alike=alike, log_probabilities=log_probabilities)
    trace = recorder.trace
    note_session(trace, intervention, session)
    return trace, found


def insertions(step: int) -> dict[str, Intervention]:
    """Return what is inserted at a step, by name: nothing, then more and more visual tokens."""
    at = AtStep(step)
    return {
        "nothing": Nothing(),
        **{f"ROUTE {p}%": Route(when=at, percent=p) for p in (25, 50, 75)},
        "COPY": Copy(when=at),
        "COPY twice": Copy(when=at) + Copy(when=at),
        "COPY 4 times": Copy(when=at) + Copy(when=at) + Copy(when=at) + Copy(when=at),
    }


def twins(
    vlm: VLM, prompt: Prompt, answer: Trace, *, layers: Sequence[int] | None = None
) -> dict[str, Trace]:
    """Feed an answer's tokens again, with visual tokens inserted in its middle (Theorem 3.2).

    Returns forced traces by name (see ``insertions``), as ``attnlens.measures.insertion`` takes
    them. An answer of one token is refused; ``layers`` are those to record, all when not given.
    """
    middle = answer.data.sizes["step"] // 2
    if not middle:
        raise InputError(
            "an answer of one token has no middle to insert at: give one of several tokens"
        )
    return {
        name: replay(vlm, prompt, answer, intervention, layers=layers, visual_map=False)
        for name, intervention in insertions(middle).items()
    }


def differing_parts(prompt: Prompt, trace: Trace) -> list[str]:
    """Return what of a prompt differs from a trace: ``prompt`` (its text), ``images``.

    Images are the same if their grids of visual tokens, the frames shown of a video and the hashes
    of their files are; an image that the caller opened is compared with a file's by size alone.
    """
    check_prompt(prompt)
    found = []
    text = trace.attrs.get("prompt")
    if text and text != prompt.text:
        found.append("prompt")
    noted = trace.attrs.get("images")
    if noted:
        own = [image.as_dict() for image in prompt.images]
        alike = len(noted) == len(own) and all(map(_same_image, noted, own))
        if not alike:
            found.append("images")
    return found


def check_prompt(prompt: Any) -> None:
    """Refuse what is no prompt of ``vlm.prompt``."""
    if not isinstance(prompt, Prompt):
        raise InputError(f"{type(prompt).__name__} was given as prompt: give one of vlm.prompt")


def _same_image(noted: dict[str, Any], own: dict[str, Any]) -> bool:
    if any(noted.get(side) not in (None, own[side]) for side in ("rows", "columns")):
        return False
    if noted.get("frames") != own.get("frames"):
        return False
    of_files = [bool(image.get("path")) for image in (noted, own)]
    if of_files[0] == of_files[1]:
        return noted.get("sha256") == own.get("sha256")
    return all(noted.get(side) == own.get(side) for side in ("width", "height"))
