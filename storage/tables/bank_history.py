"""What has become of a bank: its edits, and the difference between two of its versions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset, Transaction, Version
from numpy.typing import NDArray

from storage.errors import Refused
from storage.tables.bank_commits import EDIT, REVISION, changes_rows, content_revision
from storage.tables.fragments import history, open_table
from storage.tables.metadata import commit_entry, properties


@dataclass(frozen=True)
class Change:
    """A version whose rows are not those of the version before, or before which there is nothing any more."""

    version: int
    revision: int
    time: str
    kind: str
    """built, append, withdraw, restore or purge; of another client the operation's name."""
    author: str | None
    reason: str | None
    rows: int
    """How many the bank has then."""
    tags: list[str]
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Ids of rows int64 [...], each sorted."""

    added: NDArray[np.int64]
    removed: NDArray[np.int64]
    changed: NDArray[np.int64]
    """In both, with another content."""


def changes(dataset: LanceDataset) -> list[Change]:
    """Of a finished bank those that are still on record, the first one first."""
    about = {version["version"]: version for version in dataset.versions()}
    tagged = {name: tag["version"] for name, tag in dataset.tags.list().items()}
    found, following = list[Change](), dataset.version + 1
    for version, transaction in history(dataset):
        built = properties(transaction).get(REVISION) == "1"
        ours = EDIT in properties(transaction)  # a purge is told as well
        if version in about and (built or ours or changes_rows(transaction)):
            tags = sorted(name for name, at in tagged.items() if version <= at < following)
            found.append(_change(dataset, about[version], transaction, tags))
            following = version
        if built:
            break
    return found[::-1]


def unfinished(dataset: LanceDataset, artifact: str) -> str:
    """Why a version before whose end the bank was still being built cannot be opened, and which can."""
    newest = open_table(dataset.uri)
    if REVISION.encode() not in (newest.schema.metadata or {}):
        return f"the bank in {artifact} is unfinished; run the bank stage again"
    whole = [change.version for change in changes(newest)]
    return (
        f"version {dataset.version} of the bank in {artifact} is from before the bank was finished; the first whole "
        f"version is {min(whole, default=newest.version)}, and the newest is {newest.version}"
    )


def _change(dataset: LanceDataset, about: Version, transaction: Transaction, tags: list[str]) -> Change:
    said = commit_entry(transaction, EDIT, dict[str, Any], dataset.uri, {})
    operation = type(transaction.operation).__name__
    return Change(
        version=about["version"],
        revision=content_revision(dataset.checkout_version(about["version"])),
        time=said.get("time") or moment(about).isoformat(timespec="seconds"),
        kind=said.get("kind") or ("built" if REVISION in properties(transaction) else f"another client's {operation}"),
        author=said.get("author"),
        reason=said.get("reason"),
        rows=int(about["metadata"]["total_rows"]),
        tags=tags,
        details=said.get("details", {}),
    )


def version_at(dataset: LanceDataset, time: datetime) -> int:
    """The newest version that was there at this time; one without a zone is local. Refused where there was none."""
    earlier = [about["version"] for about in dataset.versions() if moment(about) <= time.astimezone(UTC)]
    if not earlier:
        raise Refused(
            f"{dataset.uri} has no version from {time.isoformat(' ')} or before; the history lists those it has"
        )
    return max(earlier)


def moment(about: Version) -> datetime:
    """When a version was made."""
    made = about["timestamp"]
    assert isinstance(made, datetime), made
    return made.astimezone(UTC)


def difference(a: LanceDataset, b: LanceDataset) -> Difference:
    """From version `a` of a bank to version `b`; fragments that they share are not read."""
    shared = {_files(fragment) for fragment in a.get_fragments()} & {_files(f) for f in b.get_fragments()}
    before, after = _unshared(a, shared), _unshared(b, shared)
    ids_before, ids_after = before["id"].to_numpy(), after["id"].to_numpy()
    common = np.intersect1d(ids_before, ids_after)
    same = [_in_order(rows, common) for rows in (before, after)]
    names = [name for name in same[0].column_names if name in same[1].column_names]
    differs = np.zeros(len(common), bool)
    for name in names:
        differs |= _unequal(same[0][name], same[1][name])
    return Difference(np.setdiff1d(ids_after, ids_before), np.setdiff1d(ids_before, ids_after), common[differs])


def _files(fragment: Any) -> str:
    return json.dumps(fragment.metadata.to_json(), sort_keys=True)


def _unshared(dataset: LanceDataset, shared: set[str]) -> pa.Table:
    own = [fragment for fragment in dataset.get_fragments() if _files(fragment) not in shared]
    return dataset.scanner(fragments=own).to_table() if own else dataset.schema.empty_table()


def _in_order(rows: pa.Table, ids: NDArray[np.int64]) -> pa.Table:
    there = rows["id"].to_numpy()
    order = np.argsort(there, kind="stable")
    return rows.take(pa.array(order[np.searchsorted(there, ids, sorter=order)]))


def _unequal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.array([x != y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], bool)
