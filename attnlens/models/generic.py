"""A model of a family that attnlens does not know by name, where it is built as most are.

Nothing of it has been verified, so it is recorded only after ``attnlens.recording.probe`` has
passed on the model at hand, and nothing is inserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnlens.errors import InputError
from attnlens.models.family import Family, Inputs, Parts, block_of
from attnlens.models.images import Tile


class Generic(Family):
    """Any decoder of transformers whose parts are where they usually are."""

    name = "another family"
    no_insertion = "its positions have not been verified"

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type  # type: ignore[misc]
        self.name = f"{model_type} (probed)"  # type: ignore[misc]

    def parts(self, generator: Any) -> Parts:
        """See ``Family``.

        Raises
        ------
        InputError
            If a part is not where it usually is.
        """
        text = generator.get_decoder() if hasattr(generator, "get_decoder") else None
        unembed = generator.get_output_embeddings()
        layers = getattr(text, "layers", None)
        if text is None or layers is None or unembed is None:
            raise InputError(
                f"{type(generator).__name__} is not built as most models of transformers are (a "
                "decoder with layers, and an output embedding): it cannot be recorded"
            )
        attention = tuple(getattr(layer, "self_attn", None) for layer in layers)
        if None in attention:
            layer = attention.index(None)
            raise InputError(
                f"layer {layer} of {type(generator).__name__} has no self_attn: it cannot be "
                "recorded"
            )
        multimodal = getattr(generator, "model", generator)
        return Parts(
            generator=generator,
            multimodal=multimodal,
            vision=multimodal,
            text=text,
            attention=attention,
            blocks=tuple(map(block_of, layers)),
            norm=getattr(text, "norm", None),
            unembed=unembed,
            windows=(None,) * len(attention),
        )

    def tiles(
        self, processor: Any, config: Any, inputs: Inputs, sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tile, ...]]:
        """See ``Family``; where a visual token is in the picture is not known.

        Images are told apart where each is one run of placeholders, or all have as many.
        """
        visual = (inputs["input_ids"][0] == config.image_token_id).int()
        starts = ((visual[1:] - visual[:-1]) == 1).nonzero().flatten().tolist()
        total, images = int(visual.sum()), len(sizes)
        if not images:
            return []
        if not total:
            raise InputError(
                f"no token of the prompt is the placeholder {config.image_token_id} of "
                f"{self.name}: where its visual tokens are is not known"
            )
        if len(starts) == images:
            ends = [*starts[1:], len(visual)]
            counts = [int(visual[a + 1 : b + 1].sum()) for a, b in zip(starts, ends, strict=True)]
        elif total % images == 0:
            counts = [total // images] * images
        else:
            raise InputError(
                f"{total} visual tokens of {images} images in {len(starts)} runs: which belong to "
                f"which is not known for {self.name}; give one image"
            )
        return [(Tile(1, count, box=None),) for count in counts]
