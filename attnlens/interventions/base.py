"""What all interventions share: a trigger, a reach, and how they are joined."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attnlens.errors import InputError
from attnlens.interventions.triggers import Trigger, read_number

if TYPE_CHECKING:
    import torch

    from attnlens.interventions.pieces import Piece, PromptImages
    from attnlens.models.family import Parts
    from attnlens.models.load import VLM
    from attnlens.models.prompt import Prompt
    from attnlens.recording.recorder import AttentionRecorder

Heads = Iterable[int] | Iterable[tuple[int, int]] | None
"""Heads of all layers in reach, or (layer, head) pairs; all when None."""


class Generation(Protocol):
    """What an intervention may ask of the generation that it acts in."""

    vlm: VLM
    parts: Parts
    prompt: Prompt
    images: PromptImages

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for a key; it is made the first time."""

    def new_recorder(self, **options: Any) -> AttentionRecorder:
        """Make a recorder for the prompt."""

    def listen(self, recorder: AttentionRecorder, owner: object) -> None:
        """Let a recorder see every pass, for ``recorder_of`` its owner."""

    def recorder_of(self, owner: object) -> AttentionRecorder:
        """Return the recorder that listens for an owner."""


class Place(Protocol):
    """Where an intervention acts, and what it can do there."""

    @property
    def generation(self) -> Generation:
        """The generation."""

    @property
    def step(self) -> int:
        """The first step that it acts on."""

    def insert(self, pieces: Sequence[Piece], kept: tuple[int, ...] = ()) -> None:
        """Put tokens into the cache before the step's query token.

        ``kept`` says which visual tokens of the image they are, for the record.
        """

    def edit(self, edit: Edit) -> None:
        """Change scores from the step's query token on."""

    def force(self, ids: Sequence[int]) -> None:
        """Make these the response's next tokens."""


@dataclass(frozen=True)
class Words:
    """An intervention as a command line writes it: ``NAME`` or ``NAME:VALUE``.

    ``positions`` are those of inserted visual tokens; see ``attnlens.interventions.POSITIONS``.
    """

    text: str
    when: Trigger
    positions: str

    @property
    def name(self) -> str:
        """What comes before the colon."""
        return self.text.partition(":")[0]

    @property
    def value(self) -> str | None:
        """What comes after the colon; None if there is none."""
        return self.text.partition(":")[2] if ":" in self.text else None

    def number(self, value: str) -> float:
        """Read a finite number; anything else is refused."""
        number = read_number(self.text, value, float)
        if not math.isfinite(number):
            raise InputError(f"intervention {self.text!r}: give a finite number")
        return number


class Intervention(ABC):
    """Something done to a generation when a trigger fires; join several by ``+``.

    Attributes
    ----------
    when
        The trigger.
    until
        Trigger that ends it; None where nothing does.
    follows
        Whether it forces text: that acts after the token that makes the trigger fire, not before
        it.
    edits_scores
        Whether attention scores must be open to changes.
    inserts_visual
        Whether it puts visual tokens into the cache, which not all families take.
    forms
        The words that ``from_words`` reads, such as ``boost:LOG_ODDS``.
    """

    when: Trigger
    until: Trigger | None = None
    follows: ClassVar[bool] = False
    edits_scores: ClassVar[bool] = False
    inserts_visual: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_words(cls, words: Words) -> Intervention | None:
        """Read one of ``forms``, or return None; a value that does not fit is refused."""
        return None

    @classmethod
    def takes_whole(cls, text: str) -> bool:
        """Whether a ``+`` in the text is part of this one's value, and joins no others."""
        return False

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """The interventions that are joined here; a single one is its only part."""
        return (self,)

    @property
    def name(self) -> str:
        """Short name for tables, such as ``route:50``."""
        return type(self).__name__.lower()

    @abstractmethod
    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """Refuse what does not fit a prompt, or a model of so many layers and heads.

        Raises
        ------
        InputError
            If something does not fit.
        """

    def prepare(self, generation: Generation) -> None:  # noqa: B027 (few have to)
        """Prepare for the generation, such as by listening to it."""

    def act(self, place: Place) -> None:
        """Act; joined interventions leave it to their parts."""
        raise NotImplementedError

    def forced_ids(self, tokenizer: Any) -> list[int]:
        """Ids of the response tokens that it forces."""
        return []

    def __add__(self, other: Intervention) -> Intervention:
        """Do both, each at its own trigger."""
        return Joined((*self.parts, *other.parts))


