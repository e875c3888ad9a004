"""What the processes of a node share on its disk: made once by one of them, read by all.

    <folder>/<key>/table.lance      the columns that training reads, of one table at one version in an object store
    <folder>/<key>/<column>         or numbers that all of them hold in memory, of `held`
    <folder>/<key>/done             whole, and when it was last used
    <folder>/<key>.lock             held exclusively to build or remove it, shared for as long as a process reads it

When another is made, those that nobody reads go: of a week ago all, and the longest unused first where the disk is short.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import lance
from lance.dataset import LanceDataset

log = logging.getLogger(__name__)

KEPT_FREE = 0.05  # share of the disk that stays free
COPY_ROWS = 4096
TRY_AGAIN_SECONDS = 0.1
UNUSED_SECONDS = 7 * 86_400

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

    def copied(place: Path) -> None:
        rows = dataset.scanner(columns=list(columns), batch_size=COPY_ROWS).to_reader()
        lance.write_dataset(rows, str(place / "table.lance"), max_rows_per_group=COPY_ROWS)

    key = json.dumps([dataset.uri, dataset.version, sorted(columns)])
    size = dataset.count_rows() * row_bytes
    place = made_once(folder, key, size, copied, f"{dataset.uri}, which is read from afar")
    return lance.dataset(str(place / "table.lance")) if place else dataset


def made_once(folder: str, key: str, size: int, make: Callable[[Path], None], of: str) -> Path | None:
    """Where the node has what this key stands for; None, and a line in the log, where it cannot be kept.

    Args:
        folder: of this node; "~" is the home folder.
        key: decides the content.
        size: bytes that it takes, about.
        make: writes it into a folder that it makes; OSError where it cannot.
        of: ends the line: what it is, and what is done without.
    """
    place = Path(folder).expanduser() / hashlib.sha256(key.encode()).hexdigest()[:20]
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(place.with_suffix(".lock"), "ab")  # noqa: SIM115 - open, and with it locked, for as long as we read
    except OSError as problem:
        log.warning(
            "%s cannot be written (%s) for %s: set cluster.cache to another", place.parent, problem.strerror, of
        )
        return None
    while True:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another process makes it
        if (place / "done").exists():
            _reading.append(lock)
            (place / "done").touch()
            return place
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (
            BlockingIOError
        ):  # whoever was faster makes it, or reads for good: waiting for the lock could be for ever
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, 2 * TRY_AGAIN_SECONDS))
            continue
        if not (place / "done").exists() and not _made(place, size, make, of):
            lock.close()
            return None


def _made(place: Path, size: int, make: Callable[[Path], None], of: str) -> bool:
    shutil.rmtree(place, ignore_errors=True)  # of somebody who was killed
    if not _make_room(place.parent, size):
        log.warning(
            "%s has no room for the %.1f GB of %s: set cluster.cache to a larger disk", place.parent, size / 1e9, of
        )
        return False
    try:
        make(place)
    except OSError as problem:
        shutil.rmtree(place, ignore_errors=True)
        log.warning("%s cannot be written (%s) for %s", place, problem, of)
        return False
    (place / "done").touch()
    return True


def _make_room(folder: Path, size: int) -> bool:
    """Removes what nobody reads, the old, and of the others until `size` bytes fit; whether they do."""
    for entry in _by_age(folder):
        if _last_used(entry) > time.time() - UNUSED_SECONDS and _fits(folder, size):
            break
        with _alone(entry) as ours:
            if ours:
                shutil.rmtree(entry, ignore_errors=True)
    return _fits(folder, size)


def _fits(folder: Path, size: int) -> bool:
    disk = shutil.disk_usage(folder)
    return disk.free - size >= KEPT_FREE * disk.total


def _by_age(folder: Path) -> list[Path]:
    """What is there, the longest unused first; those that were never finished before all."""
    entries = [path for path in folder.iterdir() if path.is_dir()]
    return sorted(entries, key=_last_used)


def _last_used(entry: Path) -> float:
    done = entry / "done"
    return done.stat().st_mtime if done.exists() else 0.0


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether nobody reads or makes this, and nobody will until the block ends."""
    with open(entry.with_suffix(".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
