"""WebDataset tars: a picture and, under the same key, what is said of it.

The key of a member ends at the first dot of its file name, the rest is its field: `0001.jpg` and `0001.cls`, or
`0001.input.jpg` and `0001.output.cls`. Members of one key belong together wherever they lie in the tar; a field that
comes again begins another sample. Nothing is ever extracted to disk; links and names that leave the folder are refused
all the same, since they show that the tar is not what it seems.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import IO

from storage.images.sources.accounts import OF_A_FOLDER, Accounts
from storage.images.sources.entries import PICTURES, Entry, File, Found, Place, unread
from storage.images.sources.files import left_behind, may_pass, too_large
from storage.images.sources.labels import folder_label, printable
from storage.images.sources.neighbours import (
    MAX_SIDE_FILE,
    NOTHING,
    SIDE_FILES,
    Facts,
    Unreadable,
    bookkeeping,
    from_side_file,
    merged,
)
from storage.images.sources.tar_headers import FILE, FOLDER, LINKS, BrokenTar, Member, members

READERS = 8
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
FURTHER = "a further picture of the same sample"
ALONE = "no picture of this name in the tar"
LOOKED_INTO, MEMBERS_LOOKED_AT = 8, 1000


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture in a tar: its bytes lie at `offset`, `size` long. With a `reason` it is unusable."""

    name: str
    offset: int = -1
    size: int = 0
    key: str = ""
    facts: Facts = NOTHING
    reason: str | None = None


class Tars:
    """A tar, several, or a folder of them."""

    suffixes: tuple[str, ...] = ("tar", *(name.rpartition(".")[2] for name in COMPRESSED))

    def holds(self, place: Place, files: list[File]) -> bool:
        for file in [file for file in files if file.suffix == "tar" and not file.reason][:LOOKED_INTO]:
            try:
                with place.filesystem.open(file.name, "rb") as handle:
                    if any(_looks_like_a_picture(m) for m in islice(members(handle, file.size), MEMBERS_LOOKED_AT)):
                        return True
            except BrokenTar:
                continue
            except OSError as error:
                if may_pass(place.filesystem, error):
                    raise
        return False

    def list_entries(self, place: Place, files: list[File]) -> Found:
        """Headers lie between the pictures, so a remote tar is read through: several at a time."""
        several = place.is_folder or len(files) > 1
        tables = _tables_of_tars(files)
        shared = Accounts(place, [file for file in files if file.path.rpartition("/")[2] == OF_A_FOLDER])
        rest = [file for file in files if file not in tables.values() and file.path not in shared.reasons]

        def part(file: File) -> list[Entry]:
            # A shard's own table is read with it, and forgotten with it.
            own = Accounts(place, [tables[file.path]] if file.path in tables else [])
            return _entries(place, file, several, [own, shared]) + own.unused()

        with ThreadPoolExecutor(READERS) as pool:
            return Found([entry for entries in (*pool.map(part, rest), shared.unused()) for entry in entries])

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        """A tar is opened once for all its entries in a row."""
        name, handle = "", io.BytesIO()
        for entry in entries:
            try:
                if entry.file != name:
                    handle.close()
                    name, handle = "", place.filesystem.open(entry.file, "rb")
                    name = entry.file
                handle.seek(entry.offset)
                yield handle.read(entry.size)
            except OSError as error:
                yield error
        handle.close()


def _looks_like_a_picture(member: Member) -> bool:
    return _problem(member, member.offset + member.size) is None and _split(member.name)[1].endswith(PICTURES)


def _tables_of_tars(files: list[File]) -> dict[str, File]:
    """Path of a tar -> the table of its name beside it."""
    there = {file.path: file for file in files if not file.reason}
    beside = {path: there.get(path.removesuffix(".tar") + ".parquet") for path in there if path.endswith(".tar")}
    return {path: table for path, table in beside.items() if table}


def _entries(place: Place, file: File, several: bool, accounts: list[Accounts]) -> list[Entry]:
    if file.reason or file.suffix != "tar":
        return [Entry(file.path, file.name, size=file.size, reason=file.reason or _not_a_tar(file))]
    prefix = file.path[: -len(".tar")] + "/" if several else ""
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            rows = list_tar(handle, file.size)
    except OSError as error:
        if may_pass(place.filesystem, error):
            raise
        return [Entry(file.path, file.name, size=file.size, reason=f"unreadable: {error.strerror or error}")]
    return [_entry(place, file, member, prefix, accounts) for member in rows]


def _not_a_tar(file: File) -> str:
    if file.path.lower().endswith(COMPRESSED):
        return "a compressed tar, which cannot be read at random: unpack it to a .tar first"
    return bookkeeping(file.path) or "not a tar among tars"


