"""Mass from hand-made queries and keys with closed forms, and proof that the tap is real."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.models.cache import cache_of, returned_cache, with_cache
from attnlens.recording import mass as mass_module
from attnlens.recording.layout import key_layout
from attnlens.recording.mass import (
    AttentionRows,
    KeyColumns,
    attention_mass,
    attention_scores,
    attention_weights,
)
from attnlens.segments import SEGMENTS


def layout_of(counts):
    """Columns of a prompt with one sink and the given numbers of keys, then response keys."""
    system, visual, query = counts
    segments = ["sink", *["system"] * system, *["visual"] * visual, *["query"] * query]
    return key_layout(segments)


def compute(queries, keys, layout, positions, **options):
    length = keys.shape[2]
    columns = np.pad(
        layout.columns,
        ((0, 0), (0, length - layout.prompt_length)),
        constant_values=layout.response_column,
    )
    (mass,) = attention_mass(
        AttentionRows(
            [queries],
            [keys],
            torch.tensor(positions),
            queries.shape[-1] ** -0.5,
            bias=options.pop("bias", None),
        ),
        KeyColumns(
            torch.from_numpy(columns), len(layout.names), torch.from_numpy(layout.visual_slots)
        ),
        **options,
    )
    return mass


def by_name(mass, layout):
    return {name: mass[..., layout.names.index(name)] for name in set(layout.names)}


@settings(max_examples=40, deadline=None)
@given(
    counts=st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 5)),
    response=st.integers(0, 6),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 3)]),
)
def test_equal_scores_give_the_fraction_of_keys(counts, response, heads):
    layout = layout_of(counts)
    total = layout.prompt_length + response
    queries = torch.zeros(1, heads[0], 1, 8)
    keys = torch.randn(1, heads[1], total, 8)
    got = compute(queries, keys, layout, [total - 1], want_visual=True)
    mass = by_name(got.by_column, layout)
    names = ("sink", "system", "visual", "query", "response")
    for name, count in zip(names, (1, *counts, response), strict=True):
        np.testing.assert_allclose(mass[name].numpy(), count / total, atol=1e-6)
    np.testing.assert_allclose(got.visual_weight.numpy(), 1 / total, atol=1e-6)
    assert got.visual_nonzero.item() == counts[1]


@settings(max_examples=40, deadline=None)
@given(
    visual=st.integers(1, 12),
    others=st.integers(1, 12),
    gap=st.floats(-6, 6),
    head=st.integers(0, 3),
)
def test_a_score_gap_is_the_log_odds(visual, others, gap, head):
    """Scores g on visual keys and 0 elsewhere: log-odds = log(visual / rest) + g."""
    layout = layout_of((others, visual, 0))
    keys = torch.zeros(1, 2, layout.prompt_length, 8)
    keys[:, :, layout.columns[0] == layout.names.index("visual"), 0] = 1.0
    queries = torch.zeros(1, 4, 1, 8)
    queries[:, head, :, 0] = gap * math.sqrt(8)
    got = by_name(compute(queries, keys, layout, [layout.prompt_length - 1]).by_column, layout)
    others_mass = sum(value[0, 0].double() for name, value in got.items() if name != "visual")
    log_odds = torch.log(got["visual"][0, 0].double()) - torch.log(others_mass)
    want = math.log(visual / (others + 1)) + gap * (torch.arange(4) == head)
    np.testing.assert_allclose(log_odds.numpy(), want.numpy(), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    layers=st.integers(1, 3),
    bias_heads=st.sampled_from([1, 6]),
    chunk=st.sampled_from([1, 150, 400, 3000, 10**6]),
)
def test_chunks_groups_and_layers_equal_a_plain_softmax(seed, rows, layers, bias_heads, chunk):
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of((3, 7, 4))
    length = layout.prompt_length + 5
    queries = torch.randn(layers, 2, 6, rows, 8, generator=generator)
    keys = torch.randn(layers, 2, 2, length, 8, generator=generator)
    positions = torch.randint(layout.prompt_length - 1, length, (rows,), generator=generator)
    bias = torch.randn(2, bias_heads, rows, length, generator=generator)
    before = mass_module.CHUNK_ELEMENTS
    mass_module.CHUNK_ELEMENTS = chunk
    try:
        columns = torch.from_numpy(
            np.pad(layout.columns, ((0, 0), (0, 5)), constant_values=layout.response_column)
        ).repeat(2, 1)
        columns[1, :2] = -1  # padding in the second row
        got = attention_mass(
            AttentionRows(list(queries), list(keys), positions, 0.3, bias),
            KeyColumns(
                columns, len(layout.names), torch.from_numpy(layout.visual_slots).repeat(2, 1)
            ),
        )
    finally:
        mass_module.CHUNK_ELEMENTS = before
    assert len(got) == layers
    for i, b, h, r in itertools.product(range(layers), range(2), range(6), range(rows)):
        scores = keys[i, b, h // 3] @ queries[i, b, h, r] * 0.3
        scores = (scores + bias[b, h % bias_heads, r]).double()
        visible = [j for j in range(length) if j <= positions[r] and columns[b, j] >= 0]
        weights = torch.softmax(scores[visible], 0)
        want = [
            sum(w for w, j in zip(weights, visible, strict=True) if columns[b, j] == c)
            for c in range(len(layout.names))
        ]
        row = got[i].by_column[b, r, h].numpy()
        np.testing.assert_allclose(row, np.array(want, float), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 130, 600, 10**6])
@pytest.mark.parametrize("visual", [[[4, 5, 6], [4, 5, 6]], [[4, 6, 7], [5, 6, -1]]])
def test_visual_weights_of_the_rows_and_heads_that_are_wanted(monkeypatch, chunk, visual):
    monkeypatch.setattr(mass_module, "CHUNK_ELEMENTS", chunk)
    queries, keys = torch.randn(3, 2, 4, 7, 8), torch.randn(3, 2, 2, 9, 8)
    columns = torch.zeros(2, 9, dtype=torch.int64)
    positions = torch.arange(2, 9)
    heads = [None, [1, 3], None]
    for without in (0, 3, 7):
        got = attention_mass(
            AttentionRows(list(queries), list(keys), positions, 0.3),
            KeyColumns(columns, 1, torch.tensor(visual)),
            want_visual=True,
            without_visual=without,
            averaged_heads=heads,
            map_heads=[(), (3, 0), (2,)],
        )
        assert got[0].visual_by_head is None
        for i, mass in enumerate(got):
            weights = attention_weights(attention_scores(queries[i], keys[i], 0.3), positions)
            want = weights[:, heads[i] or [0, 1, 2, 3]].mean(1)
            assert mass.by_column.shape == (2, 7, 4, 1)
            assert mass.visual_weight.shape == (2, 7 - without, 3)
            for b, row in enumerate(visual):
                for v, slot in enumerate(row):
                    expected = want[b, without:, slot] if slot >= 0 else torch.zeros(7 - without)
                    np.testing.assert_allclose(mass.visual_weight[b, :, v], expected, atol=1e-6)
            np.testing.assert_array_equal(mass.visual_nonzero, (mass.visual_weight > 0).sum(-1))
            for place, head in enumerate([(), (3, 0), (2,)][i]):
                assert mass.visual_by_head.shape[:2] == (2, 7 - without)
                for b, v in itertools.product(range(2), range(3)):
                    slot, found = visual[b][v], mass.visual_by_head[b, :, place, v]
                    expected = weights[b, head, without:, slot] * (slot >= 0)
                    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_do_not_see_what_comes_after_them():
    queries, keys = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 6, 8)
    scores = attention_scores(queries, keys, 1.0)
    rows = attention_weights(scores, torch.tensor([0, 2, 5]))
    assert (rows[:, :, 0, 1:] == 0).all()
    assert (rows[:, :, 1, 3:] == 0).all()
    assert (rows[:, :, 2] > 0).all()


def test_half_precision_inputs_are_summed_in_float32():
    queries, keys = torch.randn(1, 4, 1, 64), torch.randn(1, 4, 300, 64)
    layout = layout_of((99, 150, 50))
    half = compute(queries.bfloat16(), keys.bfloat16(), layout, [299]).by_column
    full = compute(queries.bfloat16().float(), keys.bfloat16().float(), layout, [299]).by_column
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.numpy(), full.numpy(), atol=1e-6)


# The tap is real: change the attention of the model, and the record changes as algebra says.


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt([picture(), picture(140, 112, 4)], "Is there a red circle?", "cot")


def visual_log_odds(trace):
    share = trace.data["mass"].sel(segment="visual").values.astype(float)
    return np.log(share) - np.log1p(-share)


def with_mask(tiny, prompt, layer, change, run=None):
    """Record while one layer's attention mask is replaced by ``change(queries, keys)``.

    What is recorded is ``run()``, or else a generation of 36 tokens.
    """
    attention = tiny.model.model.language_model.layers[layer].self_attn

    def hook(_module, args, options):
        tokens = options["hidden_states"].shape[1]
        past = cache_of(attention, args, options).get_seq_length(layer)
        options["attention_mask"] = change(tokens, past + tokens)
        return args, options

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with attnlens.record(tiny, prompt) as recorder, torch.no_grad():
            if run is None:
                tiny.model.generate(
                    **prompt.inputs, max_new_tokens=36, min_new_tokens=36, do_sample=False
                )
            else:
                run()
    finally:
        handle.remove()
    return recorder.trace


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("bias", [-3.0, 0.7, 2.5])
def test_a_planted_bias_moves_the_log_odds_by_itself(tiny, prompt, layer, bias):
    visual = torch.from_numpy(prompt.segments == "visual")

    def mask(amount):
        def change(tokens, keys):
            rows = torch.arange(keys - tokens, keys)
            hidden = torch.arange(keys)[None, :] > rows[:, None]
            added = torch.zeros(tokens, keys).masked_fill(hidden, -torch.inf)
            # only for the step's own row, so that lower layers and the cache stay as they are
            added[-1, : len(visual)] += amount * visual
            return added[None, None]

        return change

    plain = with_mask(tiny, prompt, layer, mask(0.0))
    planted = with_mask(tiny, prompt, layer, mask(bias))
    # step 0 has the same queries and keys up to this layer; later steps follow other tokens
    moved = visual_log_odds(planted)[0, layer] - visual_log_odds(plain)[0, layer]
    np.testing.assert_allclose(moved, bias, atol=1e-3)
    assert planted.tokens != plain.tokens or abs(bias) < 1


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_planted_bias_moves_the_log_odds_at_every_step(tiny, prompt, layer):
    """Teacher-forced: a layer's queries and keys do not depend on its own bias."""
    delta = 1.3
    visual = torch.from_numpy(prompt.segments == "visual")
    tokens = [300 + 7 * (i % 11) for i in range(40)]  # more than one flush

    def plant(amount):
        def change(count, keys):
            hidden = torch.arange(keys)[None, :] > torch.arange(keys - count, keys)[:, None]
            added = torch.zeros(count, keys).masked_fill(hidden, -torch.inf)
            added[:, : len(visual)] += amount * visual
            return added[None, None]

        def run():
            output = tiny.model(**prompt.inputs, use_cache=True)
            for token in tokens:
                output = tiny.model(
                    input_ids=torch.tensor([[token]]),
                    **with_cache(tiny.model, returned_cache(output)),
                )

        return visual_log_odds(with_mask(tiny, prompt, layer, change, run))

    moved = plant(delta) - plant(0.0)
    assert len(moved) == 41
    np.testing.assert_allclose(moved[:, layer], delta, atol=1e-3)
    np.testing.assert_allclose(moved[:, :layer], 0, atol=1e-3)
    # and the model felt it: what lies above has moved otherwise
    assert (np.abs(moved[:, layer + 1 :]).max(axis=(0, 2)) > 0.01).all()


