"""Lance tables with a column of pictures, as bytes or as blobs: a table's folder, or a folder (a LanceDB) of several.

Columns mean what they mean in Parquet. The version that was listed is the one that is read. Rows are counted without those
that were deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from storage.errors import StoreRefused
from storage.files.s3 import lance_options
from storage.images.sources.entries import Entry, File, Found, Place
from storage.images.sources.files import is_local
from storage.images.sources.parquet import ROWS, Columns, columns_of, entry_of, facts_of

if TYPE_CHECKING:
    from lance import LanceDataset

UNUSABLE = (StoreRefused, FileNotFoundError)
MARK = "lance:"
"""Begins what an entry says of the table to open, and its version."""
DATA = re.compile(r"(?:(?P<table>.+)/)?data/[^/]+\.lance")
"""A table's file, by its path."""


class Lance:
    """A table, or a folder of them."""

    suffixes: tuple[str, ...] = ("lance",)

    def holds(self, place: Place, files: list[File]) -> bool:
        return any(isinstance(_opened(place, table), tuple) for table in _tables(files))

    def list_entries(self, place: Place, files: list[File]) -> Found:
        tables = _tables(files)
        entries = [entry for table in tables for entry in _entries(place, table)]
        for file in files:
            if not any(file.path.startswith(f"{table}/") or not table for table in tables):
                reason = file.reason or "not of a Lance table, and beside one"
                entries.append(Entry(file.path, file.name, size=file.size, reason=reason))
        return Found(entries)

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        for name, run in groupby(entries, key=lambda entry: entry.file):
            rows, done = [entry.offset for entry in run], 0
            try:
                with _told():
                    table = _at(name)
                    columns = columns_of(table.schema)
                    for data in _pictures(table, columns.image if isinstance(columns, Columns) else "", rows):
                        yield data
                        done += 1
            except UNUSABLE as error:
                yield from [FileNotFoundError(_reason(error))] * (len(rows) - done)


def _tables(files: list[File]) -> list[str]:
    """Folders of tables, relative to the source; the source itself is the empty one."""
    found = (DATA.fullmatch(file.path) for file in files if not file.reason)
    return sorted({match["table"] or "" for match in found if match})


def _opened(place: Place, table: str) -> tuple[File, LanceDataset, Columns] | str:
    """The newest version of a table as one of its entries names it, or why there are no pictures to be had."""
    import lance

    scheme = place.source.partition("://")[0] if "://" in place.source else ""
    if not is_local(place.filesystem) and scheme != "s3":
        return "a Lance table is read on disk and at s3:// alone: copy it there"
    root = f"s3://{place.root}" if scheme == "s3" else place.root
    uri = f"{root.rstrip('/')}/{table}".rstrip("/")
    try:
        with _told():
            found = lance.dataset(uri, storage_options=lance_options(uri))
    except UNUSABLE as error:
        return f"unreadable: {_reason(error)}"
    columns = columns_of(found.schema)
    if isinstance(columns, str):
        return columns
    return File(table or uri.rpartition("/")[2], f"{MARK}{uri}@{found.version}"), found, columns


def _at(name: str) -> LanceDataset:
    import lance

    uri, _, version = name.removeprefix(MARK).rpartition("@")
    return lance.dataset(uri, version=int(version), storage_options=lance_options(uri))


def _entries(place: Place, table: str) -> list[Entry]:
    opened = _opened(place, table)
    if isinstance(opened, str):
        return [Entry(table, "", reason=opened)]
    file, found, columns = opened
    told = [name for name in (columns.label, *columns.texts) if name]
    try:
        with _told():
            rows: list[dict[str, Any]] = found.to_table(told).to_pylist() if told else [{}] * found.count_rows()
    except UNUSABLE as error:
        return [Entry(file.path, "", reason=f"unreadable: {_reason(error)}")]
    return [entry_of(place, file, number, facts_of(row, columns)) for number, row in enumerate(rows)]


def _pictures(table: LanceDataset, column: str, rows: list[int]) -> Iterator[bytes | OSError]:
    """The pictures of ascending rows, read in stretches of rows that follow each other."""
    name, _, field = column.partition(".")
    for _, stretch in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
        numbers = [row for _, row in stretch]
        found = table.scanner(
            [name],
            offset=numbers[0],
            limit=len(numbers),
            batch_size=ROWS,
            scan_in_order=True,
            blob_handling="all_binary",
        )
        for batch in found.to_batches():
            values = batch.column(0).field(field) if field else batch.column(0)
            for data in values.to_pylist():
                yield FileNotFoundError("the row holds no picture") if data is None else data


def _told() -> AbstractContextManager[None]:
    """What Lance says of a table that cannot be read, as errors of this project's kinds."""
    from storage.tables.fragments import translate_errors  # with Lance, of which only these tables have need

    return translate_errors("read", "the table")


def _reason(error: Exception) -> str:
    return f"damaged table: {' '.join(str(error).split())[:150]}"
