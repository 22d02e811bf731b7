"""The testbed's batches and its training."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attnlens
from attnlens.errors import InputError
from attnlens.models.family import ImagePiece
from attnlens.models.modes import user_text
from attnlens.models.qwen2_5_vl import multimodal_positions
from attnlens.testbed import held_out_sample, make_sample
from attnlens.testbed.model.architecture import build_model, embed, initialise
from attnlens.testbed.model.batches import IGNORED, Batches, collate
from attnlens.testbed.model.curriculum import (
    INSERTION_SHARES,
    KIND_SHARES,
    STAGES,
    Example,
    Stage,
    with_insertion,
)
from attnlens.testbed.model.training import (
    Muon,
    TrainingPlan,
    _loss,
    build_optimisers,
    orthogonalise,
    train,
)
from attnlens.testbed.world.answers import text_of
from attnlens.testbed.world.questions import KINDS
from attnlens.testbed.world.scenes import SIZES

pytestmark = pytest.mark.slow


def small_batches(monkeypatch, perception: int, answers: int, piece: int = 2):
    from attnlens.testbed.model import batches

    for name, size in {"PERCEPTION_BATCH": perception, "ANSWER_BATCH": answers}.items():
        monkeypatch.setattr(batches, name, dict.fromkeys(("small", "medium", "large"), size))
    monkeypatch.setattr(batches, "LONG_BATCH", 1)
    monkeypatch.setattr(batches, "PIECE", piece)


def test_batches_are_functions_of_seed_and_step_and_carry_loss_on_answers_alone(tiny, monkeypatch):
    small_batches(monkeypatch, 5, 5)
    tokenizer = tiny.tokenizer
    stages = (Stage(0, STAGES[0].kinds, long_every=4),)
    whole = Batches(tiny.processor, seed=0, steps=4, perception_steps=2, stages=stages)
    assert len(whole) == 4
    for index in (0, 2, 3):
        again = Batches(tiny.processor, 0, 4, perception_steps=2, stages=stages, first=index)[0]
        pieces = whole[index]
        assert [len(p["input_ids"]) for p in pieces] == ([2, 2, 1] if index < 3 else [1])
        for piece, twin in zip(pieces, again, strict=True):
            assert all(torch.equal(piece[name], twin[name]) for name in piece)
            rows = zip(piece["input_ids"], piece["labels"], strict=True)
            for ids, labels in rows:
                counted = labels != IGNORED
                assert torch.equal(labels[counted], ids[counted])
                text = tokenizer.decode(ids)
                answer = text.partition("<|im_start|>assistant\n")[2].split("<|im_end|>")[0]
                inserted = answer.partition("<|vision_start|>")
                answer = inserted[0] + inserted[2].partition("<|vision_end|>")[2]
                if "<|vision_start|>" in answer:  # a second verification, a second insertion
                    inserted = answer.partition("<|vision_start|>")
                    answer = inserted[0] + inserted[2].partition("<|vision_end|>")[2]
                assert tokenizer.decode(ids[counted]) == answer + "<|im_end|>"
    longest = [len(p["input_ids"][0]) for p in whole[2]]
    assert longest == sorted(longest)
    other = Batches(tiny.processor, 1, 4, perception_steps=2)[2]
    assert not torch.equal(other[0]["input_ids"], whole[2][0]["input_ids"])


def test_a_stage_asks_for_its_kinds_from_its_first_step_on(tiny, monkeypatch):
    small_batches(monkeypatch, 1, 6)
    only = {kind: tuple(float(k == kind) for k in KINDS) for kind in KINDS}
    assert list(KINDS) == list(KIND_SHARES)  # the order that a stage's shares are in
    stages = (
        Stage(0, only["existence"]),
        Stage(2, only["subtraction"]),
        Stage(3, only["chain"], 1),
    )
    batches = Batches(tiny.processor, 0, 4, perception_steps=0, stages=stages)
    tokenizer = tiny.tokenizer

    def questions(step):
        rows = [row for piece in batches[step] for row in piece["input_ids"]]
        texts = [tokenizer.decode(row).partition("user\n")[2] for row in rows]
        return [t for t in texts if "inside <" in t]  # leaves perception out

    for step in (0, 1):
        assert all(re.search(r"Is there|Does the|Can you", q) for q in questions(step))
    assert all("Subtract" in q or "emove" in q for q in questions(2))
    (question,) = questions(3)
    assert len(re.findall(r"s (?:subtracted|added)[,.]", question)) >= 9
    for stage in STAGES:
        assert sum(stage.kinds) == pytest.approx(1)


def reflection_example(index, kept=None):
    sample = make_sample(np.random.default_rng((7, index)), "reflection", grid="small")
    count = sample.scene.rows * sample.scene.columns
    kept = tuple(range(count)) if kept is None else tuple(kept)
    text = user_text(sample.question.text, "reflection")
    return Example(sample.scene, text, list(sample.parts), kept)


def test_inserted_images_are_what_transformers_makes_of_the_stitched_sequence(tiny):
    """The whole image inserted: ids, positions and loss of the model's own forward pass."""
    examples = [reflection_example(i) for i in range(3)]
    batch = collate(tiny.processor, examples)
    ids, labels = batch["input_ids"], batch["labels"]
    mask = (ids != tiny.tokenizer.pad_token_id).long()
    types = (ids == tiny.processor.image_token_id).int()
    grid = batch["image_grid_thw"].repeat_interleave(2, 0)
    positions, _ = tiny.model.model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask
    )
    for row in range(3):
        real = mask[row] == 1
        assert torch.equal(positions[:, row, real], batch["position_ids"][:, row, real])
    sizes = batch["image_grid_thw"].prod(1).tolist()
    twice = [p for pixels in batch["pixel_values"].split(sizes) for p in (pixels, pixels)]
    with torch.no_grad():
        logits = tiny.model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=types,
            pixel_values=torch.cat(twice),
            image_grid_thw=grid,
        ).logits[:, :-1]
        loss, right, looked = _loss(tiny.model, batch)
    counted = labels[:, 1:] != IGNORED
    log_p = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    assert loss.item() == pytest.approx(-log_p[counted].sum().item(), rel=1e-5)
    looks = batch["must_look"][:, 1:]
    assert looked == int(looks.sum()) > 0
    assert right == int((logits.argmax(-1) == labels[:, 1:])[looks].sum())
    # the inserted tokens themselves are not learned, the tag after them is
    for row, example in enumerate(examples):
        text = tiny.tokenizer.decode(ids[row][labels[row] != IGNORED])
        assert text == text_of(example.parts) + "<|im_end|>"


