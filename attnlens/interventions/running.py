"""One generation under an intervention, whatever feeds its tokens.

When a trigger fires, the cache is stepped back to the trigger, the insertion goes in by one pass on
top of the cache, what was cached after the trigger is fed again, and from then on positions and
mask are moved by what was inserted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from attnlens.errors import InputError
from attnlens.interventions.base import Edit, Intervention, check_visual, select_heads
from attnlens.interventions.cache_editor import CacheEditor, InsertionPlan
from attnlens.interventions.pieces import Piece, PromptImages, TextPiece
from attnlens.interventions.score_editor import EditScope, ScoreEditor
from attnlens.interventions.share_recorder import ShareRecorder
from attnlens.interventions.trigger_state import ArmedIntervention, TriggerState, check_forced_texts
from attnlens.interventions.triggers import Trigger, highest_thresholds
from attnlens.models.families import parts_of
from attnlens.models.load import VLM
from attnlens.models.prompt import Prompt
from attnlens.recording.generation import GenerateWatch
from attnlens.recording.layout import KeyLayout, key_layout
from attnlens.recording.recorder import AttentionRecorder
from attnlens.recording.tap import (
    Listener,
    attach,
    attach_editor,
    attention_implementation,
    detach,
    detach_editor,
)

_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models with an open intervention."""


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
        Time taken by stepping back and by the passes over what goes into the cache, for all that
        acted at this moment together.
    """

    intervention: str
    step: int
    known_at: int
    inserted: int = 0
    kept: tuple[int, ...] = ()
    forced: int = 0
    seconds: float = 0.0


class RunningIntervention:
    """The state of one generation under an intervention; a context manager, used once.

    Whoever feeds the tokens appends them to ``ids`` and to ``triggers.seen``, asks ``due`` before
    each pass, and lets what is due act.

    Attributes
    ----------
    events
        What has been done so far, in order.
    ids
        Response tokens so far.
    forced
        Response tokens that must come next.
    triggers, cache, editor
        State of the triggers; editors of the cache, and of attention scores where there is need.
    started
        Whether the prompt's pass has begun.
    knows_shares
        Whether visual shares can be asked for now.
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
        self.parts = parts_of(vlm.model)
        if intervention.parts and (any(self.parts.windows) or self.parts.without_attention):
            how = "without softmax" if self.parts.without_attention else "to a window"
            raise InputError(
                f"interventions are not verified for {vlm.family.name}: some of its layers attend "
                f"{how}"
            )
        self._watched = highest_thresholds(self._checked_triggers(intervention))
        intervention.check(prompt, self.parts.layer_count, self.parts.head_count)
        vocabulary = vlm.model.get_input_embeddings().num_embeddings
        check_forced_texts(intervention.parts, vlm.tokenizer, vocabulary)
        self.events: list[Event] = []
        self.ids: list[int] = []
        self.forced: list[int] = []
        self.started = False
        self.knows_shares = True
        self.triggers = TriggerState(intervention.parts, vlm.tokenizer, self._shares)
        self.cache = CacheEditor(vlm, self.parts, len(prompt.segments))
        self.images = PromptImages(vlm, self.parts, prompt)
        self.editor: ScoreEditor | None = None
        self._share: ShareRecorder | None = None
        self._recorders: dict[int, AttentionRecorder] = {}
        self._made: dict[Any, Any] = {}
        self._stack = ExitStack()
        self._used = False

    def _checked_triggers(self, intervention: Intervention) -> list[Trigger]:
        found: list[Trigger] = []
        for part in intervention.parts:
            triggers = (part.when, part.until or part.when)
            if not all(isinstance(trigger, Trigger) for trigger in triggers):
                raise InputError(
                    f"{part!r} has no trigger: give one of attnlens.interventions, such as "
                    "At('<back>')"
                )
            if part.edits_scores:
                self._check_attention()
            if part.inserts_visual and self.vlm.family.no_insertion:
                family = self.vlm.family
                raise InputError(
                    f"{part.name} inserts visual tokens, which {family.name} does not take: "
                    f"{family.no_insertion}"
                )
            if any(trigger.thresholds for trigger in triggers):
                check_visual("a trigger by visual share", self.prompt)
            found += triggers
        return found

    # The block

    def __enter__(self) -> RunningIntervention:
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
            if any(state.part.edits_scores for state in self.triggers.states):
                self._check_attention()
                self.editor = ScoreEditor()
                attach_editor(self.parts, self.editor)
                stack.callback(detach_editor, self.parts, self.editor)
            if self._watched:
                self._share = ShareRecorder(self._layout(), self._layers(), self._watched)
                self._attach(self._share)
            for state in self.triggers.states:
                state.part.prepare(self)
            # compiled decoding must call back into Python, not trace the hook
            keep = torch.compiler.disable(self._keep_features)
            stack.callback(self.parts.vision.register_forward_hook(keep).remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave the model as it was found."""
        self._stack.close()
        self.images.clear()
        self._recorders.clear()
        self._made.clear()

    def _attach(self, listener: Listener) -> None:
        attach(self.parts, listener, GenerateWatch(len(self.prompt.segments)))
        self._stack.callback(detach, self.parts, listener)

    def _keep_features(self, _module: Any, _args: tuple, output: Any) -> None:
        if self.started:
            features = self.vlm.family.features_in(output)
            if features is not None:
                self.images.keep(features)

    def _layout(self) -> KeyLayout:
        return key_layout(self.prompt.segments, np.atleast_2d(self.prompt.image_of_key))

    def _layers(self) -> list[int]:
        return list(range(self.parts.layer_count))

    def _check_attention(self) -> None:
        base = attention_implementation(self.parts)
        if base not in ("sdpa", "eager"):
            raise InputError(
                f"scores cannot be changed under the attention implementation {base!r}: "
                "load the model with attn_implementation='sdpa' or 'eager'"
            )

    def _shares(self, definition: str, count: int) -> list[float]:
        if self._share is None or not self.knows_shares:
            return []
        return self._share.shares(definition, count)

    # What interventions may ask; see ``attnlens.interventions.base.Generation``

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for a key; it is made the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def new_recorder(self, **options: Any) -> AttentionRecorder:
        """Make a recorder for this prompt; options as in ``AttentionRecorder``."""
        layers = options.pop("layers", self._layers())
        return AttentionRecorder(self._layout(), layers, **options)

    def listen(self, recorder: AttentionRecorder, owner: object) -> None:
        """Let a recorder see every pass, for ``recorder_of`` its owner."""
        self._attach(recorder)
        self._recorders[id(owner)] = recorder

    def recorder_of(self, owner: object) -> AttentionRecorder:
        """Return the recorder that listens for an owner."""
        return self._recorders[id(owner)]

    # What the feeder of tokens asks

    @property
    def never_fired(self) -> list[str]:
        """Names of the interventions whose trigger has not fired."""
        return [state.part.name for state in self.triggers.states if not state.fired]

    @property
    def watches_shares(self) -> bool:
        """Whether a trigger asks for visual shares."""
        return bool(self._watched)

    def slot(self, step: int) -> int:
        """Slot of a step's query token, with what has been inserted so far."""
        return len(self.prompt.segments) - 1 + step + self.cache.inserted

    def due(
        self, step_of: Callable[[int], int] = lambda answer: answer
    ) -> list[tuple[int, ArmedIntervention]]:
        """Ask the triggers; the step to act on and the intervention, in order of steps.

        ``step_of`` gives the step of a trigger's answer, where triggers see more than the response.
        """
        step = len(self.ids)
        due = []
        for answer, state in self.triggers.ask(self._stop):
            at = step_of(answer)
            if not state.part.follows:
                at = max(at, self.cache.first_free)
            due.append((min(at, step) if step else 0, state))
        return sorted(due, key=lambda pair: pair[0])

    def _stop(self, scope: EditScope) -> None:
        scope.stop = self.slot(len(self.ids))

    def begin_edit(self, edit: Edit, slot: int) -> EditScope:
        """Let an edit act on rows from a slot on."""
        assert self.editor is not None
        heads = select_heads(edit.layers, edit.heads, self.parts.layer_count, self.parts.head_count)
        return self.editor.add(edit, self.prompt, heads, slot)

    def act(self, acting: list[tuple[int, ArmedIntervention]], cache: Any, now: Any) -> None:
        """Let interventions act.

        Parameters
        ----------
        acting
            From ``due``.
        cache
            The model's cache.
        now
            Position ids of the pass that comes next, without what was inserted.
        """
        step = len(self.ids)
        first = acting[0][0]
        start = self.slot(first)
        plan, at, slot = InsertionPlan(), first, start
        earlier = [] if self.editor is None else list(self.editor.scopes)
        events = []
        for act, state in acting:
            again = self.ids[at - 1 : act - 1] if act > at else []
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
        again = self.ids[at - 1 : step - 1] if at and at < step else []
        if again:
            plan.pieces.append((TextPiece(tuple(again)), False))
        begun = time.perf_counter()
        if plan.pieces:
            if self.editor is not None:
                self.editor.step_back(earlier, start, plan.segments())
            self.cache.apply(plan, start, step - first, cache, now)
            if next(self.parts.text.parameters()).is_cuda:
                torch.cuda.synchronize()
        seconds = time.perf_counter() - begun if plan.pieces else 0.0
        self.events += [replace(event, seconds=seconds) for event in events]


class _Place:
    """Where one intervention acts, between the tokens of a generation; see ``Place``."""

    def __init__(
        self,
        running: RunningIntervention,
        armed: ArmedIntervention,
        plan: InsertionPlan,
        step: int,
        slot: int,
    ) -> None:
        self.generation = running
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
        cache = self.generation.cache
        cache.first_free = max(self.step, cache.first_free)

    def edit(self, edit: Edit) -> None:
        self._armed.scope = self.generation.begin_edit(edit, self._slot)

    def force(self, ids: Sequence[int]) -> None:
        self.generation.forced += ids
        self.forced = len(ids)
