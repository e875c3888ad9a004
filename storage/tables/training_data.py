"""What training reads: latents, snippets and patch tokens joined by id.

A step's batch is a pure function of the seed and the step: `BatchOrder` says which pictures, `TrainingTable` fetches
them, from memory when everything fits, else from disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lance.dataset import LanceDataset
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import Refused
from storage.tables.bank_rows import ENCODER, table_uri
from storage.tables.cache import on_disk
from storage.tables.fragments import open_table, to_matrix
from storage.tables.held import give_back, held
from storage.tables.latents import Latents
from storage.tables.memory import Memory
from storage.tables.metadata import schema_entry
from storage.tables.order import BatchOrder
from storage.tables.patches import Patches

MEMORY_LIMIT = 8 << 30  # bytes
READ_ROWS = 4096
READ_BYTES = 128 << 20


class TrainingTable:
    """The rows of one split that latents, bank and (where given) patch tokens have in common, at fixed versions.

    `batch` gives raw latents; standardise them with `mean` and `std` [C] where they are used, on the device.
    """

    def __init__(
        self,
        latents: str,
        bank: str,
        patches: str | None = None,
        split: str = "train",
        *,
        versions: dict[str, int] | None = None,
        memory: Memory | None = None,
        memory_limit: int = MEMORY_LIMIT,
        cache: str | None = None,
    ) -> None:
        """Opens artifacts by URI; `versions` pins "latents", "bank", "patches". With a `memory` snippets are those that it
        keeps, each once.

        Tables are loaded as long as they fit into `memory_limit` bytes together, those of the shortest rows first; the
        others are read as they are asked for.
        With a folder `cache` on this node's disk what is loaded is shared by its processes, and tables in an object store
        that are not are read by way of a copy there.
        Refused when the split is empty or a training row lacks its latent or tokens.
        """
        pin = versions or {}
        self.latents = Latents.open(latents, pin.get("latents"))
        self.patches = Patches.open(patches, pin.get("patches")) if patches else None
        self._bank = open_table(table_uri(bank), pin.get("bank"))
        self.versions = {"latents": self.latents.version, "bank": self._bank.version}
        if self.patches:
            self.versions["patches"] = self.patches.version

        chosen = self._bank.to_table(columns=["id"], filter=f"split = '{split}' AND origin = 'dataset'")["id"]
        self.ids = np.sort(chosen.to_numpy())
        if not len(self.ids) and split == "train":
            raise Refused(f"the bank in {bank} has no training rows; ingest more pictures or hold out fewer")
        self.pictures = _compact(np.unique(self.ids >> 1))
        self.drawn_from = self.ids[memory.keeps(self.ids)] if memory else self.ids
        """Ids of the rows whose own snippets condition: those that samples are drawn from."""
        self._sources = self._open_sources(memory)
        room = memory_limit
        for source in sorted(self._sources, key=lambda source: source.bytes):
            if source.bytes <= room:
                room -= source.bytes
                source.load(cache)
            elif cache:
                source.copy_to(cache)

    def _open_sources(self, memory: Memory | None) -> list[_Source]:
        latents, dim = self.latents, self.snippet_dim
        sources = [_Source(latents.dataset, {"latent": latents.shape, "label": ()}, self.ids)]
        if memory:
            sources.append(_Kept(self._bank, dim, self.ids, memory))
        else:
            sources.append(_Source(self._bank, {"snippet": (dim,)}, self.ids))
        if self.patches:
            sources.append(_Source(self.patches.dataset, {"tokens": self.patches.shape}, self.ids))
        return sources

    @property
    def bytes(self) -> int:
        """What the rows take in memory."""
        return sum(source.bytes for source in self._sources)

    @property
    def in_memory(self) -> bool:
        """Whether no row is read from a table any more."""
        return all(source.memory is not None for source in self._sources)

    @property
    def mean(self) -> Tensor:
        """[C] float32, of the raw latents of the whole table."""
        return torch.tensor(self.latents.mean, dtype=torch.float32)

    @property
    def std(self) -> Tensor:
        """[C] float32."""
        return torch.tensor(self.latents.std, dtype=torch.float32)

    @property
    def encoder(self) -> dict[str, Any]:
        """Identity of the encoder that made the snippets."""
        return schema_entry(self._bank.schema, ENCODER, dict[str, Any], self._bank.uri)

    @property
    def snippet_dim(self) -> int:
        return self._bank.schema.field("snippet").type.list_size

    @property
    def token_dim(self) -> int:
        """Width of a full patch token, as `patches.full` gives it; 0 without patches."""
        return self.patches.components.shape[1] if self.patches else 0

    @cached_property
    def classes(self) -> int:
        """One more than the largest label of the whole table; 0 where nothing is labelled."""
        largest = pc.max(self.latents.dataset.to_table(columns=["label"])["label"]).as_py()
        return 0 if largest is None else largest + 1

    def batch(self, ids: Tensor | NDArray[np.int64] | Sequence[int]) -> dict[str, Tensor]:
        """Rows in the order of `ids`: `latent` float16 [B,C,H,W] raw, `snippet` float16 [B,D], `label` int64 [B]
        (-1: none), and with patches `tokens` float16 [B,T,K], projected. ValueError for ids outside the split.
        """
        wanted = np.asarray(ids, np.int64)
        place = np.searchsorted(self.ids, wanted)
        if (place >= len(self.ids)).any() or (self.ids[place] != wanted).any():
            raise ValueError("ids outside this table's split were asked for; its ids are those of `ids`")
        return {name: values for source in self._sources for name, values in source.take(place).items()}


class _Source:
    """Columns of one table for the rows of sorted `ids`; row i of what it gives belongs to `ids[i]`."""

    def __init__(self, dataset: LanceDataset, columns: dict[str, tuple[int, ...]], ids: NDArray[np.int64]) -> None:
        """`columns` names them with the shape of a row: () for the label, else that of a list of float16."""
        self.dataset, self.ids = dataset, ids
        self.shapes = {name: shape for name, shape in columns.items() if shape}
        self.row_bytes = sum(2 * int(np.prod(shape)) if shape else 8 for shape in columns.values())
        self.bytes = len(ids) * self.row_bytes
        self.memory: dict[str, Tensor] | None = None

        # Ids and labels are read once: a label by the row would cost as much as the latent beside it.
        single = [name for name, shape in columns.items() if not shape]
        known = dataset.to_table(columns=["id", *single])
        there = known["id"].to_numpy()
        order = np.argsort(there, kind="stable")
        found = np.searchsorted(there, ids, sorter=order)
        self.offsets = _compact(order[np.minimum(found, len(there) - 1)])
        missing = ids[there[self.offsets] != ids]
        if len(missing):
            raise Refused(
                f"{dataset.uri} lacks {len(missing)} rows of the bank, first id {missing[0]}; rerun its stage"
            )
        self._single = {name: _labels(known[name], self.offsets) for name in single}

    def load(self, cache: str | None = None) -> None:
        """Keeps all rows, [N, *shape] for each column; with a folder, once for all processes of the node."""
        shapes = {name: (len(self.ids), *shape) for name, shape in self.shapes.items()}
        self.memory = held(shapes, self._fill, self._identity() if cache else "", cache)
        self.offsets = np.empty(0, np.uint32)  # where nothing is read any more they would only take room
        give_back()

    def copy_to(self, cache: str) -> None:
        """Rows are read from a copy in this folder, where the table is in an object store."""
        self.dataset = on_disk(self.dataset, ["id", *self.shapes], self.row_bytes + 8, cache)

    def _fill(self, rows: dict[str, Tensor]) -> None:
        """Reads the table front to back."""
        order = np.argsort(self.offsets)
        for start in range(0, len(order), READ_ROWS):
            place = order[start : start + READ_ROWS]
            for name, values in self._read(place).items():
                rows[name][torch.from_numpy(place)] = values

    def _identity(self) -> str:
        """Of what is held: the table's files, whose names no other table's have, which rows, and in what form."""
        files = [fragment.metadata.to_json() for fragment in self.dataset.get_fragments()]
        return json.dumps([files, self.shapes, hashlib.sha256(self.ids.tobytes()).hexdigest()], sort_keys=True)

    def take(self, place: NDArray[np.int64]) -> dict[str, Tensor]:
        """Rows at these places."""
        rows = torch.from_numpy(place)
        there = {name: values.index_select(0, rows).long() for name, values in self._single.items()}
        there |= {name: values.index_select(0, rows) for name, values in (self.memory or {}).items()}
        return there if self.memory is not None else there | self._read(place)

    def _read(self, place: NDArray[np.int64]) -> dict[str, Tensor]:
        """From the table. Lance reads sorted offsets more than twice as fast, so sort and put back in order."""
        unique, back = np.unique(self.offsets[place], return_inverse=True)
        rows = self.dataset.take(unique.tolist(), columns=list(self.shapes))
        in_order = torch.from_numpy(back)
        return {name: self._tensor(rows[name], name).index_select(0, in_order) for name in self.shapes}

    def _tensor(self, column: pa.ChunkedArray, name: str) -> Tensor:
        """What is kept of a column, [B, *shape]."""
        values = to_matrix(column)
        return torch.from_numpy(values if values.flags.writeable else values.copy()).reshape(-1, *self.shapes[name])


class _Kept(_Source):
    """Snippets as a recipe's memory keeps them: those that stand for the rows of `ids`, each once, as few numbers each."""

    def __init__(self, bank: LanceDataset, dim: int, ids: NDArray[np.int64], memory: Memory) -> None:
        standing, self._place = np.unique(memory.standing(ids), return_inverse=True)
        super().__init__(bank, {"snippet": (dim,)}, standing)
        self._kept = memory
        if memory.basis:
            width = memory.basis.rank + 1
            self.shapes = {"snippet": (width,)}
            self.bytes = 2 * width * len(standing)

    def take(self, place: NDArray[np.int64]) -> dict[str, Tensor]:
        stored = super().take(self._place[place])["snippet"]
        return {"snippet": torch.from_numpy(self._kept.full(stored.numpy()))}

    def _identity(self) -> str:
        basis = self._kept.basis
        return super()._identity() + (hashlib.sha256(basis.matrix.tobytes()).hexdigest() if basis else "")

    def _tensor(self, column: pa.ChunkedArray, name: str) -> Tensor:
        return torch.from_numpy(self._kept.stored(to_matrix(column)))


