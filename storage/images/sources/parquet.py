"""Parquet as Hugging Face writes it: a column of pictures (`image{bytes, path}`), a label, perhaps a caption, a row each.

Names of classes come from the schema's metadata (`ClassLabel`), that of another file, or the set's card.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.images.sources.class_labels import Names, in_cards, in_schema
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
class Columns:
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
        schemas = [_schema_of(place, file) for file in tables]
        return any(isinstance(each, pa.Schema) and not isinstance(columns_of(each), str) for each in schemas)

    def list_entries(self, place: Place, files: list[File]) -> Found:
        names, told = in_cards(place, files)
        files = [file for file in files if file.path not in told]
        with ThreadPoolExecutor(READERS) as pool:
            schemas = list(pool.map(lambda file: _schema_of(place, file), files))
            for schema in schemas:
                names |= in_schema(schema) if isinstance(schema, pa.Schema) else {}
            parts = pool.map(lambda file, schema: _entries(place, file, schema, names), files, schemas)
            return Found([entry for part in parts for entry in part])

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        """A file is opened once for all its entries in a row, which are in the order of its rows."""
        for name, run in groupby(entries, key=lambda entry: entry.file):
            rows = [entry.offset for entry in run]
            read = 0
            try:
                with place.filesystem.open(name, "rb") as handle:
                    table = pq.ParquetFile(handle)
                    columns = columns_of(table.schema_arrow)
                    for data in _pictures(table, columns.image if isinstance(columns, Columns) else "", rows):
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


def _schema_of(place: Place, file: File) -> pa.Schema | str:
    """A table's schema, or why there is none."""
    if file.reason or file.suffix != "parquet":
        return file.reason or "not Parquet among Parquet files"
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            return pq.read_schema(handle)
    except DAMAGED as error:
        return unreadable(place, error)


def unreadable(place: Place, error: Exception) -> str:
    """The reason for a file that pyarrow cannot read; what may pass is raised."""
    lost = _lost(error)
    if may_pass(place.filesystem, lost):
        raise error
    return f"unreadable: {lost.strerror or lost}"


def columns_of(schema: pa.Schema, elsewhere: Names | None = None) -> Columns | str:
    """The columns, or why there are no pictures among them. `elsewhere`: names of classes that it need not tell itself."""
    images = [field for field in schema if _bytes_type(field.type)]
    images.sort(key=lambda field: IMAGE_NAMES.index(field.name) if field.name in IMAGE_NAMES else len(IMAGE_NAMES))
    if not images:
        return "a table without a column of pictures"
    chosen = images[0]
    names = (elsewhere or {}) | in_schema(schema)
    label = "label" if "label" in schema.names else next((name for name in names if name in schema.names), None)
    return Columns(
        f"{chosen.name}.bytes" if pa.types.is_struct(chosen.type) else chosen.name,
        label,
        names.get(label or "", ()),
        tuple(name for name in TEXTS if name in schema.names and name != label),
    )


def _bytes_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _bytes_type(kind.field(place).type)
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name.startswith("lance.blob")
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _entries(place: Place, file: File, schema: pa.Schema | str, names: Names) -> list[Entry]:
    columns = schema if isinstance(schema, str) else columns_of(schema, names)
    if isinstance(columns, str):
        return [Entry(file.path, file.name, size=file.size, reason=columns)]
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            table = pq.ParquetFile(handle)
            told = [name for name in (columns.label, *columns.texts) if name]
            rows = table.read(columns=told).to_pylist() if told else [{}] * table.metadata.num_rows
    except DAMAGED as error:
        return [Entry(file.path, file.name, size=file.size, reason=unreadable(place, error))]
    return [entry_of(place, file, number, facts_of(row, columns)) for number, row in enumerate(rows)]


def facts_of(row: dict[str, Any], columns: Columns) -> Facts:
    """What a row says of its picture."""
    number = row.get(columns.label) if columns.label else None
    record = row | {"label": number}
    if isinstance(number, int) and 0 <= number < len(columns.names):
        record |= {"class": columns.names[number]}
    return from_record(record)


def entry_of(place: Place, file: File, row: int, facts: Facts) -> Entry:
    """The input that is a row of a table."""
    key = f"{file.path.removesuffix(f'.{file.suffix}')}/{row:08d}"
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
