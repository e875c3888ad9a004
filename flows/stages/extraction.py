"""What latents, bank and evaluation share: shards read in tasks, encoded by actors, committed a group at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from flows.cluster.calls import spread
from flows.cluster.resources import READER_CPUS
from flows.cluster.workers import Worker
from flows.engine.progress import Progress
from gmem.pixels import channels_first, from_bytes
from storage.ids import id_of
from storage.images.shards import read_shard

COMMIT_SECONDS = 20.0
COMMIT_SHARE = 0.05
"""A kill costs at most what was finished since the last commit: so much time, or so much of the table."""


class Block(NamedTuple):
    """The pictures of one shard, or those asked for, decoded."""

    shard: str
    samples: NDArray[np.int64]
    keys: list[str]
    labels: list[int | None]
    splits: list[str]
    classes: list[str | None]
    captions: list[str | None]
    images: NDArray[np.uint8]
    """[N, H, W, 3]"""


@ray.remote(num_cpus=READER_CPUS, max_retries=3)
def read_block(root: str, shard: str, wanted: Collection[int] | None) -> Block:
    """Decoding, apart from encoding: an encoder on a GPU never waits for one core to decode. `wanted` are the sample
    numbers of the pictures to decode, at least one; none: all."""
    pictures = list(read_shard(root, shard, wanted))
    return Block(
        shard,
        np.array([p.sample for p in pictures], np.int64),
        [p.key for p in pictures],
        [p.label for p in pictures],
        [p.split for p in pictures],
        [p.class_name for p in pictures],
        [p.caption for p in pictures],
        np.stack([p.image for p in pictures]),
    )


def tensor(images: NDArray[np.uint8], device: str) -> torch.Tensor:
    """float32 [N, 3, H, W] in [-1, 1] of uint8 [N, H, W, 3]."""
    return from_bytes(channels_first(images).to(device))


def views(samples: NDArray[np.int64], mirror: bool) -> list[tuple[bool, NDArray[np.int64]]]:
    """(flipped, ids) of each orientation of a block's pictures."""
    return [(flipped, id_of(samples, flipped)) for flipped in ((False, True) if mirror else (False,))]


def expected_ids(samples: NDArray[np.int64], mirror: bool) -> NDArray[np.int64]:
    return np.concatenate([ids for _, ids in views(samples, mirror)])


def extract(
    blocks: Iterable[Any],
    workers: list[Worker],
    run: Callable[..., Any],
    commit: Callable[[list[Any]], int],
    progress: Progress,
    rows: int,
    *args: Any,
) -> None:
    """Hands the blocks (remote calls, lazily started) and `args` to the workers' method `run` and commits finished
    shards as they come, the last ones too when the run is interrupted. `commit` takes results and returns rows; `rows`
    is what the table will have."""
    finished: list[Any] = []
    last = time.monotonic()
    try:
        for result in spread(blocks, workers, run, *args):
            finished.append(result)
            progress.advance(result["rows"])
            share = sum(each["rows"] for each in finished) / rows
            if share >= COMMIT_SHARE or time.monotonic() - last > COMMIT_SECONDS:
                last = time.monotonic()
                commit(_taken(finished))
    finally:
        if finished:
            commit(_taken(finished))


def _taken(results: list[Any]) -> list[Any]:
    taken = list(results)
    results.clear()
    return taken
