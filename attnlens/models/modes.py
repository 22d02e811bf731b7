r"""The modes: the instruction that each puts around a question.

The instruction belongs to the prompt, not to the model. The formats of ``MODES`` are those of
Look-Back (arXiv 2507.03019: verification inside ``<back>``) and Qwen-LookAgain (arXiv 2505.23558:
five parts, with ``<REFLECTION>``); the words are ours.

``LOOK_BACK`` has Look-Back's own words, character by character, since a checkpoint should be
asked as it was trained. Source: https://github.com/ruiz-nju/Look-Back. They come in two forms:

- of its evaluation (``eval/utils/processing.py``, with the words of ``eval/scripts/*.sh`` and of
  ``eval/main.py``). Its version ``back``, which the scripts of both checkpoints use, has the
  instruction after the question in the user's turn: ``semantic-back`` and ``solution-back`` for the
  checkpoints of that name, ``look-back-cot`` for the default words, without ``<back>``. With the
  ending ``-grpo`` the instruction is the system text; with ``-hint`` it comes before the question.
- of its trend script (``vis_demo/att_trend_viz.py``): ``trend-back``, ``trend-cot`` and
  ``trend-normal``. Here, too, the instruction follows the question, on a separate line between
  spaces. Its ``back`` says ``\b`` in a Python string, and the model reads a backspace and
  "oxed{}"; we keep that.

For other words give ``template=`` and ``system=`` to ``vlm.prompt``.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnlens.errors import InputError
from attnlens.text import shortened

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
"""Template of each mode; the question replaces ``{question}``."""

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Mode:
    """The user's text, in which the question replaces ``{question}``, and the system prompt."""

    template: str
    system: str = DEFAULT_SYSTEM


_THINK = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the "
    "final answer. The reasoning process MUST BE enclosed within <think> </think> tags"
)
_SEMANTIC = (
    f"{_THINK}, and use <back> </back> to verify your reasoning against the image. The final "
    "answer MUST BE put in \\boxed{}, respectively, i.e., <think> reasoning process here </think> "
    "<back> verification process here </back> <think> continue reasoning </think> "
    "\\boxed{final answer}."
)
_SOLUTION = (
    f"{_THINK}, and use <back> </back> to verify your reasoning solution against the image, and "
    "rethink it in the <think> </think> tags based on your thinking and verification content. The "
    "final answer MUST BE put in \\boxed{}, respectively, i.e., <think> reasoning process here "
    "</think> <back> verification process against the image here </back> <think> based on the "
    "thinking  and verification contents, rethinking here </think> \\boxed{final answer}."
)
_COT = f"{_THINK}. The final answer MUST BE put in \\boxed{{}}."
_TREND_COT = (
    f"{_THINK}. The final answer MUST BE put in \\boxed{{}}, respectively, i.e., <think> reasoning "
    "process here </think> \\boxed{final answer}."
)
_TREND = "{question} \n"  # between the question and the words of the trend script
_TREND_END = "\n        "

LOOK_BACK: dict[str, Mode] = {}
"""Look-Back's own prompts by name."""
for _name, _words in (
    ("semantic-back", _SEMANTIC),
    ("solution-back", _SOLUTION),
    ("look-back-cot", _COT),
):
    LOOK_BACK[_name] = Mode(f"{{question}} {_words}")
    LOOK_BACK[f"{_name}-grpo"] = Mode("{question}", _words)
    LOOK_BACK[f"{_name}-hint"] = Mode(f" {_words} \n Qwestion: {{question}}")  # spelled so there
LOOK_BACK["trend-back"] = Mode(_TREND + _SEMANTIC.replace("\\boxed{}", "\boxed{}") + _TREND_END)
LOOK_BACK["trend-cot"] = Mode(_TREND + _TREND_COT + _TREND_END)
LOOK_BACK["trend-normal"] = Mode("{question} ")

MODE_NAMES = (*MODES, *LOOK_BACK)
"""Names of all modes."""
MESSAGES = "messages"
"""The mode of prompts made from chat messages, which contain their own instruction."""
MODES_HELP = (
    f"{', '.join(MODES)}, in words of our own; or Look-Back's, as its evaluation asks "
    "(semantic-back, solution-back, look-back-cot: the instruction after the question; with the "
    "ending -grpo as system text, with -hint before the question) or as its att_trend_viz.py does "
    "(trend-back, trend-cot, trend-normal)"
)
"""The commands' help on modes."""
VERIFICATIONS = {"<back>": "back", "<REFLECTION>": "reflection"}
"""Tags that open a verification, and the regions that they begin."""


def mode_of(name: str) -> Mode:
    """Return a mode by its name, or raise ``InputError``."""
    if name in MODES:
        return Mode(MODES[name])
    if name not in LOOK_BACK:
        raise InputError(f"unknown mode {name!r}: use one of {', '.join(MODE_NAMES)}")
    return LOOK_BACK[name]


def asked_words(mode: str, template: str | None = None, system: str | None = None) -> str:
    """Return all the words around a question; ``template`` and ``system`` replace the mode's."""
    own = mode_of(mode)
    words = (
        own.system if system is None else system,
        own.template if template is None else template,
    )
    return "\n".join(words)


def verification_tag(words: str) -> str | None:
    """Return the tag of the verification that words ask for; None where they ask for none."""
    return next((tag for tag in VERIFICATIONS if tag in words), None)


def check_template(template: str) -> None:
    """Raise ``InputError`` for a template without a place for the question."""
    if "{question}" not in template:
        raise InputError(
            f"the template {shortened(template, 80)!r} has no place for the question: "
            "put {question} into it"
        )


def user_text(question: str | None, mode: str, template: str | None = None) -> str:
    """Put the instruction of a mode, or a template of the user's own, around a question.

    Raises
    ------
    InputError
        If the question is empty, the mode unknown, or the template lacks ``{question}``.
    """
    if not isinstance(question, str) or not question.strip():
        shown = shortened(repr(question), 80)
        raise InputError(f"the question is empty (got {shown}): give the text of a question")
    own = mode_of(mode)
    if template is not None:
        check_template(template)
    # replace, not format: templates contain other braces (\boxed{})
    return (own.template if template is None else template).replace("{question}", question.strip())
