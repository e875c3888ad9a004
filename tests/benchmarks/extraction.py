"""Pictures through the tokenizer into a table, and through the detectors, as the stages do it: beside the same networks on
batches that are in memory already. Decoding, encoding and writing share the machine's cores."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from measured import Measured, alternating

from flows.cluster.calls import spread
from flows.cluster.connection import connected
from flows.cluster.workers import Worker, pool
from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.evaluate.stage import STAGE as EVALUATE
from flows.stages.evaluate.worker import Evaluator
from flows.stages.extraction import Block, extract, read_block, tensor
from flows.stages.latents.driver import LatentEncoder
from flows.stages.latents.stage import STAGE as LATENTS
from gmem.pixels import channels_first
from storage.images.index import shard_name
from storage.images.shards import ShardPlan, write_index, write_shard
from storage.images.sources import list_source
from storage.tables.latents import LatentsWriter


class Latents(LatentEncoder):
    """A worker of the stage that also encodes what it holds, and nothing else."""

    def alone(self, block: Block) -> None:
        images = tensor(block.images, self.device)
        for view in (images, images.flip(-1)):
            for part in view.split(self.recipe.tokenizer.batch):
                self.tokenizer.encode(part)


class Features(Evaluator):
    def alone(self, block: Block) -> None:
        images = channels_first(block.images)
        with torch.inference_mode():
            for part in images.split(self.recipe.evaluate.batch):
                for detector in self.detectors.values():
                    detector.features(part.to(self.device))


class Silent:
    """Nobody looks at the progress."""

    def advance(self, count: int) -> None: ...


def shards(recipe: Recipe, root: str, pictures: int) -> list[str]:
    """Names of shards of the recipe's first pictures."""
    listing, size = list_source(recipe.source), recipe.data.shard_size
    plan = ShardPlan(recipe.source, recipe.data.image_size, 0.0, tuple(listing.classes()))
    numbers = range(max(1, pictures // size))
    for number in numbers:
        write_shard(root, number, listing.slice(number * size, (number + 1) * size), plan)
    write_index(root, len(numbers), plan)
    return [shard_name(number) for number in numbers]


def latents(recipe: Recipe, root: Path, names: list[str], workers: list[Worker], pictures: int) -> Callable[[], float]:
    """The stage without its plan: shards read in tasks, encoded, written and committed."""
    writer = LatentsWriter(str(root / "latents"), (recipe.tokenizer.channels, recipe.grid, recipe.grid), {})

    def made() -> float:
        writer.done.clear()  # each round commits all
        blocks = (read_block.remote(str(root / "images"), name, None) for name in names)
        extract(blocks, workers, Latents.run, writer.commit, Silent(), 2 * pictures)  # type: ignore[arg-type]
        return 2 * pictures

    return made


def features(root: Path, names: list[str], workers: list[Worker], pictures: int) -> Callable[[], float]:
    def made() -> float:
        blocks = (read_block.remote(str(root / "images"), name, None) for name in names)
        for _ in spread(blocks, workers, Features.reference):
            pass
        return pictures

    return made


def alone(kind: Any, blocks: list[Any], workers: list[Worker], rows: int) -> Callable[[], float]:
    def made() -> float:
        for _ in spread(iter(blocks), workers, kind.alone):
            pass
        return rows

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1792)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    recipe = load("emoji")
    with tempfile.TemporaryDirectory(prefix="gmem-bench-") as name, connected(recipe.cluster):
        root = Path(name)
        names = shards(recipe, str(root / "images"), asked.pictures)
        held = [read_block.remote(str(root / "images"), shard, None) for shard in names]
        pictures = sum(len(block.samples) for block in ray.get(held))
        with pool(recipe.cluster, LATENTS.resources(recipe.cluster), Latents, recipe, str(root / "latents")) as workers:
            rates = alternating(
                asked.rounds,
                stage=latents(recipe, root, names, workers, pictures),
                alone=alone(Latents, held, workers, 2 * pictures),
            )
        tell("latents", "the tokenizer", rates, f"{recipe.tokenizer.source}, {recipe.data.image_size} px, mirrored too")
        context = SimpleNamespace(recipe=recipe)
        with pool(recipe.cluster, EVALUATE.resources(recipe.cluster), Features, context, None) as workers:
            rates = alternating(
                asked.rounds,
                stage=features(root, names, workers, pictures),
                alone=alone(Features, held, workers, pictures),
            )
        tell("features", "the detector", rates, f"{recipe.evaluate.encoder}, {recipe.data.image_size} px")


def tell(what: str, network: str, rates: dict[str, float], note: str) -> None:
    others = {f"{network} on batches in memory": rates["alone"]}
    Measured(what, rates["stage"], "rows/s", others, rates["alone"], note).tell()
    Measured(f"{what}, share of {network} alone", rates["stage"] / rates["alone"], "").tell()


if __name__ == "__main__":
    main()
