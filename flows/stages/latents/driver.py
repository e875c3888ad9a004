"""How latents are made: image shards through the tokenizer into the latents table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flows.cluster.calls import result
from flows.cluster.workers import pool, set_threads_and_device
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from flows.stages.extraction import Block, expected_ids, extract, read_block, tensor, views
from flows.stages.latents.stage import STAGE
from gmem.tokenizer import load_tokenizer
from storage.images.index import index_shards, read_index
from storage.tables.latents import LatentsWriter, write_fragments


class LatentEncoder:
    """A worker that holds the tokenizer and writes what it encodes."""

    def __init__(self, threads: int, recipe: Recipe, artifact: str) -> None:
        self.recipe = recipe
        self.artifact = artifact
        self.device = set_threads_and_device(threads)
        self.tokenizer = load_tokenizer(recipe.tokenizer.source, self.device)

    def describe(self) -> dict[str, Any]:
        return self.tokenizer.identity

    def run(self, block: Block) -> dict[str, Any]:
        """Latents of a block and of its mirror images, written as fragments; returns what to commit."""
        images, orientations = tensor(block.images, self.device), views(block.samples, self.recipe.data.mirror)
        latents = [self._encode(images.flip(-1) if flipped else images, ids) for flipped, ids in orientations]
        ids = np.concatenate([ids for _, ids in orientations])
        labels = block.labels * len(latents)
        return write_fragments(self.artifact, block.shard, ids, labels, np.concatenate(latents))

    def _encode(self, images: torch.Tensor, ids: np.ndarray) -> np.ndarray:
        batch = self.recipe.tokenizer.batch
        seeds = torch.from_numpy(ids).split(batch) if self.recipe.tokenizer.draw else [None] * -(-len(ids) // batch)
        parts = [self.tokenizer.encode(part, seed) for part, seed in zip(images.split(batch), seeds, strict=True)]
        return torch.cat(parts).cpu().numpy()


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Encodes the shards that are not committed yet."""
    recipe, images, artifact = context.recipe, context.artifact("images").uri, context.artifact("latents")
    index = read_index(images, columns=["sample", "shard"])
    samples = index["sample"].drop_null().to_numpy()
    expected = expected_ids(samples, recipe.data.mirror)
    with pool(recipe.cluster, STAGE.resources(recipe.cluster), LatentEncoder, recipe, artifact.uri) as workers:
        tokenizer = result(workers[0].call(LatentEncoder.describe))
        _check(recipe, tokenizer)
        shape = (recipe.tokenizer.channels, recipe.grid, recipe.grid)
        writer = LatentsWriter(artifact.uri, shape, tokenizer, context.leases["latents"])
        done = set(writer.done)
        progress.total(len(expected), sum(writer.done[shard]["rows"] for shard in done))
        blocks = (read_block.remote(images, shard, None) for shard in index_shards(index) if shard not in done)
        extract(blocks, workers, LatentEncoder.run, writer.commit, progress, len(expected))
    table = writer.finish_latents(expected)
    return {"latents": Made({"rows": len(expected)}, table.version, {"tokenizer": tokenizer, "shape": list(shape)})}


def _check(recipe: Recipe, tokenizer: dict[str, Any]) -> None:
    for key in ("factor", "channels"):
        if tokenizer[key] != getattr(recipe.tokenizer, key):
            raise StageError(
                f"tokenizer {recipe.tokenizer.source} has {key} {tokenizer[key]}, but the recipe says {getattr(recipe.tokenizer, key)}; "
                f"set tokenizer.{key}={tokenizer[key]}"
            )