def test_hidden_keys_have_no_mass(tiny, prompt):
    visual = torch.from_numpy(prompt.segments == "visual")

    def change(tokens, keys):
        rows = torch.arange(keys - tokens, keys)
        seen = torch.arange(keys)[None, :] <= rows[:, None]
        seen[-1, : len(visual)] &= ~visual
        return seen[None, None]

    trace = with_mask(tiny, prompt, 2, change)
    assert (trace.data["mass"].sel(segment="visual", layer=2).values == 0).all()
    assert (trace.data["visual_nonzero"].sel(layer=2).values == 0).all()
    assert (trace.data["mass"].sel(segment="visual", layer=1).values > 0).all()


def test_zero_queries_give_the_fraction_of_keys(tiny, prompt):
    """With the query projection at zero all scores are equal: mass is the fraction of keys."""
    import copy

    model = copy.deepcopy(tiny.model)
    projection = model.model.language_model.layers[1].self_attn.q_proj
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()
    with attnlens.record(model, prompt.segments) as recorder:
        model.generate(**prompt.inputs, max_new_tokens=36, min_new_tokens=36, do_sample=False)
    data = recorder.trace.data
    keys = data["keys"].values
    want = keys / keys.sum(-1, keepdims=True)
    got = data["mass"].sel(layer=1).values
    np.testing.assert_allclose(got, np.repeat(want[:, None], 4, axis=1), atol=1e-6)
    assert keys.sum(-1).tolist() == [len(prompt.segments) + t for t in range(36)]
    assert list(data["segment"].values) == list(SEGMENTS)


