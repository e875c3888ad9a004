"""Where pictures come from: a folder tree, or WebDataset tars; listed once, then read by many workers.

A listing is an Arrow table with a row for every input in a fixed order, the unusable ones with their reason, so that
any slice of it can be handed to a worker anywhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
from braceexpand import braceexpand
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from storage.files import open_files
from storage.images.tars import SUFFIXES, TarMember, list_tar

READERS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One input. `path` is relative to the source; `file` is what to open, from `offset` on when it lies in a tar.

    `label` is a name or a number in words, `text` a caption (tars only). With a `reason` the entry is unusable.
    """

    path: str
    file: str
    offset: int = -1
    size: int = 0
    key: str = ""
    group: str = ""
    label: str | None = None
    text: str | None = None
    reason: str | None = None


SCHEMA = pa.schema(
    [
        (f.name, pa.int64() if f.name in ("offset", "size") else pa.large_string() if f.name == "text" else pa.string())
        for f in fields(Entry)
    ]
)


@dataclass(frozen=True)
class Listing:
    """All inputs of a source. `fingerprint` changes when a file's path, size or modification time does."""

    source: str
    table: pa.Table
    fingerprint: str

    def __len__(self) -> int:
        return self.table.num_rows

    def slice(self, start: int, stop: int) -> list[Entry]:
        """Entries number `start` to `stop` - 1."""
        return [Entry(**row) for row in self.table.slice(start, stop - start).to_pylist()]

    def classes(self) -> list[str]:
        """Label names; a label's number is its place. Labels that are numbers already keep them."""
        names = sorted(name for name in self.table["label"].unique().to_pylist() if name is not None)
        numbers = [int(name) for name in names if re.fullmatch(r"0|[1-9]\d{0,4}", name)]
        return [str(n) for n in range(max(numbers) + 1)] if names and len(numbers) == len(names) else names


@dataclass(frozen=True)
class _File:
    """A file below the source as its filesystem tells it; `stamp` is a modification time or an etag."""

    path: str
    name: str
    size: int
    stamp: str
    reason: str | None = None


def list_source(source: str) -> Listing:
    """Lists a folder of pictures, a folder of tars, one tar, or a pattern of tars with braces or wildcards.

    The source lies on disk, at s3:// or wherever fsspec reaches. ValueError when nothing is there.
    """
    filesystem, root = _reach(source)
    is_folder = filesystem.isdir(root)
    files = sorted(_walk(filesystem, root) if is_folder else _expand(filesystem, root), key=lambda f: f.path)
    if not files:
        raise ValueError(f"data.source {source!r} holds no pictures; name a folder, a .tar or a pattern of tars")
    tars = not is_folder or any(f.path.lower().endswith(".tar") for f in files)
    found = _tar_entries(filesystem, files, several=is_folder or len(files) > 1) if tars else map(_picture, files)
    entries = _with_unique_keys(list(found))
    columns = {name: [getattr(entry, name) for entry in entries] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    return Listing(source, table, _fingerprint(files))


def read_entries(entries: list[Entry], source: str) -> Iterator[Any]:
    """Yields for each entry its bytes, or an `OSError` when it cannot be read. Tars are opened once in a row."""
    filesystem, _ = _reach(source)
    name, handle = "", io.BytesIO()
    for entry in entries:
        try:
            if entry.offset < 0:
                yield filesystem.cat_file(entry.file)
                continue
            if entry.file != name:
                handle.close()
                name, handle = entry.file, filesystem.open(entry.file, "rb")
            handle.seek(entry.offset)
            yield handle.read(entry.size)
        except OSError as error:
            if not _local(filesystem) and not isinstance(error, FileNotFoundError | PermissionError):
                raise  # a network's mood is no property of the picture: let the job try again
            yield error
    handle.close()


def _reach(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if source.startswith("s3://"):
        filesystem = open_files(source).filesystem
        return filesystem, filesystem._strip_protocol(source)
    return url_to_fs(os.path.expanduser(source))


def _local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def _fingerprint(files: list[_File]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.stamp}\n".encode())
    return digest.hexdigest()[:12]


# --- files -----------------------------------------------------------------------------------------------------------


def _walk(filesystem: fsspec.AbstractFileSystem, root: str) -> Iterator[_File]:
    if _local(filesystem):
        yield from _walk_local(root)
        return
    for name, info in filesystem.find(root, detail=True).items():
        yield _described(name[len(root.rstrip("/")) + 1 :], name, info)


def _walk_local(root: str) -> Iterator[_File]:
    """Follows links to folders, but not to a folder that is already above."""
    unreadable: list[OSError] = []
    above: dict[str, frozenset[tuple[int, int]]] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable.append):
        here = os.stat(folder)
        chain = above.get(os.path.dirname(folder), frozenset()) | {(here.st_dev, here.st_ino)}
        above[folder] = chain
        loops = {name for name in subfolders if _is_one_of(os.path.join(folder, name), chain)}
        subfolders[:] = sorted(set(subfolders) - loops)
        for name in names:
            yield _stat(os.path.join(folder, name), root)
        for name in loops:
            yield _File(_relative(os.path.join(folder, name), root), "", 0, "", reason="a link to a folder above it")
    for error in unreadable:
        yield _File(_relative(str(error.filename), root), "", 0, "", reason=f"unreadable folder: {error.strerror}")


def _is_one_of(folder: str, chain: frozenset[tuple[int, int]]) -> bool:
    try:
        info = os.stat(folder)
    except OSError:
        return False  # the walk itself reports what it cannot enter
    return (info.st_dev, info.st_ino) in chain


def _stat(name: str, root: str) -> _File:
    path = _relative(name, root)
    if path != os.path.relpath(name, root):
        return _File(path, "", 0, "", reason="file name is not valid UTF-8")
    try:
        info = os.stat(name)
    except OSError as error:
        return _File(path, name, 0, "", reason=f"unreadable: {error.strerror}")
    return _File(path, name, info.st_size, str(info.st_mtime_ns))


def _relative(name: str, root: str) -> str:
    return os.fsencode(os.path.relpath(name, root)).decode("utf-8", "backslashreplace")


def _expand(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Iterator[_File]:
    for name in (each for part in pattern.split("::") for each in braceexpand(part)):
        matches = filesystem.glob(name) if re.search(r"[*?\[]", name) else [name]
        for match in matches:
            short = match.rsplit("/", 1)[-1]
            try:
                yield _described(short, match, filesystem.info(match))
            except OSError as error:
                yield _File(short, match, 0, "", reason=f"unreadable: {error.strerror or 'not found'}")


def _described(path: str, name: str, info: dict[str, Any]) -> _File:
    stamp = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), "")
    return _File(path, name, int(info.get("size") or 0), stamp)


