"""The bank: one snippet for each picture that the generator can draw on, as a LanceDB table anybody can query.

`<artifact>/bank.lance` is the table `bank` of the LanceDB database `<artifact>`. This module reads it, searches it and
grows it; `storage.tables.bank_rows` says what its rows are and fills it from shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from lancedb.index import BTree, HnswSq, IvfPq
from numpy.typing import NDArray

from storage.errors import StoreError
from storage.files.s3 import lance_options
from storage.tables.bank_rows import (
    ENCODER,
    FORMAT_VERSION,
    REVISION,
    TABLE,
    append_rows,
    canonical,
    content_revision,
    make_rows,
    note_revision,
    reserve_ids,
    schema,
    table_uri,
)
from storage.tables.fragments import require_format, to_matrix, translate_errors

if TYPE_CHECKING:
    from torch import Tensor

INDEX_FROM = 200_000  # rows; below, an exhaustive search takes some tens of milliseconds and forgets nothing
HNSW_UNTIL = 5_000_000  # rows; above, the graph no longer fits beside the rest, and product quantisation takes over
PROBES, REFINE = 32, 8
NEVER = timedelta(days=36_500)
"""Age of versions that indexing removes: LanceDB's week would take those that results name, and fails at tagged ones."""
IDS_A_FILTER = 5_000


