"""The worker that samples a shard, with its part of the index."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.engine.context import Context
from flows.models.snippets import NOBODY, Snippets, of_nobody, of_rows
from flows.stages.sampling import Sampler
from storage.samples import read_index_part, write_index_part


class Shard(NamedTuple):
    """Samples to be made."""

    number: int
    first: int
    """Number of the first sample, which seeds its noise; the others follow."""
    ids: NDArray[np.int64]
    """[N] rows of the bank; NOBODY: the prior draws."""
    label: int | None
    """Of the class of which the prior draws; None: of none in particular."""

    @property
    def name(self) -> str:
        return f"samples-{self.number:06d}"


def shard_path(context: Context, shard: Shard) -> str:
    """Of the shard itself."""
    return context.artifact("generated").path(f"{shard.name}.tar")


def index_path(context: Context, shard: Shard) -> str:
    """Of its part of the index."""
    return context.artifact("generated").path("index", f"{shard.name}.parquet")


class Maker(Sampler):
    """Samples one shard after another."""

    MAKES = "generated"

    def make(self, shard: Shard) -> tuple[int, int]:
        """Leaves a shard and its part of the index, unless an earlier run did; how many samples it has, and the most network
        calls that one took."""
        path = index_path(self.context, shard)
        part = read_index_part(self.context.store, path)
        if part is not None:
            return len(part), max(part["calls"].to_pylist())
        snippets = self._snippets(shard)
        numbers = shard.first + np.arange(len(shard.ids))
        images, calls = self.generate(numbers, snippets)
        self.keep(shard_path(self.context, shard), numbers, snippets, images, calls)
        about = {
            "number": numbers,
            "shard": f"{shard.name}.tar",
            "seed": self.recipe.sample.seed,
            "calls": calls,
            "network": self.context.store.relative(self.checkpoint.uri),
            "bank": f"{self.context.store.relative(self.bank.artifact)}@{self.bank.version}",
        }
        write_index_part(self.context.store, path, about | self._known(snippets))
        return len(numbers), calls

    def _snippets(self, shard: Shard) -> Snippets:
        selection, seed = self.recipe.selection, self.recipe.sample.seed
        if selection.prior:
            return of_nobody(self.prior, len(shard.ids), seed, shard.label, shard.first)
        noise, neighbours = selection.noise, selection.neighbours
        return of_rows(self.bank, shard.ids, seed, noise, neighbours, first=shard.first)

    def _known(self, snippets: Snippets) -> dict[str, Any]:
        """What the index says of each snippet: its row, the one it is mixed with, and that row's key and class."""
        known: dict[str, Any] = {"snippet": _or_none(snippets.ids), "mixed_with": _or_none(snippets.partners)}
        if self.recipe.selection.prior:
            return known | {"key": None, "class": self.recipe.selection.of_class}
        rows = self.bank.rows(snippets.ids.tolist(), ["key", "class"])
        return known | {name: rows[name].to_pylist() for name in ("key", "class")}


def _or_none(ids: NDArray[np.int64]) -> list[int | None]:
    return [None if each == NOBODY else each for each in ids.tolist()]
