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
from flows.detectors import INCEPTION, Sums, merge, read_sums, write_sums
from flows.evaluator import Evaluator
from flows.extraction import read_block
from flows.progress import Report
from flows.stage import Job, StageError
from gmem.metrics import AdmReference, FeatureSums, Nearest, read_adm
from gmem.metrics.inception import DIMENSIONS
from storage.shards import index_shards

REFERENCE_SEED = 20_240_601
"""Draws the reference pictures: another seed than the snippets', so that the two are not the same pictures."""
FLOOR_SEED = REFERENCE_SEED + 1
FILE_BATCH = 256


def of_pictures(job: Job, index: pa.Table, split: str, count: int, workers: list[Worker], report: Report) -> Sums:
    """Features of `count` pictures of the split, for each detector; read from the store when they are there."""
    path = job.artifact("statistics").path(f"{split}.npz")
    if job.store.files.exists(path):
        report.advance(count)
        return read_sums(job.store.read_bytes(path))
    merged = _features(job, index, split, count, REFERENCE_SEED, workers, report, False)
    job.store.write_bytes(path, write_sums(merged))
    return merged


def reconstructions(job: Job, index: pa.Table, split: str, count: int, workers: list[Worker], report: Report) -> Sums:
    """Features of `count` other pictures of the split as the tokenizer gives them back: the floor of any network."""
    return _features(job, index, split, count, FLOOR_SEED, workers, report, True)


def _features(
    job: Job, index: pa.Table, split: str, count: int, seed: int, workers: list[Worker], report: Report, again: bool
) -> Sums:
    kept = index.filter(pc.equal(index["split"], split))
    rows = np.sort(np.random.default_rng(seed).permutation(len(kept))[:count])
    wanted = set(kept["sample"].to_numpy()[rows].tolist())
    images = job.artifact("images").uri
    calls = (
        workers[i % len(workers)].call(Evaluator.reference, read_block.remote(images, shard), wanted, again)
        for i, shard in enumerate(index_shards(index))
    )
    return _merged(under_way(calls, 2 * len(workers)), report)


def _merged(parts: Iterator[Sums], report: Report | None = None) -> Sums:
    total: Sums = {}
    for part in parts:
        if report:
            report.advance(next(iter(part.values())).count)
        merge(total, part)
    return total


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


def of_file(job: Job, file: AdmReference, workers: list[Worker]) -> File:
    """The file's statistics, with features of its pictures where it holds any."""
    features = _file_features(job, file, workers) if file.images_shape else None
    moments = file if file.pool else features
    assert moments is not None, "a file holds statistics or pictures"
    return File(moments, features, file.path.name, file.sha256)


def _file_features(job: Job, file: AdmReference, workers: list[Worker]) -> FeatureSums:
    path = job.artifact("statistics").path("reference.npz")
    if not job.store.files.exists(path):
        starts = range(0, (file.images_shape or (0,))[0], FILE_BATCH)
        calls = (
            workers[i % len(workers)].call(Evaluator.inception, images, np.arange(start, start + len(images)))
            for i, (start, images) in enumerate(zip(starts, file.images(FILE_BATCH), strict=True))
        )
        job.store.write_bytes(path, write_sums(_merged(under_way(calls, 2 * len(workers)))))
    return read_sums(job.store.read_bytes(path))[INCEPTION]


# --- the training set ------------------------------------------------------------------------------------------------


def nearest_of(
    job: Job, index: pa.Table, queries: NDArray[np.floating], workers: list[Worker], report: Report
) -> Nearest:
    """The nearest training picture (its sample number) of every query [Q, D], in the first detector's features.

    Features of the training pictures are kept, a file a shard: the next evaluation only searches.
    """
    images, total, asked = job.artifact("images").uri, Nearest(queries), ray.put(queries)

    def calls() -> Iterator[Any]:
        for i, shard in enumerate(index_shards(index)):
            path = job.artifact("statistics").path("training", f"{shard}.npz")
            block = None if job.store.files.exists(path) else read_block.remote(images, shard)
            yield workers[i % len(workers)].call(Evaluator.nearest, path, block, asked)

    for distance, numbers, count in under_way(calls(), 2 * len(workers)):
        total.keep(distance, numbers)
        report.advance(count)
    return total
