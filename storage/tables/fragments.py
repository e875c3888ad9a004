"""How a Lance table is filled by many and committed by one.

Workers write fragments, which nobody sees, and describe them in JSON. One process, which holds the artifact's lease,
commits them a group at a time. Which shards a commit brought, and what is to be remembered of each, travels in the
commit's own transaction: a kill leaves a shard either wholly in the table and known, or not at all.

The lease is enforced by Lance itself, which refuses a commit that was prepared before another one it cannot go with. A
writer begins with two that change nothing: its lease number into the metadata, after which Lance refuses an update or a
restore that was prepared before, and the newest fragments merged with no others, after which it refuses an append. So a
holder thought dead cannot commit any more, and what others commit meanwhile is refused or kept, never dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.dataset import LanceDataset, LanceOperation, Transaction
from lance.fragment import FragmentMetadata
from numpy.typing import NDArray
from typing_extensions import TypedDict

from storage.errors import Damaged, LeaseLost, Refused, StoreError, StoreRefused, StoreUnreachable
from storage.files.s3 import lance_options
from storage.tables.metadata import commit_entry, schema_entry

_DAMAGED = re.compile("too small|magic|sufficient data|decode Protobuf|size 0 bytes", re.IGNORECASE)
"""How Lance speaks of a version's file that is cut, empty or garbage."""

_PASSING = re.compile(r"HTTP error|after \d+ retries|status code: (5\d\d|408|429)|os error (5|16|11\d|10\d|121)\b")
"""How it speaks of a server or a disk that is away; the numbers are the system's for such, not for rights or room."""

PANIC = "PanicException"
"""What Lance ends with where a file holds what its code has ruled out: no `Exception`, so that it would pass by whoever
looks for one."""

LEASE, SHARDS = "gmem.lease", "gmem.shards"
RETRIES = 50


def open_table(uri: str, version: int | str | None = None) -> LanceDataset:
    """The table at a version or tag, the newest by default. FileNotFoundError where there is none, else StoreError."""
    with translate_errors("read", uri):
        return lance.dataset(uri, version=version, storage_options=lance_options(uri))


def require_format(schema: pa.Schema, known: str, uri: str) -> None:
    """StoreError unless the table was written in the format this version of the project reads."""
    there = (schema.metadata or {}).get(b"format_version", b"none").decode()
    if there == known:
        return
    if there.isdecimal() and int(there) > int(known):
        raise StoreRefused(
            f"{uri} has format version {there}, and this version of the project reads up to {known}: update it."
        )
    raise StoreRefused(
        f"{uri} is of format version {there}, which is read no more (now {known}): remove its artifact and run again."
    )


@contextmanager
def translate_errors(doing: str, uri: str) -> Iterator[None]:
    """Turns Lance's many lines into one sentence; that a table is absent is a FileNotFoundError."""
    try:
        yield
    except (StoreError, CommitConflictError):
        raise
    except BaseException as error:
        panicked = type(error).__name__ == PANIC
        if not panicked and not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        reason = str(error).split(", /")[0].splitlines()[0][:300]
        if "not found" in reason.lower() or "no longer exists" in reason:
            raise FileNotFoundError(f"{uri}: {reason}") from error
        if panicked or _DAMAGED.search(reason):
            remedy = (
                "its newest version is damaged; remove the newest .manifest in its _versions to go back one version"
            )
            raise Damaged(f"{uri} cannot be {doing} ({reason}): {remedy}.") from error
        remedy = "check the store's address, its free space and your permissions"
        kind = StoreUnreachable if _PASSING.search(str(error)) else StoreRefused
        raise kind(f"{uri} cannot be {doing} ({reason}): {remedy}.") from error


def busy(uri: str) -> StoreError:
    return StoreRefused(f"{uri} changes faster than it can be written; try again when others have finished.")


def write_fragments(uri: str, shard: str, rows: pa.Table, memory: dict[str, Any] | None = None) -> dict[str, Any]:
    """In a worker: writes a shard's rows beside the table at `uri`, which must exist; returns what to commit.

    `memory` (JSON) is kept with the commit and comes back from `FragmentWriter.done`.
    """
    with translate_errors("written", uri):
        written = lance.fragment.write_fragments(
            rows.replace_schema_metadata(None), uri, storage_options=lance_options(uri)
        )
    fragments = [fragment.to_json() for fragment in written]
    return {"shard": shard, "rows": rows.num_rows, "memory": memory or {}, "fragments": fragments}


