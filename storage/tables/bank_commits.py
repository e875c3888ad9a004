"""How a bank that stands is changed: each edit is one commit, made by anybody at any time, and none is lost.

An edit says in its own transaction who made it, when and why. What must outlive that transaction (the number of the
content's revision, the ids given out, the rows that were withdrawn) is noted in the table's metadata afterwards, and
until then read from the transaction: a kill between the two loses nothing.
"""

from __future__ import annotations

import base64
import getpass
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.dataset import LanceDataset, LanceOperation, Transaction
from lance.schema import LanceSchema
from numpy.typing import NDArray
from typing_extensions import TypedDict

from storage.documents import LARGEST, read_json
from storage.errors import Damaged
from storage.files.s3 import lance_options
from storage.ids import FIRST_FOREIGN_ID
from storage.tables import fragments
from storage.tables.bank_rows import LATER_COLUMNS, require_sound, table_uri
from storage.tables.fragments import (
    LEASE,
    RETRIES,
    SHARDS,
    busy,
    effective_history,
    history,
    open_table,
    translate_errors,
)
from storage.tables.metadata import REMEDY, commit_entry, properties, schema_entry

REVISION, NEXT_ID, WITHDRAWN = "content_revision", "next_id", "withdrawn"
COUNTED_TO = "content_revision_counted_to"
"""The version up to which the revision in the metadata counts changes."""
CHECKED_TO = "checked_to"
"""The version up to which what other clients did is known to be sound."""
EDIT = "gmem.edit"
PURGED = "purged"
"""Which versions were removed for good, and why."""
COLUMNS = "gmem.columns"
"""Marks the commit that adds the columns of a later release."""
OURS = {EDIT, COLUMNS, LEASE, SHARDS, REVISION, NEXT_ID}
KEEPS_ROWS = ("Rewrite", "CreateIndex", "UpdateConfig", "Project", "BaseOperation")
"""Operations that change files, indices or descriptions and no row; the last is how others than these are shown."""


@dataclass(frozen=True)
class Edit:
    """What an edit says of itself."""

    kind: str
    """append, withdraw, restore or purge."""
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    author: str = field(default_factory=lambda: login())
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def properties(self) -> dict[str, str]:
        """For the transaction."""
        return {EDIT: json.dumps(asdict(self))}


class Tombstone(TypedDict):
    """A row that was withdrawn; `picture` is the hash of its thumbnail."""

    id: int
    key: str | None
    shard: str | None
    picture: str | None
    reason: str
    author: str
    time: str


def login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


# --- what the history says -------------------------------------------------------------------------------------------


def content_revision(dataset: LanceDataset) -> int:
    """A number that rises whenever rows change, also by another's hand, and not by compaction or indexing.

    After each of our own changes the number is noted in a commit, and in the metadata, where it outlives that commit;
    later commits that touch rows count one each. What was committed between our looking and our noting is not in the
    number noted, so that counting goes on to there.
    """
    changes, noted = list[int](), None
    for version, transaction in history(dataset):
        if noted and version <= noted[0]:
            break
        if noted is None and REVISION in properties(transaction):
            noted = transaction.read_version, commit_entry(transaction, REVISION, int, dataset.uri)
        elif changes_rows(transaction):
            changes.append(version)
    kept = _number(dataset, COUNTED_TO), _number(dataset, REVISION)
    since, revision = max(noted, kept) if noted else kept
    return revision + sum(version > since for version in changes)


def changes_rows(transaction: Transaction) -> bool:
    """Whether the bank's content is another after this commit."""
    operation = transaction.operation
    if isinstance(operation, LanceOperation.Restore):
        return operation.version != transaction.read_version
    if isinstance(operation, LanceOperation.Merge) and properties(transaction).keys() & {LEASE, COLUMNS}:
        return False  # a writer that fences off earlier ones, or columns that are null everywhere
    return type(operation).__name__ not in KEEPS_ROWS


def require_checked(dataset: LanceDataset) -> None:
    """Refused when another client has left rows in the bank that cannot be used; quick when only we were at it."""
    checked, doubtful = _number(dataset, CHECKED_TO), None
    for version, transaction in history(dataset):
        if version <= checked:
            break
        if changes_rows(transaction) and not properties(transaction).keys() & OURS:
            doubtful = version
    if doubtful:
        require_sound(dataset, f"delete them with that client, or go back with restore to version {doubtful - 1}")


def _number(dataset: LanceDataset, name: str) -> int:
    return schema_entry(dataset.schema, name, int, dataset.uri, 0)


def withdrawn(dataset: LanceDataset) -> list[Tombstone]:
    """Of each row that was withdrawn and is not there again."""
    known = [(dataset.schema.metadata or {}).get(WITHDRAWN.encode(), b"").decode()]
    known += [properties(transaction).get(WITHDRAWN, "") for _, transaction in effective_history(dataset)]
    return list({stone["id"]: stone for text in known if text for stone in unpacked(text, dataset.uri)}.values())


def packed(stones: list[Tombstone]) -> str:
    """Tombstones as text for metadata, which every version of the table repeats."""
    return base64.b85encode(zlib.compress(json.dumps(stones).encode())).decode()


def unpacked(text: str, uri: str) -> list[Tombstone]:
    """The inverse of `packed`; Damaged where the table at `uri` holds anything else."""
    where = f"{WITHDRAWN} of {uri}"
    try:
        data = zlib.decompressobj().decompress(base64.b85decode(text), LARGEST + 1)
    except (ValueError, zlib.error) as problem:
        raise Damaged(f"{where} is damaged (not packed as tombstones are): {REMEDY}") from problem
    return read_json(data, where, list[Tombstone], REMEDY)


# --- commits ---------------------------------------------------------------------------------------------------------


