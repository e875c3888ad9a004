"""The files of a source: a folder tree walked, a pattern expanded, each file once and none that would hang a reader."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import fsspec
from braceexpand import braceexpand
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from storage.addresses import without_userinfo
from storage.errors import Refused, StoreUnreachable
from storage.files import faults, open_files
from storage.files.faults import FAILING
from storage.images.formats import READ
from storage.images.sources.entries import MAX_BYTES, File, Place
from storage.images.sources.labels import Rule

LEFT_BEHIND = {
    "__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found",
    "system volume information", "__pycache__",
}  # fmt: skip
MAX_ADDRESS = 4096
MAX_NAMES = 250_000
"""That braces may stand for."""
VARIABLE = r"\$(\w|\{\w+\})"
MAX_VISITS = 16
"""Times that one folder is entered by way of links: folders that link to each other would be walked for ever."""
SPECIAL = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def reach(source: str, rule: Rule | None = None) -> Place:
    """The place that a source names. Refused where pictures cannot be read at random from there."""
    shown = repr(without_userinfo(source)[:80])
    if source.startswith("pipe:"):
        raise Refused(f"data.source {shown} is a command, which each worker would run anew: name the files it reads")
    if re.match(r"https?://", source, re.IGNORECASE):
        raise Refused(f"data.source {shown} is on the web: download it, and name the folder or the tars on disk")
    if len(source) > MAX_ADDRESS or "\0" in source:
        raise Refused(f"data.source {shown} is no address that can exist: correct it")
    if re.search(VARIABLE, source) and ("://" in source or not os.path.exists(os.path.expanduser(source))):
        raise Refused(f"data.source {shown} holds the name of a variable, which nothing replaces here: write its value")
    with _told(source):
        filesystem, root = _filesystem(source)
        return Place(source, filesystem, root, filesystem.isdir(root), rule)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """What goes wrong on the way to a source, in one sentence; StoreUnreachable where it may be over by the next time."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
        sentence = f"data.source {without_userinfo(source)[:80]!r} cannot be reached ({without_userinfo(words)})"
        passing = isinstance(error, OSError) or type(error).__module__.startswith(FAILING)
        if passing and faults.may_pass(error):
            raise StoreUnreachable(f"{sentence}: try again when it can be") from error
        if isinstance(error, ImportError):
            raise Refused(f"{sentence}: install that here and on every node, or copy the pictures to disk") from error
        raise Refused(f"{sentence}: name a folder, s3://… or another address that fsspec knows") from error


def _filesystem(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if source.startswith("s3://"):
        filesystem = open_files(source).filesystem
        return filesystem, filesystem._strip_protocol(source)
    if "://" not in source:
        filesystem = LocalFileSystem()  # a path on disk may hold what addresses give a meaning to
        return filesystem, os.path.abspath(os.path.expanduser(source)) if source else ""
    filesystem, root = url_to_fs(source)
    return filesystem, root


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def may_pass(filesystem: fsspec.AbstractFileSystem, error: OSError) -> bool:
    """Whether it is a network's mood and no property of the file: to be raised, so that the job is tried again."""
    return not is_local(filesystem) and not isinstance(error, FileNotFoundError | PermissionError)


def files_of(place: Place) -> list[File]:
    """Every file of a source, sorted by path."""
    found = _walk(place.filesystem, place.root) if place.is_folder else _expand(place.filesystem, place.root)
    with _told(place.source):
        return sorted(found, key=lambda file: file.path)


def fingerprint(files: list[File]) -> str:
    """Of what is there; also of what can be read of it here that cannot everywhere."""
    digest = hashlib.sha256()
    for suffix in sorted({file.suffix for file in files} & set(READ)):
        digest.update(f"read: {suffix}\n".encode())
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.stamp}\n".encode())
    return digest.hexdigest()[:12]


def left_behind(name: str) -> str | None:
    """The reason for a file or folder of this name that is a tool's and not the user's."""
    if name.lower() in LEFT_BEHIND:
        return "left behind by a tool"
    return "hidden" if name.startswith(".") and name not in (".", "..") else None


def _walk(filesystem: fsspec.AbstractFileSystem, root: str) -> Iterator[File]:
    if is_local(filesystem):
        yield from _walk_local(root)
        return
    told: set[str] = set()
    for name, info in filesystem.find(root, detail=True).items():
        path = name[len(root.rstrip("/")) + 1 :]
        litter = _first_litter(path)
        if litter is None:
            yield _described(path, name, info)
        elif litter.path not in told:
            told.add(litter.path)
            yield litter


