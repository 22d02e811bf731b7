"""Train the testbed's model on random scenes; resumable, and determined by its seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from attnlens.errors import InputError
from attnlens.files import check_writable, write_file, write_folder
from attnlens.models.load import TESTBED, load
from attnlens.progress import progress
from attnlens.testbed.model.architecture import build_model, build_processor, embed, initialise
from attnlens.testbed.model.batches import IGNORED, Batches
from attnlens.testbed.model.curriculum import STAGES, Stage
from attnlens.testbed.model.tokenizer import corpus, train_tokenizer
from attnlens.testbed.world.samples import HELD_OUT
from attnlens.text import one_line


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that determines the weights of a training run.

    Attributes
    ----------
    seed
        Seed of the weights, the tokenizer's corpus and every batch.
    steps
        Total number of optimiser steps.
    restart
        Step at which a second part begins, with new optimisers: the rate starts again at
        ``restart_rate`` and falls linearly to 0 at the end. 0 for no second part.
    restart_rate
        Highest learning rate of the second part.
    perception_steps
        Number of steps at the beginning with short perception questions.
    stages
        Kinds of questions, long chains, and weights in the loss, by step.
    peak_rate
        Highest learning rate of the matrices. It is reached after ``warm_up`` steps, kept, and
        falls linearly to 0 in the last ``decay_share`` of the first part. Plans that differ only in
        the length of that part are the same until the shorter one begins to fall.
    adam_share
        Learning rate of embeddings, norms and biases, relative to that of the matrices.
    warm_up
        Number of steps until ``peak_rate``.
    decay_share
        See ``peak_rate``.
    weight_decay
        Weight decay of the matrices.
    corpus_scenes
        Scenes in the tokenizer's corpus.
    start_sha256
        Hash of the weights that the run starts from; empty for new ones.
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
        """Number of steps before the restart, or of all steps if it is never reached."""
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
    plan: TrainingPlan,
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
        ``training.json``). An interrupted run resumes from ``<folder>.checkpoint`` and ends with
        the same weights as an uninterrupted one.
    plan
        The run.
    start
        A testbed checkpoint whose weights and tokenizer the run starts from; by default new ones.
    checkpoint_every
        Steps between two checkpoints.
    workers
        Processes that prepare batches; with 0, this one does.

    Returns
    -------
    dict
        The plan and log, as in ``training.json``.

    Raises
    ------
    InputError
        If the folder cannot be written or holds anything other than a testbed checkpoint, the seed
        is reserved for held-out scenes, or the checkpoint is damaged or of another plan.
    """
    folder = Path(folder).absolute()
    _check(folder, plan)
    torch.manual_seed(plan.seed)
    processor, model, plan = _beginning(plan, start)
    model.train()
    optimisers = build_optimisers(model, plan)
    checkpoint = folder.with_name(folder.name + ".checkpoint")
    first, log = _resume(checkpoint, plan, model, optimisers)
    batches = Batches(processor, plan.seed, plan.steps, plan.perception_steps, plan.stages, first)
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


def _check(folder: Path, plan: TrainingPlan) -> None:
    """Refuse what cannot be trained or written, before anything is built."""
    check_writable(folder)
    check_writable(folder.parent)  # for checkpoints
    if folder.exists() and any(folder.iterdir()) and not (folder / "training.json").is_file():
        raise InputError(
            f"{str(folder)!r} is no testbed checkpoint and not empty: give a new folder"
        )
    if not 0 <= plan.seed < HELD_OUT:
        raise InputError(
            f"seed {plan.seed} is not a training seed: give one from 0 to {HELD_OUT - 1}"
        )


def _beginning(plan: TrainingPlan, start: Path | None) -> tuple[Any, Any, TrainingPlan]:
    """Return processor, model, and the plan with the hash of the weights that it starts from."""
    if start is None:
        tokenizer = train_tokenizer(corpus(plan.seed, plan.corpus_scenes))
        model = build_model(tokenizer)
        initialise(model)
        return build_processor(tokenizer), model, plan
    source = TESTBED if str(start) == "testbed" else Path(start)
    vlm = load(source, device="cpu", dtype="float32")
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    return vlm.processor, vlm.model, dataclasses.replace(plan, start_sha256=digest)


MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, as published with Muon."""


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices close to 1 and keep their singular vectors.

    Returns ``U S V^T`` with all of ``S`` close to 1 (about 0.7 to 1.2 after five Newton-Schulz
    iterations) for float32 ``U D V^T`` [matrices, rows, columns]. See Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks".
    """
    a, b, c = MUON_COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon in float32, with Nesterov momentum and AdamW's step size.

    An update is the orthogonalised matrix times ``0.2 sqrt(max(rows, columns))``, which gives it
    the root mean square that is typical of AdamW (arXiv 2502.16982, section 2.2). ``momentum`` is
    the share of the old average in the new one. Weight decay is decoupled.
    """

    # torch.optim.Muon comes with torch 2.9, but this package runs with 2.6. It also computes in
    # bfloat16, which a CPU without bfloat16 arithmetic emulates: on two such cores its step took
    # 1.4 s for this model, compared with 1.0 s for the batch itself. This one handles the matrices
    # of one shape together, in float32.

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_shape[parameter.shape].append(parameter)
            for shape, parameters in of_shape.items():
                updates = orthogonalise(
                    torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                )
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=rate)

    def _momentum(self, parameter: torch.nn.Parameter, share: float) -> torch.Tensor:
        """Update the momentum, and return it a step ahead, as Nesterov has it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - share)
        return parameter.grad.lerp(average, share)


def build_optimisers(model: Any, plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Build Muon for the matrices of both towers, AdamW for everything else.

    With Muon, 140 perception steps brought the loss where AdamW alone took 220 (rates 2e-3 and
    1.5e-3).
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if hidden else others).append(parameter)
    return [
        Muon([{"params": matrices, "share": 1.0}], plan.peak_rate, weight_decay=plan.weight_decay),
        torch.optim.AdamW(
            [{"params": others, "share": plan.adam_share}],
            lr=plan.peak_rate * plan.adam_share,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        ),
    ]


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, int]:
    """Return the sum of the weighted losses, and how many of how many must-look words are right."""
    embedded = embed(model, batch["input_ids"], batch, batch["visual_index"])
    # explicit positions, since a part of an image may be in the sequence again
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
    """Return the causal mask with the visual keys that the batch hides; None if it hides none."""
    if not batch["hidden"].any():
        return None
    ids = batch["input_ids"]
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    unseen = batch["hidden"][:, :, None] & (ids == image_token)[:, None]
    return {"full_attention": (seen & ~unseen)[:, None]}


def _save_checkpoint(
    path: Path, plan: TrainingPlan, step: int, model: Any, optimisers: list[Any], log: list[dict]
) -> None:
    state = {
        "plan": json.dumps(asdict(plan)),
        "step": step,
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "log": json.dumps(log),
    }
    with write_file(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path, plan: TrainingPlan, model: Any, optimisers: list[Any]
) -> tuple[int, list[dict]]:
    """Load a checkpoint if there is one; return the next step and the log so far."""
    if not path.exists():
        return 0, []
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise InputError(
            f"the checkpoint {str(path)!r} is damaged ({one_line(str(error))[:100]}): "
            "remove the file to start over"
        ) from error
    if json.loads(state["plan"]) != json.loads(json.dumps(asdict(plan))):
        raise InputError(
            f"{str(path)!r} is the checkpoint of another plan ({state['plan']}): "
            "train with that plan, or remove the file to start over"
        )
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"], json.loads(state["log"])
