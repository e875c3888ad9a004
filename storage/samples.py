"""Samples that are kept: WebDataset shards of PNGs, each with the snippet it came from, and the index of many shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import TypedDict

from storage.documents import read_json
from storage.errors import Damaged
from storage.store import Store

WRITERS = 4
REMEDY = "remove the artifact it lies in and run again."


class _About(TypedDict):
    index: int
    snippet: int
    seed: int
    calls: NotRequired[int]
    mixed_with: NotRequired[int]


class SampleRow(NamedTuple):
    """A generated picture, and what it is of."""

    number: int
    snippet: int
    """Id of the row of the bank that its snippet is of; -1: of none, a prior drew it."""
    image: NDArray[np.uint8]
    """[H, W, 3]"""
    calls: int
    """Network calls that it took, or the most that one of its batch did."""
    mixed_with: int | None = None
    """Id of the row whose snippet is the other half."""


def write_samples(store: Store, path: str, rows: list[SampleRow], seed: int) -> None:
    """Writes `<index>.png` and `<index>.json` (index, snippet, seed, calls, and mixed_with where it is) of each sample, whole
    or not at all."""
    buffer = io.BytesIO()
    with (
        wds.TarWriter(buffer, encoder=False, mtime=0, user="", group="") as tar,
        ThreadPoolExecutor(WRITERS) as pool,  # Pillow's encoders leave other threads alone
    ):
        for row, picture in zip(rows, pool.map(_png, (row.image for row in rows)), strict=True):
            about = {"index": row.number, "snippet": row.snippet, "seed": seed, "calls": row.calls}
            if row.mixed_with is not None:
                about["mixed_with"] = row.mixed_with
            tar.write({"__key__": f"{row.number:08d}", "png": picture, "json": json.dumps(about).encode()})
    store.write_bytes(path, buffer.getvalue())


def _png(image: NDArray[np.uint8]) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    return picture.getvalue()


def read_samples(store: Store, path: str) -> Iterator[SampleRow]:
    """Yields the samples of a shard in the order in which they were written. Damaged where one is not whole."""
    with store.filesystem.open(path, "rb") as stream:
        files = wds.tariterators.tar_file_expander([{"stream": stream, "url": path}])
        for sample in wds.tariterators.group_by_keys(files):
            about = read_json(sample.get("json", b""), f"{path}/{sample['__key__']}.json", _About, REMEDY)
            picture = _pixels(sample.get("png", b""), f"{path}/{sample['__key__']}.png")
            yield SampleRow(about["index"], about["snippet"], picture, about.get("calls", 0), about.get("mixed_with"))


def _pixels(data: bytes, where: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise Damaged(f"{where} is damaged (no whole picture): {REMEDY}") from problem


INDEX_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("shard", pa.string()),
        ("snippet", pa.int64()),
        ("mixed_with", pa.int64()),
        ("key", pa.string()),
        ("class", pa.string()),
        ("seed", pa.int64()),
        ("calls", pa.int32()),
        ("network", pa.string()),
        ("bank", pa.string()),
    ]
)
"""Of a part of the index: `snippet` is null where a prior drew it, `mixed_with` where nothing was mixed, `key` and `class`
where the snippet's row has none."""


def write_index_part(store: Store, path: str, columns: dict[str, Any]) -> None:
    """Writes the part of an index that tells of one shard; `columns` as in INDEX_SCHEMA, one value or [N] values each.

    Written after the shard, it makes the shard count.
    """
    count = len(columns["number"])
    full = {n: v if np.ndim(v) or isinstance(v, list) else [v] * count for n, v in columns.items()}
    part = pa.BufferOutputStream()
    pq.write_table(pa.table(full, schema=INDEX_SCHEMA), part)
    store.write_bytes(path, part.getvalue().to_pybytes())


def read_index_part(store: Store, path: str) -> pa.Table | None:
    """The part of an index at `path`; None where its shard is not finished. Damaged where it is not whole."""
    if not store.files.exists(path):
        return None
    try:
        return pq.read_table(pa.BufferReader(store.read_bytes(path)), schema=INDEX_SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise Damaged(f"{path} is damaged (no whole Parquet file): remove it, and its shard is made again") from error
