"""What lies in a Lance table's folder and is not needed: files nobody refers to, versions nobody asks for.

A file that no version names may be one that somebody is about to commit. Latents and patch tokens are committed by
nobody but the holder of their artifact's lease, so once they are finished and the lease is ours, such a file is
nobody's. A bank grows afterwards, by anybody's hand and without a lease: there it is nobody's if it is older than the
finished bank, or so old that no append can still be under way (as Lance itself judges).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lance.dataset import LanceDataset

from storage.tables.bank_commits import note
from storage.tables.fragments import open_table, translate_errors

UNDER_WAY = timedelta(days=7)
FOLDERS = ("data/", "_deletions/", "_indices/", "_transactions/")


@dataclass(frozen=True)
class Versions:
    """Versions of a table that may go, and the bytes only they refer to."""

    numbers: list[int]
    bytes: int


def unreferenced(
    dataset: LanceDataset, finished: datetime | None = None, very_old: timedelta = UNDER_WAY
) -> dict[str, int]:
    """Bytes of each file below the table that none of its versions refers to, by path.

    Of a table that others may be adding to, only those written before it was `finished`, or `very_old`.
    """
    with translate_errors("read", dataset.uri):
        there = dataset.all_files().read_all().to_pylist()  # before the versions: what comes between is not in it
        named = set(dataset.tracked_files().read_all()["path"].to_pylist())
    until = None if finished is None else max(finished, datetime.now(UTC) - very_old)
    return {
        file["path"]: file["size_bytes"]
        for file in there
        if file["path"].startswith(FOLDERS) and file["path"] not in named
        if until is None or _utc(file["last_modified"]) < until
    }


def old_versions(dataset: LanceDataset, age: timedelta, named: Collection[int | str | None]) -> Versions:
    """Versions older than `age` that are neither the newest, nor tagged, nor among the `named`."""
    tagged = {tag["version"] for tag in dataset.tags.list().values()}
    spared = {dataset.version, *tagged, *named}
    until = datetime.now(UTC) - age
    old = [v["version"] for v in dataset.versions() if v["version"] not in spared and _utc(v["timestamp"]) < until]
    if not old:
        return Versions([], 0)
    with translate_errors("read", dataset.uri):
        about = dataset.explain_cleanup_old_versions(versions=old, error_if_tagged_old_versions=False)
    return Versions(old, about.stats.bytes_removed)


def drop_versions(artifact: str, uri: str, numbers: list[int]) -> int:
    """Forgets these versions of a bank and removes what only they refer to. Returns bytes.

    The number of its content's revision is written into the newest version first, since it is counted from the others.
    """
    note(artifact)
    with translate_errors("written", uri):
        dataset = open_table(uri)
        return int(dataset.cleanup_old_versions(versions=numbers, error_if_tagged_old_versions=False).bytes_removed)


def _utc(moment: object) -> datetime:
    assert isinstance(moment, datetime), moment
    return moment.astimezone(UTC)
