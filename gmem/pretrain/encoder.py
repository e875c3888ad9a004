"""Train a small vision transformer by self-supervision alone, where no encoder exists for the pictures.

`contrast`: the encoder that conditions. Two mild views of a picture must be told from all other pictures (NT-Xent on
the class token), the class token must redraw a thumbnail of its view, and every patch token its own patch, some of
which are painted over. So the snippet keeps colour, shape and identity, and patch tokens say what lies where.
A mirrored picture is another picture: both views are mirrored alike, since the bank holds both as separate rows.

`barlow`: the encoder that only evaluates. Strong views in colour and crop, Barlow Twins (the cross-correlation of the
two views' embeddings approaches the identity), each view mirrored by its own coin: what differs from the first on
purpose, so that a measurement does not flatter what it conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmem.encoder import Encoder, load_encoder
from gmem.errors import InputError
from gmem.muon import Muon
from gmem.pixels import from_bytes
from gmem.pretrain.augment import View, draw_view, erase_patches, mirror
from gmem.pretrain.loop import (
    Average,
    Losses,
    Progress,
    Training,
    batch_rows,
    generator,
    train,
    write_json,
    write_provenance,
)
from gmem.states import below
from gmem.tensor_files import write_tensors

STRONG = View(zoom=(0.9, 2.0), shift=0.25, turn=15.0, gain=0.4, tint=0.3, hue=0.15, grey=0.1, erase=0.0, mirror=True)


@dataclass(frozen=True)
class EncoderTraining(Training):
    """All parameters of an encoder's training; `EncoderTraining.of("contrast" | "barlow")` gives the shipped ones."""

    method: str = "contrast"
    image_size: int = 64
    patch: int = 8
    width: int = 192
    depth: int = 4
    heads: int = 3
    embedding: int = 128  # width of the projection that the method compares
    temperature: float = 0.1
    redraw_weight: float = 4.0
    patch_weight: float = 2.0
    steps: int = 1000
    batch: int = 64
    muon_lr: float = 0.01
    weight_decay: float = 0.05
    decay_share: float = 0.4
    view: View = field(default_factory=View)

    @classmethod
    def of(cls, method: str, **rest: Any) -> EncoderTraining:
        if method == "contrast":
            return cls(**rest)
        if method == "barlow":
            own: dict[str, Any] = {"width": 128, "depth": 5, "heads": 4, "embedding": 512, "seed": 1, "view": STRONG}
            return cls(method="barlow", **(own | rest))
        raise InputError(f"there is no method '{method}' for encoders; choose 'contrast' or 'barlow'")


def pretrain_encoder(
    images: Tensor,
    labels: Tensor,
    held_images: Tensor,
    held_labels: Tensor,
    training: EncoderTraining,
    folder: Path | str,
    progress: Progress | None = None,
    *,
    origin: dict[str, Any] | None = None,
    report_every: int = 50,
    checkpoint_seconds: float = 120.0,
) -> dict[str, Any]:
    """Train on uint8 images [N, 3, H, W] and write `config.json`, `model.safetensors`, `provenance.json` to `folder`.

    Labels [N] serve the figures only, never the training. The run resumes from `folder/checkpoint.safetensors` and
    stops at `training.steps`. `origin` (data, command, licence) goes into the provenance as it is.
    Returns the figures. Raises ValueError when there are fewer pictures than a batch.
    """
    if len(images) < training.batch:
        raise InputError(
            f"{len(images)} pictures are fewer than a batch of {training.batch}; give more, or batch={len(images)}"
        )
    torch.manual_seed(training.seed)
    student = _Student(training)

    def losses(step: int) -> Losses:
        rows = batch_rows(len(images), training.batch, training.seed, step)
        return student(_sized(images[rows], training.image_size), generator(training.seed, step, "view"))

    folder = Path(folder)
    optimizers = _optimizers(student, training)
    clipped = list(student.parameters())
    average = train(
        student,
        optimizers,
        clipped,
        losses,
        training,
        folder,
        progress,
        report_every=report_every,
        checkpoint_seconds=checkpoint_seconds,
    )
    export(average, training, folder)
    figures = measure(load_encoder(str(folder)), images, labels, held_images, held_labels)
    write_provenance(folder, origin, training, figures)
    return figures