def append_rows(artifact: str, rows: pa.Table, edit: Edit) -> None:
    """Adds rows whose ids were reserved; several may do so at once, and all their rows arrive.

    Where somebody restores another version or takes over building the bank meanwhile, they are written anew and added.
    """
    uri = table_uri(artifact)
    complete_columns(artifact)

    def appended(dataset: LanceDataset) -> LanceOperation.BaseOperation:
        return LanceOperation.Append(fragments.from_description(fragments.write_fragments(uri, "", rows)))

    _commit(artifact, appended, edit.properties)
    note(artifact)


def delete_rows(artifact: str, ids: NDArray[np.int64], about: dict[str, str]) -> None:
    """Takes rows out of the newest version, and with them `about` into the transaction."""
    condition = f"id IN ({','.join(map(str, ids.tolist()))})"

    def deleted(dataset: LanceDataset) -> LanceOperation.BaseOperation:
        changed, gone = [], []
        for fragment in dataset.get_fragments():
            before = fragment.metadata.to_json()
            after = fragment.delete(condition)
            if after is None:
                gone.append(fragment.fragment_id)
            elif after.to_json() != before:
                changed.append(after)
        return LanceOperation.Delete(changed, gone, condition)

    _commit(artifact, deleted, lambda: about)
    note(artifact)


def restore_version(artifact: str, version: int, edit: Edit) -> None:
    """Makes the content of an earlier version the newest."""
    note(artifact)  # what was given out and counted is in the history then, which no restored version hides
    _commit(artifact, lambda dataset: LanceOperation.Restore(version), edit.properties)
    note(artifact)


def complete_columns(artifact: str) -> None:
    """Gives a table of release 0.1 the columns that came later, null in every row; nothing where they are there."""

    def merged(dataset: LanceDataset) -> LanceOperation.BaseOperation | None:
        names = dataset.schema.names
        missing = [column for column in LATER_COLUMNS if column.name not in names]
        if not missing:
            return None
        wider = LanceSchema.from_pyarrow(pa.schema([*dataset.schema, *missing], dataset.schema.metadata))
        return LanceOperation.Merge([fragment.metadata for fragment in dataset.get_fragments()], wider)

    _commit(artifact, merged, lambda: {COLUMNS: "1"})


def note(artifact: str) -> int:
    """Writes into the metadata what the history alone says so far; returns the content's revision."""
    revision = 0

    def present(dataset: LanceDataset) -> dict[str, str]:
        nonlocal revision
        revision = content_revision(dataset)
        about = {REVISION: str(revision), COUNTED_TO: str(dataset.version)}
        if given := _next_id(dataset):
            about[NEXT_ID] = str(given)
        if stones := withdrawn(dataset):
            about[WITHDRAWN] = packed(stones)
        return about

    update_metadata(artifact, present, remembered=(REVISION, NEXT_ID))
    return revision


def note_checked(artifact: str) -> None:
    """Refused when another client left rows that cannot be used; else it is noted that there are none."""

    def checked(dataset: LanceDataset) -> dict[str, str]:
        require_checked(dataset)
        return {CHECKED_TO: str(dataset.version)}

    update_metadata(artifact, checked, remembered=())


def reserve_ids(artifact: str, count: int) -> NDArray[np.int64]:
    """`count` ids from 2^40 upward that nobody had and nobody else will get, whether they are used or not."""
    first = 0

    def beyond_all(dataset: LanceDataset) -> dict[str, str]:
        nonlocal first
        foreign = dataset.to_table(columns=["id"], filter=f"id >= {FIRST_FOREIGN_ID}")["id"].to_numpy()
        first = max(FIRST_FOREIGN_ID, _next_id(dataset), int(foreign.max(initial=0)) + 1)
        return {NEXT_ID: str(first + count)}

    update_metadata(artifact, beyond_all, remembered=(NEXT_ID,))
    return np.arange(first, first + count)


def _next_id(dataset: LanceDataset) -> int:
    in_commits = (commit_entry(t, NEXT_ID, int, dataset.uri) for _, t in history(dataset) if NEXT_ID in properties(t))
    return max(next(in_commits, 0), _number(dataset, NEXT_ID))


def update_metadata(
    artifact: str,
    values: Callable[[LanceDataset], dict[str, str]],
    remembered: tuple[str, ...],
    also: dict[str, str] | None = None,
) -> None:
    """Sets what `values(dataset)` says, computed anew whenever somebody else's update came first.

    The entries `remembered` go into the transaction too, where a restored older version cannot hide them; so does `also`,
    and nowhere else.
    """
    entries: dict[str, str] = {}

    def updated(dataset: LanceDataset) -> LanceOperation.BaseOperation:
        entries.clear()
        entries.update(values(dataset))
        update = LanceOperation.UpdateMap(updates={**entries}, replace=False)
        return LanceOperation.UpdateConfig(schema_metadata_updates=update)

    def about() -> dict[str, str]:
        return {name: entries[name] for name in remembered if name in entries} | (also or {})

    _commit(artifact, updated, about)


def _commit(
    artifact: str,
    operation: Callable[[LanceDataset], LanceOperation.BaseOperation | None],
    about: Callable[[], dict[str, str]],
) -> None:
    """One commit of `operation(newest version)`, made anew whenever one came between that it cannot go with."""
    uri = table_uri(artifact)
    for _ in range(RETRIES):
        dataset = open_table(uri)
        wanted = operation(dataset)
        if wanted is None:
            return
        transaction = Transaction(dataset.version, wanted, transaction_properties=about())
        try:
            with translate_errors("written", uri):
                LanceDataset.commit(uri, transaction, storage_options=lance_options(uri))
            return
        except CommitConflictError:
            continue
    raise busy(uri)
