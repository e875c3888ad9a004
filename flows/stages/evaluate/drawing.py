"""Figures of an evaluation: samples below their sources, above the nearest training pictures, and over seeds."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flows.engine.context import Context
from flows.figures import grid, pairs
from flows.stages.evaluate.stage import sources_known
from flows.stages.evaluate.worker import CHUNK, SEEDS, samples_path, seeds_path
from gmem.metrics import Memorisation
from storage.ids import sample_of
from storage.images.shards import read_pictures
from storage.samples import read_samples

SHOWN = 32


def figures(context: Context, splits: list[str], memorised: dict[str, Memorisation]) -> dict[str, str]:
    """File name of each figure of the splits, by its title; the files lie beside the report."""
    drawn: dict[str, bytes] = {}
    kind = "pairs" if sources_known(context.recipe.evaluate) else "samples"
    for split in splits:
        drawn[f"{kind}-{split}"] = _first(context, split)
        drawn[f"seeds-{split}"] = _over_seeds(context, split)
        if split in memorised:
            drawn[f"nearest-{split}"] = _nearest(context, split, memorised[split])
    for title, png in drawn.items():
        context.store.write_bytes(context.artifact("report").path(f"{title}.png"), png)
    return {title.replace("_", "-"): f"{title}.png" for title in drawn}


def _first(context: Context, split: str) -> bytes:
    """The first samples, below their sources where those are known."""
    made = list(islice(read_samples(context.store, samples_path(context, split, 0)), SHOWN))
    images = np.stack([row.image for row in made])
    if not sources_known(context.recipe.evaluate):
        return grid(images)
    return pairs(_pictures(context, sample_of([row.snippet for row in made]).tolist()), images)


def _over_seeds(context: Context, split: str) -> bytes:
    """A column for each of a few snippets: the source where it is known, and samples that differ by their noise alone."""
    made = list(read_samples(context.store, seeds_path(context, split)))
    over_seeds = [np.stack([row.image for row in made[seed::SEEDS]]) for seed in range(SEEDS)]
    if not sources_known(context.recipe.evaluate):
        return pairs(*over_seeds)
    return pairs(_pictures(context, sample_of([row.snippet for row in made[::SEEDS]]).tolist()), *over_seeds)


def _nearest(context: Context, split: str, memorised: Memorisation) -> bytes:
    """The samples that lie nearest to a training picture, each above it, the nearest first.

    Below stands the distance in units of the one under which a sample is taken for a copy, so below 1 it is one; where
    held-out pictures are copies themselves, that is 0, and the distance stands there as it is.
    """
    chosen = np.argsort(memorised.distances, kind="stable")[:SHOWN]
    unit = memorised.copy_distance or 1.0
    return pairs(
        _samples(context, split, chosen.tolist()),
        _pictures(context, memorised.nearest[chosen].tolist()),
        captions=[f"{distance / unit:.3g}" for distance in memorised.distances[chosen]],
    )


def _samples(context: Context, split: str, numbers: list[int]) -> NDArray[np.uint8]:
    """Samples uint8 [N, H, W, 3] by their numbers."""
    found: dict[int, NDArray[np.uint8]] = {}
    for chunk in {number // CHUNK for number in numbers}:
        for row in read_samples(context.store, samples_path(context, split, chunk)):
            if row.number in numbers:
                found[row.number] = row.image
    return np.stack([found[number] for number in numbers])


def _pictures(context: Context, samples: list[int]) -> NDArray[np.uint8]:
    """Pictures uint8 [N, H, W, 3] of the dataset by their sample numbers."""
    return read_pictures(context.artifact("images").uri, samples)