def _labels(column: pa.ChunkedArray, rows: NDArray[np.integer]) -> Tensor:
    """int32 [N], of these rows of a table; -1: none."""
    return torch.from_numpy(column.fill_null(-1).to_numpy().astype(np.int32)[rows])


def _compact(numbers: NDArray[np.int64]) -> NDArray[np.integer]:
    """What every worker holds of all rows, in half the memory where there are fewer than four billion."""
    return numbers.astype(np.uint32) if numbers.max(initial=0) < 1 << 32 else numbers


class StepReader:
    """The rows of a part of each step's batch. Those of several steps are read from the tables at once.

    A read touches nearly every fragment of a table, whether of a hundred rows or of thousands: 26,000 rows/s in batches
    of 256 from 196 fragments, 100,000/s in reads of 4,096.
    """

    def __init__(self, data: TrainingTable, order: BatchOrder, part: slice) -> None:
        """`part`: which rows of each step's batch are read."""
        self.data, self.order, self.part = data, order, part
        together = min(READ_ROWS, READ_BYTES // max(1, data.bytes // len(data.ids)))
        self.steps = 1 if data.in_memory else max(1, together // len(range(order.global_batch)[part]))
        self._first, self._read = -1, list[dict[str, Tensor]]()

    def batch(self, step: int) -> dict[str, Tensor]:
        """As `TrainingTable.batch`, of this step's ids."""
        if not self._first <= step < self._first + len(self._read):
            ids = [self.order.ids(each)[self.part] for each in range(step, step + self.steps)]
            rows = self.data.batch(torch.cat(ids))
            sizes = [len(each) for each in ids]
            columns = {name: values.split(sizes) for name, values in rows.items()}
            self._read = [{name: values[place] for name, values in columns.items()} for place in range(self.steps)]
            self._first = step
        return self._read[step - self._first]
