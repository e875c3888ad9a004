"""What samples are compared with: pictures of the recipe, a file of the ADM suite, the whole training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from flows.cluster.calls import under_way
from flows.cluster.workers import Worker
from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.stages.evaluate.detectors import INCEPTION, merge
from flows.stages.evaluate.worker import Evaluator
from flows.stages.extraction import read_block
from gmem.metrics import AdmReference, FeatureSums, Nearest, Sums, read_adm, read_sums, write_sums
from gmem.metrics.inception import DIMENSIONS
from storage.images.shards import TRAIN

REFERENCE_SEED = 20_240_601
"""Draws the reference pictures: another seed than the snippets', so that the two are not the same pictures."""
FLOOR_SEED = REFERENCE_SEED + 1
FILE_BATCH = 256


def of_pictures(
    context: Context, index: pa.Table, counts: dict[str, int], workers: list[Worker], progress: Progress
) -> dict[str, Sums]:
    """Features of so many pictures of each split, for each detector; read from the store where they are there."""
    paths = {split: context.artifact("statistics").path(f"{split}.npz") for split in counts}
    found = {
        split: read_sums(context.store.read_bytes(path))
        for split, path in paths.items()
        if context.store.files.exists(path)
    }
    progress.advance(sum(counts[split] for split in found))
    lacking = {split: count for split, count in counts.items() if split not in found}
    for split, sums in _features(context, index, lacking, REFERENCE_SEED, workers, progress, False).items():
        context.store.write_bytes(paths[split], write_sums(sums))
        found[split] = sums
    return found


def reconstructions(
    context: Context, index: pa.Table, counts: dict[str, int], workers: list[Worker], progress: Progress
) -> dict[str, Sums]:
    """Features of so many other pictures of each split as the tokenizer gives them back: the floor of any network."""
    return _features(context, index, counts, FLOOR_SEED, workers, progress, True)


def _features(
    context: Context,
    index: pa.Table,
    counts: dict[str, int],
    seed: int,
    workers: list[Worker],
    progress: Progress,
    again: bool,
) -> dict[str, Sums]:
    """One pass over the shards for all splits, in which only the pictures drawn are decoded."""
    total: dict[str, Sums] = {split: {} for split in counts}
    images, drawn = context.artifact("images").uri, _drawn(index, counts, seed)
    calls = (
        workers[i % len(workers)].call(Evaluator.reference, read_block.remote(images, shard, samples), again)
        for i, (shard, samples) in enumerate(drawn.items())
    )
    for part in under_way(calls, 2 * len(workers)):
        for split, sums in part.items():
            merge(total[split], sums)
            progress.advance(next(iter(sums.values())).count)
    return total


def _drawn(index: pa.Table, counts: dict[str, int], seed: int) -> dict[str, list[int]]:
    """Sample numbers of random pictures, so many of each split, by shard."""
    parts = [index.slice(0, 0)]
    for split, count in counts.items():
        kept = index.filter(pc.equal(index["split"], split))
        parts.append(kept.take(np.random.default_rng(seed).permutation(len(kept))[:count]))
    return by_shard(pa.concat_tables(parts))


def by_shard(rows: pa.Table) -> dict[str, list[int]]:
    """Sample numbers of rows of the index, by shard, both rising."""
    shards: dict[str, list[int]] = {}
    rows = rows.sort_by("sample")
    for shard, sample in zip(rows["shard"].to_pylist(), rows["sample"].to_pylist(), strict=True):
        shards.setdefault(shard, []).append(sample)
    return shards


# --- a file of the ADM suite -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """What FID and sFID compare with, what precision, recall and KID do (None: the file has no pictures), and names."""

    moments: FeatureSums | AdmReference
    features: FeatureSums | None
    name: str
    sha256: str


def open_adm(path: str) -> AdmReference:
    """The file; StageError where its statistics are not those of the FID Inception network."""
    file = read_adm(path)
    for stream, gaussian in (("pool", file.pool), ("spatial", file.spatial)):
        if gaussian and gaussian.dim != DIMENSIONS[stream]:
            raise StageError(
                f"evaluate.reference {path} holds {stream} statistics of {gaussian.dim} dimensions, and the FID Inception "
                f"network gives {DIMENSIONS[stream]}; name a file of that network"
            )
    return file


def of_file(context: Context, file: AdmReference, workers: list[Worker]) -> File:
    """The file's statistics, with features of its pictures where it holds any."""
    features = _file_features(context, file, workers) if file.images_shape else None
    moments = file if file.pool else features
    assert moments is not None, "a file holds statistics or pictures"
    return File(moments, features, file.path.name, file.sha256)


def _file_features(context: Context, file: AdmReference, workers: list[Worker]) -> FeatureSums:
    path = context.artifact("statistics").path("reference.npz")
    if not context.store.files.exists(path):
        starts = range(0, (file.images_shape or (0,))[0], FILE_BATCH)
        calls = (
            workers[i % len(workers)].call(Evaluator.inception, images, np.arange(start, start + len(images)))
            for i, (start, images) in enumerate(zip(starts, file.images(FILE_BATCH), strict=True))
        )
        total: Sums = {}
        for part in under_way(calls, 2 * len(workers)):
            merge(total, part)
        context.store.write_bytes(path, write_sums(total))
    return read_sums(context.store.read_bytes(path))[INCEPTION]


# --- the training set ------------------------------------------------------------------------------------------------


def nearest_of(
    context: Context,
    index: pa.Table,
    queries: dict[str, NDArray[np.floating]],
    workers: list[Worker],
    progress: Progress,
) -> dict[str, Nearest]:
    """The nearest training picture (its sample number) of every query [Q, D], in each searched detector's features.

    Features of the training pictures are kept, a file a shard: the next evaluation only searches.
    """
    images, asked = context.artifact("images").uri, ray.put(queries)
    total = {name: Nearest(each) for name, each in queries.items()}
    pictures = by_shard(index.filter(pc.equal(index["split"], TRAIN)))

    def calls() -> Iterator[Any]:
        for i, (shard, samples) in enumerate(pictures.items()):
            path = context.artifact("statistics").path("training", f"{shard}.npz")
            block = None if context.store.files.exists(path) else read_block.remote(images, shard, samples)
            yield workers[i % len(workers)].call(Evaluator.nearest, path, block, asked)

    for found, count in under_way(calls(), 2 * len(workers)):
        for name, (distance, numbers) in found.items():
            total[name].keep(distance, numbers)
        progress.advance(count)
    return total
