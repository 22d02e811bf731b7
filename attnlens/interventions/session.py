"""One generation under an intervention, scoped to a ``with`` block.

``model.generate`` is called as always and knows nothing of it: its sequence, processors, criteria
and streamers see the response alone. Hooks on the model look at each token that is fed in. When a
trigger fires, the cache is stepped back to the trigger, the insertion goes in by one pass on top of
the cache, what was cached after the trigger is fed again, and from then on positions and mask are
moved by what was inserted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.interventions.base import (
    Edit,
    Intervention,
    check_visual,
    select_heads,
)
from attnlens.interventions.blocks import Piece, TextPiece
from attnlens.interventions.cache_editor import CacheEditor, InsertionPlan
from attnlens.interventions.editor import EditScope, ScoreEditor
from attnlens.interventions.online import ShareRecorder
from attnlens.interventions.pictures import PromptImages
from attnlens.interventions.trigger_state import ArmedIntervention, TriggerState, check_forced_texts
from attnlens.interventions.triggers import Trigger, highest_thresholds
from attnlens.models.cache import cache_of
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import key_layout
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.tap import (
    Listener,
    attach,
    attach_editor,
    attention_implementation,
    detach,
    detach_editor,
)

S = TypeVar("S", bound="Session")

_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models that a session is open on."""


@dataclass(frozen=True)
class Event:
    """One time that an intervention acted.

    Attributes
    ----------
    intervention
        Its name.
    step
        The first step that it acts on.
    known_at
        The step that came next when the trigger fired; steps from ``step`` to here were run again.
    inserted
        Number of inserted tokens, with those that wrap an image.
    kept
        Which visual tokens of the prompt's image were inserted, in reading order; empty where
        something else was.
    forced
        Number of response tokens that are forced.
    seconds
        What stepping back and the passes over what goes into the cache took, for all that acted
        at this moment together.
    """

    intervention: str
    step: int
    known_at: int
    inserted: int = 0
    kept: tuple[int, ...] = ()
    forced: int = 0
    seconds: float = 0.0


