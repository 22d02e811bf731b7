"""The testbed's scenes, questions and answers: their truth is right by construction."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnlens.errors import InputError
from attnlens.testbed import (
    held_out_sample,
    load_tokenizer,
    make_sample,
    random_scene,
    save_samples,
    token_truth,
)
from attnlens.testbed.model.curriculum import perception_example
from attnlens.testbed.world.answers import text_of, write_answer
from attnlens.testbed.world.questions import GROUPS, KINDS, MAX_STEPS, MAX_VALUE
from attnlens.testbed.world.scenes import CELL, COLOURS, GRIDS, MARKS, MAX_OBJECTS, SHAPES, SIZES

seeds = st.integers(0, 2**32 - 1)
modes = st.sampled_from(["normal", "cot", "back", "reflection"])


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_the_picture_shows_what_the_scene_says(seed):
    scene = random_scene(np.random.default_rng(seed))
    pixels = np.asarray(scene.draw()).astype(int)
    assert pixels.shape == (scene.rows * CELL, scene.columns * CELL, 3)
    assert (scene.rows, scene.columns) in sum(GRIDS.values(), ())
    assert 36 <= scene.rows * scene.columns <= 144
    background = np.array(scene.background)
    distance = np.abs(pixels[..., None, :] - np.array(list(COLOURS.values()))).sum(-1)
    coloured = distance.min(-1) < 20
    elsewhere = coloured.copy()
    for o in scene.objects:
        left, top, right, bottom = o.box
        assert o.column * CELL <= left < right <= (o.column + 1) * CELL
        assert o.row * CELL <= top < bottom <= (o.row + 1) * CELL
        assert scene.visual_token(o) == o.row * scene.columns + o.column
        cell = np.s_[o.row * CELL : (o.row + 1) * CELL, o.column * CELL : (o.column + 1) * CELL]
        found = np.bincount(distance.argmin(-1)[cell][coloured[cell]], minlength=len(COLOURS))
        assert list(COLOURS)[found.argmax()] == o.colour
        y, x = np.nonzero(np.abs(pixels[cell] - background).sum(-1) > 60)
        drawn = (o.column * CELL + x.min(), o.row * CELL + y.min())
        reach = (o.column * CELL + x.max() + 1, o.row * CELL + y.max() + 1)
        assert left - 1 <= drawn[0] <= reach[0] <= right + 1
        assert top - 1 <= drawn[1] <= reach[1] <= bottom + 1
        assert (o.size == "large") == (reach[0] - drawn[0] > (23.2 if o.shape != "square" else 21))
        elsewhere[cell] = False
    assert not elsewhere.any()  # clutter has no object's colour
    assert len({o.name for o in scene.objects}) == len(scene.objects) <= MAX_OBJECTS
    cells = [scene.visual_token(o) for o in scene.objects]
    assert cells == sorted(set(cells))
    for left, top, right, bottom in scene.clutter:
        assert {left // CELL, right // CELL} == {left // CELL}
        assert top // CELL * scene.columns + left // CELL not in cells
        assert top // CELL == bottom // CELL


def test_scenes_differ_in_every_way_that_is_promised():
    scenes = [random_scene(np.random.default_rng(i)) for i in range(400)]
    assert {len(s.objects) for s in scenes} == set(range(MAX_OBJECTS + 1))
    assert {(s.rows, s.columns) for s in scenes} == set(sum(GRIDS.values(), ()))
    assert 0.3 < np.mean([bool(s.clutter) for s in scenes]) < 0.7
    for name, values in {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "mark": MARKS}.items():
        assert {getattr(o, name) for s in scenes for o in s.objects} == set(values)


def corners(scene, pixels, o):
    """Which corners are inked: far and near ones above, far ones below; both sides must agree."""
    ink = np.abs(pixels - np.array(scene.background)).sum(-1) > 150

    def both(right, down):
        x = [o.centre[0] + side * right * o.radius for side in (-1, 1)]
        found = {bool(ink[int(o.centre[1] + down * o.radius), int(at)]) for at in x}
        assert len(found) == 1
        return found.pop()

    return both(0.8, -0.75), both(0.6, -0.6), both(0.8, 0.75)


CORNERS = {
    "circle": (False, True, False),
    "square": (True, True, True),
    "triangle": (False, False, True),
    "diamond": (False, False, False),
}


def test_shapes_and_marks_are_those_of_the_scene():
    """Shapes by which corners are inked; marks by how far white reaches from their middle."""
    seen = set()
    for seed in range(120):
        scene = random_scene(np.random.default_rng(seed))
        pixels = np.asarray(scene.draw()).astype(int)
        y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
        for o in scene.objects:
            cell = np.s_[o.row * CELL : (o.row + 1) * CELL, o.column * CELL : (o.column + 1) * CELL]
            assert corners(scene, pixels, o) == CORNERS[o.shape]
            middle_y = o.centre[1] + (0.25 * o.radius if o.shape == "triangle" else 0)
            across = abs(x[cell] - o.centre[0]) / o.radius
            up = abs(y[cell] - middle_y) / o.radius
            dx, dy = (x[cell] - o.centre[0]) / o.radius, (y[cell] - o.centre[1]) / o.radius
            inside = (abs(dx) + abs(dy) < 0.95) | (o.shape != "diamond")
            if o.shape == "triangle":  # its sides run from (0, -1) to (1, 0.85) and (-1, 0.85)
                inside = abs(dx) < (dy + 1) / 1.85 - 0.05
            unit = 0.5 if o.shape == "triangle" else 0.6  # half a mark's extent, in radii
            near = np.maximum(across, up) < 1.15 * unit
            white = (pixels[cell].min(-1) > 190) & near & inside
            reach = (across[white].max() / unit, up[white].max() / unit)
            filled = white[np.maximum(across, up) < 0.12].all()
            found = {
                "cross": min(reach) > 0.8 and filled,
                "dot": max(reach) <= 0.8 and min(reach) > 0.4 and filled,
                "bar": reach[0] > 0.8 and reach[1] < 0.5,
                "ring": min(reach) > 0.8 and not filled,
            }
            assert [name for name, holds in found.items() if holds] == [o.mark], (seed, o, reach)
            seen.add((o.shape, o.mark))
    assert len(seen) == len(SHAPES) * len(MARKS)


def answer_from_pixels_of(scene, question):
    """The answer once more, from the scene alone and the words of the question."""
    text = question.text
    counts = {
        word: sum(word in (o.colour, o.shape) for o in scene.objects)
        for word in (*COLOURS, *SHAPES)
    }
    words = re.findall("|".join(counts), text)
    names = {f"{o.colour} {o.shape}": o for o in scene.objects}
    if question.kind == "subtraction":
        assert len(words) == 1
        return str(len(scene.objects) - counts[words[0]])
    if question.kind == "chain":
        value = len(scene.objects)
        named = re.findall(r"(\w+)s (subtracted|added)(?=[,.])", text)
        assert len(named) == len(question.steps)
        for word, sign in named:
            value += counts[word] * (1 if sign == "added" else -1)
            assert 0 <= value <= MAX_VALUE
        return str(value)
    if question.kind == "comparison":
        a, b = (counts[word] for word in words)
        return "yes" if (a > b if " more " in text else a < b) else "no"
    name = " ".join(words)
    if question.kind == "existence":
        return "yes" if name in names else "no"
    return names[name].mark if "mark" in text else names[name].size


@settings(max_examples=150, deadline=None)
@given(seed=seeds, mode=modes, count=st.integers(0, MAX_OBJECTS), kind=st.sampled_from(list(KINDS)))
def test_answers_are_true(seed, mode, count, kind):
    sample = make_sample(np.random.default_rng(seed), mode, objects=count, kind=kind)
    assert len(sample.scene.objects) == count
    assert sample.question.answer == answer_from_pixels_of(sample.scene, sample.question)
    assert sample.answer.endswith(
        f"\\boxed{{{sample.question.answer}}}" + " </CONCLUSION>" * (mode == "reflection")
    )
    assert sample.answer.count("<back>") == (sample.question.looks if mode == "back" else 0)
    if mode != "normal":  # every number of the reasoning, against the scene
        of = {g: sum(g in (o.colour, o.shape) for o in sample.scene.objects) for g in GROUPS}
        before = re.split("<back>|<REFLECTION>", sample.answer)[0]
        tallies = re.findall(r" Total (\d+):([^.]*)\.", before)
        for total, tally in tallies:
            assert int(total) == count
            assert tally == "".join(f" {g} {n}," for g, n in of.items())[:-1]
        times = re.search(r"Count (\d+) times\.", sample.question.text)
        assert len(tallies) == sample.question.counts == (int(times[1]) if times else 1)
        numbered = re.findall(r" Count (\d+) of (\d+)\.", before)
        due = [(str(i), times[1]) for i in range(1, int(times[1]) + 1)] if times else []
        assert numbered == due
        for group, n in re.findall(rf"\b({'|'.join(GROUPS)}) (\d+)\b", before):
            assert of[group] == int(n)
        relations = re.findall(r"(\d+) (exceeds|is below|equals) (\d+), asked for (\w+),", before)
        assert len(relations) == (kind == "comparison")
        for a, words, b, asked in relations:
            order = (int(a) > int(b)) - (int(a) < int(b))
            assert ("is below", "equals", "exceeds")[order + 1] == words
            assert f" {asked} " in sample.question.text
            first, second = sample.question.subjects
            assert f" {asked} {first} than {second}? {first} {a}, {second} {b}: {a} " in before
        task = re.search(r"(?:<think>|<SUMMARY>) The task is (\w+): ([^.]*)\.", before)
        assert task[1] == sample.question.kind
        if task[1] == "chain":
            assert f": {task[2]}. " in sample.question.text
            worked = re.findall(r"((\w+)s (?:subtracted|added)), (\w+) \d+: \d+ [-+]", before)
            assert ", ".join(words for words, _, _ in worked) == task[2]
            assert all(plural == group for _, plural, group in worked)
        else:  # the question's own words
            asked = re.sub(r"\b(objects|the|an?)\b ?", "", sample.question.text)
            for word in task[2].split():
                assert re.search(rf"\b{word}s?\b", asked) or word == "of"
        for name, word in re.findall(r"(\w+ \w+): (present|absent)", before):
            assert (name in sample.scene.by_name) == (word == "present")
        assert set(re.findall(r", so (yes|no)\.", before)) <= {sample.question.answer}
    for left, sign, right, result in re.findall(r"(\d+) ([-+]) (\d+) = (\d+)", sample.answer):
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert value == int(result)


@settings(max_examples=120, deadline=None)
@given(seed=seeds, mode=modes, count=st.integers(0, MAX_OBJECTS))
def test_told_words_stand_in_the_text_before_and_looked_up_ones_do_not(seed, mode, count):
    """Numbers and yes/no are told by arithmetic from the listing, which the other test checks."""
    sample = make_sample(np.random.default_rng(seed), mode, objects=count)
    text = ""
    for part in sample.parts:
        word = part.text.strip()
        if part.speaks_of is not None:
            o = sample.scene.objects[part.speaks_of]
            assert word in (o.name, o.size, o.mark, "yes", "no", "present")
            named = re.search(rf"#\d+ {o.name}\b", text)
            stated = re.search(rf"\b{o.name}:(?: \w+)? {word}\b", text)
            if word == o.name:
                told = named is not None or part.section == "summary"
            elif word in ("yes", "no", "present"):  # by the listing
                told = mode != "normal"
            else:
                told = stated is not None
            assert part.must_look == (not told)
        elif part.must_look:  # that there is an object at all, another one, or none
            assert word in ("I", "There", "#", ".") or (mode == "normal" and word not in "{}")
        if word in ("I", "#") and part.section == "description":
            # an object that is asked about is there: until it is listed, the list goes on
            asked = sample.question.subjects[0] if sample.question.kind == "attribute" else None
            due = asked is not None and not re.search(rf"#\d+ {asked}\b", text)
            first = word == "#" and "#" not in text
            assert part.must_look == (not due and not first)
        text += part.text
    assert text_of(list(sample.parts)) == sample.answer
    if mode in ("back", "reflection"):
        tag = "<back>" if mode == "back" else "<REFLECTION>"
        before, _, after = sample.answer.partition(tag)
        values = "|".join([*SIZES, *MARKS])
        assert not re.search(rf"\b({values})\b", before)
        facts = [p for p in sample.parts if p.must_look and p.section == "verification"]
        assert len(facts) == 2 * count
        assert len(re.findall(rf" ({values})\b", after)) >= 2 * count


@settings(max_examples=60, deadline=None)
@given(seed=seeds, mode=modes)
def test_truth_reaches_every_token(tokenizer, seed, mode):
    from attnlens.recording.response import token_texts

    sample = make_sample(np.random.default_rng(seed), mode)
    ids = tokenizer(sample.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    truth = token_truth(sample, token_texts(tokenizer, ids))
    text = "".join(t.text for t in truth)
    assert text == sample.answer
    assert len(truth) == len(ids) - 1
    spoken = {}
    assert "".join(t.text for t in truth if t.section == "verification") == "".join(
        m[0] for m in re.finditer(r"\n<back>.*?</back>|<REFLECTION>.*?</REFLECTION>\n", text, re.S)
    )
    described = "".join(t.text for t in truth if t.section == "description")
    listing = r"(?<=\.) (?:I see|There are) [^.]*\.(?= Total| Count)|<CAPTION>.*?</CAPTION>\n"
    assert described == "".join(m[0] for m in re.finditer(listing, text, re.S))
    summary = "".join(t.text for t in truth if t.section == "summary")
    task = r"^<think> The task [^.]*\.|<SUMMARY>.*?</SUMMARY>\n"
    assert summary == "".join(m[0] for m in re.finditer(task, text, re.S))
    concluded = "".join(t.text for t in truth if t.section == "conclusion")
    assert text.endswith(concluded)
    assert concluded.count("\\boxed") == 1
    assert concluded.count("<think>") == (mode == "back")
    for token in truth:
        if token.speaks_of is not None:
            o = sample.scene.objects[token.speaks_of]
            assert token.visual_tokens == (o.row * sample.scene.columns + o.column,)
            assert token.box == o.box
            spoken.setdefault(token.speaks_of, set()).add(token.text.strip())
    if mode != "normal":
        assert set(spoken) == set(range(len(sample.scene.objects)))
    for index, words in spoken.items():
        o = sample.scene.objects[index]
        allowed = " ".join((o.colour, o.shape, o.size, o.mark, "yes no present"))
        assert all(word in allowed for word in words)  # this small tokenizer cuts some of them
    with pytest.raises(InputError, match="do not spell the true answer"):
        token_truth(sample, ["noise", *(t.text for t in truth)])


@settings(max_examples=60, deadline=None)
@given(seed=seeds, kind=st.sampled_from(list(KINDS)))
def test_every_paraphrase_asks_the_same(seed, kind):
    """Drawn again for one scene, a question has other words and, by its words, its answer."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, objects=int(rng.integers(1, MAX_OBJECTS + 1)))
    for _ in range(8):
        question = KINDS[kind](scene, rng)
        assert question.answer == answer_from_pixels_of(scene, question)


