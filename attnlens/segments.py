"""The roles of key positions.

A *segment* is the role of a key position in the attention of a vision-language model:

``sink``
    the very first key of the sequence, which absorbs mass that has nowhere else to go
    (arXiv 2309.17453);
``system``
    everything else before the first visual token;
``visual``
    the tokens of an image or a video;
``vision_end``
    tokens that close an image or a video, or divide it (ends of rows, names of tiles);
``query``
    the user's text and the template after the first image, up to the first generated token
    (in a prompt without any image: everything after the sink);
``response``
    generated tokens;
``copied``
    visual tokens inserted again during generation.

A *region* is a span of the response that tags enclose.
"""

from __future__ import annotations

SEGMENTS = ("sink", "system", "visual", "vision_end", "query", "response", "copied")
"""Every segment that holds attention mass, in the order of a trace's ``segment`` axis."""

PROMPT_SEGMENTS = ("sink", "system", "visual", "vision_end", "query")
"""The segments that a prompt key can have."""

PADDING = "padding"
"""The label of left-padding keys in a batch: they are hidden from every query and hold no mass."""

REGIONS = ("think", "back", "summary", "caption", "reasoning", "reflection", "conclusion", "answer")
"""Names of regions: those of their tags, in lower case."""