def test_predictable_words_of_a_verification_are_written_without_a_view_of_the_image(tiny):
    """Against a pass in which eager attention is given the hidden rows by hand."""
    examples = [reflection_example(i) for i in range(3)]
    batch = collate(tiny.processor, examples, hidden_from="predictable words")
    tokenizer, image = tiny.tokenizer, tiny.processor.image_token_id
    by_hand = torch.zeros_like(batch["hidden"])
    for row, example in enumerate(examples):
        ids = batch["input_ids"][row].tolist()
        labels = batch["labels"][row]
        truth = [(part.section == "verification", part.must_look) for part in example.parts]
        # one truth for each character, then for each token that is learned
        spread = [t for part, t in zip(example.parts, truth, strict=True) for _ in part.text]
        tokens = [i for i in range(len(ids)) if labels[i] != IGNORED][:-1]  # without the end
        ends = np.cumsum([len(tokenizer.decode(ids[i])) for i in tokens])
        assert ends[-1] == len(spread)
        for k in range(1, len(tokens)):
            characters = spread[ends[k - 1] : ends[k]]
            told = not any(looked for _, looked in characters)
            inside = characters[0][0] and spread[ends[k - 1] - 1][0]
            by_hand[row, tokens[k] - 1] = told and inside
    assert torch.equal(batch["hidden"], by_hand)
    assert by_hand.sum() > 20
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        tiny_loss = _loss(tiny.model, batch)[0]
        allowed = torch.ones(length, length).tril()[None].repeat(3, 1, 1)
        for row in range(3):
            keys = batch["input_ids"][row] == image
            for query in by_hand[row].nonzero()[:, 0]:
                allowed[row, query, keys] = 0
        mask = torch.where(allowed == 1, 0.0, -1e30)[:, None]
        before = tiny.model.config._attn_implementation
        tiny.model.set_attn_implementation("eager")
        try:
            states = tiny.model.model.language_model(
                inputs_embeds=embed(tiny.model, batch["input_ids"], batch, batch["visual_index"]),
                attention_mask={"full_attention": mask},
                position_ids=batch["position_ids"],
            ).last_hidden_state
        finally:
            tiny.model.set_attn_implementation(before)
        logits = tiny.model.lm_head(states[:, :-1])
        plain = _loss(tiny.model, collate(tiny.processor, examples))[0]
    labels, weights = batch["labels"][:, 1:], batch["weights"][:, 1:]
    counted = labels != IGNORED
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert tiny_loss.item() == pytest.approx(-(log_p * weights)[counted].sum().item(), rel=1e-5)
    assert abs(plain.item() - tiny_loss.item()) > 1e-3


