"""The testbed's tokenizer: byte-level BPE trained on the testbed's own corpus.

It has Qwen's special tokens and chat layout. ``<``, ``back`` and ``>`` are ordinary text, so a tag
is several tokens, as it is for Qwen2.5-VL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY_SIZE = 1024

# numbers of up to two digits in one piece, tags split at their brackets, words with their space
_PIECES = r" ?</?|>| ?\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}<>]+|\s+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Load the tokenizer of the model that ships with the package."""
    from transformers import PreTrainedTokenizerFast

    from attnlens.models.load import TESTBED

    return PreTrainedTokenizerFast.from_pretrained(TESTBED)


def corpus(seed: int, scenes: int) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on: prompts and answers of random scenes."""
    import numpy as np

    from attnlens.models.modes import DEFAULT_SYSTEM, MODES, user_text
    from attnlens.testbed.model.curriculum import perception_example
    from attnlens.testbed.world.answers import text_of
    from attnlens.testbed.world.questions import MAX_STEPS
    from attnlens.testbed.world.samples import make_sample

    yield DEFAULT_SYSTEM
    yield "system\nuser\nassistant\n"
    for index in range(scenes):
        rng = np.random.default_rng((seed, index))
        for mode in MODES:
            sample = make_sample(rng, mode)
            yield user_text(sample.question.text, mode)
            yield sample.answer
        short = perception_example(rng)
        yield short.text + "\n" + text_of(short.parts)
        for number in range(MAX_STEPS + 1):  # makes each a token, with and without a space
            yield f"#{number} {number}"


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with at most ``VOCABULARY_SIZE`` tokens, the special ones first.

    The tokenizer pads on the left, as generation needs it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=8192,
        chat_template=CHAT_TEMPLATE,
    )
