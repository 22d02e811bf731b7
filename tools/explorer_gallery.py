"""Write the explorer's pages of the testbed that the documents show, into docs/gallery/.

    python tools/explorer_gallery.py

Pages: an answer whose attention decays and refocuses; COPY beside its untouched twin; a wrong
answer (one that is cut off counts); and a knock-out. Pictures, truth and answers are those of
held-out scenes, which are the same ones each time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import attnlens
from attnlens.answers import final_answer, judge
from attnlens.interventions import At, Copy, Knockout
from attnlens.testbed import Sample, held_out_sample
from attnlens.text import one_line

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
MOST_NEW_TOKENS = 400
MOST_SCENES = 200
"""How many scenes are asked about before a wrong answer must have been found."""


def main() -> None:
    """Write all pages."""
    vlm = attnlens.load("testbed")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sample, prompt = ask(vlm, Path(folder), 1)
        heads = [(layer, head) for layer in range(4) for head in range(4)]
        options = {"visual_map": True, "map_heads": heads, "do_sample": False}

        def run(intervention=None):
            return attnlens.run(vlm, prompt, MOST_NEW_TOKENS, intervention=intervention, **options)

        untouched = run()
        known = {
            "expected": sample.question.answer,
            "dependence": attnlens.dependence(vlm, untouched),
            "truth": sample.truth(untouched.tokens)
            if untouched.text.startswith(sample.answer)
            else None,
        }
        write("decay", untouched, known)
        for name, intervention in (
            ("copy", Copy(when=At("<back>"))),
            ("knockout", Knockout(when=At("<back>"))),
        ):
            write(name, untouched, {**known, "twins": {name: run(intervention)}})
        for index in range(MOST_SCENES):
            sample, prompt = ask(vlm, Path(folder), index)
            wrong = run()
            if is_wrong(wrong, sample):
                known = {"expected": sample.question.answer}
                known["dependence"] = attnlens.dependence(vlm, wrong)
                write("wrong", wrong, known)
                return
    raise SystemExit(f"no wrong answer in {MOST_SCENES} scenes")


def ask(vlm: attnlens.VLM, folder: Path, index: int) -> tuple[Sample, attnlens.Prompt]:
    """Return a held-out sample and its prompt."""
    sample = held_out_sample(0, index, "back")
    path = folder / f"scene_{index}.png"
    sample.scene.draw().save(path)
    return sample, vlm.prompt(path, sample.question.text, mode="back")


def is_wrong(trace: attnlens.Trace, sample: Sample) -> bool:
    """Whether the result of an answer is wrong."""
    return judge(final_answer(trace.text), sample.question.answer).right is False


def write(name: str, trace: attnlens.Trace, known: dict) -> None:
    """Write a page, and say what it shows."""
    path = trace.to_html(FOLDER / f"{name}.html", replace=True, **known)
    print(f"{path.name}: {path.stat().st_size:,} bytes; {one_line(trace.attrs['question'])}")


if __name__ == "__main__":
    main()