def test_each_kind_is_asked_in_three_ways():
    scene = random_scene(np.random.default_rng(0), objects=7)
    content = "|".join([*COLOURS, *SHAPES, "more", "fewer", "size", "mark", "an?", "objects"])
    for kind, make in KINDS.items():
        texts = {make(scene, np.random.default_rng(i)).text for i in range(200)}
        steps = {re.sub(r": .*\.", ": ....", text) for text in texts}
        frames = {re.sub(rf"\b({content})s?\b", "", text).replace("  ", " ") for text in steps}
        frames = {re.sub(r"\s+", " ", frame) for frame in frames}
        assert len(frames) == 3, (kind, frames)


def test_no_group_of_a_chain_comes_again_before_all_have_come():
    for index in range(20):
        steps = held_out_sample(0, index, "cot", steps=25).question.steps
        groups = [step.group for step in steps]
        assert set(groups[:10]) == set(groups[10:20]) == {*COLOURS, *SHAPES}
        assert len(set(groups[20:])) == 5


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_perception_questions_have_true_answers(seed):
    """Each against the scene, by the words of question and answer alone."""
    example = perception_example(np.random.default_rng(seed))
    scene, text, answer = example.scene, example.text, text_of(example.parts)
    if text.startswith("Present or absent"):
        named = re.findall(r"(\w+ \w+)(?=[,.])", text.partition(": ")[2])
        assert 2 <= len(named) == len(set(named)) <= 8
        stated = dict(re.findall(r"(\w+ \w+): (present|absent)", answer))
        assert list(stated) == named
        for name, word in stated.items():
            assert (name in scene.by_name) == (word == "present")
    elif text.startswith("Size and mark"):
        named = re.findall(r"(\w+ \w+)(?=[,.])", text.partition(" of ")[2])
        expected = [f"{n}: {scene.by_name[n].size} {scene.by_name[n].mark}" for n in named]
        assert answer == f" {', '.join(expected)}."
    elif text.startswith("List all objects with"):
        expected = [f"{o.name}: {o.size} {o.mark}" for o in scene.objects]
        assert answer == f" {', '.join(expected) or 'no objects'}."
    elif text.startswith("Count the objects by"):
        counts = {g: sum(g in (o.colour, o.shape) for o in scene.objects) for g in GROUPS}
        assert answer == " " + ", ".join(f"{g} {n}" for g, n in counts.items()) + "."


