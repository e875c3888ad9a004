"""What a bank is asked: rows, snippets, samples, neighbours, words, history. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lancedb
import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from numpy.typing import NDArray

from storage.errors import Refused
from storage.files.s3 import lance_options
from storage.tables import bank_draws, bank_history, bank_index, bank_info, bank_mixing, bank_search
from storage.tables.bank_basis import basis_of
from storage.tables.bank_commits import REVISION, content_revision, require_checked
from storage.tables.bank_history import Change, Difference
from storage.tables.bank_info import BankInfo
from storage.tables.bank_nearest import near_to
from storage.tables.bank_purge import absent
from storage.tables.bank_rows import (
    ENCODER,
    FORMAT_VERSION,
    LATER_COLUMNS,
    REDUCED_VERSION,
    TABLE,
    canonical,
    table_uri,
    with_later_columns,
)
from storage.tables.bank_where import condition, said_of
from storage.tables.fragments import require_format, to_matrix, translate_errors
from storage.tables.memory import Memory
from storage.tables.metadata import schema_entry

if TYPE_CHECKING:
    from torch import Tensor

IDS_A_FILTER = 5_000


class BankReader:
    """A finished bank, at its newest version or a pinned one. Opened in each process that needs it."""

    kept_by: Callable[[BankReader], Memory] | None = None
    """How the memory of a recipe is opened for a version of it."""

    def __init__(self, artifact: str, version: int | str | datetime | None = None) -> None:
        """Opens the bank of this artifact.

        Args:
            artifact: its URI.
            version: a number, a tag or a time, whose newest version is meant; none: the newest.

        Raises:
            Refused: there is no finished one, or none of this version.
            Refused: another client has left rows in it that cannot be used.
        """
        self.artifact = artifact
        self._dataset: LanceDataset | None = None
        try:
            with translate_errors("read", artifact):
                self.table = lancedb.connect(artifact, storage_options=lance_options(artifact)).open_table(TABLE)
                if isinstance(version, datetime):
                    version = bank_history.version_at(self.dataset, version)
                if version is not None:
                    self.table.checkout(version)
        except FileNotFoundError as error:
            assert not isinstance(version, datetime), "a time is a version's number by now"
            raise Refused(absent(artifact, version)) from error
        self.basis = basis_of(self.table.schema)
        known = REDUCED_VERSION if self.basis else FORMAT_VERSION
        require_format(self.table.schema, known, table_uri(artifact))
        if REVISION.encode() not in self.table.schema.metadata:
            raise Refused(bank_history.unfinished(self.dataset, artifact))
        require_checked(self.dataset)

    @property
    def dataset(self) -> LanceDataset:
        """The same table at the same version for Lance, with whatever of files and indices is in memory already."""
        version = self.table.version
        if self._dataset is None:
            self._dataset = self.table.to_lance()
        elif self._dataset.version != version:
            self._dataset = self._dataset.checkout_version(version)
        return self._dataset

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    @property
    def version(self) -> int:
        return self.table.version

    @cached_property
    def names(self) -> list[str]:
        """Of the columns that are stored. Kept: each look at `schema` waits for the thread that knows the table's version."""
        return self.schema.names

    @cached_property
    def dim(self) -> int:
        """Numbers in a snippet, as the encoder gives them."""
        return self.basis.dim if self.basis else self.schema.field("snippet").type.list_size

    @property
    def columns(self) -> list[str]:
        """Names of all columns, those included that an earlier release did not write."""
        return [*self.names, *(field.name for field in LATER_COLUMNS if field.name not in self.names)]

    @property
    def encoder(self) -> dict[str, Any]:
        return schema_entry(self.schema, ENCODER, dict[str, Any], self.artifact)

    @property
    def content_revision(self) -> int:
        return content_revision(self.dataset)

    @cached_property
    def memory(self) -> Memory | None:
        """What a recipe keeps of this version to condition with and to draw from; None: all."""
        return self.kept_by(self) if self.kept_by else None

    def __len__(self) -> int:
        return self.table.count_rows()

    def require_encoder(self, encoder: dict[str, Any]) -> None:
        """Refused unless the bank was made by exactly this encoder; equal dimensions are not enough."""
        if canonical(encoder) != canonical(self.encoder):
            raise Refused(
                f"the bank in {self.artifact} was made by the encoder {_named(self.encoder)}, not by {_named(encoder)}; "
                "use that encoder or build another bank"
            )

    def info(self) -> BankInfo:
        """Counts, identity, versions, tags and the state of the index."""
        return bank_info.info(self)

    # --- reading -----------------------------------------------------------------------------------------------------

    def rows(self, ids: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """The rows of these ids in this order, all columns by default. Refused names ids that are not there."""
        wanted = [int(i) for i in ids]
        names = list(dict.fromkeys(["id", *(columns or self.columns)]))
        parts = []
        for start in range(0, len(wanted), IDS_A_FILTER):
            listed = ",".join(map(str, sorted(set(wanted[start : start + IDS_A_FILTER]))))
            parts.append(self.read(names, f"id IN ({listed})"))
        found = pa.concat_tables(parts) if parts else self.read(names, "false")
        place = {i: row for row, i in enumerate(found["id"].to_pylist())}
        if missing := [i for i in wanted if i not in place]:
            more = f" and {len(missing) - 1} more asked for" if missing[1:] else ""
            raise Refused(f"the bank has no row {missing[0]}{more}")
        return found.take(pa.array([place[i] for i in wanted], pa.int64()))

    def snippets(self, ids: Sequence[int]) -> Tensor:
        """float16 [N,D] in the order of `ids`, as the encoder gave them (not unit length)."""
        import torch  # needed by those alone who compute with snippets, not to look into the bank

        return torch.from_numpy(self.matrix(ids).copy())

    def conditions(self, ids: Sequence[int]) -> Tensor:
        """Float16 [N,D] that the network is given for rows, in the order of `ids`: their snippets, or with a memory those
        that stand for them, as far as they are kept."""
        if self.memory is None:
            return self.snippets(ids)
        import torch

        standing = self.memory.standing(np.asarray(ids, np.int64))
        return torch.from_numpy(self.memory.seen(self.matrix(standing.tolist())))

    def matching(self, where: str | None = None) -> NDArray[np.int64]:
        """Sorted ids of the rows that an SQL condition on columns holds for; none: of all."""
        return self.scan(["id"], where)["id"].to_numpy()

    def scan(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """These columns of the rows that an SQL condition on columns holds for (none: of all), in the order of ids; in one
        pass, for those who want many."""
        return self.where(list(dict.fromkeys(["id", *columns])), where).sort_by("id")

    def batches(self, columns: list[str], where: str | None = None) -> Iterator[pa.Table]:
        """As `scan`, some rows at a time in the order in which they are stored, for those who want more than memory holds
        twice."""
        names = list(dict.fromkeys(["id", *columns]))
        stored = self.stored(names)
        with said_of(where, self.columns):
            wanted = condition(where, self.names)
            for batch in self.dataset.scanner(columns=stored, filter=wanted).to_batches():
                yield with_later_columns(pa.Table.from_batches([batch]), names).select(names)

    def sample(
        self, n: int, seed: int, where: str | None = None, balanced_by: str | None = None, mirrored: bool = False
    ) -> NDArray[np.int64]:
        """Ids [n] drawn at random, without repeating one before all were drawn; with a memory, of rows that it keeps.

        The same rows to choose from, n and seed give the same ids.

        Args:
            n: how many.
            seed: decides which.
            where: SQL condition on columns that they fulfil.
            balanced_by: a column of whose values each comes equally often, such as class; rows where it is null are
                left out.
            mirrored: whether mirror images are drawn as well.

        Raises:
            Refused: there is no such row, or no such column.
        """
        return bank_draws.sample(self, n, seed, where, balanced_by, mirrored)

    def search(
        self,
        query: NDArray[np.floating] | Tensor | int | str | None,
        k: int = 10,
        where: str | None = None,
        exact: bool = False,
        effort: tuple[int, int] | None = None,
        columns: Sequence[str] = bank_search.FOUND,
    ) -> pa.Table:
        """Up to `k` rows.

        Args:
            query: a snippet [D] or the id of a row, itself included: the nearest by cosine, with `_distance` =
                1 - cosine, ascending; words: those whose key, class or caption has one, with `_score`, descending;
                none: any.
            k: how many at most.
            where: SQL condition on columns, applied before the search.
            exact: past the index over snippets.
            effort: partitions of the index looked into, or rows of its graph kept in view (`ef`), and how many times
                `k` rows are compared exactly; none: as was measured to be enough when the index was made.
            columns: what is told of each row.

        Raises:
            Refused: a snippet of another dimension, zero or not finite, no words, a wrong condition, or no such column.
        """
        if isinstance(query, str):
            return bank_search.with_words(self, query, k, where, columns)
        if query is None:
            return self.where([*columns], where, k)
        vector = self.matrix([int(query)])[0] if isinstance(query, int | np.integer) else query
        vector = np.asarray(vector, np.float32).reshape(-1)
        if len(vector) != self.dim:
            raise Refused(f"the query has {len(vector)} numbers, the bank's snippets have {self.dim}; same encoder?")
        if not np.isfinite(vector).all() or not vector.any():
            raise Refused("the query is zero or not finite and so has no direction; check the encoder")
        return bank_search.near(self, vector, k, where, exact, effort, columns)

    def near(self, snippet: NDArray[np.floating], similarity: float) -> NDArray[np.int64]:
        """Sorted ids of all rows whose cosine with a snippet [D] is at least `similarity`; every row is read."""
        return near_to(self, snippet, similarity)

    def mixture(
        self, ids: Sequence[int], method: str = "spherical", weights: Sequence[float] | None = None, seed: int = 0
    ) -> NDArray[np.float32]:
        """A snippet [D] mixed of what the network is given for rows (`conditions`), to generate from; arguments as in
        `bank_mixing.mix`. It is not added: that is what `Bank.mix` does, of the rows as the bank has them."""
        return bank_mixing.mix(self.conditions(ids).float().numpy(), method, weights, seed)

    def labels(self) -> dict[str, int]:
        """The label of each class that has one."""
        named = self.where(["class", "label"], "class IS NOT NULL AND label IS NOT NULL")
        pairs = named.group_by(["class", "label"]).aggregate([]).to_pylist()
        return {pair["class"]: pair["label"] for pair in pairs}

    def history(self) -> list[Change]:
        """The changes of its rows that are on record, up to the version at hand, the first one first."""
        return bank_history.changes(self.dataset)

    def diff(self, a: int | str | datetime, b: int | str | datetime | None = None) -> Difference:
        """Which rows came, went or changed from version, tag or time `a` to `b`; none: to the one at hand."""
        later = self if b is None else BankReader(self.artifact, b)
        return bank_history.difference(BankReader(self.artifact, a).dataset, later.dataset)

    # --- how ---------------------------------------------------------------------------------------------------------

    def stored(self, names: Sequence[str]) -> list[str]:
        """Those of the columns that this table has; the others are of a later release. Refused names one of no release."""
        if unknown := [name for name in names if name not in self.columns]:
            raise Refused(f"the bank has no column {unknown[0][:80]!r}; its columns are {', '.join(self.columns)}")
        return [name for name in names if name in self.names]

    def read(self, names: list[str], where: str | None = None, limit: int | None = None) -> pa.Table:
        """Columns of the rows that Lance's condition holds for."""
        rows = self.dataset.to_table(columns=self.stored(names) or ["id"], filter=where, limit=limit)
        return with_later_columns(rows, names).select(names)

    def where(self, names: list[str], where: str | None, limit: int | None = None) -> pa.Table:
        """As `read`, with a person's condition."""
        with said_of(where, self.columns):
            return self.read(names, condition(where, self.names), limit)

    def matrix(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """As `snippets`, for numpy."""
        return self.full(self.rows(ids, ["snippet"])["snippet"])

    def full(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.float16]:
        """Snippets [N,D] of the column `snippet`, which of a rank-reduced bank holds their coefficients."""
        stored = to_matrix(column)
        return self.basis.full(stored).astype(np.float16) if self.basis else stored

    @cached_property
    def known_of_search(self) -> bank_index.Search | None:
        """What a search through the index takes."""
        return bank_index.search_of(self)

    @cached_property
    def index(self) -> Any:
        """LanceDB's description of the index over snippets; None where there is none."""
        return bank_index.of_snippets(self)

    @cached_property
    def left(self) -> dict[tuple[int, str], bank_search.Few | bank_search.Marked]:
        """By version and condition the rows that fulfil it where they are few, else which they are."""
        return {}


def _named(encoder: dict[str, Any]) -> str:
    return f"{encoder.get('name', '?')} ({str(encoder.get('sha256', '?'))[:12]})"