def _entry(place: Place, file: File, member: TarMember, prefix: str, accounts: list[Accounts]) -> Entry:
    path = f"{file.path}/{member.name}" if member.name else file.path
    if member.reason:
        return Entry(path, file.name, size=member.size, reason=member.reason)
    key, facts = prefix + member.key, member.facts
    for each in accounts:
        facts = facts.over(each.of(f"{file.path.removesuffix('.tar')}/{member.key}"))
    label = facts.label if place.rule is None else folder_label(member.name, place.rule)
    return Entry(
        path,
        file.name,
        member.offset,
        member.size,
        key,
        facts.group or key,
        label,
        facts.class_name if place.rule is None else None,
        facts.caption,
    )


# --- one tar ---------------------------------------------------------------------------------------------------------


@dataclass
class _Sample:
    """Members of one key; numbers are their places in the tar."""

    key: str
    fields: set[str] = field(default_factory=set)
    pictures: list[tuple[int, str, Member]] = field(default_factory=list)
    sides: list[tuple[int, Member]] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[int, TarMember]]:
        if not self.pictures:
            yield from ((at, _refused(member, ALONE)) for at, member in self.sides)
            return
        chosen = min(self.pictures, key=lambda picture: ("." in picture[1], picture[0]))
        for picture in self.pictures:
            at, _, member = picture
            if picture is chosen:
                yield at, TarMember(member.name, member.offset, member.size, self.key, merged(self.facts))
            else:
                yield at, _refused(member, FURTHER)


def list_tar(handle: IO[bytes], length: int) -> list[TarMember]:
    """The pictures of an uncompressed tar of `length` bytes, and a row with a reason for each thing refused.

    Of a truncated tar what is whole in it, then a row that says so.
    """
    rows: dict[int, TarMember] = {}
    latest: dict[str, _Sample] = {}
    samples: list[_Sample] = []
    at = -1
    try:
        for at, member in enumerate(members(handle, length)):
            if member.kind in FOLDER:
                continue
            reason = _problem(member, length) or _sorted_in(handle, at, member, latest, samples)
            if reason:
                rows[at] = _refused(member, reason)
    except BrokenTar as broken:
        rows[at + 1] = TarMember("", reason=str(broken))
    for sample in samples:
        rows.update(sample.rows())
    return [rows[at] for at in sorted(rows)]


def _refused(member: Member, reason: str) -> TarMember:
    return TarMember(printable(member.name), size=member.size, reason=reason)


def _sorted_in(
    handle: IO[bytes], at: int, member: Member, latest: dict[str, _Sample], samples: list[_Sample]
) -> str | None:
    """Adds a member to its sample; the reason where it belongs to none."""
    key, name = _split(member.name)
    suffix = name.rpartition(".")[2]
    if suffix not in PICTURES and suffix not in SIDE_FILES:
        return bookkeeping(member.name) or unread(suffix) or f"not a picture: .{name}"
    if not key.rpartition("/")[2]:
        return "refused: nothing before the first dot of its name"
    facts = None
    if suffix in SIDE_FILES:
        try:
            facts = _facts(handle, member, suffix)
        except Unreadable as error:
            return f"nothing is learnt from it: {error}"
    sample = latest.get(key)
    if sample is None or name in sample.fields:
        sample = latest[key] = _Sample(key)
        samples.append(sample)
    sample.fields.add(name)
    if facts is None:
        sample.pictures.append((at, name, member))
        return None
    sample.sides.append((at, member))
    kind = SIDE_FILES[suffix]
    sample.facts[kind] = sample.facts[kind].over(facts) if kind in sample.facts else facts
    return None


def _facts(handle: IO[bytes], member: Member, suffix: str) -> Facts:
    if member.size > MAX_SIDE_FILE:
        raise Unreadable("larger than 1 MiB")
    handle.seek(member.offset)
    return from_side_file(suffix, handle.read(member.size))


def _problem(member: Member, length: int) -> str | None:
    """Why a member must not be used."""
    path = PurePosixPath(member.name)
    if member.kind in LINKS:
        return "refused: a link"
    if member.kind not in FILE:
        return "refused: not a regular file"
    if member.is_sparse:
        return "refused: a sparse file, which has holes that are not in the tar"
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        return "refused: its name leaves the folder"
    if member.name != printable(member.name):
        return "file name is not valid UTF-8"
    if "\0" in member.name:
        return "refused: its name holds a zero byte"
    if member.offset + member.size > length:
        return "truncated tar: ends inside this member"
    litter = [reason for part in path.parts[:-1] if (reason := left_behind(part))]
    if path.name.startswith("._") or left_behind(path.name.lstrip(".")):
        litter.append("left behind by a tool")
    return litter[0] if litter else too_large(member.size)


def _split(name: str) -> tuple[str, str]:
    """'a/b.seg.png' -> ('a/b', 'seg.png')."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    stem, _, suffix = last.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()
