"""What both pretrainings share: the loop, order of pictures, learning rate, averaged weights, checkpoints.

Randomness is a pure function of (seed, step), so a run that resumes needs its step and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gmem.errors import InputError
from gmem.states import below, load_optimiser_state, optimiser_state
from gmem.tensor_files import write_tensors

Progress = Callable[[dict[str, Any]], None]
"""Called with {"step", "steps", "rate", "loss", ...}: pictures a second and the losses since the last call."""


Losses = dict[str, Tensor]
""""loss", which is minimised, and further ones to be shown; each []."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Parameters that every pretraining has."""

    steps: int
    batch: int
    lr: float = 1e-3
    muon_lr: float
    warmup: int = 100
    decay_share: float
    ema_decay: float = 0.998
    seed: int = 0


def train(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    clipped: list[nn.Parameter],
    losses: Callable[[int], Losses],
    training: Training,
    folder: Path,
    progress: Progress | None = None,
    *,
    report_every: int,
    checkpoint_seconds: float,
) -> Average:
    """Takes `module` to `training.steps`, from `folder/checkpoint.safetensors` where that is; its averaged weights.

    Args:
        clipped: parameters whose gradients have at most norm 1 together.
        losses: those of a step, by its number.
        training: everything besides the number of steps must be what the checkpoint was made with, else ValueError.
        report_every: steps between calls of `progress`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = Average(module, training.ema_decay)
    checkpoint = folder / "checkpoint.safetensors"
    recipe = json.dumps(asdict(training) | {"steps": None}, sort_keys=True)
    step = load_checkpoint(checkpoint, module, average, optimizers, recipe)

    sums: dict[str, float] = {}
    first = step
    since = saved = time.monotonic()
    while step < training.steps:
        # One update.
        values = losses(step)
        factor = rate_factor(step, training.steps, training.warmup, training.decay_share)
        set_rate(optimizers, factor)
        _descend(values["loss"], clipped, optimizers)
        average.update(module, step)
        step += 1
        last = step == training.steps

        # What is told, and what is kept.
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % report_every == 0 or last:
            if progress:
                passed = step - first
                rate = passed * training.batch / (time.monotonic() - since)
                means = {name: total / passed for name, total in sums.items()}
                progress({"step": step, "steps": training.steps, "rate": rate} | means)
            sums = {}
            first = step
            since = time.monotonic()
        if time.monotonic() - saved > checkpoint_seconds or last:
            save_checkpoint(checkpoint, step, module, average, optimizers, recipe)
            saved = time.monotonic()
    return average


def _descend(loss: Tensor, clipped: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(clipped, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def write_provenance(
    folder: Path,
    origin: dict[str, Any] | None,
    training: Training,
    figures: dict[str, Any],
) -> None:
    """How weights came about: `origin` as it is (data, command, licence), all parameters, and the figures."""
    made = {"training": asdict(training), "figures": figures}
    write_json(folder / "provenance.json", (origin or {}) | made)


def generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """The generator of one step: seeded by a hash, so that neighbouring seeds and steps share nothing."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}".encode()).digest()
    hashed = int.from_bytes(digest[:8], "big") >> 1
    return torch.Generator().manual_seed(hashed)


def batch_rows(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Picture numbers [batch] of a step: every picture once an epoch, in an order drawn for each epoch."""
    places = torch.arange(step * batch, (step + 1) * batch)
    rows = torch.empty(batch, dtype=torch.int64)
    epochs = places // count
    for epoch in torch.unique(epochs).tolist():
        order = torch.randperm(count, generator=generator(seed, epoch, "order"))
        here = epochs == epoch
        rows[here] = order[places[here] % count]
    return rows


def rate_factor(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Warm up, hold, then fall linearly to zero over the last `decay_share` of the steps.

    Only the fall depends on `steps`, so a run may be resumed with another number of them.
    """
    rise = (step + 1) / max(1, warmup)
    fall = (steps - step) / max(1.0, decay_share * steps)
    return min(1.0, rise, max(0.0, fall))


class Average:
    """Exponential moving average of a module's parameters, ramped up so that a short run has one too.

    torch's AveragedModel knows no ramp, and timm's ModelEmaV3 another; shipped weights were made with this one.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (20 + step))
        now = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(list(self.values.values()), now, 1 - decay)


def save_checkpoint(
    path: Path,
    step: int,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    recipe: str,
) -> None:
    """Write everything a resumed run needs as one safetensors file, atomically."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.values.items()}
    for number, optimizer in enumerate(optimizers):
        tensors |= optimiser_state(optimizer, f"optimizer.{number}.")
    part = path.with_suffix(".part")
    write_tensors(part, tensors, {"step": str(step), "recipe": recipe})
    os.replace(part, path)


def load_checkpoint(
    path: Path,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    recipe: str,
) -> int:
    """Read what `save_checkpoint` wrote and return its step (0 when there is none).

    Raises ValueError when the checkpoint belongs to another recipe.
    """
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if metadata.get("recipe") != recipe:
        raise InputError(f"{path} was made with other parameters; remove it or give the parameters it was made with")
    module.load_state_dict(below(tensors, "module."))
    for name, value in below(tensors, "average.").items():
        average.values[name].copy_(value)
    for number, optimizer in enumerate(optimizers):
        load_optimiser_state(optimizer, tensors, f"optimizer.{number}.")
    return int(metadata["step"])


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Multiply each group's own learning rate by the schedule's factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