# --- entries ---------------------------------------------------------------------------------------------------------


def _picture(file: _File) -> Entry:
    path = PurePosixPath(file.path)
    reason = file.reason
    if reason is None and path.suffix[1:].lower() not in SUFFIXES:
        reason = f"not a picture: {path.suffix or 'no suffix'}"
    label = path.parts[0] if len(path.parts) > 1 else None
    key = _key(path)
    return Entry(file.path, file.name, size=file.size, key=key, group=key, label=label, reason=reason)


def _key(path: PurePosixPath) -> str:
    """The path without suffix. A shard's reader splits names at the first dot, so the last part keeps none."""
    return str(path.with_name(path.name.removesuffix(path.suffix).replace(".", "_") or "_"))


def _tar_entries(filesystem: fsspec.AbstractFileSystem, files: list[_File], several: bool) -> Iterator[Entry]:
    """Headers lie between the pictures, so a remote tar is read through: several at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        for entries in pool.map(lambda file: _in_tar(filesystem, file, several), files):
            yield from entries


def _in_tar(filesystem: fsspec.AbstractFileSystem, file: _File, several: bool) -> list[Entry]:
    if file.reason or not file.path.lower().endswith(".tar"):
        return [Entry(file.path, file.name, size=file.size, reason=file.reason or "not a tar among tars")]
    prefix = file.path[: -len(".tar")] + "/" if several else ""
    try:
        with filesystem.open(file.name, "rb") as handle:
            return [_tar_picture(file, member, prefix) for member in list_tar(handle, file.size)]
    except OSError as error:
        return [Entry(file.path, file.name, size=file.size, reason=f"unreadable: {error.strerror or error}")]


def _tar_picture(file: _File, member: TarMember, prefix: str) -> Entry:
    path = f"{file.path}/{member.name}" if member.name else file.path
    if member.reason:
        return Entry(path, file.name, size=member.size, reason=member.reason)
    key = prefix + member.key
    return Entry(path, file.name, member.offset, member.size, key, member.group or key, member.label, member.text)


def _with_unique_keys(entries: list[Entry]) -> list[Entry]:
    """The first of several usable entries with one key keeps it; the others get a hash of their path appended."""
    taken: set[str] = set()
    result = []
    for entry in entries:
        if entry.reason is None and entry.key in taken:
            key = f"{entry.key}-{hashlib.sha256(entry.path.encode()).hexdigest()[:8]}"
            group = key if entry.group == entry.key else entry.group
            entry = replace(entry, key=key, group=group)
        if entry.reason is None:
            taken.add(entry.key)
        result.append(entry)
    return result