class _Student(nn.Module):
    """The encoder and the heads that its training needs and its use does not."""

    def __init__(self, training: EncoderTraining):
        super().__init__()
        self.training_ = training
        self.encoder: Any = timm.create_model(ARCHITECTURE, num_classes=0, **model_arguments(training))
        w, e = training.width, training.embedding
        norm: nn.Module = nn.BatchNorm1d(2 * w)
        self.head = nn.Sequential(nn.Linear(w, 2 * w), norm, nn.GELU(), nn.Linear(2 * w, e))
        if training.method == "contrast":
            self.redraw = nn.Linear(w, 3 * 16 * 16)
            self.repaint = nn.Linear(w, 3 * training.patch**2)
        self.compare = _comparison(training)

    def forward(self, batch: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        t = self.training_
        batch = mirror(batch, 0.5, rng)
        views = torch.cat([draw_view(batch, t.view, rng) for _ in range(2)])
        seen = erase_patches(views, t.view.erase, t.patch, rng) if t.view.erase else views
        tokens = self.encoder.forward_features(seen)
        first, second = self.head(tokens[:, 0]).chunk(2)
        compared = self.compare(first, second)
        if t.method != "contrast":
            return {"loss": compared, "compare": compared.detach()}
        redrawn = F.mse_loss(self.redraw(tokens[:, 0]), F.adaptive_avg_pool2d(views, 16).flatten(1))
        repainted = F.mse_loss(self.repaint(tokens[:, 1:]), F.unfold(views, t.patch, stride=t.patch).mT)
        loss = compared + t.redraw_weight * redrawn + t.patch_weight * repainted
        return {"loss": loss, "compare": compared.detach(), "redraw": redrawn.detach(), "patch": repainted.detach()}


def _comparison(training: EncoderTraining) -> nn.Module:
    from lightly.loss import BarlowTwinsLoss, NTXentLoss

    if training.method == "contrast":
        return NTXentLoss(temperature=training.temperature)
    return BarlowTwinsLoss()


ARCHITECTURE = "vit_tiny_patch16_224"


def model_arguments(training: EncoderTraining) -> dict[str, Any]:
    """What timm's plain vision transformer is built with."""
    t = training
    return {
        "img_size": t.image_size,
        "patch_size": t.patch,
        "embed_dim": t.width,
        "depth": t.depth,
        "num_heads": t.heads,
    }


def export(average: Average, training: EncoderTraining, folder: Path) -> None:
    """Write the averaged encoder in timm's hub layout, weights as float16."""
    weights = {name: value.half() for name, value in below(average.values, "encoder.").items()}
    write_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "model_args": model_arguments(training),
        "pretrained_cfg": {
            "input_size": [3, training.image_size, training.image_size],
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 0,
        },
    }
    write_json(folder / "config.json", config)


def _optimizers(student: _Student, training: EncoderTraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within the blocks, AdamW for embeddings, norms and heads."""
    inside = {id(p) for p in student.encoder.blocks.parameters() if p.ndim == 2}
    matrices = [p for p in student.parameters() if id(p) in inside]
    others = [p for p in student.parameters() if id(p) not in inside]
    return [
        Muon(matrices, training.muon_lr, weight_decay=training.weight_decay),
        torch.optim.AdamW(others, training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay),
    ]


def _sized(images: Tensor, size: int) -> Tensor:
    images = from_bytes(images)
    if images.shape[-1] == size == images.shape[-2]:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def measure(
    encoder: Encoder, images: Tensor, labels: Tensor, held_images: Tensor, held_labels: Tensor
) -> dict[str, float]:
    """Nearest-neighbour category accuracy (cosine, training pictures as neighbours) beside two kinds of chance.

    Pictures without a label (-1) are left out; without any labels only the counts remain.
    """
    counts: dict[str, float] = {"training_pictures": len(images), "held_out_pictures": len(held_images)}
    images, labels = images[labels >= 0], labels[labels >= 0]
    held_images, held_labels = held_images[held_labels >= 0], held_labels[held_labels >= 0]
    if len(images) < 2 or not len(held_images):
        return counts
    train, held = (F.normalize(snippets(encoder, x), dim=1) for x in (images, held_images))
    share = torch.bincount(labels).float() / len(labels)
    found = labels[(held @ train.T).argmax(1)]
    alone = (train @ train.T).fill_diagonal_(-2).argmax(1)
    return counts | {
        "held_out_accuracy": (found == held_labels).float().mean().item(),
        "leave_one_out_accuracy": (labels[alone] == labels).float().mean().item(),
        "chance_random_neighbour": share.square().sum().item(),
        "chance_largest_category": share.max().item(),
    }


def leave_one_out(encoder: Encoder, images: Tensor, labels: Tensor) -> dict[str, float]:
    """How often the nearest other picture (cosine) is of the same class.

    Args:
        images: uint8 [N, 3, H, W], at least two.
        labels: [N], all of them known.

    Returns:
        `accuracy`; `chance`, that of a random other picture; `possible`, the share that has another of its class at all.
    """
    features = F.normalize(snippets(encoder, images), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(1)
    counts = torch.bincount(labels)[labels].float() - 1
    return {
        "accuracy": (labels[nearest] == labels).float().mean().item(),
        "chance": (counts / (len(labels) - 1)).mean().item(),
        "possible": (counts > 0).float().mean().item(),
    }


def snippets(encoder: Encoder, images: Tensor, batch: int = 256) -> Tensor:
    """Snippets [N, D] of uint8 images [N, 3, H, W]."""
    return torch.cat([encoder(from_bytes(part)).snippet for part in images.split(batch)])
