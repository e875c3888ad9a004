"""Purging a bank: its earlier versions, and with them what was withdrawn, leave the disk for good.

The newest version is written anew first, without the rows that it only marks as deleted, and its indices are made anew, for
they are of these rows too. Then a commit says that all before it is purged, and only then it is removed. A kill in between
leaves a bank of the same rows, with or without earlier versions; purging again goes on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from lance.dataset import LanceDataset

from storage.errors import Refused
from storage.files import open_files
from storage.tables import bank_index
from storage.tables.bank_commits import PURGED, Edit, note, note_checked, update_metadata
from storage.tables.bank_rows import table_uri
from storage.tables.fragments import open_table, translate_errors
from storage.tables.maintenance import unreferenced
from storage.tables.metadata import schema_entry

if TYPE_CHECKING:
    from storage.tables.bank import Bank

UNDER_WAY = timedelta(hours=1)
"""A file that no version names may be of an append that is about to be committed; an older one is nobody's."""


@dataclass(frozen=True)
class Purged:
    """What a purge removed."""

    versions: int
    tags: list[str]
    bytes: int
    undecided: int
    """Files written within the last hour that no version names: left to whoever is about to commit them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def purge(bank: Bank, reason: str) -> Purged:
    """As `Bank.purge`."""
    if not reason.strip():
        raise Refused("give the reason for the purge; it stays in the bank's history")
    note_checked(bank.artifact)
    note(bank.artifact)
    bank.refresh()
    _rewrite(bank)
    mark = _mark(bank.artifact, Edit("purge", reason.strip()))
    removed = _remove(bank.artifact, mark)
    bank.refresh()
    return removed


def _rewrite(bank: Bank) -> None:
    """The newest version again: files without deleted rows, indices of those that are left."""
    uri = table_uri(bank.artifact)
    with translate_errors("written", uri):
        open_table(uri).optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
    bank.refresh()
    kind = bank_index.kind_of(bank.index.index_type) if bank.index else "auto"
    for index in bank.table.list_indices():
        bank.table.drop_index(index.name)
    bank.build_index(kind)


def _mark(artifact: str, edit: Edit) -> int:
    """Says in a commit, and in the metadata of all versions to come, that every version up to this one is purged."""
    last = 0

    def marked(dataset: LanceDataset) -> dict[str, str]:
        nonlocal last
        last = dataset.version
        tags = sorted(name for name, tag in dataset.tags.list().items() if tag["version"] <= last)
        about = {"to": last, "tags": sorted({*purged(dataset).get("tags", []), *tags})}
        return {PURGED: json.dumps(about | {"reason": edit.reason, "time": edit.time})}

    update_metadata(artifact, marked, remembered=(), also=edit.properties())
    return last


def _remove(artifact: str, mark: int) -> Purged:
    uri = table_uri(artifact)
    with translate_errors("purged", uri):
        dataset = open_table(uri)
        tags = [name for name, tag in dataset.tags.list().items() if tag["version"] <= mark]
        for name in tags:
            dataset.tags.delete(name)
        versions = [about["version"] for about in dataset.versions() if about["version"] <= mark]
        freed = 0
        if versions:
            freed = int(dataset.cleanup_old_versions(versions=versions).bytes_removed)
    nobodys = unreferenced(dataset, datetime.now(UTC) - UNDER_WAY, very_old=UNDER_WAY)
    files = open_files(uri)
    for path in nobodys:
        files.remove(f"{uri}/{path}")
    undecided = len(unreferenced(dataset))
    return Purged(len(versions), tags, freed + sum(nobodys.values()), undecided)


def purged(dataset: LanceDataset) -> dict[str, Any]:
    """`to`: the last version that was purged, its `tags`, the `reason` and the `time`; empty where none was."""
    return schema_entry(dataset.schema, PURGED, dict[str, Any], dataset.uri, {})


def absent(artifact: str, version: int | str | None) -> str:
    """Why a bank, or a version of it, cannot be opened."""
    if version is None:
        return f"{artifact} holds no bank; run the bank stage first"
    about: dict[str, Any] = {}
    try:
        about = purged(open_table(table_uri(artifact)))
    except FileNotFoundError:
        return f"{artifact} holds no bank; run the bank stage first"
    gone = version in about.get("tags", []) if isinstance(version, str) else version <= about.get("to", 0)
    if gone:
        return (
            f"version {version} of the bank in {artifact} was purged on {about['time'][:10]} ({about['reason']}), and "
            "what was made with it cannot be continued; name a version that its history lists, or none for the newest"
        )
    return f"{artifact} holds no version {version} of the bank; its history lists those there are"
