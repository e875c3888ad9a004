"""Rows of the bank and how they get in: from shards by many workers, or a few at a time by whoever grows the bank."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.dataset import LanceDataset, LanceOperation, Transaction
from numpy.typing import NDArray

from storage.files.s3 import lance_options
from storage.ids import FIRST_FOREIGN_ID
from storage.tables import fragments
from storage.tables.fragments import (
    LEASE,
    RETRIES,
    FragmentWriter,
    busy,
    fixed_size,
    history,
    open_table,
    properties,
    to_float16,
    translate_errors,
)

TABLE = "bank"
FORMAT_VERSION = "1"
ORIGINS = ("dataset", "external", "mixed", "imported")
ENCODER, REVISION, NEXT_ID = "encoder", "content_revision", "next_id"
COUNTED_TO = "content_revision_counted_to"
"""The version up to which the revision in the metadata counts changes."""
KEEPS_ROWS = ("Rewrite", "CreateIndex", "UpdateConfig", "Project", "BaseOperation")
"""Operations that change files, indices or descriptions and no row; the last is how others than these are shown."""


def table_uri(artifact: str) -> str:
    return f"{artifact.rstrip('/')}/{TABLE}.lance"


def canonical(encoder: dict[str, Any]) -> str:
    """An encoder's identity as text: equal text, equal encoder."""
    return json.dumps(encoder, sort_keys=True)


def schema(dim: int, encoder: dict[str, Any]) -> pa.Schema:
    """The bank's columns for snippets of `dim` numbers by the encoder of this identity."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("key", pa.string()),
            pa.field("flipped", pa.bool_()),
            pa.field("label", pa.int32()),
            pa.field("split", pa.string()),
            pa.field("shard", pa.string()),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("parents", pa.list_(pa.int64())),
            pa.field("snippet", pa.list_(pa.float16(), dim), nullable=False),
            pa.field("thumbnail", pa.binary()),
        ],
        {"format_version": FORMAT_VERSION, ENCODER: canonical(encoder)},
    )


def make_rows(
    ids: NDArray[np.int64],
    snippets: NDArray[np.floating],
    origin: str,
    *,
    keys: Sequence[str | None] | None = None,
    flipped: Sequence[bool | None] | None = None,
    labels: Sequence[int | None] | None = None,
    splits: Sequence[str | None] | None = None,
    shard: str | None = None,
    parents: Sequence[Sequence[int] | None] | None = None,
    thumbnails: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """Rows of the bank from snippets [N,D] as the encoder gives them; whatever is not told is null.

    ValueError when a snippet is zero, not finite or beyond float16, or the origin is unknown.
    """
    stored = to_float16(snippets, "snippets")
    if origin not in ORIGINS:
        raise ValueError(f"origin {origin!r} is unknown; use one of {', '.join(ORIGINS)}")
    if not stored.any(axis=1).all():
        raise ValueError("snippets must not be zero, which has no direction; check the encoder")
    nothing = [None] * len(stored)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "key": keys or nothing,
            "flipped": flipped or nothing,
            "label": labels or nothing,
            "split": splits or nothing,
            "shard": [shard] * len(stored),
            "origin": [origin] * len(stored),
            "parents": parents or nothing,
            "snippet": fixed_size(stored),
            "thumbnail": thumbnails or nothing,
        },
        schema=schema(stored.shape[1], {}).remove_metadata(),
    )


# --- from shards, while the bank is built ----------------------------------------------------------------------------


def write_fragments(artifact: str, shard: str, rows: pa.Table) -> dict[str, Any]:
    """In a worker: writes one shard's rows; returns the JSON description for `BankWriter.commit`."""
    return fragments.write_fragments(table_uri(artifact), shard, rows)


class BankWriter(FragmentWriter):
    """The committer of a bank that is being built: `commit` groups of described shards, then `finish_bank`.

    It may find a bank that was finished and has grown since, if only its manifest was lost: what was added stays.
    """

    FROM_SHARDS = "shard IS NOT NULL"

    def __init__(self, artifact: str, dim: int, encoder: dict[str, Any], lease: int = 0) -> None:
        super().__init__(table_uri(artifact), schema(dim, encoder), lease)

    def finish_bank(self, expected: NDArray[np.int64]) -> LanceDataset:
        """Checks that each expected id is there once, and begins counting revisions; the bank can be opened then.

        Ids of foreign rows among them are given to no other, also when these rows are deleted.
        """
        self.verify(expected)
        if REVISION.encode() in (self._dataset.schema.metadata or {}):
            return self._dataset
        about = {REVISION: "1", NEXT_ID: str(max(FIRST_FOREIGN_ID, int(expected.max(initial=0)) + 1))}
        return self.finish(about | {COUNTED_TO: str(self._dataset.version)}, about)

    def _recall(self) -> dict[str, dict[str, Any]]:
        """Of a finished bank from its rows: versions with what was remembered of shards may have been cleaned up."""
        if REVISION.encode() not in (self._dataset.schema.metadata or {}):
            return super()._recall()
        shards = self._dataset.to_table(columns=["shard"], filter=self.FROM_SHARDS)["shard"]
        counts = shards.value_counts().to_pylist()
        return {shard["values"]: {"rows": shard["counts"], "memory": {}} for shard in counts}


