"""The pictures of a WebDataset tar, found by reading headers and small side files only.

A sample is a run of members with one name up to the first dot of the last part: a picture and, beside it, `.cls` or
`.json` (label, group) and `.txt` (caption). Nothing is ever extracted to disk; links and names that leave the folder
are refused all the same, since they show that the tar is not what it seems.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import IO, Any

SUFFIXES = ("jpg", "jpeg", "png", "webp")
SIDE_FILES = ("cls", "json", "txt")
MAX_SIDE_FILE = 1 << 20
FURTHER = "a further picture of the same sample"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture in a tar: its bytes lie at `offset`, `size` long. With a `reason` it is unusable."""

    name: str
    offset: int = -1
    size: int = 0
    key: str = ""
    group: str | None = None
    label: str | None = None
    text: str | None = None
    reason: str | None = None


@dataclass
class _Sample:
    """The members seen so far that share the name `key`."""

    key: str
    seen: set[str] = field(default_factory=set)
    found: list[TarMember] = field(default_factory=list)
    side: dict[str, bytes] = field(default_factory=dict)

    def pictures(self) -> Iterator[TarMember]:
        about = _object(self.side.get("json", b"{}"))
        label = self.side["cls"].decode("utf-8", "replace").strip() if "cls" in self.side else about.get("label")
        group = about.get("group")
        caption = self.side["txt"].decode("utf-8", "replace").strip() if "txt" in self.side else None
        for place, picture in enumerate(self.found):
            yield replace(
                picture,
                label=None if label is None else str(label),
                group=None if group is None else str(group),
                text=caption,
                reason=FURTHER if place else None,
            )


def list_tar(handle: IO[bytes], length: int) -> Iterator[TarMember]:
    """Yields the pictures of an uncompressed tar of `length` bytes, and one row with a reason for each thing refused.

    A truncated tar yields what is whole in it, then a row that says so.
    """
    sample = _Sample("")
    for info, problem in _members(handle, length):
        if info is None or problem:
            yield TarMember(_printable(info.name) if info else "", size=info.size if info else 0, reason=problem)
            continue
        key, suffix = _split(info.name)
        if key != sample.key or suffix in sample.seen:
            yield from sample.pictures()
            sample = _Sample(key)
        sample.seen.add(suffix)
        if suffix in SUFFIXES and not key.rpartition("/")[2]:
            yield TarMember(info.name, size=info.size, reason="refused: nothing before the first dot of its name")
        elif suffix in SUFFIXES:
            sample.found.append(TarMember(info.name, info.offset_data, info.size, key))
        elif suffix in SIDE_FILES and info.size <= MAX_SIDE_FILE:
            handle.seek(info.offset_data)
            sample.side[suffix] = handle.read(info.size)
        elif suffix.rsplit(".", 1)[-1] in SUFFIXES:
            yield TarMember(info.name, size=info.size, reason=FURTHER)
        else:
            yield TarMember(info.name, size=info.size, reason=f"not a picture: .{suffix}")
    yield from sample.pictures()


def _members(handle: IO[bytes], length: int) -> Iterator[tuple[tarfile.TarInfo | None, str | None]]:
    """Files of the tar in order, each with the reason why it must not be used, or None."""
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else a million headers are kept
                if info.isdir():
                    continue
                problem = _problem(info, length)
                yield info, problem
                if problem and problem.startswith("truncated"):
                    return
            handle.seek(tar.offset)
            if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a whole tar ends with empty blocks
                yield None, "truncated or broken tar: what follows the last member cannot be read"
    except (tarfile.TarError, EOFError, ValueError) as error:
        yield None, f"truncated or broken tar: {error}"


def _problem(info: tarfile.TarInfo, length: int) -> str | None:
    path = PurePosixPath(info.name)
    if info.issym() or info.islnk():
        return "refused: a link"
    if not info.isfile():
        return "refused: not a regular file"
    if path.is_absolute() or ".." in path.parts or "\\" in info.name:
        return "refused: its name leaves the folder"
    if info.name != _printable(info.name):
        return "file name is not valid UTF-8"
    if info.offset_data + info.size > length:
        return "truncated tar: ends inside this member"
    return None


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _split(name: str) -> tuple[str, str]:
    """'a/b.seg.png' -> ('a/b', 'seg.png')."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    stem, _, suffix = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
