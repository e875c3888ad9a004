"""How pictures become shards: a folder of pictures, WebDataset tars, Parquet or Lance into image shards of one size, every input accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from flows.cluster.calls import result, under_way
from flows.cluster.resources import READER_CPUS
from flows.cluster.workers import reserve_alongside
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.stages.ingest.stage import STAGE, shipped_content
from storage.images.index import Counts, done_shards
from storage.images.isolation import Care
from storage.images.shards import ShardPlan, write_index, write_shard
from storage.images.sources import list_source

REASONS_SHOWN, REASONS_KEPT = 5, 50
CRASHES = (WorkerCrashedError, OutOfMemoryError)
"""How a task ends, after Ray's retries, when a picture takes down whoever decodes it, or takes minutes."""


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Writes the shards that are not written yet, several at once, then numbers the pictures."""
    data, root, size = context.recipe.data, context.artifact("images").uri, context.recipe.data.shard_size
    listing = list_source(context.recipe.source, data.layout, data.label)
    if context.parameters["images"]["listing"] not in (listing.fingerprint, shipped_content(context.recipe)):
        raise StageError(
            f"the pictures in {context.recipe.data.source} are not those that were listed when the run began; let whatever "
            "changes them end, and run again (on a cluster: all nodes must see the same files, times included)"
        )
    for sentence in listing.notes:
        progress.note(sentence)
    classes = tuple(listing.classes())
    plan = ShardPlan(context.recipe.source, data.image_size, data.held_out, classes, data.max_pixels, data.background)
    shards = -(-len(listing) // size)
    done = done_shards(root)
    missing = [number for number in range(shards) if number not in done]
    progress.total(len(listing), min(len(done) * size, len(listing)))

    reserved = reserve_alongside(STAGE.resources(context.recipe.cluster))
    write: Any = ray.remote(write_shard).options(**reserved.options(), max_retries=3)

    def start(number: int, care: Care) -> Any:
        return write.remote(root, number, listing.slice(number * size, (number + 1) * size), plan, care)

    for written in under_way((start(n, "watched") for n in missing), 2 * reserved.actors, CRASHES):
        progress.advance(written.kept + written.rejected)
    if crashed := sorted(set(missing) - done_shards(root)):
        progress.note(f"{len(crashed)} shards killed their workers: written again, each picture apart")
    for written in under_way((start(n, "isolated") for n in crashed), 2 * reserved.actors):
        progress.advance(written.kept + written.rejected)
    counts = write_index(root, shards, plan, _on_the_cluster)
    return _made(counts, progress)


def _on_the_cluster(function: Callable[[Any], Any], blocks: Sequence[Any]) -> Iterable[Any]:
    """As `map` does, in a task for each block; one alone is not worth sending away."""
    if len(blocks) == 1:
        return map(function, blocks)
    calls = [_applied.remote(function, block) for block in blocks]
    return map(result, calls)


@ray.remote(num_cpus=READER_CPUS, max_retries=3)
def _applied(function: Callable[[Any], Any], block: Any) -> Any:
    return function(block)


def _made(index: Counts, progress: Progress) -> dict[str, Made]:
    for reason, count in index.reasons.most_common(REASONS_SHOWN):
        progress.note(f"{count} left out: {reason}")
    counts = {
        "rows": index.kept,
        "inputs": index.kept + index.refused,
        "refused": index.refused,
        "shards": index.shards,
    } | index.splits
    details = {"reasons": dict(index.reasons.most_common(REASONS_KEPT))}
    return {"images": Made(counts, details=details, metrics={"pictures": index.kept, "refused": index.refused})}
