"""How the bank is made: image shards through the encoder into the memory bank, and into patch tokens for the alignment loss."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch

from flows.cluster.calls import result
from flows.cluster.workers import Worker, pool, set_threads_and_device
from flows.engine.context import Context, Made
from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from flows.stages.bank import memory
from flows.stages.bank.stage import STAGE
from flows.stages.extraction import Block, expected_ids, extract, read_block, tensor, views
from gmem.encoder import load_encoder
from gmem.memory import Components, Covariance
from storage.images.decoding import thumbnail
from storage.images.index import index_shards, read_index
from storage.tables import bank_rows, patches
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows
from storage.tables.bank_writer import BankWriter
from storage.tables.patches import PatchesWriter, stored_basis

THUMBNAILERS = 4
BASIS_SHARDS, BASIS_PICTURES = 16, 256
"""The principal components come from up to so many pictures of up to so many shards, spread over the whole set."""


class Targets(NamedTuple):
    """Which tables a run fills: URIs, or None for one that is complete."""

    bank: str | None
    patches: str | None


class SnippetEncoder:
    """A worker that holds the encoder and writes snippets and patch tokens."""

    def __init__(self, threads: int, recipe: Recipe, targets: Targets) -> None:
        self.recipe = recipe
        self.targets = targets
        self.device = set_threads_and_device(threads)
        self.encoder = load_encoder(recipe.encoder.source, self.device, recipe.data.image_size)

    def describe(self) -> tuple[dict[str, Any], int]:
        """The encoder's identity and its number of patch tokens."""
        return self.encoder.identity, self.encoder.grid**2

    def covariance(self, block: Block) -> Covariance:
        """Of the patch tokens of a share of the block's pictures."""
        step = -(-len(block.images) // BASIS_PICTURES)
        total = Covariance(self.encoder.dim)
        for part in tensor(block.images[::step], self.device).split(self.recipe.encoder.batch):
            total.update(self.encoder(part).tokens)
        return total

    def run(self, block: Block, basis: Components | None) -> dict[str, Any]:
        """Snippets (and tokens projected on `basis`) of a block and its mirror images, written as fragments; returns
        what to commit."""
        images, orientations = tensor(block.images, self.device), views(block.samples, self.recipe.data.mirror)
        if basis:
            basis = Components(basis.mean.to(self.device), basis.basis.to(self.device))
        flips, ids = [flipped for flipped, _ in orientations], np.concatenate([ids for _, ids in orientations])
        with ThreadPoolExecutor(THUMBNAILERS) as beside:  # Pillow's encoders leave other threads alone
            small = beside.map(thumbnail, _oriented(block, flips) if self.targets.bank else ())
            encoded = [self._encode(images.flip(-1) if flipped else images, basis) for flipped in flips]
        result: dict[str, Any] = {"rows": len(ids)}
        if self.targets.bank:
            rows = _bank_rows(block, flips, ids, np.concatenate([e[0] for e in encoded]), list(small))
            result["bank"] = bank_rows.write_fragments(self.targets.bank, block.shard, rows)
        if self.targets.patches:
            tokens = np.concatenate([e[1] for e in encoded])
            result["patches"] = patches.write_fragments(self.targets.patches, block.shard, ids, tokens)
        return result

    def _encode(self, images: torch.Tensor, basis: Components | None) -> tuple[np.ndarray, np.ndarray]:
        """Snippets [N, D] and projected tokens [N, T, K] (nothing where no tokens are wanted)."""
        snippets, tokens = [], []
        for part in images.split(self.recipe.encoder.batch):
            features = self.encoder(part)
            snippets.append(features.snippet.cpu())
            if basis:
                tokens.append(basis.project(features.tokens).half().cpu())
        return torch.cat(snippets).numpy(), torch.cat(tokens).numpy() if tokens else np.zeros((0, 0, 0))


def _oriented(block: Block, flips: list[bool]) -> Iterator[np.ndarray]:
    return (image[:, ::-1] if flipped else image for flipped in flips for image in block.images)


def _bank_rows(
    block: Block, flips: list[bool], ids: np.ndarray, snippets: np.ndarray, thumbnails: list[bytes]
) -> pa.Table:
    count = len(flips)
    return make_rows(
        ids,
        snippets,
        "dataset",
        keys=block.keys * count,
        flipped=[flipped for flipped in flips for _ in block.keys],
        labels=block.labels * count,
        classes=block.classes * count,
        captions=block.captions * count,
        splits=block.splits * count,
        shard=block.shard,
        thumbnails=thumbnails,
    )


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Makes the tables that are missing, then chooses what is kept of the bank."""
    made = _encoded(context, progress) if context.leases.keys() & {"bank", "patches"} else {}
    if "memory" in context.leases:
        made["memory"] = memory.run(context, progress)
    return made


def _encoded(context: Context, progress: Progress) -> dict[str, Made]:
    """Encodes the shards that are not committed yet to every table that is missing."""
    recipe, images = context.recipe, context.artifact("images").uri
    index = read_index(images, columns=["sample", "shard"])
    targets = Targets(*(context.artifact(kind).uri if kind in context.leases else None for kind in ("bank", "patches")))
    expected = expected_ids(index["sample"].drop_null().to_numpy(), recipe.data.mirror)
    with pool(recipe.cluster, STAGE.resources(recipe.cluster), SnippetEncoder, recipe, targets) as workers:
        encoder, tokens = result(workers[0].call(SnippetEncoder.describe))
        writers: dict[str, BankWriter | PatchesWriter] = {}
        basis = None
        if targets.bank:
            writers["bank"] = BankWriter(targets.bank, encoder["dim"], encoder, context.leases["bank"])
        if targets.patches:
            rank = min(recipe.bank.patch_components, encoder["dim"])
            basis = _basis(targets.patches, images, index_shards(index), workers, rank)
            writers["patches"] = PatchesWriter(
                targets.patches, tokens, basis.basis, basis.mean, encoder, context.leases["patches"]
            )
        done = set.intersection(*(set(writer.done) for writer in writers.values()))
        first = next(iter(writers.values()))
        progress.total(len(expected), sum(first.done[shard]["rows"] for shard in done))
        blocks = (read_block.remote(images, shard, None) for shard in index_shards(index) if shard not in done)
        asked = ray.put(basis)
        extract(
            blocks,
            workers,
            SnippetEncoder.run,
            lambda results: _commit(writers, results),
            progress,
            len(expected),
            asked,
        )
    return _finish(context, writers, expected, encoder)


def _commit(writers: dict[str, Any], results: list[dict[str, Any]]) -> int:
    return sum(writer.commit(result[kind] for result in results) for kind, writer in writers.items())


def _basis(uri: str, images: str, shards: list[str], workers: list[Worker], rank: int) -> Components:
    """The components a resumed run began with, or those of a sample of the pictures."""
    if stored := stored_basis(uri):
        return Components(mean=stored[1], basis=stored[0])
    chosen = shards[:: max(1, len(shards) // BASIS_SHARDS)][:BASIS_SHARDS]
    parts = [
        workers[i % len(workers)].call(SnippetEncoder.covariance, read_block.remote(images, shard, None))
        for i, shard in enumerate(chosen)
    ]
    total, *rest = map(result, parts)
    for part in rest:
        total.merge(part)
    return total.principal_components(rank)


def _withdraw_again(context: Context, bank: Bank) -> None:
    """What was withdrawn from an earlier bank of this recipe does not come back with a new encoder or a new ingest."""
    for other in context.store.artifacts("bank"):
        if other.name == context.recipe.name and other.uri != bank.artifact and other.complete:
            for reason, ids in bank.withdrawn_from(other.uri).items():
                bank.withdraw(f"withdrawn from {other.folder}: {reason}", ids)


def _finish(
    context: Context, writers: dict[str, Any], expected: np.ndarray, encoder: dict[str, Any]
) -> dict[str, Made]:
    versions: dict[str, int] = {}
    if "bank" in writers:
        writers["bank"].finish_bank(expected)
        bank = Bank(context.artifact("bank").uri)
        _withdraw_again(context, bank)
        bank.build_index()
        versions["bank"] = bank.version
    if "patches" in writers:
        writers["patches"].verify(expected)
        versions["patches"] = writers["patches"].finish({}).version
    return {kind: Made({"rows": len(expected)}, each, {"encoder": encoder}) for kind, each in versions.items()}
