"""Texts of single tokens: joined they are the text of the whole, and no character is cut."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attnlens.recording.response import special_ids, token_texts

FEW = settings(max_examples=60, deadline=None)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text("aé图🙂👩🏽\u200d🚀\u0301\u0627\u05d0\n\t <>", max_size=20),
    st.lists(st.sampled_from(["<back>", " look", "</back>", "👩‍🚀", "e\u0301", "日本"])).map(
        "".join
    ),
)


def byte_ids(tokenizer, data: bytes) -> list[int]:
    """Spell bytes with one token each, by the table that GPT-2 published."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    table = {b: chr(b) for b in shown}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(shown))
    ids = tokenizer.convert_tokens_to_ids([table[b] for b in data])
    assert None not in ids
    return ids


@FEW
@given(text=TEXTS)
def test_joined_texts_are_the_decoded_text(tokenizer, text):
    ids = tokenizer(text).input_ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids) == text


@FEW
@given(text=TEXTS)
def test_a_split_character_belongs_to_its_last_token(tokenizer, text):
    ids = byte_ids(tokenizer, text.encode())
    expected = []
    for character in text:
        expected += [""] * (len(character.encode()) - 1) + [character]
    assert token_texts(tokenizer, ids) == expected


@FEW
@given(data=st.binary(max_size=12))
def test_bytes_that_make_no_character(tokenizer, data):
    texts = token_texts(tokenizer, byte_ids(tokenizer, data))
    assert len(texts) == len(data)
    assert "".join(texts) == data.decode("utf-8", errors="replace")


def test_invalid_bytes_become_one_mark_where_they_stand(tokenizer):
    ids = byte_ids(tokenizer, b"a\xff" + "é".encode())
    assert token_texts(tokenizer, ids) == ["a", "\ufffd", "", "é"]
    # cut off at the end: the last token shows that something was there
    assert token_texts(tokenizer, byte_ids(tokenizer, "🙂".encode()[:3])) == ["", "", "\ufffd"]


def test_special_tokens(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    half = byte_ids(tokenizer, "é".encode())
    assert token_texts(tokenizer, [end, pad]) == ["<|im_end|>", "<|image_pad|>"]
    # a character that a special token interrupts stays unfinished
    assert token_texts(tokenizer, [half[0], end, half[1]]) == ["", "\ufffd<|im_end|>", "\ufffd"]


def test_added_tokens_are_read_as_they_were_added(tokenizer):
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<back>", "«图»", "Ġx"])
    more.add_special_tokens({"additional_special_tokens": ["<|look|>"]})
    ids = more.convert_tokens_to_ids(["<back>", "«图»", "Ġx", "<|look|>"])
    assert min(ids) >= len(tokenizer)
    assert token_texts(more, ids) == ["<back>", "«图»", "Ġx", "<|look|>"]
    text = "see<back>é<|look|>"
    assert "".join(token_texts(more, more(text).input_ids)) == text
    assert ids[3] in special_ids(more)
    assert not set(ids[:3]) & special_ids(more)


def test_all_placeholders_and_ends_are_special(tokenizer):
    names = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_end|>", "<|endoftext|>"]
    assert set(tokenizer.convert_tokens_to_ids(names)) <= special_ids(tokenizer)
    assert not special_ids(tokenizer) & set(tokenizer("A plain text.").input_ids)


def test_unknown_ids_give_the_empty_text(tokenizer):
    half = byte_ids(tokenizer, "é".encode())
    assert token_texts(tokenizer, [-1]) == [""]
    assert token_texts(tokenizer, [half[0], -1, half[1]]) == ["", "", "é"]
    # models pad their vocabulary beyond the tokenizer's
    assert token_texts(tokenizer, [half[0], half[1], len(tokenizer) + 5]) == ["", "é", ""]
    assert token_texts(tokenizer, []) == []


@pytest.fixture(scope="module")
def words():
    vocabulary = {"[UNK]": 0, "look": 1, "back": 2, "Ġnow": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_tokenizers_that_do_not_work_on_bytes(words):
    # "Ġ" means a space to byte-level tokenizers only
    assert token_texts(words, [1, 2, -1, 3]) == ["look", "back", "", "Ġnow"]
