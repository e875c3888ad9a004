"""What lies in a Lance table's folder and is not needed: files nobody refers to, versions nobody asks for.

A file that no version names may be one that somebody is about to commit. So what is there is listed first; then the
newest version is restored onto itself, after which Lance refuses every append that was begun before; only what was
listed, and is still unnamed after that, is removed. Whoever was refused writes its files anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lance.commit import CommitConflictError
from lance.dataset import LanceDataset, LanceOperation, Transaction

from storage.bank_rows import RETRIES, busy, note_revision
from storage.fragments import LEASE, Options, open_table, options_for, told

FOLDERS = ("data/", "_deletions/", "_indices/", "_transactions/")


@dataclass(frozen=True)
class Versions:
    """Versions of a table that may go, and the bytes only they refer to."""

    numbers: list[int]
    bytes: int


def unreferenced(dataset: LanceDataset) -> dict[str, int]:
    """Bytes of each file below the table that none of its versions refers to, by path."""
    with told("read", dataset.uri):
        there = dataset.all_files().read_all()
        named = set(dataset.tracked_files().read_all()["path"].to_pylist())
    sizes = zip(there["path"].to_pylist(), there["size_bytes"].to_pylist(), strict=True)
    return {path: size for path, size in sizes if path.startswith(FOLDERS) and path not in named}


def clear(uri: str, lease: int, remove: Callable[[str], None], storage_options: Options = None) -> int:
    """Removes what nobody refers to, with `remove(path below the table)`; the holder of the lease may. Returns bytes."""
    listed = unreferenced(open_table(uri, storage_options=storage_options))
    if not listed:
        return 0
    still = unreferenced(_fenced(uri, lease, storage_options))
    for path in (doomed := [path for path in listed if path in still]):
        remove(path)
    return sum(listed[path] for path in doomed)


def old_versions(dataset: LanceDataset, age: timedelta, named: Collection[int | str | None]) -> Versions:
    """Versions older than `age` that are neither the newest, nor tagged, nor among the `named`."""
    tagged = {tag["version"] for tag in dataset.tags.list().values()}
    spared = {dataset.version, *tagged, *named}
    until = datetime.now(UTC) - age
    old = [v["version"] for v in dataset.versions() if v["version"] not in spared and _utc(v["timestamp"]) < until]
    if not old:
        return Versions([], 0)
    with told("read", dataset.uri):
        about = dataset.explain_cleanup_old_versions(versions=old, error_if_tagged_old_versions=False)
    return Versions(old, about.stats.bytes_removed)


def drop_versions(artifact: str, uri: str, numbers: list[int], storage_options: Options = None) -> int:
    """Forgets these versions of a bank and removes what only they refer to. Returns bytes.

    The number of its content's revision is written into the newest version first, since it is counted from the others.
    """
    note_revision(artifact, storage_options)
    with told("written", uri):
        dataset = open_table(uri, storage_options=storage_options)
        return int(dataset.cleanup_old_versions(versions=numbers, error_if_tagged_old_versions=False).bytes_removed)


def _fenced(uri: str, lease: int, storage_options: Options) -> LanceDataset:
    """The table with its newest version restored onto itself."""
    options = options_for(uri, storage_options)
    for _ in range(RETRIES):
        version = open_table(uri, storage_options=options).version
        restore = Transaction(version, LanceOperation.Restore(version), transaction_properties={LEASE: str(lease)})
        try:
            with told("written", uri):
                return LanceDataset.commit(uri, restore, storage_options=options)
        except CommitConflictError:
            continue
    raise busy(uri)


def _utc(moment: object) -> datetime:
    assert isinstance(moment, datetime), moment
    return moment.astimezone(UTC)