def _first_litter(path: str) -> File | None:
    parts = path.split("/")
    for depth, part in enumerate(parts, 1):
        if reason := left_behind(part):
            return File("/".join(parts[:depth]), "", reason=reason)
    return None


def _walk_local(root: str) -> Iterator[File]:
    """Follows links to folders, but not to a folder that is already above, nor time and again to the same."""
    unreadable: list[OSError] = []
    above: dict[str, frozenset[tuple[int, int]]] = {}
    visits: Counter[tuple[int, int]] = Counter()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable.append):
        chain = above.get(os.path.dirname(folder), frozenset()) | {_identity(folder)}
        above[folder] = chain
        reasons = {name: _not_entered(os.path.join(folder, name), chain, visits) for name in subfolders}
        subfolders[:] = sorted(name for name, reason in reasons.items() if reason is None)
        for name in names:
            file = _stat(os.path.join(folder, name), root)
            reason = left_behind(name)
            # Without size and time, which their tools change at will and which would make it another source.
            yield File(file.path, "", reason=reason) if reason else file
        for name, reason in reasons.items():
            if reason:
                yield File(_relative(os.path.join(folder, name), root), "", reason=reason)
    for error in unreadable:
        yield File(_relative(str(error.filename), root), "", reason=f"unreadable folder: {error.strerror}")


def _identity(folder: str) -> tuple[int, int]:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _not_entered(folder: str, chain: frozenset[tuple[int, int]], visits: Counter[tuple[int, int]]) -> str | None:
    if reason := left_behind(os.path.basename(folder)):
        return reason
    try:
        identity = _identity(folder)
    except OSError:
        return None  # the walk itself reports what it cannot enter
    if identity in chain:
        return "a link to a folder above it"
    visits[identity] += 1
    return None if visits[identity] <= MAX_VISITS else "a link to a folder that is listed many times already"


def _stat(name: str, root: str) -> File:
    path = _relative(name, root)
    if path != os.path.relpath(name, root):
        return File(path, "", reason="file name is not valid UTF-8")
    try:
        info = os.stat(name)
    except OSError as error:
        return File(path, name, reason=f"unreadable: {error.strerror}")
    if not stat.S_ISREG(info.st_mode):
        return File(path, name, reason=f"not a file but {SPECIAL.get(stat.S_IFMT(info.st_mode), 'something else')}")
    return File(path, name, info.st_size, str(info.st_mtime_ns))


def _relative(name: str, root: str) -> str:
    return os.fsencode(os.path.relpath(name, root)).decode("utf-8", "backslashreplace")


def _expand(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Iterator[File]:
    """One file, or a pattern of files with braces or wildcards, several of them joined by '::'."""
    for name in [pattern] if filesystem.exists(pattern) else _names(pattern):
        matches = filesystem.glob(name) if re.search(r"[*?\[]", name) and not filesystem.exists(name) else [name]
        for match in matches:
            if is_local(filesystem):
                yield _stat(match, os.path.dirname(match))
                continue
            short = match.rsplit("/", 1)[-1]
            try:
                yield _described(short, match, filesystem.info(match))
            except OSError as error:
                yield File(short, match, reason=f"unreadable: {error.strerror or 'not found'}")


def _names(pattern: str) -> list[str]:
    """A pattern with its braces written out. Refused where that gives more names than anybody has files."""
    spans = (abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", pattern))
    fewest = max(map(_fewest, pattern.split("::")))
    if max(math.prod(spans), fewest) <= MAX_NAMES:  # seen ahead, since a span, or many braces, take long to write out
        try:
            names = list(islice((name for part in pattern.split("::") for name in braceexpand(part)), MAX_NAMES + 1))
        except (ValueError, RecursionError):
            return [pattern]
        if len(names) <= MAX_NAMES:
            return names
    raise Refused(f"data.source {pattern[:80]!r} stands for more than {MAX_NAMES:,} files: name their folder")


def _fewest(pattern: str) -> int:
    """At least so many names stands a pattern for: the product of the alternatives in its outermost braces."""
    names, depth, alternatives = 1, 0, 1
    for sign in pattern:
        if sign == "{":
            depth += 1
        elif sign == "," and depth == 1:
            alternatives += 1
        elif sign == "}" and depth:
            depth -= 1
            if not depth:
                names, alternatives = names * alternatives, 1
    return names


def _described(path: str, name: str, info: dict[str, Any]) -> File:
    stamp = next((str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created") if key in info), "")
    return File(path, name, int(info.get("size") or 0), stamp)


def too_large(size: int) -> str | None:
    return f"larger than {MAX_BYTES >> 30} GiB" if size > MAX_BYTES else None