def test_where_marks_are_looked_up_alone_sizes_see_no_image_and_are_not_learned(tiny):
    examples = [reflection_example(i) for i in range(3)]
    told = collate(tiny.processor, examples, hidden_from="predictable words")
    both = collate(tiny.processor, examples, hidden_from="predictable words and sizes")
    for row, example in enumerate(examples):
        words = tiny.tokenizer.convert_ids_to_tokens(both["input_ids"][row].tolist())
        looks = both["must_look"][row].tolist()
        sizes = [i for i, w in enumerate(words) if w.lstrip("\u0120") in SIZES and looks[i]]
        assert len(sizes) == len(example.scene.objects)
        more = (both["hidden"][row] & ~told["hidden"][row]).nonzero()[:, 0].tolist()
        assert more == [i - 1 for i in sizes]
        assert not (told["hidden"][row] & ~both["hidden"][row]).any()
        assert (both["weights"][row] == 0).nonzero()[:, 0].tolist() == sizes
        # a mark is stated by the next word, whose step sees the image
        assert not both["hidden"][row, sizes].any()
    assert torch.equal(both["labels"], told["labels"])


def test_a_stage_may_look_marks_up_alone(tiny, monkeypatch):
    small_batches(monkeypatch, 1, 4)
    shares = dict(zip(KINDS, STAGES[0].kinds, strict=True)).values()
    made = {
        lone: Batches(tiny.processor, 0, 40, 0, stages=(Stage(0, tuple(shares), lone_marks=lone),))
        for lone in (0.0, 1.0)
    }
    unlearned = {
        lone: [bool((piece["weights"] == 0).any()) for step in range(6) for piece in batches[step]]
        for lone, batches in made.items()
    }
    assert not any(unlearned[0.0])
    assert any(unlearned[1.0])
    assert not all(unlearned[1.0])


def test_a_part_of_an_image_keeps_its_place_in_the_grid(tiny):
    whole = collate(tiny.processor, [reflection_example(0)])
    kept = (1, 8, 20, 30)
    part = collate(tiny.processor, [reflection_example(0, kept)])
    image = tiny.processor.image_token_id
    count = reflection_example(0).scene.rows * reflection_example(0).scene.columns
    at_whole = (whole["input_ids"][0] == image).nonzero()[:, 0][count:]
    at_part = (part["input_ids"][0] == image).nonzero()[:, 0][count:]
    assert len(at_part) == 4
    chosen = whole["position_ids"][:, 0, at_whole[list(kept)]]
    assert torch.equal(part["position_ids"][:, 0, at_part], chosen)
    assert part["visual_index"][count:].tolist() == list(kept)
    # and the text after it is where it would be after the whole image
    after_whole = whole["position_ids"][:, 0, at_whole[-1] + 1 :]
    after_part = part["position_ids"][:, 0, at_part[-1] + 1 :]
    assert torch.equal(after_part, after_whole)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(0, 9),
            st.builds(ImagePiece, st.integers(1, 6), st.integers(1, 6)),
        ),
        max_size=8,
    )
)
def test_positions_follow_the_rule_of_qwen2_vl(pieces):
    expected, start = [], 0
    for piece in pieces:
        if isinstance(piece, int):
            expected += [(start + i,) * 3 for i in range(piece)]
            start += piece
        else:
            expected += [
                (start, start + r, start + c)
                for r in range(piece.rows)
                for c in range(piece.columns)
            ]
            start += max(piece.rows, piece.columns)
    assert multimodal_positions(pieces).T.tolist() == [list(p) for p in expected]