@pytest.mark.parametrize("chunk", [500, 10**6])
@pytest.mark.parametrize("biased", [False, True])
def test_with_the_normalisers_of_attention_itself_mass_is_the_same(monkeypatch, chunk, biased):
    """Only the keys before the answer are multiplied then; normalisers of others are not used."""
    monkeypatch.setattr(mass_module, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(mass_module, "FEWEST_LEFT", 0)
    torch.manual_seed(0)
    query, keys = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 30, 8)
    positions = torch.arange(21, 30)
    seen = torch.arange(30) <= positions[:, None]
    bias = torch.zeros(2, 1, 9, 30)
    if biased:
        bias = bias.masked_fill(torch.rand(bias.shape) < 0.2, float("-inf"))
    of_keys = torch.tensor([0] * 4 + [1] * 10 + [2] * 16).repeat(2, 1)
    of_keys[1, :3] = -1
    columns = KeyColumns(of_keys, 3, torch.arange(4, 14).repeat(2, 1), rest=2, others=14)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, keys.repeat_interleave(2, 1)) * 0.7 + bias
    scores = scores.masked_fill(~seen, float("-inf"))
    scores = scores.masked_fill((of_keys < 0)[:, None, None], float("-inf"))
    sums = scores.logsumexp(-1)
    rows = AttentionRows([query], [keys], positions, 0.7, bias)
    (want,) = attention_mass(rows, columns, want_visual=True)
    calls = []
    product = mass_module.attention_scores

    def counted(q, k, *args, **options):
        calls.append((q.shape[2], k.shape[2]))
        return product(q, k, *args, **options)

    monkeypatch.setattr(mass_module, "attention_scores", counted)
    (got,) = attention_mass(replace(rows, log_sums=[sums]), columns, want_visual=True)
    assert max(k for q, k in calls[1:]) == 14  # the first is the check of the last row
    for name in ("by_column", "visual_weight"):
        assert abs(getattr(got, name) - getattr(want, name)).max() < 1e-6
    assert torch.equal(got.visual_nonzero, want.visual_nonzero)
    assert (got.hidden is None) == (want.hidden is None)
    assert got.hidden is None or torch.equal(got.hidden, want.hidden)
    calls.clear()
    (other,) = attention_mass(replace(rows, log_sums=[sums + 0.1]), columns, want_visual=True)
    assert torch.equal(other.by_column, want.by_column)
    assert max(k for q, k in calls[1:]) == 30