class Session:
    """Intervenes in one generation; made by ``attnlens.interventions.intervene``.

    Attributes
    ----------
    events
        What has been done so far, in order.
    images
        The prompt's images, for what is inserted.
    """

    def __init__(self, vlm: VLM, prompt: Prompt, intervention: Intervention) -> None:
        if not isinstance(intervention, Intervention):
            raise InputError(
                f"{intervention!r} is no intervention: give one of attnlens.interventions, such as "
                "Copy(when=At('<back>'))"
            )
        if not isinstance(prompt, Prompt):
            raise InputError(
                f"interventions act on one prompt, not on a {type(prompt).__name__}: "
                "run the prompts one after the other"
            )
        self.vlm = vlm
        self.prompt = prompt
        self.events: list[Event] = []
        self._parts = parts_of(vlm.model)
        watching: list[Trigger] = []
        self._made: dict[Any, Any] = {}
        text = self._parts.text.config
        self._sizes = (len(self._parts.attention), text.num_attention_heads)
        for part in intervention.parts:
            triggers = (part.when, part.until or part.when)
            if not all(isinstance(trigger, Trigger) for trigger in triggers):
                raise InputError(
                    f"{part!r} has no trigger: give one of attnlens.interventions, such as "
                    "At('<back>')"
                )
            if part.edits_scores:
                self._attention_name()
            watching += triggers
            if any(trigger.thresholds for trigger in triggers):
                check_visual("a trigger by visual share", prompt)
        self._watched = highest_thresholds(watching)
        intervention.check(prompt, *self._sizes)
        vocabulary = vlm.model.get_input_embeddings().num_embeddings
        check_forced_texts(intervention.parts, vlm.tokenizer, vocabulary)
        self._trigger_state = TriggerState(intervention.parts, vlm.tokenizer, self._shares)
        self._stack = ExitStack()
        self._used = False
        self._started = False
        self._ids: list[int] = []
        self._forced: list[int] = []
        self._awaited: int | None = None
        """The forced token that ``generate`` was left no choice but to take."""
        self._cache_editor = CacheEditor(vlm, self._parts, len(prompt.segments))
        self.images = PromptImages(vlm, self._parts, prompt)
        self._recorders: dict[int, AttentionRecorder] = {}
        self._editor: ScoreEditor | None = None
        self._share: ShareRecorder | None = None

    # The block

    def __enter__(self: S) -> S:
        """Attach to the model."""
        if self._used:
            raise RuntimeError("a session is used once: call intervene(...) again")
        self._used = True
        if self.vlm.model in _OPEN:
            raise InputError(
                "another intervention is open on this model: join the two by +, or close one first"
            )
        with ExitStack() as stack:  # unwound if anything below fails
            self._stack = stack
            _OPEN.add(self.vlm.model)
            stack.callback(_OPEN.discard, self.vlm.model)
            if any(s.part.edits_scores for s in self._trigger_state.states):
                self._editor = ScoreEditor(self._attention_name())
                attach_editor(self._parts, self._editor)
                stack.callback(detach_editor, self._parts, self._editor)
            if self._watched:
                self._share = ShareRecorder(self._layout(), self._layers(), self._watched)
                self._attach(self._share)
            for state in self._trigger_state.states:
                state.part.prepare(self)
            model, visual = self._parts.generator, self._parts.vision
            # compiled decoding must call back into Python here, not trace these
            before, after, keep = map(
                torch.compiler.disable, (self._before, self._after, self._keep_features)
            )
            handles = [
                model.register_forward_pre_hook(before, with_kwargs=True),
                model.register_forward_hook(after),
                visual.register_forward_hook(keep),
            ]
            for handle in handles:
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Leave the model as it was found."""
        self._stack.close()
        self.images.clear()
        self._recorders.clear()
        self._made.clear()

    def listen(self, recorder: AttentionRecorder, owner: object) -> None:
        """Let a recorder see every pass, for ``recorder_of`` its owner."""
        self._attach(recorder)
        self._recorders[id(owner)] = recorder

    def _attach(self, listener: Listener) -> None:
        attach(self._parts, listener, GenerateWatch(len(self.prompt.segments)))
        self._stack.callback(detach, self._parts, listener)

    def recorder_of(self, owner: object) -> AttentionRecorder:
        """Return the recorder that listens for an owner."""
        return self._recorders[id(owner)]

    @property
    def never_fired(self) -> list[str]:
        """Names of the interventions whose trigger has not fired."""
        return [state.part.name for state in self._trigger_state.states if not state.fired]

    def new_recorder(self, **options: Any) -> AttentionRecorder:
        """Make a recorder for this prompt; options as in ``AttentionRecorder``."""
        layers = options.pop("layers", self._layers())
        return AttentionRecorder(self._layout(), layers, **options)

    def _layout(self) -> Any:
        return key_layout(self.prompt.segments, np.atleast_2d(self.prompt.image_of_key))

    def _layers(self) -> list[int]:
        return list(range(len(self._parts.attention)))

    def _attention_name(self) -> str:
        base = attention_implementation(self._parts)
        if base not in ("sdpa", "eager"):
            raise InputError(
                f"scores cannot be changed under the attention implementation {base!r}: "
                "load the model with attn_implementation='sdpa' or 'eager'"
            )
        return base

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for a key; it is made the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # The hooks

    def _keep_features(self, _module: Any, _args: tuple, output: Any) -> None:
        if self._started:
            self.images.keep(self.vlm.family.features_in(output))

    def _before(self, module: Any, args: tuple, options: dict[str, Any]) -> tuple:
        ids, cache = options.get("input_ids"), cache_of(module, args, options)
        if ids is None or cache is None:
            raise InputError(
                "interventions need token ids and a cache: call model.generate(**prompt.inputs) "
                "with use_cache on"
            )
        if not self._started:
            if tuple(ids.shape) != (1, len(self.prompt.segments)):
                raise InputError(
                    f"generate was called with {ids.shape[0]} sequences of {ids.shape[1]} tokens, "
                    f"and the intervention was made for one prompt of {len(self.prompt.segments)}: "
                    "generate one response to that prompt"
                )
            if not torch.equal(ids, self.prompt.inputs["input_ids"].to(ids.device)):
                raise InputError(
                    "generate was called with the tokens of another prompt than the intervention "
                    "was made for: generate one response to that prompt"
                )
            self._started = True
        elif tuple(ids.shape) != (1, 1):
            raise InputError(
                f"a pass over {tuple(ids.shape)} tokens came after the prompt: interventions act "
                "on one generation, one token at a time"
            )
        else:
            self._take(int(ids[0, 0]))
        acting = self._due()
        if acting:
            self._act(acting, cache, options)
        if self._cache_editor.inserted:
            self._cache_editor.move(cache, options, self._slot(len(self._ids)) + 1)
        return args, options

    def _take(self, token: int) -> None:
        """Note the token that ``generate`` took."""
        if self._awaited not in (None, token):
            raise InputError(
                f"the forced token {self._awaited} did not come ({token} did): a logits processor "
                "or warper of this generation keeps it out; leave that out, or force other text"
            )
        self._awaited = None
        self._ids.append(token)
        self._trigger_state.seen.append(token)

    def _after(self, _module: Any, _args: tuple, output: Any) -> Any:
        if self._forced:
            self._awaited = token = self._forced.pop(0)
            logits = torch.full_like(output.logits[:, -1:], float("-inf"))
            logits[..., token] = 0.0
            output.logits = torch.cat([output.logits[:, :-1], logits], dim=1)
        return output

    def _due(self) -> list[tuple[int, ArmedIntervention]]:
        """Ask the triggers; the step to act on and the intervention, in order of steps."""
        step = len(self._ids)
        due = []
        for answer, state in self._trigger_state.ask(self._stop):
            at = self._step_of(answer)
            if not state.part.follows:
                at = max(at, self._cache_editor.first_free)
            due.append((min(at, step) if step else 0, state))
        return sorted(due, key=lambda pair: pair[0])

    def _step_of(self, answer: int) -> int:
        """Step of a trigger's answer."""
        return answer

    def _stop(self, reach: EditScope) -> None:
        reach.stop = self._slot(len(self._ids))

    def _shares(self, definition: str, count: int) -> list[float]:
        return [] if self._share is None else self._share.shares(definition, count)

    def _slot(self, step: int) -> int:
        """Slot of a step's query token, with what has been inserted so far."""
        return len(self.prompt.segments) - 1 + step + self._cache_editor.inserted

    def _begin_edit(self, edit: Edit, slot: int) -> EditScope:
        """Let an edit act on rows from a slot on."""
        assert self._editor is not None
        heads = select_heads(edit.layers, edit.heads, *self._sizes)
        return self._editor.add(edit, self.prompt, heads, slot)

    def _act(
        self, acting: list[tuple[int, ArmedIntervention]], cache: Any, options: dict[str, Any]
    ) -> None:
        step = len(self._ids)
        first = acting[0][0]
        start = self._slot(first)
        plan, at, slot = InsertionPlan(), first, start
        earlier = [] if self._editor is None else list(self._editor.reaches)
        events = []
        for act, state in acting:
            again = self._ids[at - 1 : act - 1] if act > at else []
            if again:
                plan.pieces.append((TextPiece(tuple(again)), False))
                slot += len(again)
                at = act
            place = _Place(self, state, plan, act, slot)
            state.part.act(place)
            slot += place.inserted
            events.append(
                Event(state.part.name, act, step, place.inserted, place.kept, place.forced)
            )
        again = self._ids[at - 1 : step - 1] if at and at < step else []
        if again:
            plan.pieces.append((TextPiece(tuple(again)), False))
        begun = time.perf_counter()
        if plan.pieces and self._editor is not None:
            self._editor.step_back(earlier, start, plan.segments())
        if plan.pieces:
            self._cache_editor.apply(plan, start, step - first, cache, options["position_ids"])
            if next(self._parts.text.parameters()).is_cuda:
                torch.cuda.synchronize()
        seconds = time.perf_counter() - begun if plan.pieces else 0.0
        self.events += [replace(event, seconds=seconds) for event in events]


