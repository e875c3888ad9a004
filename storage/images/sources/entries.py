"""What every layout of pictures is made of: the inputs found, and the files in which they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import fsspec
import pyarrow as pa

from storage.errors import Refused
from storage.images.formats import READ, plugin_of
from storage.images.sources.labels import Rule, class_names

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", *READ)
"""Suffixes of files that are taken for pictures; what they hold is seen when they are decoded."""
MAX_BYTES = 2 << 30
"""A picture's file is read into memory whole."""

Layout = Literal["folder", "tars", "parquet", "lance"]


UNREAD = ("jp2", "psd", "svg", "dng", "cr2", "nef", "exr")


def unread(suffix: str) -> str | None:
    """Why a picture of this suffix is not read; None where it is none."""
    plugin = plugin_of(suffix)
    if plugin and suffix not in PICTURES:
        return f"a picture in a format that is not read here: {plugin.remedy}"
    return f"a picture in a format that is not read: .{suffix}" if suffix in UNREAD else None


@dataclass(frozen=True, slots=True)
class Entry:
    """One input. `path` is relative to the source; `file` is what to open.

    `offset` is the place of its bytes in a tar, or its row in a table, else -1. `label` is a name or a number in words,
    `class_name` what a number stands for where that is told, `caption` a text. With a `reason` the entry is unusable.
    """

    path: str
    file: str
    offset: int = -1
    size: int = 0
    key: str = ""
    group: str = ""
    label: str | None = None
    class_name: str | None = None
    caption: str | None = None
    reason: str | None = None


KINDS = {"offset": pa.int64(), "size": pa.int64(), "caption": pa.large_string()}
SCHEMA = pa.schema([(f.name, KINDS.get(f.name, pa.string())) for f in fields(Entry)])


def require_usable(source: str, reasons: pa.Array | pa.ChunkedArray, remedy: str = "correct data.source") -> None:
    """Refused when each of a source's inputs has a reason for which it cannot be used; says why most of them cannot."""
    if reasons.null_count:
        return
    worst = Counter(reasons.to_pylist()).most_common(1)
    told = f"mostly: {worst[0][0]}" if worst else "not one"
    raise Refused(f"no picture of {source[:80]!r} can be used ({len(reasons):,} inputs, {told}); {remedy}")


@dataclass(frozen=True)
class Listing:
    """All inputs of a source. `fingerprint` changes when a file's path, size or modification time does."""

    source: str
    table: pa.Table
    fingerprint: str
    notes: tuple[str, ...] = ()
    """What a person should know of it, a sentence each."""

    def __len__(self) -> int:
        return self.table.num_rows

    def require_usable(self) -> None:
        """Refused when no input can be used; says why most of them cannot."""
        require_usable(self.source, self.table["reason"])

    @property
    def usable(self) -> int:
        """How many inputs can be used, as far as listing them tells."""
        return self.table["reason"].null_count

    def slice(self, start: int, stop: int) -> list[Entry]:
        """Entries number `start` to `stop` - 1."""
        return [Entry(**row) for row in self.table.slice(start, stop - start).to_pylist()]

    def classes(self) -> list[str]:
        """Labels; a label's number is its place. Pictures that turn out to be unusable count, so no number moves."""
        return class_names(name for name in self.table["label"].unique().to_pylist() if name is not None)


@dataclass(frozen=True)
class File:
    """A file below the source as its filesystem tells it; `stamp` is a modification time or an etag."""

    path: str
    name: str
    size: int = 0
    stamp: str = ""
    reason: str | None = None

    @property
    def suffix(self) -> str:
        """In small letters, without the dot."""
        return self.path.rpartition("/")[2].rpartition(".")[2].lower() if "." in self.path else ""


@dataclass(frozen=True)
class Place:
    """Where a source lies, and how its pictures get their labels."""

    source: str
    filesystem: fsspec.AbstractFileSystem
    root: str
    is_folder: bool
    rule: Rule | None = None


@dataclass(frozen=True)
class Found:
    entries: list[Entry]
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A layout of pictures in files. A further one is a module like folder.py, and a line in listing.py."""

    suffixes: tuple[str, ...]
    """Of the files that may hold its pictures."""

    def holds(self, place: Place, files: list[File]) -> bool:
        """Whether files of these suffixes hold pictures indeed, seen from a few of them."""

    def list_entries(self, place: Place, files: list[File]) -> Found:
        """An entry for every picture in the files, and one with a reason for everything else."""

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        """The bytes of each entry, which follow each other as they were listed; the error where there are none."""