@pytest.mark.parametrize("steps", [2, 25, MAX_STEPS])
def test_chains_grow_to_a_thousand_steps(tokenizer, steps):
    sample = held_out_sample(0, 0, "cot", steps=steps)
    assert sample.question.kind == "chain"
    for text in (sample.question.text, sample.answer.split(" Total ")[0]):
        assert len(re.findall(r"s (?:subtracted|added)[,.]", text)) == steps
    assert len(re.findall(r"s (?:subtracted|added), \w+ \d+:", sample.answer)) == steps
    length = len(tokenizer(sample.answer)["input_ids"])
    assert length > 12 * steps
    assert steps != MAX_STEPS or length > 900


def test_saved_samples_are_an_image_and_json(tmp_path):
    samples = [
        held_out_sample(3, i, mode, objects=5) for i, mode in enumerate(("back", "reflection"))
    ]
    save_samples(samples, tmp_path / "out", load_tokenizer())
    lines = (tmp_path / "out" / "questions.jsonl").read_text().splitlines()
    for i, sample in enumerate(samples):
        asked = json.loads(lines[i])
        assert asked["image"] == f"{i:04d}.png"
        assert asked["question"] == sample.question.text
        assert asked["answer"] == sample.question.answer
        truth = json.loads((tmp_path / "out" / f"{i:04d}.json").read_text())
        image = np.asarray(Image.open(tmp_path / "out" / f"{i:04d}.png"))
        assert np.array_equal(image, np.asarray(sample.scene.draw()))
        assert truth["answer"] == sample.answer == "".join(t["text"] for t in truth["tokens"])
        assert [p["text"] for p in truth["parts"]] == [p.text for p in sample.parts]
        looked = [t for t in truth["tokens"] if t["must_look"] and t["section"] == "verification"]
        assert len(looked) == 2 * len(sample.scene.objects)
        o = truth["objects"][looked[0]["speaks_of"]]
        assert looked[0]["box"] == o["box"]
        assert looked[0]["visual_tokens"] == [o["visual_token"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "colour"}, "'colour'"),
        ({"steps": 0}, "0 steps"),
        ({"steps": MAX_STEPS + 1}, f"{MAX_STEPS + 1} steps"),
        ({"steps": 3, "kind": "existence"}, "only 'chain'"),
        ({"looks": 3}, "3 verifications"),
        ({"counts": 9}, "9 counts"),
        ({"objects": MAX_OBJECTS + 1}, f"{MAX_OBJECTS + 1} objects"),
        ({"objects": -1}, "-1 objects"),
        ({"grid": "tiny"}, "'tiny'"),
        ({"mode": "other"}, "'other'"),
    ],
)
def test_bad_requests_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_sample(np.random.default_rng(0), **{"mode": "back", **options})
    with pytest.raises(InputError, match="seed -1"):
        held_out_sample(-1, 0, "back")
    with pytest.raises(InputError, match="seed 3294967296"):  # would be a training seed
        held_out_sample(2**32 - 10**9, 0, "back")
    if "mode" in options:
        sample = held_out_sample(0, 0, "back")
        with pytest.raises(InputError, match=message):
            write_answer(sample.scene, sample.question, options["mode"])
