"""Training data from an object store, kept on the node's disk: fetched once by one process, read locally by all.

    <folder>/<key>/table.lance      the columns that training reads, of one table at one version
    <folder>/<key>/done             whole, and when it was last used
    <folder>/<key>.lock             held exclusively to build or remove it, shared for as long as a process reads it

When the disk gets short the copies that nobody reads go, the longest unused first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import lance
from lance.dataset import LanceDataset

log = logging.getLogger(__name__)

KEPT_FREE = 0.05  # share of the disk that stays free
COPY_ROWS = 4096
TRY_AGAIN_SECONDS = 0.1

_reading: list[IO[bytes]] = []
"""Locks that this process holds for as long as it lives."""


def on_disk(dataset: LanceDataset, columns: Sequence[str], row_bytes: int, folder: str) -> LanceDataset:
    """A table with these columns and the rows of `dataset` in their order, on this node's disk.

    A table that is no remote one comes back as it is, and so does one for which there is no room.

    Args:
        row_bytes: what a row takes, about.
        folder: where the copies of this node are; "~" is the home folder.
    """
    if "://" not in dataset.uri or dataset.uri.startswith("file"):
        return dataset
    key = json.dumps([dataset.uri, dataset.version, sorted(columns)])
    place = Path(folder).expanduser() / hashlib.sha256(key.encode()).hexdigest()[:20]
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = open(place.with_suffix(".lock"), "ab")  # noqa: SIM115 - open, and with it locked, for as long as we read
    while True:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another process fetches
        if (place / "done").exists():
            _reading.append(lock)
            (place / "done").touch()
            return lance.dataset(str(place / "table.lance"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # whoever was faster fetches, or reads for good: waiting for the lock could be for ever
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, 2 * TRY_AGAIN_SECONDS))
            continue
        if not (place / "done").exists() and not _fetch(dataset, columns, row_bytes, place):
            lock.close()
            return dataset


def _fetch(dataset: LanceDataset, columns: Sequence[str], row_bytes: int, place: Path) -> bool:
    shutil.rmtree(place, ignore_errors=True)  # of somebody who was killed
    size = dataset.count_rows() * row_bytes
    if not _make_room(place.parent, size):
        log.warning(
            "%s has no room for the %.1f GB of %s, which is read from afar: set cluster.cache to a larger disk",
            place.parent, size / 1e9, dataset.uri,
        )  # fmt: skip
        return False
    try:
        rows = dataset.scanner(columns=list(columns), batch_size=COPY_ROWS).to_reader()
        lance.write_dataset(rows, str(place / "table.lance"), max_rows_per_group=COPY_ROWS)
    except OSError as problem:
        shutil.rmtree(place, ignore_errors=True)
        log.warning("%s could not be copied to %s and is read from afar: %s", dataset.uri, place, problem)
        return False
    (place / "done").touch()
    return True


def _make_room(folder: Path, size: int) -> bool:
    """Removes unread copies until `size` bytes fit; whether they do."""
    for entry in [None, *_by_age(folder)]:
        if entry is not None:
            with _alone(entry) as ours:
                if ours:
                    shutil.rmtree(entry, ignore_errors=True)
        disk = shutil.disk_usage(folder)
        if disk.free - size >= KEPT_FREE * disk.total:
            return True
    return False


def _by_age(folder: Path) -> list[Path]:
    """Copies, the longest unused first; those that were never finished before all."""
    entries = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(entries, key=lambda path: os.stat(done).st_mtime if (done := path / "done").exists() else 0.0)


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether nobody reads or fetches this copy, and nobody will until the block ends."""
    with open(entry.with_suffix(".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
