"""``attnlens.recover``: the visual attention that an intervention brings back, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from attnlens.answers import true_answer
from attnlens.errors import InputError
from attnlens.experiments.comparison import (
    DETAILS,
    CompareSettings,
    compare_runs,
    to_dataset,
    warm_up,
)
from attnlens.experiments.recovery import UNTOUCHED, Recovery
from attnlens.experiments.run import RECORDING
from attnlens.interventions.base import Intervention
from attnlens.interventions.session import intervene
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt, PromptBatch
from attnlens.progress import progress
from attnlens.text import shortened

Interventions = Intervention | Sequence[Intervention] | Mapping[str, Intervention]
"""One or several; a mapping names them."""

Answer = str | Real
"""A true answer, as ``attnlens.answers.true_answer`` takes it."""


def recover(
    vlm: VLM,
    prompt: Prompt | Sequence[Prompt],
    interventions: Interventions | Callable[[int], Interventions],
    max_new_tokens: int = 256,
    *,
    expected: Answer | Sequence[Answer | None] | None = None,
    detail: str = "head",
    reuse: bool = False,
    seed: int = 0,
    **options: Any,
) -> Recovery:
    """Measure what interventions bring back, against an untouched twin of the same generation.

    For each prompt there is one untouched run, and for each intervention

    - the **free** run: the model goes on as it likes after the intervention. Answers, costs and
      ``free_rise`` come from it.
    - the **forced** twin: the untouched run's tokens are fed again under the intervention, many to
      a pass, so that step t compares with step t and only the intervention differs. Rises
      and changes of the next-token distribution come from it. Text that an intervention forces
      is fed between the untouched tokens there, and does not count as steps.

    Parameters
    ----------
    vlm
        From ``attnlens.load``.
    prompt
        One prompt or several.
    interventions
        One or several, controls among them, with different names; or a mapping that names them; or
        a function that gives them for a prompt's number, the same names for each (another picture
        in each prompt, say).
    max_new_tokens
        Longest response.
    expected
        True answer of each prompt (the content of its box), a text or a number; None where it is
        not known. ``attnlens.answers`` states when an answer is right.
    detail
        How finely rises are kept: ``head`` (by layer and head too), ``layer`` or ``step``. What is
        kept by head in all definitions grows with layers x heads x steps x 96 bytes a run.
    reuse
        Whether the forced twin also stands for the free run where, at every step, it finds the
        untouched token most likely by a clear margin: greedy decoding says the same then. Saves
        most of the time where interventions change little; ``seconds`` is NaN there, so that ratios
        of seconds are of the prompts in which the intervention changed the answer's text.
    seed
        Seed of sampled generation.
    options
        Passed on to ``model.generate``.

    Returns
    -------
    Recovery
        Labelled arrays, and tables of them with intervals and tests.

    Raises
    ------
    InputError
        If something does not fit, before anything is run: no prompt or intervention, two
        interventions of one name, other names for another prompt, true answers that are no texts
        or numbers or of another count than prompts, or as in
        ``attnlens.interventions.intervene``.
    """
    if isinstance(prompt, PromptBatch):
        prompt = prompt.prompts
    prompts = [prompt] if isinstance(prompt, Prompt) else list(prompt)
    chosen = [
        named_interventions(interventions(i) if callable(interventions) else interventions)
        for i in range(len(prompts))
    ]
    truths = _truths(expected, len(prompts))
    if detail not in DETAILS:
        raise InputError(f"detail={detail!r}: use one of {', '.join(DETAILS)}")
    recording = sorted(set(options) & set(RECORDING))
    if recording:
        raise InputError(
            f"{', '.join(recording)}: recover records every layer and step; options are those of "
            "model.generate"
        )
    _check(vlm, prompts, chosen, max_new_tokens)
    if reuse:
        _check_greedy(vlm, options)
    settings = CompareSettings(
        max_new_tokens, detail, reuse, seed, options={"do_sample": False, **options}
    )
    total = len(prompts) * (1 + 2 * len(chosen[0]))
    warm_up(vlm, prompts[0])
    bar = iter(progress(range(total), description="recovery"))
    samples = [
        compare_runs(vlm, one, named, truth, settings, lambda: next(bar, None))[0]
        for one, named, truth in zip(prompts, chosen, truths, strict=True)
    ]
    next(bar, None)
    return Recovery(to_dataset(samples, vlm))


def named_interventions(interventions: Interventions) -> dict[str, Intervention]:
    """Return interventions by name; two of one name are refused."""
    if isinstance(interventions, Mapping):
        return {str(name): one for name, one in interventions.items()}
    listed = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    names = [one.name if isinstance(one, Intervention) else repr(one) for one in listed]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(
            f"two interventions are called {twice[0]!r}: name them, as in "
            "recover(vlm, prompt, {'early': ..., 'late': ...})"
        )
    return dict(zip(names, listed, strict=True))


def _truths(expected: Any, count: int) -> list[str | None]:
    if expected is None:
        return [None] * count
    answers = expected.tolist() if hasattr(expected, "tolist") else expected  # NumPy or pandas
    if isinstance(answers, str | Real):
        answers = [answers]
    if not isinstance(answers, list | tuple):
        shown = shortened(repr(expected), 80)
        raise InputError(f"expected is {shown}: give a list with the true answer of each prompt")
    if len(answers) != count:
        raise InputError(f"{len(answers)} true answers for {count} prompts: give one for each")
    return [None if one is None else true_answer(one) for one in answers]


def _check(
    vlm: VLM, prompts: list[Prompt], chosen: list[dict[str, Intervention]], max_new_tokens: int
) -> None:
    if not prompts:
        raise InputError("no prompt was given: give at least one")
    if not chosen[0]:
        raise InputError("no intervention was given: give at least one")
    for number, named in enumerate(chosen):
        if list(named) != list(chosen[0]):
            raise InputError(
                f"prompt {number} has interventions called {', '.join(named)}, and prompt 0 "
                f"{', '.join(chosen[0])}: give each prompt the same names in the same order"
            )
    if max_new_tokens < 2:
        raise InputError(f"max_new_tokens={max_new_tokens}: give at least 2")
    if UNTOUCHED in chosen[0]:
        raise InputError(f"an intervention is called {UNTOUCHED!r}: give it another name")
    for one, named in zip(prompts, chosen, strict=True):
        for intervention in named.values():
            intervene(vlm, one, intervention)  # checks what does not fit; it is never entered


_HARMLESS_SETTINGS = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p",
    "eos_token_id", "pad_token_id", "bos_token_id",
    "max_length", "max_new_tokens", "use_cache", "cache_implementation",
    "output_attentions", "output_hidden_states", "transformers_version", "_from_model_config",
}  # fmt: skip
"""Settings of a checkpoint that do not change the tokens of greedy decoding."""


def _check_greedy(vlm: VLM, options: dict[str, Any]) -> None:
    own = set(vlm.model.generation_config.to_diff_dict()) - _HARMLESS_SETTINGS
    if options or own:
        raise InputError(
            f"reuse=True with {', '.join([*options, *sorted(own)])}: only plain greedy decoding "
            "can be inferred from the forced twin"
        )