@dataclass(frozen=True)
class BankInfo:
    """What the bank holds. `unindexed` rows are found all the same, by reading them one and all."""

    rows: int
    by_origin: dict[str, int]
    by_split: dict[str, int]
    by_label: dict[str, int]
    dim: int
    encoder: dict[str, Any]
    version: int
    content_revision: int
    tags: dict[str, int]
    index: str | None
    unindexed: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Bank:
    """A finished bank, at its newest version or a pinned one. Opened in each process that needs it."""

    def __init__(self, artifact: str, version: int | str | None = None) -> None:
        """Opens the bank of this artifact, at a version number or tag. ValueError when there is no finished one."""
        self.artifact = artifact
        try:
            with translate_errors("read", artifact):
                self.table = lancedb.connect(artifact, storage_options=lance_options(artifact)).open_table(TABLE)
                if version is not None:
                    self.table.checkout(version)
        except FileNotFoundError as error:
            what = f"version {version} of the bank" if version is not None else "bank"
            raise ValueError(f"{artifact} holds no {what}; run the bank stage first") from error
        require_format(self.table.schema, FORMAT_VERSION, table_uri(artifact))
        if REVISION.encode() not in self.table.schema.metadata:
            raise ValueError(f"the bank in {artifact} is unfinished; run the bank stage again")

    @classmethod
    def create(cls, artifact: str, dim: int, encoder: dict[str, Any]) -> Bank:
        """An empty bank to `append` to, for snippets that do not come from shards."""
        uri = table_uri(artifact)
        try:
            with translate_errors("written", uri):
                lance.write_dataset(schema(dim, encoder).empty_table(), uri, storage_options=lance_options(uri))
        except StoreError as error:
            if "already exists" not in str(error):
                raise
            raise ValueError(f"{artifact} holds a bank already; open it to append to it") from error
        note_revision(artifact)
        return cls(artifact)

    @property
    def dataset(self) -> LanceDataset:
        """The same table at the same version for Lance."""
        return self.table.to_lance()

    @property
    def version(self) -> int:
        return self.table.version

    @property
    def dim(self) -> int:
        return self.table.schema.field("snippet").type.list_size

    @property
    def encoder(self) -> dict[str, Any]:
        return json.loads(self.table.schema.metadata[ENCODER.encode()])

    @property
    def content_revision(self) -> int:
        return content_revision(self.dataset)

    def __len__(self) -> int:
        return self.table.count_rows()

    def require_encoder(self, encoder: dict[str, Any]) -> None:
        """ValueError unless the bank was made by exactly this encoder; equal dimensions are not enough."""
        if canonical(encoder) != canonical(self.encoder):
            raise ValueError(
                f"the bank in {self.artifact} was made by the encoder {_named(self.encoder)}, not by {_named(encoder)}; "
                "use that encoder or build another bank"
            )

    def info(self) -> BankInfo:
        """Counts, identity, versions, tags and the state of the index."""
        columns = self.dataset.to_table(columns=["origin", "split", "label"])
        index = self._index()
        files = (file for fragment in self.dataset.get_fragments() for file in fragment.metadata.files)
        return BankInfo(
            rows=len(columns),
            by_origin=_counts(columns["origin"]),
            by_split=_counts(columns["split"]),
            by_label=_counts(columns["label"]),
            dim=self.dim,
            encoder=self.encoder,
            version=self.version,
            content_revision=self.content_revision,
            tags={name: tag["version"] for name, tag in self.table.tags.list().items()},
            index=index.index_type if index else None,
            unindexed=index.num_unindexed_rows if index else len(columns),
            bytes=sum(file.file_size_bytes or 0 for file in files),
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def rows(self, ids: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """The rows of these ids in this order, all columns by default. ValueError names ids that are not there."""
        wanted = [int(i) for i in ids]
        names = list(dict.fromkeys(["id", *(columns or self.table.schema.names)]))
        parts = []
        for start in range(0, len(wanted), IDS_A_FILTER):
            listed = ",".join(map(str, sorted(set(wanted[start : start + IDS_A_FILTER]))))
            parts.append(self.dataset.to_table(columns=names, filter=f"id IN ({listed})"))
        found = pa.concat_tables(parts) if parts else self.table.schema.empty_table().select(names)
        place = {i: row for row, i in enumerate(found["id"].to_pylist())}
        if missing := [i for i in wanted if i not in place]:
            raise ValueError(
                f"the bank has no row {missing[0]}" + (f" and {len(missing) - 1} more asked for" if missing[1:] else "")
            )
        return found.take(pa.array([place[i] for i in wanted], pa.int64()))

    def snippets(self, ids: Sequence[int]) -> Tensor:
        """float16 [N,D] in the order of `ids`, as the encoder gave them (not unit length)."""
        import torch  # needed by those alone who compute with snippets, not to look into the bank

        return torch.from_numpy(self._matrix(ids).copy())

    def _matrix(self, ids: Sequence[int]) -> NDArray[np.float16]:
        return to_matrix(self.rows(ids, ["snippet"])["snippet"])

    def sample_ids(
        self, split: str | None, n: int, seed: int, mirrored: bool = False, origin: str | None = None
    ) -> NDArray[np.int64]:
        """`n` ids drawn at random from a split (None: all rows), without repeating one before all were drawn.

        The same bank content, split, n and seed give the same ids. Mirror images only where `mirrored` says so,
        and rows of one `origin` only where it is given.
        """
        conditions = [f"{name} = '{value}'" for name, value in (("split", split), ("origin", origin)) if value]
        if not mirrored:
            conditions.append("flipped IS NOT TRUE")
        found = self.dataset.to_table(columns=["id"], filter=" AND ".join(conditions) or None)
        ids = np.sort(found["id"].to_numpy())
        if not len(ids):
            raise ValueError(f"the bank in {self.artifact} has no rows of split {split!r}; choose another split")
        draw = np.random.default_rng(seed)
        return np.concatenate([draw.permutation(ids) for _ in range(-(-n // len(ids)))])[:n]

    def search(
        self, query: NDArray[np.floating] | Tensor | int, k: int = 10, where: str | None = None, exact: bool = False
    ) -> pa.Table:
        """The `k` rows nearest by cosine to a snippet [D], or to that of the row with this id, itself included.

        All columns but the snippet, and `_distance` = 1 - cosine, ascending. `where` is an SQL condition on columns,
        applied before the search; `exact` goes past the index. ValueError for a wrong dimension or condition.
        """
        vector = self._matrix([query])[0] if isinstance(query, int | np.integer) else query
        vector = np.asarray(vector, np.float32).reshape(-1)
        if len(vector) != self.dim:
            raise ValueError(f"the query has {len(vector)} numbers, the bank's snippets have {self.dim}; same encoder?")
        names = [name for name in self.table.schema.names if name != "snippet"]
        found: Any = self.table.search(vector, vector_column_name="snippet")
        found = found.distance_type("cosine").limit(k).select([*names, "_distance"])
        if where:
            found = found.where(where, prefilter=True)
        if exact or self._index() is None:
            found = found.bypass_vector_index()
        else:
            found = found.nprobes(PROBES).refine_factor(REFINE)
        try:
            return found.to_arrow()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the condition {where!r} cannot be applied: {str(error).splitlines()[0]}") from error

    # --- growing and keeping -----------------------------------------------------------------------------------------

    def append(
        self, snippets: NDArray[np.floating], origin: str, encoder: dict[str, Any], **columns: Any
    ) -> NDArray[np.int64]:
        """Adds snippets [N,D] with new ids, which it returns; `columns` as in `bank_rows.make_rows`.

        ValueError for another encoder's snippets. Several processes may append to one bank at the same time.
        """
        self.require_encoder(encoder)
        if np.shape(snippets)[1] != self.dim:
            raise ValueError(f"snippets of {np.shape(snippets)[1]} numbers do not fit a bank of {self.dim}")
        rows = make_rows(np.zeros(len(snippets), np.int64), snippets, origin, **columns)
        ids = reserve_ids(self.artifact, len(rows))
        append_rows(self.artifact, rows.set_column(0, rows.schema.field("id"), pa.array(ids)))
        self.refresh()
        return ids

    def refresh(self) -> None:
        """Moves to the newest version."""
        self.table.checkout_latest()
        self.__dict__.pop("_vector_index", None)

    def tag(self, name: str) -> int:
        """Keeps the present version from ever being cleaned up; returns it. ValueError when the name is another's."""
        known = self.table.tags.list()
        if name not in known:
            self.table.tags.create(name, self.version)
        elif known[name]["version"] != self.version:
            raise ValueError(f"tag {name!r} names version {known[name]['version']} already; choose another name")
        return self.version

    def build_index(self, kind: str = "auto") -> str | None:
        """Indexes snippets and ids, or adds new rows to the index; returns its kind, None where none is worth it.

        kind: "auto" (none for a small bank), "IVF_HNSW_SQ" (fast, large) or "IVF_PQ" (small, coarser).
        """
        if kind == "auto":
            rows = len(self)
            kind = "none" if rows < INDEX_FROM else "IVF_HNSW_SQ" if rows <= HNSW_UNTIL else "IVF_PQ"
        if kind == "none":
            return None
        note_revision(self.artifact)
        self.refresh()
        index = self._index()
        if index is None or index.index_type.upper().replace("_", "") != kind.replace("_", ""):
            config = HnswSq(distance_type="cosine") if kind == "IVF_HNSW_SQ" else IvfPq(distance_type="cosine")
            self.table.create_index("snippet", config=config)
            self.table.create_index("id", config=BTree())
        else:
            self.table.optimize(cleanup_older_than=NEVER)
        self.refresh()
        return kind

    def recall(self, k: int = 10, queries: int = 100, seed: int = 0) -> float:
        """The share of the true `k` nearest rows that a search through the index finds, over random rows."""
        shares = []
        for query in self.sample_ids(None, min(queries, len(self)), seed, mirrored=True):
            true = self.search(int(query), k, exact=True)["id"].to_pylist()
            found = self.search(int(query), k)["id"].to_pylist()
            shares.append(len(set(true) & set(found)) / len(true))
        return float(np.mean(shares))

    def _index(self) -> Any:
        return self._vector_index[0]

    @cached_property
    def _vector_index(self) -> list[Any]:
        return [*(index for index in self.table.list_indices() if index.columns == ["snippet"]), None]


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
    return {str(name): pairs[name] for name in sorted(pairs, key=lambda name: (name is None, name))}


def _named(encoder: dict[str, Any]) -> str:
    return f"{encoder.get('name', '?')} ({str(encoder.get('sha256', '?'))[:12]})"