def from_description(description: dict[str, Any]) -> list[FragmentMetadata]:
    return [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in description["fragments"]]


class Shard(TypedDict):
    """What a commit remembers of a shard that it brought."""

    rows: int
    memory: dict[str, Any]


class FragmentWriter:
    """The one committer of a table. `done` holds each committed shard by its name."""

    FROM_SHARDS: str | None = None
    """Condition for the rows that shards brought, in a table that may hold others."""

    def __init__(self, uri: str, schema: pa.Schema, lease: int = 0) -> None:
        """Creates the table, or opens it and fences off earlier writers.

        Refused when the table there has another schema or metadata; LeaseLost when a later lease has been at it.
        """
        self.uri = uri
        self.lease = lease
        created = self._create(schema)
        self._dataset = self._take_over(schema) if created is None else created
        self.done = self._recall()

    def _create(self, schema: pa.Schema) -> LanceDataset | None:
        try:
            with translate_errors("written", self.uri):
                return lance.write_dataset(
                    schema.empty_table(),
                    self.uri,
                    storage_options=lance_options(self.uri),
                    transaction_properties={LEASE: str(self.lease)},
                )
        except StoreError as error:
            if "already exists" not in str(error):
                raise
            return None

    def _take_over(self, schema: pa.Schema) -> LanceDataset:
        for _ in range(RETRIES):
            with suppress(CommitConflictError):
                return self._try_to_take_over(schema)
        raise busy(self.uri)

    def _try_to_take_over(self, schema: pa.Schema) -> LanceDataset:
        dataset = open_table(self.uri)
        _require_same(schema, dataset.schema, self.uri)
        noted = schema_entry(dataset.schema, LEASE, int, self.uri, 0)
        last = max((commit_entry(commit, LEASE, int, self.uri, 0) for _, commit in history(dataset)), default=0)
        if max(noted, last) > self.lease:
            raise LeaseLost(f"{self.uri} is being written by another run (lease {max(noted, last)}, ours {self.lease})")
        return self._fence(dataset)

    def _fence(self, dataset: LanceDataset) -> LanceDataset:
        """Fences off whoever looked at the table before; CommitConflictError when somebody committed meanwhile."""
        update = LanceOperation.UpdateMap(updates={LEASE: str(self.lease)}, replace=False)
        dataset = self._committed(LanceOperation.UpdateConfig(schema_metadata_updates=update), dataset, {})
        same = [fragment.metadata for fragment in dataset.get_fragments()]
        return self._committed(LanceOperation.Merge(same, dataset.lance_schema), dataset, {})

    def _recall(self) -> dict[str, Shard]:
        done: dict[str, Shard] = {}
        for _, transaction in effective_history(self._dataset):
            done |= commit_entry(transaction, SHARDS, dict[str, Shard], self.uri, {})
        known, rows = sum(shard["rows"] for shard in done.values()), self._dataset.count_rows(self.FROM_SHARDS)
        if known != rows:
            raise Refused(f"{self.uri} has {rows} rows, of which {known} are accounted for; delete it and rerun")
        return done

    def commit(self, descriptions: Iterable[dict[str, Any]]) -> int:
        """Adds a group of shards in one version; shards that are in already are left out. Returns the rows added."""
        new = {d["shard"]: d for d in descriptions if d["shard"] not in self.done}
        if not new:
            return 0
        fragments = [fragment for d in new.values() for fragment in from_description(d)]
        remembered = {shard: Shard(rows=d["rows"], memory=d["memory"]) for shard, d in new.items()}
        self._dataset = self._commit(LanceOperation.Append(fragments), self._dataset, {SHARDS: json.dumps(remembered)})
        self.done |= remembered
        return sum(shard["rows"] for shard in remembered.values())

    def _commit(
        self, operation: LanceOperation.BaseOperation, dataset: LanceDataset, about: dict[str, str]
    ) -> LanceDataset:
        try:
            return self._committed(operation, dataset, about)
        except CommitConflictError as error:
            raise LeaseLost(f"{self.uri} was taken over by another run; this one stops") from error

    def _committed(
        self, operation: LanceOperation.BaseOperation, dataset: LanceDataset, about: dict[str, str]
    ) -> LanceDataset:
        about = {LEASE: str(self.lease), **about}
        transaction = Transaction(dataset.version, operation, transaction_properties=about)
        with translate_errors("written", self.uri):
            return LanceDataset.commit(self.uri, transaction, storage_options=lance_options(self.uri))

    def verify(self, expected: NDArray[np.int64]) -> None:
        """Refused unless the table holds exactly one row for each of the `expected` ids and no other."""
        verify_ids(self._dataset, expected, self.FROM_SHARDS)

    def finish(self, metadata: dict[str, str], about: dict[str, str] | None = None) -> LanceDataset:
        """Writes the final entries of the schema's metadata; returns the finished table. `about` goes with the commit."""
        update = LanceOperation.UpdateMap(updates=dict(metadata), replace=False)
        operation = LanceOperation.UpdateConfig(schema_metadata_updates=update)
        self._dataset = self._commit(operation, self._dataset, about or {})
        return self._dataset


