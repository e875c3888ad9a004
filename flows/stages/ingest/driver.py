"""How pictures become shards: a folder of pictures, WebDataset tars, Parquet or Lance into image shards of one size, every input accounted for."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from flows.cluster.calls import under_way
from flows.cluster.workers import reserve_alongside
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.stages.ingest.stage import STAGE, shipped_content
from storage.images.isolation import Care
from storage.images.shards import ShardPlan, done_shards, write_index, write_shard
from storage.images.sources import list_source

REASONS_SHOWN = 5
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

    for result in under_way((start(n, "watched") for n in missing), 2 * reserved.actors, CRASHES):
        progress.advance(result.kept + result.rejected)
    if crashed := sorted(set(missing) - done_shards(root)):
        progress.note(f"{len(crashed)} shards killed their workers: written again, each picture apart")
    for result in under_way((start(n, "isolated") for n in crashed), 2 * reserved.actors):
        progress.advance(result.kept + result.rejected)
    index = write_index(root, shards, plan)
    return _made(index, progress)


def _made(index: pa.Table, progress: Progress) -> dict[str, Made]:
    kept = index.filter(index["kept"])
    splits = {row["values"]: row["counts"] for row in kept["split"].value_counts().to_pylist()}
    refused = len(index) - len(kept)
    reasons = sorted(index["reason"].drop_null().value_counts().to_pylist(), key=lambda row: -row["counts"])
    for row in reasons[:REASONS_SHOWN]:
        progress.note(f"{row['counts']} left out: {row['values']}")
    counts = {
        "rows": len(kept),
        "inputs": len(index),
        "refused": refused,
        "shards": len(kept["shard"].unique()),
    } | splits
    details = {"reasons": {row["values"]: row["counts"] for row in reasons[:50]}}
    return {"images": Made(counts, details=details, metrics={"pictures": len(kept), "refused": refused})}
