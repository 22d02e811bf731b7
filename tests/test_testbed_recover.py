"""Ways of looking again on scenes with known truth, and the heads that look."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

import attnlens
from attnlens.cli.main import main
from attnlens.errors import InputError
from attnlens.interventions import At, Knockout
from attnlens.testbed import held_out_sample, mark_response
from attnlens.testbed.studies import knockouts, looking_again
from attnlens.testbed.studies.forced_pass import HIDDEN_FROM, forced_pass

pytestmark = pytest.mark.slow

SEED = 395
"""Its first two scenes have short answers, and all that the tests look for."""


@pytest.fixture(scope="module")
def table(testbed):
    return looking_again.looking_again(testbed, 2, seed=SEED, mode="back")


def test_knocking_the_image_out_destroys_what_is_said_after_and_nothing_before(table):
    rows = table["rows"]
    assert rows["untouched"]["verified"]["mean"] == 1.0
    assert rows["knock-out from the verification on"]["verified"]["mean"] < 0.65
    assert rows["knock-out from the verification on"]["described"]["mean"] == 1.0
    assert rows["knock-out in the reasoning"]["verified"]["mean"] == 1.0
    assert rows["knock-out in the reasoning"]["described"]["mean"] == 1.0


def test_every_way_acts_and_has_its_cost(testbed, table):
    rows = table["rows"]
    samples = [held_out_sample(SEED, i, "back") for i in range(2)]
    visual = np.mean([s.scene.rows * s.scene.columns for s in samples])
    names = list(looking_again.compared_interventions("back", samples[0].scene.draw()))
    assert list(rows) == ["untouched", *names]
    for name in names:
        assert rows[name]["mass"]["samples"] == 2, name
        assert np.isfinite(rows[name]["look-back, with copied"]["rise"]), name
    assert rows["COPY"]["mass"]["inserted"] == pytest.approx(visual + 2)
    assert rows["COPY"]["mass"]["rise"] == pytest.approx(rows["ROUTE 100%"]["mass"]["rise"])
    assert rows["text of the same length"]["mass"]["inserted"] == pytest.approx(visual + 2)
    assert rows["boost by 2"]["mass"]["inserted"] == 0
    assert rows["boost by 0.5"]["mass"]["rise"] < rows["boost by 1"]["mass"]["rise"]
    assert rows["COPY"]["mass, with copied"]["rise"] > rows["COPY"]["mass"]["rise"]
    assert rows["vision-only"]["verified"]["mean"] < rows["untouched"]["verified"]["mean"]
    assert json.loads(json.dumps(table))["chance"]["verified"] == 0.375


def test_marks_are_those_of_the_responses(testbed, table):
    texts, samples = [], [held_out_sample(SEED, i, "back") for i in range(2)]
    answers = testbed.tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    longest = max(map(len, answers)) + 50  # as the table allows
    for sample in samples:
        prompt = testbed.prompt(sample.scene.draw(), sample.question.text, "back")
        chosen = Knockout(when=At("<back>", times=1))
        texts.append(attnlens.run(testbed, prompt, longest, chosen).text)
    marks = [mark_response(s, t) for s, t in zip(samples, texts, strict=True)]
    row = table["rows"]["knock-out from the verification on"]
    assert row["answer"]["mean"] == pytest.approx(np.mean([m.answer for m in marks]))
    for name in ("size", "mark"):
        pairs = [getattr(m, name) for m in marks]
        want = np.mean([right / due for right, due in pairs if due])
        assert row[name]["mean"] == pytest.approx(want)


def test_the_printed_tables_say_over_how_many_scenes_a_mean_is(table):
    assert table["rows"]["COPY"]["verified"]["count"] == 2
    lines = looking_again.table_text(table).splitlines()
    assert not any("(" in line for line in lines[2:])
    uneven = copy.deepcopy(table)
    uneven["scenes"] = 3
    uneven["rows"]["COPY"]["answer"]["count"] = 3
    uneven["rows"]["COPY"]["mass"]["inserted_samples"] = 3
    lines = looking_again.table_text(uneven).splitlines()
    (line,) = (row for row in lines if row.startswith("COPY  "))
    assert [cell.endswith(" (2)") for cell in re.split(r"\s{2,}", line)[1:]] == [
        *[True] * 3,  # rises and KL
        False,  # answer
        True,  # verified
        False,  # inserted
    ]
    found = {"mean": 0.5, "low": None, "high": None}
    rows = {"nothing": {"facts": found | {"count": 1}, "names": found | {"count": 3}}}
    last = knockouts.table_text({"scenes": 3, "rows": rows}).splitlines()[-1]
    assert re.split(r"\s{2,}", last) == ["nothing", "50.0% (1)", "50.0%"]


def test_hiding_the_image_spoils_what_is_looked_up_there_and_nothing_else(testbed):
    """Against eager attention with the same rows hidden by hand."""
    found = knockouts.knock_outs(testbed, 6, seed=7)["rows"]
    assert set(found["nothing"]) == set(knockouts.GROUPS)
    assert all(row["mean"] > 0.97 for row in found["nothing"].values())
    assert found["in summary and description"]["listed"]["mean"] < 0.7
    for span in ("in the verification", "from the verification on"):
        assert found[span]["facts"]["mean"] < 0.7
        assert found[span]["listed"] == found["nothing"]["listed"]
        assert found[span]["reasoned"] == found["nothing"]["reasoned"]
        assert found[span]["names"]["mean"] > 0.97
    assert found["in the reasoning"]["facts"]["mean"] > 0.97
    shares = []
    for index in range(6):
        sample = held_out_sample(
            7,
            index,
            "back",
        )
        passed = forced_pass(testbed, sample, hide=HIDDEN_FROM["throughout the verification"])
        facts = [t.states_fact for t in passed.truth]
        if any(facts):
            shares.append(passed.right[facts].mean())
    assert found["in the verification"]["facts"]["mean"] == pytest.approx(np.mean(shares), abs=0.02)


def test_heads_are_ranked_by_their_mass_on_the_object(testbed):
    found = knockouts.looking_heads(testbed, 6, seed=7)
    samples = [held_out_sample(7, i, "back") for i in range(3)]
    passes = [forced_pass(testbed, s) for s in samples]
    masses = [
        p.on_object[step] for p in passes for step, token in enumerate(p.truth) if token.states_fact
    ]
    assert found["facts"] == len(masses)
    assert np.allclose(found["on_object"], np.mean(masses, axis=0), atol=1e-4)
    for p in passes:
        assert (p.on_object <= p.mass + 1e-6).all()
    values = [np.array(found["on_object"])[layer, head] for layer, head in found["ranking"]]
    assert values == sorted(values, reverse=True)
    assert len({tuple(h) for h in found["ranking"]}) == 16
    knocked = found["knockouts"]
    assert knocked["untouched"]["mean"] == 1.0
    worst = knocked["by_count"][8]
    assert worst["heads"] == found["ranking"][:8]
    assert worst["top"]["mean"] < worst["random"]["mean"]
    assert worst["random"]["mean"] == pytest.approx(np.mean(worst["random"]["draws"]))


def test_bad_requests_are_refused(testbed):
    for make in (looking_again.looking_again, knockouts.looking_heads, knockouts.knock_outs):
        with pytest.raises(InputError, match="'cot'"):
            make(testbed, 4, mode="cot")
        with pytest.raises(InputError, match="1 scenes"):
            make(testbed, 1)


def test_the_command_writes_all_tables(tmp_path, capsys, monkeypatch):
    calls = []

    def fake(name):
        def made(_vlm, scenes, seed, *, mode):
            calls.append((name, scenes, seed, mode))
            mean = {"mean": 0.5, "low": None, "high": None, "count": scenes}
            row = {"answer": mean, "verified": {"mean": None, "count": 0}}
            return {"mode": mode, "scenes": scenes, "rows": {"untouched": row, "nothing": row}}

        return made

    monkeypatch.setattr(looking_again, "looking_again", fake("ways"))
    monkeypatch.setattr(knockouts, "knock_outs", fake("hidden"))
    monkeypatch.setattr(knockouts, "looking_heads", fake("heads"))
    path = tmp_path / "out.json"
    assert main(["testbed", "recover", "--scenes", "5", "--seed", "3", "--json", str(path)]) == 0
    assert [c[0] for c in calls] == ["ways", "hidden", "heads"] * 2
    assert {c[1:3] for c in calls} == {(5, 3)}
    record = json.loads(path.read_text())
    assert list(record["modes"]) == ["back", "reflection"]
    assert "50.0%" in capsys.readouterr().out
    assert main(["testbed", "recover", "--scenes", "2", "--json", str(path)]) == 2


def test_the_command_patches_pairs_and_writes_where_it_finds_the_difference(tmp_path, monkeypatch):
    from attnlens.cli.main import main
    from attnlens.testbed.studies import patched_pairs

    seed = "206"  # its first pair has few visual tokens and a short answer
    path = tmp_path / "pairs.json"
    assert main(["testbed", "patch", "--pairs", "1", "--seed", seed, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["residual_right"]["mean"] == found["path_right"]["mean"] == 1
    assert found["path_heads"] == found["knockout_heads"] == {"2.3": 1}
    assert found["restored"]["mean"] > 0.9
    assert found["path_restored"]["mean"] >= found["direct_restored"]["mean"]

    def refuse(*_, **__):
        raise AssertionError("a pair that was there is patched again")

    before = path.read_text()
    monkeypatch.setattr(patched_pairs, "patched_pair", refuse)
    assert main(["testbed", "patch", "--pairs", "1", "--seed", seed, "--json", str(path)]) == 0
    assert path.read_text() == before
    monkeypatch.setattr(patched_pairs, "patched_pair", lambda *_: found["rows"][0])
    assert main(["testbed", "patch", "--pairs", "3", "--seed", seed, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["pairs"] == 3
    assert main(["testbed", "patch", "--pairs", "2", "--seed", "4", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["pairs"] == 2, "another seed begins anew"
    assert main(["testbed", "patch", "--pairs", "0", "--json", str(path)]) == 2
    assert main(["testbed", "patch", "--seed", "-1", "--json", str(path)]) == 2