# --- a few at a time, once it stands ---------------------------------------------------------------------------------


def content_revision(dataset: LanceDataset) -> int:
    """A number that rises whenever rows change, also by another's hand, and not by compaction or indexing.

    Each of our own changes notes the number in its commit, and in the metadata, where it outlives that commit; later
    commits of others that touch rows count one each. What was committed between our looking and our noting is not in
    the number noted, so that counting goes on to there.
    """
    changes, noted = list[int](), None
    for version, transaction in history(dataset):
        if noted and version <= noted[0]:
            break
        found = properties(transaction).get(REVISION)
        if noted is None and found is not None:
            noted = transaction.read_version, int(found)
        elif _changes_rows(transaction):
            changes.append(version)
    about = dataset.schema.metadata or {}
    kept = int(about.get(COUNTED_TO.encode(), 0)), int(about.get(REVISION.encode(), 0))
    since, revision = max(noted, kept) if noted else kept
    return revision + sum(version > since for version in changes)


def _changes_rows(transaction: Transaction) -> bool:
    operation = transaction.operation
    if isinstance(operation, LanceOperation.Restore):
        return operation.version != transaction.read_version
    if isinstance(operation, LanceOperation.Merge) and LEASE in properties(transaction):
        return False  # a writer that fences off earlier ones
    return type(operation).__name__ not in KEEPS_ROWS


def append_rows(artifact: str, rows: pa.Table) -> None:
    """Adds rows whose ids were reserved; several may do so at once, and all their rows arrive.

    Where somebody restores another version or takes over building the bank meanwhile, they are written anew and added.
    """
    uri = table_uri(artifact)
    for _ in range(RETRIES):
        seen = open_table(uri).version
        described = fragments.write_fragments(uri, "", rows)
        operation = LanceOperation.Append(fragments.from_description(described))
        try:
            with translate_errors("written", uri):
                LanceDataset.commit(uri, operation, read_version=seen, storage_options=lance_options(uri))
        except CommitConflictError:
            continue
        note_revision(artifact)
        return
    raise busy(uri)


def note_revision(artifact: str) -> int:
    """Writes the present content revision into the metadata, where everybody can read it; returns it."""
    revision = 0

    def present(dataset: LanceDataset) -> dict[str, str]:
        nonlocal revision
        revision = content_revision(dataset)
        return {REVISION: str(revision), COUNTED_TO: str(dataset.version)}

    _update_metadata(artifact, present)
    return revision


def reserve_ids(artifact: str, count: int) -> NDArray[np.int64]:
    """`count` ids from 2^40 upward that nobody had and nobody else will get, whether they are used or not."""
    first = 0

    def beyond_all(dataset: LanceDataset) -> dict[str, str]:
        nonlocal first
        in_commits = (int(properties(t)[NEXT_ID]) for _, t in history(dataset) if NEXT_ID in properties(t))
        noted = [next(in_commits, 0), int((dataset.schema.metadata or {}).get(NEXT_ID.encode(), 0))]
        foreign = dataset.to_table(columns=["id"], filter=f"id >= {FIRST_FOREIGN_ID}")["id"].to_numpy()
        first = max([FIRST_FOREIGN_ID, *noted, int(foreign.max(initial=0)) + 1])
        return {NEXT_ID: str(first + count)}

    _update_metadata(artifact, beyond_all)
    return np.arange(first, first + count)


def _update_metadata(artifact: str, values: Callable[[LanceDataset], dict[str, str]]) -> None:
    """Sets what `values(dataset)` says, computed anew whenever somebody else's update came first.

    The same entries go into the transaction, where a restored older version cannot hide them.
    """
    uri = table_uri(artifact)
    for _ in range(RETRIES):
        dataset = open_table(uri)
        entries = values(dataset)
        update = LanceOperation.UpdateMap(updates={**entries}, replace=False)
        operation = LanceOperation.UpdateConfig(schema_metadata_updates=update)
        transaction = Transaction(dataset.version, operation, transaction_properties=entries)
        try:
            with translate_errors("written", uri):
                LanceDataset.commit(uri, transaction, storage_options=lance_options(uri))
            return
        except CommitConflictError:
            continue
    raise busy(uri)
