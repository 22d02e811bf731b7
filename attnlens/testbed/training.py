"""Train the testbed's model from generated scenes; resumable, and a function of its seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from attnlens.errors import InputError
from attnlens.files import check_writable, write_file, write_folder
from attnlens.models.load import TESTBED, load
from attnlens.progress import progress
from attnlens.testbed.architecture import build_model, build_processor, embed, initialise
from attnlens.testbed.batches import IGNORED, STAGES, Batches, Stage
from attnlens.testbed.muon import Muon
from attnlens.testbed.samples import HELD_OUT
from attnlens.testbed.tokenizer import corpus, train_tokenizer
from attnlens.text import one_line


@dataclass(frozen=True)
class Plan:
    """What a training run does; with the seed it determines the weights.

    Attributes
    ----------
    seed
        Seed of the weights, the tokenizer's corpus and every batch.
    steps
        Total optimiser steps.
    restart
        Step at which the rate, come down to 0, starts again at ``restart_rate`` with optimisers
        that have forgotten what was, and comes down along a straight line to the end; 0 for no such
        second part.
    restart_rate
        Highest learning rate of the second part.
    perception_steps
        Steps of short perception questions, which come first.
    stages
        How often each kind of question is asked, and long chains, and how decisions ("yes",
        "fewer") weigh in the loss, from which step on.
    peak_rate
        Highest learning rate of the matrices: reached after ``warm_up`` steps, kept, and brought
        down to 0 along a straight line in the last ``decay_share`` of the first part. So two plans
        that differ in its length alone do the same until the shorter one starts to come down.
    warm_up
        Steps until the highest learning rate.
    weight_decay
        Weight decay of the matrices.
    corpus_scenes
        Scenes in the tokenizer's corpus.
    adam_share
        Learning rate of embeddings, norms and biases, in parts of that of the matrices.
    start_sha256
        Hash of the weights that the run goes on from; empty for fresh ones.
    """

    seed: int = 0
    steps: int = 5250
    restart: int = 4800
    restart_rate: float = 1e-3
    perception_steps: int = 600
    stages: tuple[Stage, ...] = STAGES
    peak_rate: float = 3e-3
    adam_share: float = 0.5
    warm_up: int = 100
    decay_share: float = 0.25
    weight_decay: float = 0.01
    corpus_scenes: int = 400
    start_sha256: str = ""

    @property
    def first_part(self) -> int:
        """Steps before the restart; all of them where the run ends before it or has none."""
        return self.restart if 0 < self.restart < self.steps else self.steps

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        length = self.first_part
        if step >= length:
            return self.restart_rate * (self.steps - step) / (self.steps - length)
        down = max(1.0, self.decay_share * length)
        return self.peak_rate * min(1.0, (step + 1) / self.warm_up, (length - step) / down)


def train(
    folder: Path,
    plan: Plan,
    *,
    start: Path | None = None,
    checkpoint_every: int = 100,
    workers: int = 1,
) -> dict[str, Any]:
    """Train a testbed model and write it as a checkpoint folder.

    Parameters
    ----------
    folder
        Where the model goes (``config.json``, ``model.safetensors``, tokenizer, processor,
        ``training.json``). A run that was interrupted is taken up again from
        ``<folder>.checkpoint``; it then ends with the same weights as one that was not.
    plan
        The run.
    start
        A testbed checkpoint whose weights and tokenizer the run goes on from; fresh ones when not
        given.
    checkpoint_every
        Steps between two checkpoints.
    workers
        Processes that prepare batches; 0 prepares them in this one.

    Returns
    -------
    dict
        The log that also goes into ``training.json``.

    Raises
    ------
    InputError
        If the folder cannot be written or holds anything but an earlier checkpoint, the seed is
        reserved for held-out scenes, or the checkpoint belongs to another plan.
    """
    folder = Path(folder).absolute()
    _check(folder, plan)
    torch.manual_seed(plan.seed)
    processor, model, plan = _beginning(plan, start)
    model.train()
    optimisers = build_optimisers(model, plan)
    checkpoint = folder.with_name(folder.name + ".checkpoint")
    first, log = _resume(checkpoint, plan, model, optimisers)
    batches = Batches(
        processor,
        plan.seed,
        plan.steps,
        plan.perception_steps,
        plan.stages,
        first,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    begun = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    bar = progress(loader, total=plan.steps, initial=first, description="training")
    losses, rights, looks = [], 0, 0
    for step, pieces in enumerate(bar, start=first):
        if step == plan.first_part:
            optimisers = build_optimisers(model, plan)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = plan.rate(step) * group["share"]
        count = sum(int((piece["labels"] != IGNORED).sum()) for piece in pieces)
        total = 0.0
        for piece in pieces:
            loss, right, looked = _loss(model, piece)
            (loss / count).backward()
            total += loss.item()
            rights, looks = rights + right, looks + looked
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        losses.append(total / count)
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            entry = {
                "step": step + 1,
                "loss": round(sum(losses) / len(losses), 5),
                "must_look_right": round(rights / max(1, looks), 4),
                "seconds": round(time.monotonic() - begun, 1),
            }
            log.append(entry)
            losses, rights, looks = [], 0, 0
            bar.set_postfix(loss=entry["loss"], must_look=entry["must_look_right"])
        if (step + 1) % checkpoint_every == 0 and step + 1 < plan.steps:
            _save_checkpoint(checkpoint, plan, step + 1, model, optimisers, log)
    record = {"plan": asdict(plan), "log": log}
    model.eval()
    with write_folder(folder, replace=True) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    checkpoint.unlink(missing_ok=True)
    return record


def _check(folder: Path, plan: Plan) -> None:
    """Refuse, before anything is built, what cannot be trained or written."""
    check_writable(folder)
    check_writable(folder.parent)  # checkpoints stand beside the folder
    if folder.exists() and any(folder.iterdir()) and not (folder / "training.json").is_file():
        raise InputError(
            f"{str(folder)!r} holds something that is no testbed checkpoint: give a new folder"
        )
    if not 0 <= plan.seed < HELD_OUT:
        raise InputError(
            f"seed {plan.seed} is not a training seed: give one from 0 to {HELD_OUT - 1}"
        )


def _beginning(plan: Plan, start: Path | None) -> tuple[Any, Any, Plan]:
    """Processor and model that a run begins with, and the plan with the hash of their weights."""
    if start is None:
        tokenizer = train_tokenizer(corpus(plan.seed, plan.corpus_scenes))
        model = build_model(tokenizer)
        initialise(model)
        return build_processor(tokenizer), model, plan
    source = TESTBED if str(start) == "testbed" else Path(start)
    vlm = load(source, device="cpu", dtype="float32")
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    return vlm.processor, vlm.model, dataclasses.replace(plan, start_sha256=digest)


def build_optimisers(model: Any, plan: Plan) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of both towers, AdamW for everything else.

    On the first perception steps Muon's loss after 140 was what AdamW alone had after 220 (rates
    2e-3 and 1.5e-3).
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden else others).append(parameter)
    return [
        Muon(
            [{"params": matrices, "share": 1.0}],
            lr=plan.peak_rate,
            weight_decay=plan.weight_decay,
        ),
        torch.optim.AdamW(
            [{"params": others, "share": plan.adam_share}],
            lr=plan.peak_rate * plan.adam_share,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        ),
    ]


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
    """Weighted cross-entropy, summed; how many must-look tokens are right, and of how many."""
    embedded = embed(model, batch["input_ids"], batch, batch["visual_index"])
    # explicit positions, since part of an image may stand in the sequence once more
    states = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=_mask(batch, model.config.image_token_id),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    counted = labels != IGNORED
    logits = model.lm_head(states[counted])
    targets = labels[counted]
    looks = batch["must_look"][:, 1:][counted]
    right = (logits.detach().argmax(-1) == targets)[looks]
    weights = batch["weights"][:, 1:][counted]
    losses = F.cross_entropy(logits, targets, reduction="none") * weights
    return losses.sum(), int(right.sum()), int(looks.sum())


def _mask(batch: dict[str, torch.Tensor], image_token: int) -> dict[str, torch.Tensor] | None:
    """Causal mask with visual keys hidden where the batch says so; None where it hides none."""
    if not batch["hidden"].any():
        return None
    ids = batch["input_ids"]
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    unseen = batch["hidden"][:, :, None] & (ids == image_token)[:, None]
    return {"full_attention": (seen & ~unseen)[:, None]}


def _save_checkpoint(
    path: Path, plan: Plan, step: int, model: Any, optimisers: list[Any], log: list[dict]
) -> None:
    with write_file(path) as temporary:
        torch.save(
            {
                "plan": json.dumps(asdict(plan)),
                "step": step,
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "log": json.dumps(log),
            },
            temporary,
        )


def _resume(path: Path, plan: Plan, model: Any, optimisers: list[Any]) -> tuple[int, list[dict]]:
    """Load a checkpoint where there is one; the step to go on from, and the log so far."""
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise InputError(
            f"the checkpoint {str(path)!r} is damaged ({one_line(str(error))[:100]}): "
            "remove the file to start anew"
        ) from error
    if json.loads(state["plan"]) != json.loads(json.dumps(asdict(plan))):
        raise InputError(
            f"{str(path)!r} is the checkpoint of another plan ({state['plan']}): "
            "train with that plan, or remove the file to start anew"
        )
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"], json.loads(state["log"])
