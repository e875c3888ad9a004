"""Samples that are kept: WebDataset shards of PNGs, each with the snippet it came from."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image

from storage.store import Store

WRITERS = 4


class SampleRow(NamedTuple):
    """A generated picture uint8 [H, W, 3], its number, the id of its snippet in the bank, and how many network calls it
    took, or the most that one of its batch did."""

    number: int
    snippet: int
    image: NDArray[np.uint8]
    calls: int


def write_samples(store: Store, path: str, rows: list[SampleRow], seed: int) -> None:
    """Writes `<index>.png` and `<index>.json` (index, snippet, seed, calls) of each sample, whole or not at all."""
    buffer = io.BytesIO()
    with (
        wds.TarWriter(buffer, encoder=False, mtime=0, user="", group="") as tar,
        ThreadPoolExecutor(WRITERS) as pool,  # Pillow's encoders leave other threads alone
    ):
        for row, picture in zip(rows, pool.map(_png, (row.image for row in rows)), strict=True):
            about = {"index": row.number, "snippet": row.snippet, "seed": seed, "calls": row.calls}
            tar.write({"__key__": f"{row.number:08d}", "png": picture, "json": json.dumps(about).encode()})
    store.write_bytes(path, buffer.getvalue())


def _png(image: NDArray[np.uint8]) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(image).save(picture, "PNG")
    return picture.getvalue()


def read_samples(store: Store, path: str) -> Iterator[SampleRow]:
    """Yields the samples of a shard in the order in which they were written."""
    with store.filesystem.open(path, "rb") as stream:
        files = wds.tariterators.tar_file_expander([{"stream": stream, "url": path}])
        for sample in wds.tariterators.group_by_keys(files):
            about = json.loads(sample["json"])
            with Image.open(io.BytesIO(sample["png"])) as image:
                yield SampleRow(
                    about["index"], about["snippet"], np.asarray(image.convert("RGB")), about.get("calls", 0)
                )
