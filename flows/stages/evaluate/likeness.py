"""Copies in pixels: each sample, and each held-out picture, laid over the training picture nearest to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from PIL import Image

from flows.cluster.calls import under_way
from flows.cluster.resources import READER_CPUS
from flows.engine.context import Context
from flows.stages.evaluate.references import by_shard
from flows.stages.evaluate.stage import memorisation_detector
from flows.stages.evaluate.worker import CHUNK, samples_path
from gmem.metrics import Memorisation, PixelCopies, Sums, aligned_similarity, pixel_copies
from storage.images.shards import HELD_OUT, read_shard
from storage.samples import read_samples

SIDE = 32
"""Pixels: enough to know a copy by, and a picture of any size takes 3 KB."""
AT_ONCE = 8
Small = dict[int, NDArray[np.uint8]]
"""Pictures uint8 [SIDE, SIDE, 3] by their numbers."""


def pixel_copies_of(
    context: Context, index: pa.Table, memorised: dict[str, Memorisation], seen: dict[str, Sums]
) -> dict[str, PixelCopies]:
    """Of the samples of every split, and the held-out pictures `seen`, all searched in the training pictures. Only
    pictures that are somebody's nearest are decoded."""
    first = next(iter(memorised.values()))
    held_out = seen[HELD_OUT][memorisation_detector(context.recipe.evaluate)].index
    wanted = np.unique(
        np.concatenate([held_out, first.held_out_nearest, *(each.nearest for each in memorised.values())])
    )
    pictures = _pictures(context, index, wanted)
    known = aligned_similarity(_stack(pictures, held_out), _stack(pictures, first.held_out_nearest))
    copies = {}
    for split, each in memorised.items():
        samples = _samples(context, split, len(each.nearest))
        similarity = aligned_similarity(_stack(samples, range(len(each.nearest))), _stack(pictures, each.nearest))
        copies[split] = pixel_copies(similarity, known)
    return copies


def _stack(pictures: Small, numbers: Iterable[int]) -> NDArray[np.uint8]:
    return np.stack([pictures[int(number)] for number in numbers])


def _pictures(context: Context, index: pa.Table, wanted: NDArray[np.int64]) -> Small:
    uri = context.artifact("images").uri
    shards = by_shard(index.filter(pc.is_in(index["sample"], pa.array(wanted))))
    return _gathered(_small_pictures.remote(uri, shard, samples) for shard, samples in shards.items())


def _samples(context: Context, split: str, count: int) -> Small:
    return _gathered(_small_samples.remote(context, split, number) for number in range(-(-count // CHUNK)))


def _gathered(calls: Iterator[Any]) -> Small:
    found: Small = {}
    for numbers, pictures in under_way(calls, AT_ONCE):
        found |= dict(zip(numbers, pictures, strict=True))
    return found


@ray.remote(num_cpus=READER_CPUS, max_retries=3)
def _small_pictures(uri: str, shard: str, samples: list[int]) -> tuple[list[int], NDArray[np.uint8]]:
    numbers, images = zip(*((p.sample, _small(p.image)) for p in read_shard(uri, shard, samples)), strict=True)
    return list(numbers), np.stack(images)


@ray.remote(num_cpus=READER_CPUS, max_retries=3)
def _small_samples(context: Context, split: str, number: int) -> tuple[list[int], NDArray[np.uint8]]:
    rows = read_samples(context.store, samples_path(context, split, number))
    numbers, images = zip(*((row.number, _small(row.image)) for row in rows), strict=True)
    return list(numbers), np.stack(images)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