def miniature(folder, steps=6, **options):
    stages = (Stage(0, STAGES[0].kinds, long_every=5),)
    plan = TrainingPlan(
        seed=1,
        steps=steps,
        restart=4,
        perception_steps=3,
        stages=stages,
        warm_up=2,
        corpus_scenes=10,
    )
    return train(folder, plan, workers=0, **options)


def test_training_does_not_replace_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no testbed checkpoint"):
        miniature(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    from attnlens.testbed.model import training

    small_batches(monkeypatch, 3, 2)
    miniature(tmp_path / "whole", checkpoint_every=2)

    class Stop(Exception):
        pass

    real, calls = training._loss, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 9:
            raise Stop
        return real(*args)

    monkeypatch.setattr(training, "_loss", interrupted)
    with pytest.raises(Stop):
        miniature(tmp_path / "parts", checkpoint_every=2)
    assert (tmp_path / "parts.checkpoint").exists()
    assert not (tmp_path / "parts").exists()
    with pytest.raises(InputError, match="another plan"):
        miniature(tmp_path / "parts", steps=8)
    monkeypatch.setattr(training, "_loss", real)
    miniature(tmp_path / "parts", checkpoint_every=2)
    assert not (tmp_path / "parts.checkpoint").exists()
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == whole
    # and what it writes loads as any checkpoint does
    vlm = attnlens.load(tmp_path / "parts")
    sample = held_out_sample(0, 0, "cot")
    prompt = vlm.prompt(sample.scene.draw(), sample.question.text, "cot")
    assert attnlens.run(vlm, prompt, 3).data.sizes["step"] >= 1


def test_training_learns_something(tmp_path, monkeypatch):
    small_batches(monkeypatch, 8, 8, piece=8)
    plan = TrainingPlan(seed=2, steps=60, perception_steps=60, warm_up=20, corpus_scenes=20)
    log = train(tmp_path / "model", plan, workers=0)["log"]
    # the words are learned first; 1.5 is far below the 6.3 of random guessing among the vocabulary
    assert log[-1]["loss"] < 1.5 < log[0]["loss"]


def test_the_rate_rises_stays_and_comes_down(tiny):
    plan = TrainingPlan(steps=100, warm_up=10, decay_share=0.3, peak_rate=2.0)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert set(rates[9:70]) == {2.0}
    assert np.allclose(np.diff(rates[70:]), -2.0 / 30)
    assert rates[-1] == pytest.approx(2.0 / 30)
    twice = TrainingPlan(
        steps=150, restart=100, restart_rate=0.5, warm_up=10, decay_share=0.3, peak_rate=2.0
    )
    again = [twice.rate(step) for step in range(150)]
    assert again[:100] == rates
    assert again[100] == pytest.approx(0.5)
    assert np.allclose(np.diff(again[100:]), -0.5 / 50)
    assert TrainingPlan(steps=100).first_part == 100  # ends before the restart
    longer = TrainingPlan(steps=150, warm_up=10, decay_share=0.3, peak_rate=2.0)
    assert [longer.rate(step) for step in range(70)] == rates[:70]
    groups = [g for o in build_optimisers(tiny.model, plan) for g in o.param_groups]
    trained = [p for g in groups for p in g["params"]]
    assert {id(p) for p in trained} == {id(p) for p in tiny.model.parameters()}
    assert len(trained) == len({id(p) for p in trained})


def test_seeds_of_held_out_scenes_are_not_for_training(tmp_path):
    with pytest.raises(InputError, match="not a training seed"):
        train(tmp_path / "model", TrainingPlan(seed=10**9))
    assert not list(tmp_path.iterdir())


def test_muon_is_that_of_torch_but_for_its_bfloat16():
    torch.manual_seed(0)
    for shape in ((64, 128), (384, 128), (96, 96)):
        ours = torch.nn.Parameter(torch.randn(shape))
        theirs = torch.nn.Parameter(ours.detach().clone())
        start = ours.detach().clone()
        optimisers = (
            Muon([ours], lr=0.01, weight_decay=0.1),
            torch.optim.Muon(
                [theirs],
                lr=0.01,
                momentum=0.95,
                weight_decay=0.1,
                adjust_lr_fn="match_rms_adamw",
            ),
        )
        for _ in range(4):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            for optimiser in optimisers:
                optimiser.step()
        moved = (theirs - start).norm()
        assert (ours - theirs).norm() / moved < 0.02  # bfloat16 has eight bits


def test_orthogonalised_matrices_keep_their_singular_vectors():
    torch.manual_seed(1)
    for shape in ((3, 20, 50), (2, 50, 20), (1, 30, 30)):
        left = torch.linalg.qr(torch.randn(shape[0], shape[1], shape[1])).Q
        right = torch.linalg.qr(torch.randn(shape[0], shape[2], shape[2])).Q
        rank = min(shape[1:])
        values = torch.linspace(0.3, 1.0, rank).expand(shape[0], rank)
        given_matrices = left[..., :rank] * values[:, None] @ right[..., :rank].mT
        made = orthogonalise(given_matrices)
        inside = left[..., :rank].mT @ made @ right[..., :rank]
        diagonal = inside.diagonal(dim1=1, dim2=2)
        assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
        assert torch.allclose(inside, torch.diag_embed(diagonal), atol=1e-4)


def test_first_weights_are_set_by_fan_in(tokenizer):
    torch.manual_seed(0)
    model = build_model(tokenizer)
    initialise(model)
    found = dict(model.named_parameters())
    width = model.config.text_config.hidden_size
    embedding = found["model.language_model.embed_tokens.weight"]
    assert embedding.std().item() == pytest.approx(0.08, rel=0.02)
    assert model.lm_head.weight is embedding
    layers = model.config.text_config.num_hidden_layers
    for name, fan_in, blocks in (
        ("layers.1.self_attn.q_proj", width, None),
        ("layers.0.mlp.gate_proj", width, None),
        ("layers.2.mlp.down_proj", 3 * width, layers),
        ("layers.3.self_attn.o_proj", width, layers),
    ):
        weight = found[f"model.language_model.{name}.weight"]
        expected = fan_in**-0.5 / (1 if blocks is None else (2 * blocks) ** 0.5)
        assert weight.std().item() == pytest.approx(expected, rel=0.03), name
    patches = found["model.visual.patch_embed.proj.weight"]
    assert patches.std().item() == pytest.approx(patches[0].numel() ** -0.5, rel=0.03)
    assert all((p == 0).all() for n, p in found.items() if n.endswith("bias"))


def test_images_are_inserted_as_often_as_is_said():
    """In the mode's share of cases none, all, or a part of the visual tokens."""
    rng = np.random.default_rng(0)
    for mode, shares in INSERTION_SHARES.items():
        sample = make_sample(rng, mode, grid="small")
        count = sample.scene.rows * sample.scene.columns
        kept = [len(with_insertion(rng, sample).kept) for _ in range(600)]
        found = {
            "none": np.mean([k == 0 for k in kept]),
            "all": np.mean([k == count for k in kept]),
            "part": np.mean([0 < k < count for k in kept]),
        }
        for name, share in shares.items():
            assert found[name] == pytest.approx(share, abs=0.06), (mode, name)
