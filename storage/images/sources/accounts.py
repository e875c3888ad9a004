"""Tables without pictures, beside the pictures they speak of: img2dataset's `00000.parquet`, and `metadata.parquet`.

img2dataset writes a row for each picture, by its key, into a table of the shard's name (`00000.parquet` beside `00000.tar`
or the folder `00000`); an imagefolder's `metadata.parquet` names files, as its `metadata.csv` would.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from storage.images.sources.entries import Entry, File, Place
from storage.images.sources.neighbours import NOTHING, PATHS, Facts, Unreadable, from_record
from storage.images.sources.parquet import DAMAGED, unreadable

FIELDS = ("label", "class", "class_name", "caption", "text", "group")
OF_A_FOLDER = "metadata.parquet"
MAX_ROWS = 20_000_000


class Accounts:
    """What the tables beside pictures say of them, by the picture's path without suffix."""

    def __init__(self, place: Place, files: Iterable[File]) -> None:
        self._by_path: dict[str, Facts] = {}
        self._by_key: dict[str, dict[str, Facts]] = {}
        """Folder -> key -> facts: a table of a whole folder names keys alone, in whatever shard they are."""
        self.reasons: dict[str, str | None] = {}
        """Path of a table -> why nothing was learnt from it, None where something was."""
        self.label_folders: set[str] = set()
        """Folders of which a table tells labels: those below them are portions, not classes."""
        self._tables = [file for file in files if file.suffix == "parquet" and not file.reason]
        for file in self._tables:
            try:
                self._read(place, file)
                self.reasons[file.path] = None
            except Unreadable as error:
                self.reasons[file.path] = f"nothing is learnt from it: {error}"

    def of(self, stem: str) -> Facts:
        """Of the picture at this path, without its suffix; in a tar, of its key below the tar's path without suffix."""
        if stem in self._by_path or not self._by_key:
            return self._by_path.get(stem, NOTHING)
        path = PurePosixPath(stem)
        folders = (str(folder).removeprefix(".") for folder in path.parents)
        return next(
            (self._by_key[each][path.name] for each in folders if path.name in self._by_key.get(each, {})), NOTHING
        )

    def unused(self) -> list[Entry]:
        """A row for each table from which nothing was learnt."""
        return [
            Entry(file.path, file.name, size=file.size, reason=reason)
            for file in self._tables
            if (reason := self.reasons[file.path])
        ]

    def _read(self, place: Place, file: File) -> None:
        column, rows = _rows(place, file)
        folder, _, name = file.path.rpartition("/")
        if any(facts.label is not None for _, facts in rows):
            self.label_folders.add(folder if column != "key" or name == OF_A_FOLDER else _stem(file.path))
        if column != "key":
            self._by_path |= {_stem(posixpath.normpath(posixpath.join(folder, path))): facts for path, facts in rows}
        elif name == OF_A_FOLDER:
            self._by_key.setdefault(folder, {}).update(rows)
        else:
            self._by_path |= {f"{_stem(file.path)}/{key}": facts for key, facts in rows}


def _stem(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _rows(place: Place, file: File) -> tuple[str, list[tuple[str, Facts]]]:
    """The column that names pictures, and what is said of each."""
    try:
        with place.filesystem.open(file.name, "rb") as handle:
            table = pq.ParquetFile(handle)
            names = table.schema_arrow.names
            column = next((name for name in ("key", *PATHS) if name in names), None)
            told = [name for name in FIELDS if name in names]
            if column is None or not told:
                raise Unreadable("a table that says nothing of pictures")
            if table.metadata.num_rows > MAX_ROWS:
                raise Unreadable(f"more than {MAX_ROWS:,} rows")
            records = table.read(columns=[column, *told]).to_pylist()
    except DAMAGED as error:
        raise Unreadable(unreadable(place, error)) from error
    return column, [(str(row[column]), from_record(row)) for row in records if row[column] is not None]
