"""Stage sample: the selection is cut into shards, which workers make; a shard that is there is not made again.

An artifact's folder is a WebDataset, whose index any reader of Parquet takes for one table:

    samples-000000.tar              <number>.png and <number>.json of each sample
    index/samples-000000.parquet    what each is of: storage.samples.INDEX_SCHEMA
    first.png                       the first of them, below the pictures of their snippets
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from flows.cluster.calls import spread
from flows.cluster.workers import pool
from flows.engine.context import Context, Made
from flows.engine.progress import Progress
from flows.figures import grid, pairs, thumbnails
from flows.models.snippets import NOBODY, chosen_ids, label_of
from flows.stages.sample.stage import STAGE
from flows.stages.sample.worker import Maker, Shard, shard_path
from flows.stages.sampling import kept_with_guide, record_of, subject_of
from storage.samples import read_samples
from storage.tables.bank import Bank

SHOWN = 32


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Makes every shard that is not there."""
    recipe, artifact = context.recipe, context.artifact("generated")
    checkpoint, bank = subject_of(context, "generated")
    guide = kept_with_guide(context, checkpoint, "generated")
    shards = _shards(context, bank)
    progress.total(recipe.selection.count)
    calls = 0
    with pool(recipe.cluster, STAGE.resources(recipe.cluster), Maker, context, checkpoint) as workers:
        for made, taken in spread(shards, workers, Maker.make, depth=1):
            calls = max(calls, taken)
            progress.advance(made)
    context.store.write_bytes(artifact.path("first.png"), _figure(context, shards[0], bank))
    said = f"{recipe.selection.count:,} samples in {len(shards):,} shards, {calls} network calls each"
    details = record_of(context, checkpoint, guide, bank) | {"lines": [said]}
    counts = {"rows": recipe.selection.count, "shards": len(shards)}
    return {"generated": Made(counts, details=details, metrics={"calls": calls}, figures={"first": "first.png"})}


def _shards(context: Context, bank: Bank) -> list[Shard]:
    """The selection, cut into shards; Refused where there are no such rows, or no such class."""
    selection, label = context.recipe.selection, None
    if selection.prior:
        ids = np.full(selection.count, NOBODY)
        if selection.of_class is not None:
            label = label_of(bank, selection.of_class)
    else:
        ids = chosen_ids(bank, selection, context.recipe.sample.seed)
    size = selection.shard_size
    return [Shard(n, first, ids[first : first + size], label) for n, first in enumerate(range(0, len(ids), size))]


def _figure(context: Context, shard: Shard, bank: Bank) -> bytes:
    """The first samples, below the pictures of their snippets where those are somebody's."""
    made = list(islice(read_samples(context.store, shard_path(context, shard)), SHOWN))
    images = np.stack([row.image for row in made])
    if context.recipe.selection.prior:
        return grid(images)
    ids = np.array([row.snippet for row in made])
    return pairs(thumbnails(bank, ids, images.shape[1]), images)
