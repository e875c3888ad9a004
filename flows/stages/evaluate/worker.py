"""The worker that samples, and looks at what came out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.engine.context import Context
from flows.models.snippets import NOBODY, Snippets, of_nobody, of_rows
from flows.stages.evaluate.detectors import Detector, features_of, load_detectors, merge
from flows.stages.evaluate.stage import searched
from flows.stages.extraction import Block
from flows.stages.sampling import Sampler
from gmem.metrics import Nearest, Overlap, Sums, overlap, read_sums, write_sums
from gmem.pixels import channels_first, from_bytes
from gmem.sampler import noise_for
from gmem.tokenizer import standardise
from storage.checkpoints import Checkpoint
from storage.images.shards import TRAIN
from storage.samples import read_samples
from storage.tables.bank_where import equals
from storage.tables.training_data import TrainingTable

CHUNK = 256
"""Samples written together: what a kill can cost, and the unit that actors share out."""
NEIGHBOURS = 8
"""Of so many rows nearest to it, a row is mixed with one."""
SEEDS = 4
"""Samples of one snippet, to see how much of a sample the noise decides."""


Finds = dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Distances and sample numbers of the nearest training pictures, by detector."""


def samples_path(context: Context, split: str, number: int) -> str:
    """Of the file that keeps samples number * CHUNK and on."""
    return context.artifact("samples").path(f"{split}-{number:06d}.tar")


def seeds_path(context: Context, split: str) -> str:
    """Of the file that keeps `SEEDS` samples of each of some snippets, snippet by snippet."""
    return context.artifact("report").path(f"seeds-{split}.tar")


class Chunk(NamedTuple):
    """Samples to be made: their numbers, which seed the noise, and the ids of their snippets."""

    split: str
    number: int
    indices: NDArray[np.int64]
    ids: NDArray[np.int64]
    ceiling: bool
    """Whether noise is decoded too; it is the same for every split."""


@dataclass
class Shares:
    """Features of the samples, of the floor (the sources' latents decoded) and of the ceiling (noise decoded)."""

    samples: Sums = field(default_factory=dict)
    floor: Sums = field(default_factory=dict)
    ceiling: Sums = field(default_factory=dict)
    calls: int = 0
    count: int = 0

    def merge(self, other: Shares) -> None:
        """Adds another actor's. What comes out of the object store cannot be written to: begin with an empty one."""
        for mine, theirs in ((self.samples, other.samples), (self.floor, other.floor), (self.ceiling, other.ceiling)):
            merge(mine, theirs)
        self.calls = max(self.calls, other.calls)
        self.count += other.count


