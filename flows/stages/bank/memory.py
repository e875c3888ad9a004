"""What a recipe keeps of its bank: whose snippet stands for each training picture, and along which directions.

The training set stays whole, and the bank too, which can be searched and edited as ever. Smaller is what conditions: each
picture goes with the nearest snippet that is kept, its mirror image with that one's mirror image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.cluster.calls import result
from flows.cluster.workers import pool, set_threads_and_device
from flows.engine.context import Context, Made
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.models.memory import TRAINED
from flows.stages.bank.stage import STAGE
from gmem.memory import Covariance
from gmem.settings import MemoryConfig
from gmem.subset import choose, nearest
from storage.ids import sample_of
from storage.images.shards import TRAIN
from storage.tables.bank import Bank
from storage.tables.bank_basis import Basis
from storage.tables.memory import Memory


class Kept(NamedTuple):
    """A memory, and what is to be said of it."""

    memory: Memory
    of: int
    """Training pictures."""
    metrics: dict[str, float]
    """`cosine` of pictures' snippets with those that stand for them; `energy`, the share of variance along the directions."""


class Keeper:
    """A worker that has the snippets in memory and chooses among them."""

    def __init__(self, threads: int, context: Context) -> None:
        self.device = set_threads_and_device(threads)
        self.config: MemoryConfig = context.recipe.bank
        self.bank = Bank(context.artifact("bank").uri, context.versions.get("bank"))

    def keep(self) -> Kept:
        memory, metrics = Memory.whole(), dict[str, float]()
        rows = self.bank.scan(["class", "label"], TRAINED)
        if self.config.snippets is not None:
            memory, metrics["cosine"] = self._subset(rows)
        if self.config.rank is not None:
            memory, metrics["energy"] = self._reduced(memory, self.config.rank)
        return Kept(memory, len(rows), metrics)

    def _subset(self, rows: pa.Table) -> tuple[Memory, float]:
        ids = rows["id"].to_numpy()
        count = self.config.count(len(ids))
        snippets, classes = self._snippets(ids), None
        if self.config.choice == "balanced":
            classes = _classes(rows)
        chosen = choose(snippets, count, self.config.choice, self.config.seed, classes)
        place, cosine = nearest(snippets, chosen)
        pictures = sample_of(ids)
        return Memory(pictures, pictures[chosen.numpy()][place.numpy()]), float(cosine.mean())

    def _snippets(self, ids: NDArray[np.int64]) -> Tensor:
        """Float16 [N, D] of rising ids, read a batch at a time."""
        snippets = torch.empty(len(ids), self.bank.dim, dtype=torch.float16)
        for rows in self.bank.batches(["snippet"], TRAINED):
            place = np.searchsorted(ids, rows["id"].to_numpy())
            snippets[torch.from_numpy(place)] = torch.from_numpy(self.bank.full(rows["snippet"]).copy())
        return snippets.to(self.device)

    def _reduced(self, memory: Memory, rank: int) -> tuple[Memory, float]:
        """The leading directions of the snippets that are kept, mirror images among them."""
        if rank >= self.bank.dim:
            raise StageError(
                f"bank.rank {rank} is not less than the {self.bank.dim} numbers of a snippet; give 1 to "
                f"{self.bank.dim - 1}, or null for whole snippets"
            )
        total = Covariance(self.bank.dim)
        for rows in self.bank.batches(["snippet"], f"split = '{TRAIN}' AND origin = 'dataset'"):
            kept = memory.keeps(rows["id"].to_numpy())
            total.update(torch.from_numpy(self.bank.full(rows["snippet"])[kept]))
        found = total.principal_components(rank)
        basis = Basis(found.basis.numpy(), found.mean.numpy())
        return replace(memory, basis=basis), total.energy(found)


def _classes(rows: pa.Table) -> Tensor:
    """Integers [N], by the class's name, or by the label where there are no names."""
    named = next((name for name in ("class", "label") if rows[name].null_count < len(rows)), None)
    if named is None:
        raise StageError("bank.choice balanced needs classes, and no picture has one; set bank.choice=random, say")
    values = rows[named].combine_chunks().dictionary_encode(null_encoding="encode")
    return torch.from_numpy(values.indices.to_numpy().astype(np.int64))


def run(context: Context, progress: Progress) -> Made:
    """Chooses and keeps, on one worker."""
    config = context.recipe.bank
    progress.note("choosing what is kept of the bank")
    reserved = replace(STAGE.resources(context.recipe.cluster), actors=1)
    with pool(context.recipe.cluster, reserved, Keeper, context) as (worker,):
        kept: Kept = result(worker.call(Keeper.keep))
    kept.memory.write(context.artifact("memory").uri)
    snippets = len(np.unique(kept.memory.kept)) or kept.of
    counts = {"rows": kept.of, "kept": snippets} | ({"rank": config.rank} if config.rank else {})
    return Made(
        counts,
        details={"metrics": kept.metrics},
        metrics={f"memory/{name}": value for name, value in kept.metrics.items()},
    )
