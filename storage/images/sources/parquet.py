"""Parquet as Hugging Face writes it: a column of pictures (`image{bytes, path}`), a label, perhaps a caption, a row each.

Names of classes come from the schema's metadata (`ClassLabel`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.images.sources.entries import Entry, File, Found, Place
from storage.images.sources.files import may_pass
from storage.images.sources.labels import folder_label
from storage.images.sources.neighbours import Facts, from_record

READERS = 4
DAMAGED = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises of a table; names of columns, too, may be no text."""
LOOKED_INTO = 8
ROWS = 64
IMAGE_NAMES = ("image", "img", "picture", "jpg", "png", "webp")
TEXTS = ("class", "class_name", "caption", "text", "group")


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what. `image` is the path of the column of bytes, `names` of classes by their number."""

    image: str
    label: str | None
    names: tuple[str, ...]
    texts: tuple[str, ...]


class Parquet:
    """A Parquet file, several, or a folder of them."""

    suffixes: tuple[str, ...] = ("parquet",)

    def holds(self, place: Place, files: list[File]) -> bool:
        tables = [file for file in files if file.suffix == "parquet" and not file.reason][:LOOKED_INTO]
        return any(not isinstance(_columns_of(place, file), str) for file in tables)

    def list_entries(self, place: Place, files: list[File]) -> Found:
        with ThreadPoolExecutor(READERS) as pool:
            return Found([e for part in pool.map(lambda file: _entries(place, file), files) for e in part])

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        """A file is opened once for all its entries in a row, which are in the order of its rows."""
        for name, run in groupby(entries, key=lambda entry: entry.file):
            rows = [entry.offset for entry in run]
            read = 0
            try:
                with place.filesystem.open(name, "rb") as handle:
                    table = pq.ParquetFile(handle)
                    columns = _columns(table.schema_arrow)
                    for data in _pictures(table, columns.image if isinstance(columns, _Columns) else "", rows):
                        yield data
                        read += 1
            except DAMAGED as error:
                yield from [_lost(error)] * (len(rows) - read)


def _lost(error: Exception) -> OSError:
    """The system's own error as it is; one of Arrow's is the file's, whatever is tried again."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    words = " ".join(str(error).split())
    return FileNotFoundError(f"damaged table: {words}"[:200])


def _pictures(table: pq.ParquetFile, column: str, rows: list[int]) -> Iterator[bytes | OSError]:
    """The pictures of ascending rows; only the row groups that hold one are read, a few rows at a time."""
    wanted = iter(rows)
    row = next(wanted, None)
    first = 0
    for group in range(table.num_row_groups):
        behind = first + table.metadata.row_group(group).num_rows
        if row is not None and row < behind:
            for batch in table.iter_batches(ROWS, [group], [column]):
                values = batch.column(0)
                values = values.field("bytes") if pa.types.is_struct(values.type) else values
                while row is not None and row < first + len(batch):
                    data = values[row - first].as_py()
                    yield FileNotFoundError("the row holds no picture") if data is None else data
                    row = next(wanted, None)
                first += len(batch)
        first = behind


def _columns_of(place: Place, file: File) -> _Columns | str:
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            return _columns(pq.read_schema(handle))
    except DAMAGED as error:
        return _unreadable(place, error)


def _unreadable(place: Place, error: Exception) -> str:
    lost = _lost(error)
    if may_pass(place.filesystem, lost):
        raise error
    return f"unreadable: {lost.strerror or lost}"


def _columns(schema: pa.Schema) -> _Columns | str:
    """The columns, or why there are no pictures among them."""
    images = [field for field in schema if _bytes_type(field.type)]
    images.sort(key=lambda field: IMAGE_NAMES.index(field.name) if field.name in IMAGE_NAMES else len(IMAGE_NAMES))
    if not images:
        return "a table without a column of pictures"
    chosen = images[0]
    features = _features(schema)
    class_labels = [
        name for name, about in features.items() if about.get("_type") == "ClassLabel" and name in schema.names
    ]
    label = "label" if "label" in schema.names else next(iter(class_labels), None)
    names = features.get(label or "", {}).get("names")
    return _Columns(
        f"{chosen.name}.bytes" if pa.types.is_struct(chosen.type) else chosen.name,
        label,
        tuple(map(str, names)) if isinstance(names, list) else (),
        tuple(name for name in TEXTS if name in schema.names and name != label),
    )


def _bytes_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _bytes_type(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _entries(place: Place, file: File) -> list[Entry]:
    if file.reason or file.suffix != "parquet":
        return [Entry(file.path, file.name, size=file.size, reason=file.reason or "not Parquet among Parquet files")]
    columns = _columns_of(place, file)
    if isinstance(columns, str):
        return [Entry(file.path, file.name, size=file.size, reason=columns)]
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            table = pq.ParquetFile(handle)
            told = [name for name in (columns.label, *columns.texts) if name]
            rows = table.read(columns=told).to_pylist() if told else [{}] * table.metadata.num_rows
    except DAMAGED as error:
        return [Entry(file.path, file.name, size=file.size, reason=_unreadable(place, error))]
    return [_entry(place, file, number, _facts(row, columns)) for number, row in enumerate(rows)]


def _facts(row: dict[str, Any], columns: _Columns) -> Facts:
    number = row.get(columns.label) if columns.label else None
    record = row | {"label": number}
    if isinstance(number, int) and 0 <= number < len(columns.names):
        record |= {"class": columns.names[number]}
    return from_record(record)


def _entry(place: Place, file: File, row: int, facts: Facts) -> Entry:
    key = f"{file.path.removesuffix('.parquet')}/{row:08d}"
    by_folder = place.rule is not None
    return Entry(
        f"{file.path}/{row}",
        file.name,
        offset=row,
        key=key,
        group=facts.group or key,
        label=folder_label(file.path, place.rule) if by_folder else facts.label,
        class_name=None if by_folder else facts.class_name,
        caption=facts.caption,
    )