class Evaluator(Sampler):
    """Holds the detectors as well, loaded when they are first needed."""

    MAKES = "samples"

    def __init__(self, threads: int, context: Context, checkpoint: Checkpoint) -> None:
        super().__init__(threads, context, checkpoint)
        self.tables: dict[str, TrainingTable] = {}
        self.search: dict[str, Nearest] = {}

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        return load_detectors(self.recipe, self.device)

    @property
    def measuring(self) -> dict[str, Detector]:
        """Those that compare sets of pictures."""
        return {name: each for name, each in self.detectors.items() if each.moments}

    def identities(self) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
        """Those of the detectors by name, and the tokenizer's."""
        return {name: each.identity for name, each in self.detectors.items()}, self.generator.tokenizer.identity

    # --- pictures that are there -------------------------------------------------------------------------------------

    def reference(self, block: Block, reconstructed: bool = False) -> dict[str, Sums]:
        """Features of the block's pictures by split, as they are or through the tokenizer."""
        images = channels_first(block.images)
        if reconstructed:
            tokenizer = self.generator.tokenizer
            latents = [tokenizer.encode(from_bytes(part)) for part in images.split(self.recipe.tokenizer.batch)]
            images = self._decoded(standardise(torch.cat(latents), self.generator.mean, self.generator.std))
        found = {}
        for split in sorted(set(block.splits)):
            rows = [i for i, each in enumerate(block.splits) if each == split]
            asked = self.measuring if reconstructed or split == TRAIN else self.detectors
            found[split] = self._sums(images[rows], block.samples[rows], asked)
        return found

    def inception(self, images: NDArray[np.uint8], index: NDArray[np.int64]) -> Sums:
        """Features of pictures uint8 [N, H, W, 3] of a reference file, of the FID Inception network alone."""
        detectors = {name: each for name, each in self.detectors.items() if name == "inception"}
        pictures = channels_first(images.copy())
        return features_of(detectors, pictures, index, self.recipe.evaluate.batch, self.device)

    def nearest(self, path: str, block: Block | None, queries: dict[str, NDArray[np.floating]]) -> tuple[Finds, int]:
        """By detector the distance [Q] of each query [Q, D] to the nearest training picture of this shard and those
        before, and its sample number [Q]; and how many pictures the shard has.

        The pictures' features are in the file at `path`, or are written to it when a block is given. Queries are
        prepared once: every call of a worker comes with the same.
        """
        store = self.context.store
        if block is not None:
            store.write_bytes(path, write_sums(self._training_features(block)))
        found, features = {}, read_sums(store.read_bytes(path))
        for name, asked in queries.items():
            search = self.search[name] = self.search.get(name) or Nearest(asked, self.device)
            search.update(features[name].features("pool"), features[name].index)
            found[name] = search.distance, search.id
        return found, next(iter(features.values())).count

    def _training_features(self, block: Block) -> Sums:
        asked = {name: self.detectors[name] for name in searched(self.recipe.evaluate)}
        alone = {name: replace(detector, moments=(), kept=("pool",)) for name, detector in asked.items()}
        return self._sums(channels_first(block.images), block.samples, alone)

    def overlap(self, samples: NDArray, reference: NDArray) -> Overlap:
        """Precision, recall, density and coverage of features [N, D] against [M, D], on this worker's device."""
        return overlap(samples, reference, device=self.device)

    # --- samples -----------------------------------------------------------------------------------------------------

    def run(self, chunk: Chunk) -> Shares:
        """Makes and keeps the samples of a chunk, unless an earlier run did; gives their features beside those of floor
        and ceiling."""
        snippets, latents = self._snippets(chunk)
        if there := self._kept(chunk):
            return self._shares(chunk, *there, latents)
        images, calls = self.generate(chunk.indices, snippets)
        with ThreadPoolExecutor(1) as beside:  # encoding needs no GPU, and the detectors hardly anything else
            kept = beside.submit(self.keep, self._path(chunk), chunk.indices, snippets, images, calls)
            shares = self._shares(chunk, images, calls, latents)
        kept.result()
        return shares

    def over_seeds(self, split: str, ids: NDArray[np.int64]) -> Sums:
        """Features of `SEEDS` samples of each of the snippets, which are kept beside the report.

        Their noise is that of the numbers after all other samples': none of those is among them.
        """
        snippets = self._snippets(Chunk(split, 0, np.arange(len(ids)), ids, False))[0].repeated(SEEDS)
        indices = self.recipe.evaluate.samples + np.arange(SEEDS * len(ids))
        images, calls = self.generate(indices, snippets)
        self.keep(seeds_path(self.context, split), indices, snippets, images, calls)
        return self._sums(images, indices, self.measuring)

    def _shares(self, chunk: Chunk, images: Tensor, calls: int, latents: Tensor | None) -> Shares:
        shares = Shares(self._sums(images, chunk.indices, self.detectors), calls=calls, count=len(chunk.ids))
        if latents is not None:
            standard = standardise(latents, self.generator.mean, self.generator.std)
            shares.floor = self._sums(self._decoded(standard), chunk.indices, self.measuring)
        if chunk.ceiling:
            noise = noise_for(
                self.recipe.sample.seed, chunk.indices.tolist(), self.generator.network.config.latent_shape
            )
            shares.ceiling = self._sums(self._decoded(noise), chunk.indices, self.measuring)
        return shares

    def _snippets(self, chunk: Chunk) -> tuple[Snippets, Tensor | None]:
        """What the chunk is sampled from; and raw latents where those are of as many pictures of the recipe's own training,
        and not of a few that come several times."""
        evaluate, first, seed = self.recipe.evaluate, int(chunk.indices[0]), self.recipe.sample.seed
        if evaluate.snippets == "prior":
            return of_nobody(self.prior, len(chunk.ids), seed, first=first), None
        if evaluate.snippets == "mixed":
            same = equals("split", chunk.split)
            return of_rows(self.bank, chunk.ids, seed, neighbours=NEIGHBOURS, where=same, first=first), None
        if evaluate.network or evaluate.bank:
            return of_rows(self.bank, chunk.ids, seed), None
        table = self._table(chunk.split)
        rows = table.batch(chunk.ids)
        snippets = Snippets(rows["snippet"], chunk.ids, rows["label"].numpy(), np.full(len(chunk.ids), NOBODY))
        return snippets, rows["latent"].float() if len(table.drawn_from) == len(table.ids) else None

    def _path(self, chunk: Chunk) -> str:
        return samples_path(self.context, chunk.split, chunk.number)

    def _kept(self, chunk: Chunk) -> tuple[Tensor, int] | None:
        """The chunk's samples uint8 [N, 3, H, W] and their calls, where they are in the store: all that decides them is
        in the artifact's name."""
        path = self._path(chunk)
        rows = list(read_samples(self.context.store, path)) if self.context.store.files.exists(path) else []
        there = [(row.number, row.snippet) for row in rows]
        if there != list(zip(chunk.indices.tolist(), chunk.ids.tolist(), strict=True)) or not all(
            r.calls for r in rows
        ):
            return None
        images = channels_first(np.stack([row.image for row in rows]))
        return images, max(row.calls for row in rows)

    def _table(self, split: str) -> TrainingTable:
        """Latents and snippets of a split, read as they are needed."""
        if split not in self.tables:
            latents, bank = self.context.artifact("latents").uri, self.bank
            self.tables[split] = TrainingTable(
                latents,
                bank.artifact,
                None,
                split,
                versions=self.context.versions,
                memory=bank.memory,
                memory_limit=0,
            )
        return self.tables[split]

    def _decoded(self, latents: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] of standardised latents."""
        return torch.cat(
            [self.generator.decode(part.to(self.device)).cpu() for part in latents.split(self.recipe.tokenizer.batch)]
        )

    def _sums(self, images: Tensor, index: NDArray[np.int64], detectors: dict[str, Detector]) -> Sums:
        """Features of uint8 [N, 3, H, W] for each of the detectors."""
        return features_of(detectors, images, index, self.recipe.evaluate.batch, self.device)