class TokenInsertion(Intervention):
    """Puts tokens into the cache before the trigger."""

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        if self.when.first_step < 1:
            raise InputError(
                f"{self.name} at step {self.when.first_step} would insert before the last prompt "
                "token, which is part of the prompt: use a step of at least 1"
            )

    @abstractmethod
    def pieces(self, generation: Generation, step: int) -> list[Piece]:
        """Choose what is inserted before the query token of a step."""

    def kept_of(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """Which visual tokens of the image the pieces contain, for the record."""
        return ()

    def act(self, place: Place) -> None:
        """See ``Intervention``."""
        pieces = [piece for piece in self.pieces(place.generation, place.step) if piece.count]
        place.insert(pieces, self.kept_of(pieces))


class Edit(Intervention):
    """Changes attention scores from the trigger on."""

    edits_scores = True
    layers: Iterable[int] | None
    heads: Heads
    image: int | None

    def __post_init__(self) -> None:
        """Read generators, which can be read only once."""
        keep_lists(self)

    def act(self, place: Place) -> None:
        """See ``Intervention``."""
        place.edit(self)

    @abstractmethod
    def bias(self, scores: torch.Tensor) -> torch.Tensor | float:
        """Return what is added to scaled scores, float32 [1, heads, rows, keys] in reach."""

    def reach(self, prompt: Prompt) -> Sequence[int]:
        """Slots of the prompt keys in reach: those of the image, or of all images."""
        of_key = prompt.image_of_key
        chosen = of_key >= 0 if self.image is None else of_key == self.image
        return chosen.nonzero()[0].tolist()


class Joined(Intervention):
    """Several interventions in one generation, each at its own trigger."""

    def __init__(self, parts: tuple[Intervention, ...]) -> None:
        self._parts = parts
        self.when = parts[0].when

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """See ``Intervention``."""
        return self._parts

    @property
    def name(self) -> str:
        """See ``Intervention``."""
        return "+".join(part.name for part in self._parts)

    def __repr__(self) -> str:
        """Show the parts."""
        return " + ".join(map(repr, self._parts))

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""
        for part in self._parts:
            part.check(prompt, layers, heads)


class Nothing(Intervention):
    """No intervention: a twin that is untouched."""

    def __repr__(self) -> str:
        return "Nothing()"

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """See ``Intervention``."""
        return ()

    def check(self, prompt: Prompt, layers: int, heads: int) -> None:
        """See ``Intervention``."""


def check_visual(name: str, prompt: Prompt) -> None:
    """Refuse a prompt without an image."""
    if not prompt.images:
        raise InputError(
            f"{name} needs visual tokens, and the prompt has no image: give one with an image"
        )


def which_image(name: str, prompt: Prompt, image: int | None) -> int:
    """Return the number of an image; None names the only one. Others are refused."""
    check_visual(name, prompt)
    count = len(prompt.images)
    if image is None:
        if count > 1:
            raise InputError(f"the prompt has {count} images: say which by image=0 to {count - 1}")
        return 0
    if not is_whole(image) or not 0 <= image < count:
        raise InputError(f"there is no image {image!r}: the prompt has images 0 to {count - 1}")
    return int(image)


def select_heads(
    layers: Iterable[int] | None, heads: Heads, layer_count: int, head_count: int
) -> dict[int, tuple[int, ...]]:
    """Return the heads in reach by layer; a layer or head that does not exist is refused."""
    for name, value in (("layers", layers), ("heads", heads)):
        if value is not None and not isinstance(value, Iterable):
            raise InputError(f"{name}={value!r}: give a list, such as [{value!r}]")

    def check_layer(layer: Any, lowest: int) -> None:
        if not is_whole(layer) or not lowest <= layer < layer_count:
            raise InputError(
                f"there is no layer {layer!r}: the model has layers 0 to {layer_count - 1}"
            )

    chosen_layers = range(layer_count) if layers is None else list(layers)
    for layer in chosen_layers:
        check_layer(layer, -layer_count)
    named: list[Any] = list(range(head_count)) if heads is None else list(heads)
    if layers is not None and any(isinstance(entry, tuple) for entry in named):
        raise InputError(
            f"layers={list(chosen_layers)!r} with heads={named!r}: pairs name their layers, "
            "leave layers out"
        )
    reach: dict[int, list[int]] = {}
    for entry in named:
        pairs = (
            [entry]
            if isinstance(entry, tuple)
            else [(layer % layer_count, entry) for layer in chosen_layers]
        )
        for layer, head in pairs:
            check_layer(layer, 0)
            if not is_whole(head) or not 0 <= head < head_count:
                raise InputError(
                    f"there is no head {head!r}: a layer has heads 0 to {head_count - 1}"
                )
            reach.setdefault(int(layer), []).append(int(head))
    if not reach:
        raise InputError("no head is in reach: name at least one layer and head")
    return {layer: tuple(sorted(set(found))) for layer, found in sorted(reach.items())}


def is_whole(value: object) -> bool:
    """Whether something is a whole number, NumPy's included."""
    return isinstance(value, Integral)


def keep_lists(intervention: Any) -> None:
    """Turn ``layers`` and ``heads`` into tuples, since a generator can be read only once."""
    for name in ("layers", "heads"):
        value = getattr(intervention, name)
        if isinstance(value, Iterable):
            object.__setattr__(intervention, name, tuple(value))


def parse_intervention(text: str, when: Trigger, positions: str = "fresh") -> Intervention:
    """Read an intervention in one of the ``forms`` of the classes in ``attnlens.interventions``.

    Several are joined by ``+``, except for ``inject`` and ``close``, whose text is taken whole, and
    the name of a file that exists.

    Parameters
    ----------
    text
        The words.
    when
        The trigger of all its parts.
    positions
        Of inserted visual tokens; see ``attnlens.interventions.POSITIONS``.

    Raises
    ------
    InputError
        If it is in none of the forms, or a number is out of range.
    """
    kinds = list(_kinds(Intervention))
    if "+" in text and not any(kind.takes_whole(text) for kind in kinds):
        first, *others = [parse_intervention(part, when, positions) for part in text.split("+")]
        return sum(others, start=first)
    words = Words(text, when, positions)
    for kind in kinds:
        intervention = kind.from_words(words)
        if intervention is not None:
            return intervention
    forms = ", ".join(form for kind in kinds for form in kind.forms)
    raise InputError(f"unknown intervention {text!r}: give {forms}")


def _kinds(base: type) -> Iterator[Any]:
    """Yield the interventions that words are read as: those that define ``forms``."""
    subclasses: list[Any] = base.__subclasses__()
    for kind in subclasses:
        if "forms" in vars(kind):
            yield kind
        yield from _kinds(kind)
