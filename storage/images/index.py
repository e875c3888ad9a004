"""The index of image shards: a row for every input in the order of the listing, in as many parts as there are shards.

Whoever writes a shard leaves its rows in `parts/`, which makes the shard count. When all are there each part is numbered
from where the one before it ends, whoever does it and in whatever order, into `index.parquet/`: a folder that readers
of Parquet take for one table. Earlier releases wrote one file of that name.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.files import Files, open_files

INDEX, PARTS = "index.parquet", "parts"
READERS = 8
BLOCK = 256
"""Parts that are numbered by one call, which takes a second or two."""

INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("sample", pa.int64()),
        ("label", pa.int32()),
        ("label_name", pa.string()),
        ("class", pa.string()),
        ("caption", pa.large_string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)
"""`width` and `height` are those of the original, upright; `sample`, `split`, `shard` are null where not kept.

`label` is a number, `label_name` what the source said, `class` the name behind it. Release 0.1 knew no `class`, which is
then `label_name`, and no `caption`.
"""

Result = TypeVar("Result")
Spread = Callable[[Callable[[Any], Result], Sequence[Any]], Iterable[Result]]
"""Applies a function to blocks of shards, in whatever processes, and gives the results in order, as `map` does."""


@dataclass(frozen=True)
class Counts:
    """What an index lists: inputs by split, those that are not kept by reason, shards that hold pictures."""

    splits: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    shards: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.splits + other.splits, self.reasons + other.reasons, self.shards + other.shards)

    @property
    def kept(self) -> int:
        return self.splits.total()

    @property
    def refused(self) -> int:
        return self.reasons.total()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}"


def write_part(root: str, number: int, rows: list[dict[str, Any]]) -> None:
    """The rows of a shard, whose pictures have no numbers yet; the shard counts from then on."""
    _write(open_files(root), f"{root}/{PARTS}/{shard_name(number)}.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))


def done_shards(root: str) -> set[int]:
    """Numbers of the shards that are completely written."""
    names = open_files(root).names(f"{root}/{PARTS}")
    return {int(name[len("shard-") : -len(".parquet")]) for name in names if name.endswith(".parquet")}


def number_parts(root: str, shards: int, about: dict[str, str], spread: Spread[Any] = map) -> Counts:
    """Writes the index of shards 0 to `shards` - 1, which are complete; `about` becomes its schema's metadata.

    Where no picture was kept there is none to number, and nothing is written.
    """
    blocks = [range(start, min(start + BLOCK, shards)) for start in range(0, shards, BLOCK)]
    counted: list[Counts] = list(spread(partial(_count, root), blocks))
    total = sum(counted, Counts())
    if total.kept:
        open_files(root).remove(f"{root}/{INDEX}")
        starts = accumulate((each.kept for each in counted), initial=0)
        list(spread(partial(_number, root, about), list(zip(blocks, starts, strict=False))))
    return total


def read_index(root: str, shard: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """The index, or its kept rows of one shard; all columns, or these of the first release.

    Schema metadata: `classes` (JSON list of names) and `size`.
    """
    files, index = open_files(root), f"{root}/{INDEX}"
    part = f"{index}/{shard}.parquet"
    if shard and files.exists(part):
        rows = _read(files, part, columns)
        return rows.filter(rows["kept"])
    names = [] if shard else [name for name in files.names(index) if name.endswith(".parquet")]
    if not names:
        filters = [("shard", "=", shard)] if shard else None
        with files.filesystem.open(index, "rb") as handle:
            return _complete(pq.read_table(handle, columns=columns, filters=filters), columns)
    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables(pool.map(lambda name: _read(files, f"{index}/{name}", columns), names))


def index_shards(index: pa.Table) -> list[str]:
    """Names of the shards that hold pictures, in order."""
    return sorted(name for name in index["shard"].unique().to_pylist() if name)


def _count(root: str, block: range) -> Counts:
    """What some parts list."""
    listed = pa.concat_tables(_parts(root, block, ["split", "reason", "shard"]))
    split, reason, shard = (
        {row["values"]: row["counts"] for row in listed[name].drop_null().value_counts().to_pylist()}
        for name in ("split", "reason", "shard")
    )
    return Counts(Counter(split), Counter(reason), len(shard))


def _number(root: str, about: dict[str, str], block_and_first: tuple[range, int]) -> None:
    """Numbers the kept pictures of some parts in order."""
    block, first = block_and_first
    place, files = INDEX_SCHEMA.get_field_index("sample"), open_files(root)

    def write(number: int, part: pa.Table, first: int) -> None:
        kept = part["kept"].to_numpy()
        sample = pa.array(first + np.cumsum(kept) - 1, pa.int64(), mask=~kept)
        part = part.set_column(place, INDEX_SCHEMA.field("sample"), sample)
        # Who reads many parts as one table takes the first's metadata.
        part = part.replace_schema_metadata(about if number == 0 else None)
        _write(files, f"{root}/{INDEX}/{shard_name(number)}.parquet", part)

    parts = _parts(root, block)
    starts = accumulate((part["kept"].to_numpy().sum() for part in parts), initial=first)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(write, block, parts, starts))


def _parts(root: str, block: range, columns: list[str] | None = None) -> list[pa.Table]:
    files = open_files(root)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda n: _read(files, f"{root}/{PARTS}/{shard_name(n)}.parquet", columns), block))


def _read(files: Files, path: str, columns: list[str] | None) -> pa.Table:
    return _complete(pq.read_table(io.BytesIO(files.read(path)), columns=columns), columns)


def _write(files: Files, path: str, rows: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    files.write(path, buffer.getvalue())


def _complete(index: pa.Table, columns: list[str] | None) -> pa.Table:
    """With the columns that an earlier release did not know."""
    if columns is not None:
        return index
    earlier = {"class": index["label_name"], "caption": pa.nulls(len(index), INDEX_SCHEMA.field("caption").type)}
    for name, values in earlier.items():
        if name not in index.column_names:
            index = index.add_column(INDEX_SCHEMA.get_field_index(name), INDEX_SCHEMA.field(name), values)
    return index