class _Place:
    """Where one intervention acts, between the tokens of a generation; see ``Place``."""

    def __init__(
        self,
        session: Session,
        armed: ArmedIntervention,
        plan: InsertionPlan,
        step: int,
        slot: int,
    ) -> None:
        self.generation = session
        self.step = step
        self.inserted = 0
        self.kept: tuple[int, ...] = ()
        self.forced = 0
        self._armed = armed
        self._plan = plan
        self._slot = slot

    def insert(self, pieces: Sequence[Piece], kept: tuple[int, ...] = ()) -> None:
        self._plan.pieces += [(piece, True) for piece in pieces]
        self.inserted += sum(piece.count for piece in pieces)
        self.kept = kept
        editor = self.generation._cache_editor
        editor.first_free = max(self.step, editor.first_free)

    def edit(self, edit: Edit) -> None:
        self._armed.reach = self.generation._begin_edit(edit, self._slot)

    def force(self, ids: Sequence[int]) -> None:
        self.generation._forced += ids
        self.forced = len(ids)


def intervene(vlm: VLM, prompt: Prompt, intervention: Intervention) -> Session:
    """Intervene in the generation of a ``with`` block.

    Parameters
    ----------
    vlm, prompt
        From ``attnlens.load`` and ``vlm.prompt``; one response to one prompt.
    intervention
        One of ``attnlens.interventions``, or several joined by ``+``.

    Returns
    -------
    Session
        A context manager; ``events`` says what was done, ``never_fired`` what was not.
        ``model.generate`` inside the block keeps all it offers (sampling, processors, criteria,
        streamers), and where no trigger fires its tokens are those without. A recording
        (``attnlens.record``) around or inside sees the inserted keys as segment ``copied``.

    Raises
    ------
    InputError
        If something of the intervention does not fit the prompt or the model, before anything is
        run; or, when the generation starts, if it is no single one with a cache.

    Examples
    --------
    >>> with attnlens.interventions.intervene(vlm, prompt, Copy(when=At("<back>"))) as session:
    ...     vlm.model.generate(**prompt.inputs, max_new_tokens=256)  # doctest: +SKIP
    """
    return Session(vlm, prompt, intervention)
