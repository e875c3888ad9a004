"""A folder tree of pictures: the folder is the label, unless a neighbour says another."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath

from storage.images.sources.accounts import Accounts
from storage.images.sources.entries import PICTURES, Entry, File, Found, Place, unread
from storage.images.sources.files import is_local, too_large
from storage.images.sources.labels import doubt, folder_label
from storage.images.sources.neighbours import (
    LISTS,
    MAX_LIST,
    MAX_SIDE_FILE,
    NOTHING,
    SIDE_FILES,
    Facts,
    Unreadable,
    bookkeeping,
    from_list,
    from_side_file,
    merged,
)

BATCH = 1000
ARCHIVES = ("zip", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "7z", "rar")


class Folder:
    """Pictures as files, with or without folders for their classes."""

    suffixes: tuple[str, ...] = PICTURES

    def holds(self, place: Place, files: list[File]) -> bool:
        return any(_is_picture(file) for file in files)

    def list_entries(self, place: Place, files: list[File]) -> Found:
        neighbours = _Neighbours(place, files)
        entries = [entry for file in files if (entry := neighbours.entry(file))]
        return Found(entries, tuple(neighbours.notes()))

    def read(self, place: Place, entries: list[Entry]) -> Iterator[bytes | OSError]:
        for entry in entries:
            try:
                yield place.filesystem.cat_file(entry.file)
            except OSError as error:
                yield error


def _is_picture(file: File) -> bool:
    """By its name; whether it can be used is another question. What is hidden or a tool's has none to open."""
    return bool(file.name) and file.suffix in PICTURES


class _Neighbours:
    """What the files of a folder tree say of each other."""

    def __init__(self, place: Place, files: list[File]) -> None:
        self._place = place
        self._pictures = {file.path for file in files if _is_picture(file)}
        self._listed: dict[str, Facts] = {}
        self._label_lists: set[str] = set()
        self._beside: dict[str, dict[str, Facts]] = {}
        self._reasons: dict[str, str | None] = {}
        """Path of a neighbour -> why nothing was learnt from it, None where something was."""
        self._folder_labels: set[str] = set()
        self._read_lists([file for file in files if not file.reason and file.path.rpartition("/")[2] in LISTS])
        self._read_side_files(files)
        self._accounts = Accounts(place, files)
        self._reasons |= self._accounts.reasons
        self._label_lists |= self._accounts.label_folders

    def _read_lists(self, lists: list[File]) -> None:
        for file, data in _contents(self._place, lists, MAX_LIST):
            try:
                named = dict(from_list(file.path, _readable(data)))
            except Unreadable as error:
                self._reasons[file.path] = f"nothing is learnt from it: {error}"
                continue
            self._listed |= named
            self._reasons[file.path] = None
            if file.path.endswith("dataset.json") or any(facts.label is not None for facts in named.values()):
                self._label_lists.add(file.path.rpartition("/")[0])

    def _read_side_files(self, files: list[File]) -> None:
        stems = {path.rpartition(".")[0] for path in self._pictures}
        sides = [
            file
            for file in files
            if file.suffix in SIDE_FILES
            and not file.reason
            and file.path.rpartition(".")[0] in stems
            and file.path not in self._reasons
        ]
        for file, data in _contents(self._place, sides, MAX_SIDE_FILE):
            try:
                facts = from_side_file(file.suffix, _readable(data))
            except Unreadable as error:
                self._reasons[file.path] = f"nothing is learnt from it: {error}"
                continue
            self._beside.setdefault(file.path.rpartition(".")[0], {})[SIDE_FILES[file.suffix]] = facts
            self._reasons[file.path] = None

    def entry(self, file: File) -> Entry | None:
        """A row for a file; none for one from which something was learnt."""
        if _is_picture(file):
            return self._picture(file)
        reason = file.reason or self._reasons.get(file.path, "")
        if reason is None:
            return None
        return Entry(file.path, file.name, size=file.size, reason=reason or _foreign(file))

    def _picture(self, file: File) -> Entry:
        stem = file.path.rpartition(".")[0]
        facts = merged(self._beside.get(stem, {})).over(self._listed.get(file.path, NOTHING))
        facts = facts.over(self._accounts.of(stem))
        label, class_name = facts.label, facts.class_name
        if self._place.rule is not None:
            label, class_name = folder_label(file.path, self._place.rule), None
        elif label is None and not self._is_in_a_label_list(file.path):
            label = folder_label(file.path, None)
            self._folder_labels |= {label} if label else set()
        key = _key(PurePosixPath(file.path))
        return Entry(
            file.path,
            file.name,
            size=file.size,
            key=key,
            group=facts.group or key,
            label=label,
            class_name=class_name,
            caption=facts.caption,
            reason=file.reason or too_large(file.size),
        )

    def _is_in_a_label_list(self, path: str) -> bool:
        """Whether a list speaks of this folder: its folders are then portions, not classes."""
        if not self._label_lists:
            return False
        return any(str(folder).removeprefix(".") in self._label_lists for folder in PurePosixPath(path).parents)

    def notes(self) -> Iterator[str]:
        if self._place.rule is None and (sentence := doubt(self._folder_labels)):
            yield sentence
        if missing := len(self._listed.keys() - self._pictures):
            yield f"{missing} pictures that {' or '.join(LISTS)} names are not there"
        if self._listed and (unnamed := sum(map(self._is_in_a_label_list, self._pictures - self._listed.keys()))):
            yield f"{unnamed} pictures are not named in the list of labels beside them: they have none of it"


def _contents(place: Place, files: list[File], most: int) -> Iterator[tuple[File, bytes | str]]:
    """Every file with its bytes, or why it is not read. From a server many at once."""
    filesystem = place.filesystem
    waiting = iter(files)
    while batch := list(islice(waiting, BATCH)):
        small = [file.name for file in batch if file.size <= most]
        if is_local(filesystem):
            read = {name: _local_bytes(name) for name in small}
        else:
            read = dict(filesystem.cat(small, on_error="return")) if len(small) > 1 else {
                name: filesystem.cat_file(name) for name in small
            }  # fmt: skip
        for file in batch:
            data = read.get(file.name, f"larger than {most >> 20} MiB")
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError | PermissionError):
                raise data
            yield file, f"unreadable: {data}" if isinstance(data, Exception) else data


def _local_bytes(name: str) -> bytes | str:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _readable(data: bytes | str) -> bytes:
    if isinstance(data, str):
        raise Unreadable(data)
    return data


def _foreign(file: File) -> str:
    """Why something that is no picture by its name is not used."""
    if file.suffix == "tar":
        return "a tar beside pictures: not looked into; data.layout=tars reads tars instead"
    if file.suffix in ARCHIVES:
        return "an archive: unpack it to use what is in it"
    return (
        unread(file.suffix)
        or bookkeeping(file.path)
        or f"not a picture: {PurePosixPath(file.path).suffix or 'no suffix'}"
    )


def _key(path: PurePosixPath) -> str:
    """The path without suffix. A shard's reader splits names at the first dot, so the last part keeps none."""
    return str(path.with_name(path.name.removesuffix(path.suffix).replace(".", "_") or "_"))
