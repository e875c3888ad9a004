"""The actor that samples, and looks at what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows import cluster
from flows.extraction import Block
from flows.generation import load_generator, sampler_config
from flows.recipe import Recipe
from flows.stage import Job
from gmem.encoder import load_encoder
from gmem.memory import normalise
from gmem.metrics import FeatureSums, load_inception
from gmem.sampler import noise_for
from gmem.tokenizer import from_bytes, standardise
from storage.checkpoints import Checkpoint
from storage.samples import SampleRow, write_samples
from storage.training_data import TrainingTable


class Chunk(NamedTuple):
    """Samples to be made: their numbers, which seed the noise, and the ids of their snippets."""

    split: str
    number: int
    indices: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass
class Shares:
    """Features by detector of the samples, of the floor (the sources' latents decoded) and of the ceiling (noise decoded)."""

    samples: dict[str, FeatureSums] = field(default_factory=dict)
    floor: dict[str, FeatureSums] = field(default_factory=dict)
    ceiling: dict[str, FeatureSums] = field(default_factory=dict)
    calls: int = 0
    count: int = 0

    def merge(self, other: Shares) -> None:
        """Adds another actor's. What comes out of the object store cannot be written to: begin with an empty one."""
        for mine, theirs in ((self.samples, other.samples), (self.floor, other.floor), (self.ceiling, other.ceiling)):
            for name, sums in theirs.items():
                mine.setdefault(name, FeatureSums(sums.moments, sums.kept)).merge(sums)
        self.calls = other.calls
        self.count += other.count


@dataclass(frozen=True)
class Detector:
    """A network whose features are compared. `identity`: detector, detector_hash, resize, as a protocol names them."""

    identity: dict[str, str]
    features: Callable[[Tensor], dict[str, Tensor]]
    moments: tuple[str, ...]
    kept: tuple[str, ...]

    def sums(self) -> FeatureSums:
        return FeatureSums(self.moments, self.kept)


def detectors(recipe: Recipe, device: str) -> dict[str, Detector]:
    """The recipe's evaluation encoder, and the FID Inception network where the recipe names its weights."""
    encoder = load_encoder(recipe.evaluate.encoder, device, recipe.data.image_size)
    side = encoder.preprocessing.size
    name = recipe.evaluate.encoder.rpartition(":")[2].partition("@")[0]
    about = {
        "detector": name,
        "detector_hash": encoder.identity["sha256"],
        "resize": f"{encoder.preprocessing.interpolation} to {side} px",
    }
    found = {name: Detector(about, lambda images: {"pool": encoder(from_bytes(images)).snippet}, ("pool",), ("pool",))}
    if recipe.evaluate.inception:
        inception = load_inception(recipe.evaluate.inception, device)
        found["inception"] = Detector(inception.identity, inception, ("pool", "spatial"), ("pool", "logits"))
    return found


class Evaluator:
    """Holds the generator and the detectors; start-up is paid once."""

    def __init__(self, threads: int, job: Job, checkpoint: Checkpoint) -> None:
        self.job, self.recipe, self.device = job, job.recipe, cluster.settle(threads)
        self.generator = load_generator(checkpoint, self.recipe, self.device)
        self.detectors = detectors(self.recipe, self.device)
        self.tables: dict[str, TrainingTable] = {}

    def identities(self) -> dict[str, dict[str, str]]:
        return {name: detector.identity for name, detector in self.detectors.items()}

    def reference(self, block: Block, wanted: set[int]) -> dict[str, FeatureSums]:
        """Features of the block's pictures whose sample number is wanted."""
        rows = [i for i, sample in enumerate(block.samples.tolist()) if sample in wanted]
        images = torch.from_numpy(block.images[rows]).permute(0, 3, 1, 2)
        return self._sums(images, block.samples[rows])

    def run(self, chunk: Chunk) -> Shares:
        """Makes and keeps the samples of a chunk; gives their features beside those of floor and ceiling."""
        rows = self._table(chunk.split).batch(chunk.ids)
        images, calls = self._generate(chunk, normalise(rows["snippet"]), rows["label"])
        self._keep(chunk, images)
        return Shares(
            self._sums(images, chunk.indices),
            self._sums(
                self._decoded(standardise(rows["latent"].float(), self.generator.mean, self.generator.std)),
                chunk.indices,
            ),
            self._sums(
                self._decoded(
                    noise_for(
                        self.recipe.sample.seed,
                        torch.from_numpy(chunk.indices),
                        self.generator.network.config.latent_shape,
                    )
                ),
                chunk.indices,
            ),
            calls,
            len(chunk.ids),
        )

    def _generate(self, chunk: Chunk, snippets: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        sample, parts, calls = self.recipe.sample, [], 0
        for start in range(0, len(chunk.ids), sample.batch):
            part = slice(start, start + sample.batch)
            made, calls = self.generator.images(
                snippets[part].to(self.device),
                torch.from_numpy(chunk.indices[part]),
                sampler_config(sample),
                sample.seed,
                labels[part].to(self.device),
            )
            parts.append(made.cpu())
        return torch.cat(parts), calls

    def _keep(self, chunk: Chunk, images: Tensor) -> None:
        pictures = images.permute(0, 2, 3, 1).numpy()
        rows = [
            SampleRow(int(i), int(snippet), picture)
            for i, snippet, picture in zip(chunk.indices, chunk.ids, pictures, strict=True)
        ]
        path = self.job.artifact("samples").path(f"{chunk.split}-{chunk.number:06d}.tar")
        write_samples(self.job.store, path, rows, self.recipe.sample.seed)

    def _table(self, split: str) -> TrainingTable:
        """Latents and snippets of a split, read as they are needed."""
        if split not in self.tables:
            latents, bank = (self.job.artifact(kind).uri for kind in ("latents", "bank"))
            self.tables[split] = TrainingTable(
                latents, bank, None, split, memory_limit=0, storage_options=self.job.store.storage_options
            )
        return self.tables[split]

    def _decoded(self, latents: Tensor) -> Tensor:
        return torch.cat(
            [self.generator.decode(part.to(self.device)).cpu() for part in latents.split(self.recipe.tokenizer.batch)]
        )

    def _sums(self, images: Tensor, index: NDArray[np.int64]) -> dict[str, FeatureSums]:
        """Features of uint8 [N, 3, H, W] for every detector."""
        found: dict[str, FeatureSums] = {}
        for name, detector in self.detectors.items():
            found[name], batch = detector.sums(), self.recipe.evaluate.batch
            for start in range(0, len(images), batch):
                features: dict[str, Any] = detector.features(images[start : start + batch].to(self.device))
                found[name].update({k: v.float().cpu() for k, v in features.items()}, index[start : start + batch])
        return found