def history(dataset: LanceDataset) -> Iterator[tuple[int, Transaction]]:
    """(version, transaction) of all versions still on record, the newest first; the recent ones are read first."""
    seen = 0
    for count in dict.fromkeys((min(16, dataset.version), dataset.version)):
        found = _transactions(dataset, count)
        for age, transaction in enumerate(found[seen:], seen):
            if transaction is not None:
                yield dataset.version - age, transaction
        seen = len(found)


def _transactions(dataset: LanceDataset, count: int) -> list[Transaction | None]:
    """The last ones, newest first; None for versions that are gone, and for what pylance cannot show."""
    try:
        return dataset.get_transactions(count)
    except TypeError:  # by a compaction that moved an index (pylance 14): look at them one by one
        there = {version["version"] for version in dataset.versions()}
        numbers = range(dataset.version, dataset.version - count, -1)
        return [_transaction(dataset, number) if number in there else None for number in numbers]


def _transaction(dataset: LanceDataset, version: int) -> Transaction | None:
    try:
        return dataset.read_transaction(version)
    except TypeError:  # it changed no row and remembers nothing
        return None


def effective_history(dataset: LanceDataset) -> list[tuple[int, Transaction]]:
    """As `history`, without what a later restore of an older version undid."""
    kept, below = [], dataset.version
    for version, transaction in history(dataset):
        if version > below:
            continue
        kept.append((version, transaction))
        if isinstance(transaction.operation, LanceOperation.Restore):
            below = transaction.operation.version
    return kept


def verify_ids(dataset: LanceDataset, expected: NDArray[np.int64], among: str | None = None) -> None:
    """Refused unless the `id` column of the table, or of those rows, is exactly the `expected` ids, each once."""
    found = np.sort(dataset.to_table(columns=["id"], filter=among)["id"].to_numpy())
    expected = np.sort(np.asarray(expected, np.int64))
    if np.array_equal(found, expected):
        return
    doubled = found[1:][found[1:] == found[:-1]]
    missing, foreign = np.setdiff1d(expected, found), np.setdiff1d(found, expected)
    raise Refused(
        f"{dataset.uri}: {len(missing)} ids missing (first {missing[:3].tolist()}), {len(doubled)} doubled "
        f"(first {doubled[:3].tolist()}), {len(foreign)} not expected (first {foreign[:3].tolist()})"
    )


def to_float16(values: NDArray[np.floating], what: str) -> NDArray[np.float16]:
    """Refused when a number is not finite or beyond float16."""
    with np.errstate(over="ignore"):
        stored = np.asarray(values).astype(np.float16)
    if not np.isfinite(stored).all():
        raise Refused(f"{what} are not finite as float16; check the network they come from")
    return stored


def fixed_size(values: NDArray[np.float16]) -> pa.FixedSizeListArray:
    """[N, ...] to N lists of float16."""
    flat = np.ascontiguousarray(values, np.float16).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def to_matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float16]:
    """N lists of float16 to [N, width]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def _require_same(wanted: pa.Schema, there: pa.Schema, uri: str) -> None:
    if not wanted.equals(there, check_metadata=False):
        raise Refused(f"{uri} has other columns than this run would write; name another store or delete it")
    for name, value in (wanted.metadata or {}).items():
        if (there.metadata or {}).get(name) != value:
            raise Refused(f"{uri} was begun with another {name.decode()}; name another store or delete it")
