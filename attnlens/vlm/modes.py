"""What each mode asks of the model: the instruction that is put around a question.

The instruction belongs to the prompt, not to the model. The formats are those of Look-Back
(arXiv 2507.03019: verification inside ``<back>``) and Qwen-LookAgain (arXiv 2505.23558: five
parts, with ``<REFLECTION>``); the words are ours. A checkpoint that was trained with other words
should be asked in those: give ``template=`` and ``system=`` to ``vlm.prompt``.
"""

from __future__ import annotations

from attnlens.errors import InputError

MODES: dict[str, str] = {
    "normal": "{question}\nGive only the final answer, inside \\boxed{}.",
    "cot": (
        "{question}\nThink step by step inside <think> </think>. "
        "Then give the final answer inside \\boxed{}."
    ),
    "back": (
        "{question}\nThink step by step inside <think> </think>. "
        "Then look at the image again and verify what you said inside <back> </back>. "
        "Think again inside <think> </think>, "
        "and give the final answer inside \\boxed{}."
    ),
    "reflection": (
        "{question}\nAnswer in five parts: the task inside <SUMMARY> </SUMMARY>, "
        "what the image shows inside <CAPTION> </CAPTION>, "
        "your reasoning inside <REASONING> </REASONING>, "
        "a second look at the image that checks the reasoning inside "
        "<REFLECTION> </REFLECTION>, and the final answer inside <CONCLUSION> </CONCLUSION>."
    ),
}
"""Template of each mode; ``{question}`` stands where the question goes."""

DEFAULT_SYSTEM = "You are a helpful assistant."


def user_text(question: str, mode: str, template: str | None = None) -> str:
    """Put the instruction of a mode around a question.

    Parameters
    ----------
    question
        The user's question; not empty.
    mode
        ``normal``, ``cot``, ``back`` or ``reflection``.
    template
        The user's own text with ``{question}`` where the question goes, in place of the mode's.

    Raises
    ------
    InputError
        If the question is empty, the mode unknown, or the template lacks ``{question}``.
    """
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"the question is empty (got {question!r}): give the text of a question")
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}: use one of {', '.join(MODES)}")
    if template is not None and "{question}" not in template:
        raise InputError(
            f"the template {template!r} has no place for the question: put {{question}} into it"
        )
    # replace, not format: templates hold braces of their own (\boxed{})
    return (MODES[mode] if template is None else template).replace("{question}", question.strip())


def messages(text: str, images: int, system: str | None = None) -> list[dict]:
    """Chat messages of one turn: system text, then the images, then the user's text.

    Parameters
    ----------
    text
        The user's text, instruction included.
    images
        How many images stand before the text.
    system
        System prompt; ``DEFAULT_SYSTEM`` when not given.
    """
    content: list[dict] = [{"type": "image"} for _ in range(images)]
    content.append({"type": "text", "text": text})
    system_text = DEFAULT_SYSTEM if system is None else system
    return [
        {"role": "system", "content": [{"type": "text", "text": system_text}]},
        {"role": "user", "content": content},
    ]
