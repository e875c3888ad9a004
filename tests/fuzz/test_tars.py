"""Tars, damaged, through ingest: listed in bounded time and memory, and whatever is kept is read back."""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from storage.errors import Refused
from storage.images.index import index_shards, read_index
from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
from storage.images.sources import list_source
from tests.fuzz.mutation import given_many, mutated, within_memory

BLOCK = 512
TOLD = {"png": None, "cls": b"3", "json": b'{"label": 2, "group": "g", "caption": "a\\u00e4"}', "txt": b"a caption"}


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 40, 80, 160)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(format: int, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for number, name in enumerate(names):
            for suffix, told in TOLD.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                data = told or picture(number)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../out.png"
        archive.addfile(link)
    return buffer.getvalue()


NAMES = ["a", "b.seg", "c/d", "long" * 40, "\u00e4/" * 60 + "x"]
WHOLE = [tar(tarfile.PAX_FORMAT, NAMES), tar(tarfile.GNU_FORMAT, NAMES), tar(tarfile.USTAR_FORMAT, NAMES[:3])]


def with_sums(data: bytes) -> bytes:
    """With the sums that its headers ought to have, so that what they say is believed."""
    changed = bytearray(data)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        block = changed[start : start + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(changed)


def ingested(data: bytes, folder: Path) -> int:
    """How many pictures are kept of an archive, each of them read back."""
    source, root = str(folder / "x.tar"), str(folder / "images")
    Path(source).write_bytes(data)
    try:
        listing = list_source(source, "tars")
    except Refused:
        return 0
    entries = listing.slice(0, len(listing))
    assert entries and all(entry.reason is None or len(entry.reason) < 200 for entry in entries)
    plan = ShardPlan(source, 16, 0.0, tuple(listing.classes()))
    result = write_shard(root, 0, entries, plan)
    assert sum(result) == len(entries)
    if not result.kept:
        return 0
    write_index(root, 1, plan)
    index = read_index(root)
    read = [each for shard in index_shards(index) for each in read_shard(root, shard)]
    assert len(read) == result.kept and all(each.image.shape == (16, 16, 3) for each in read)
    return result.kept


def test_the_whole_ones_are_kept() -> None:
    for data in WHOLE:
        with tempfile.TemporaryDirectory() as folder:
            assert ingested(with_sums(data), Path(folder)) in (3, 5)


@given_many()
@given(mutated(WHOLE, most=8), st.booleans())
def test_damaged_tars(data: bytes, repaired: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory():
        ingested(with_sums(data) if repaired else data, Path(folder))
