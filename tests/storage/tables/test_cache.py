"""Copies of tables in a bucket on the node's disk, on a real S3 protocol server."""

from __future__ import annotations

import fcntl
import os
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.dataset import LanceDataset

from storage.files.s3 import lance_options
from storage.tables import cache
from storage.tables.cache import on_disk

ROWS, COLUMNS = 100, ("id", "value")
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def table(bucket: str) -> LanceDataset:
    uri = f"{bucket}/some.lance"
    rows = pa.table({"id": np.arange(ROWS), "value": np.arange(ROWS) / 2, "thumbnail": [b"x" * 100] * ROWS})
    return lance.write_dataset(rows, uri, storage_options=lance_options(uri))


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    cache._reading.clear()  # as if the processes of earlier tests had ended


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_table_is_fetched_once_for_all_who_read_it(table: LanceDataset, tmp_path: Path, monkeypatch) -> None:
    fetched = []
    made = cache._made
    monkeypatch.setattr(cache, "_made", lambda *given: fetched.append(given) or made(*given))
    with ThreadPoolExecutor(4) as workers:
        copies = list(workers.map(lambda _: on_disk(table, COLUMNS, 16, str(tmp_path)), range(4)))
    assert len(fetched) == 1 and len(names(tmp_path)) == 1
    for copy in copies:
        assert copy.uri.startswith(str(tmp_path)) and copy.schema.names == list(COLUMNS)
        assert copy.to_table()["id"].to_pylist() == list(range(ROWS))
        assert copy.take([7, 3])["value"].to_pylist() == [3.5, 1.5]


def test_who_is_second_to_fetch_does_not_wait_for_the_first_to_stop_reading(table, tmp_path: Path, monkeypatch) -> None:
    faster, flock = list[LanceDataset](), fcntl.flock

    def late(file: Any, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not faster:
            flock(file, fcntl.LOCK_UN)  # as the kernel does before it gives another kind of lock
            monkeypatch.undo()
            faster.append(on_disk(table, COLUMNS, 16, str(tmp_path)))
        flock(file, operation)

    monkeypatch.setattr(cache.fcntl, "flock", late)
    assert on_disk(table, COLUMNS, 16, str(tmp_path)).uri == faster[0].uri


def test_each_version_and_choice_of_columns_has_a_copy(table: LanceDataset, tmp_path: Path) -> None:
    on_disk(table, COLUMNS, 16, str(tmp_path))
    on_disk(table, ("id",), 8, str(tmp_path))
    table.delete("id < 10")
    assert on_disk(table, COLUMNS, 16, str(tmp_path)).count_rows() == ROWS - 10
    assert len(names(tmp_path)) == 3


def test_a_table_on_the_disk_needs_no_copy(tmp_path: Path) -> None:
    local = lance.write_dataset(pa.table({"id": [1]}), str(tmp_path / "local.lance"))
    assert on_disk(local, ("id",), 8, str(tmp_path / "cache")) is local and not (tmp_path / "cache").exists()


def test_what_nobody_reads_makes_room_and_without_room_it_is_read_from_afar(
    table: LanceDataset, tmp_path: Path, monkeypatch, caplog
) -> None:
    old, read = on_disk(table, ("id",), 8, str(tmp_path)), on_disk(table, ("value",), 8, str(tmp_path))
    cache._reading.pop(0).close()  # the reader of the first has ended
    os.utime(Path(old.uri).with_name("done"), (time.time() - 60,) * 2)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda _: Disk(10_000, 0, 5_000 - 2_000 * len(names(tmp_path)))
    )  # each copy takes 2,000 of 10,000 bytes, of which 500 stay free
    kept = on_disk(table, COLUMNS, 16, str(tmp_path))
    assert kept.uri.startswith(str(tmp_path)) and not Path(old.uri).exists() and Path(read.uri).exists()
    afar = on_disk(table, ("id", "thumbnail"), 108, str(tmp_path))
    assert afar is table and "set cluster.cache to a larger disk" in caplog.text


def test_what_a_killed_process_left_is_fetched_again(table: LanceDataset, tmp_path: Path) -> None:
    copy = on_disk(table, COLUMNS, 16, str(tmp_path))
    cache._reading.clear()
    place = Path(copy.uri).parent
    (place / "done").unlink()
    next((place / "table.lance" / "data").iterdir()).write_bytes(b"half")
    assert on_disk(table, COLUMNS, 16, str(tmp_path)).to_table()["value"].to_pylist()[-1] == (ROWS - 1) / 2
