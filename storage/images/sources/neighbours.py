"""What a picture's neighbours say of it: side files of its name, lists beside it, columns of its row.

Side files are WebDataset's and img2dataset's (`.cls`, `.txt`, `.json`); lists are EDM's `dataset.json` and
imagefolder's `metadata.csv` and `metadata.jsonl`.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storage.images.sources.labels import label_of, text_of

SIDE_FILES = {"cls": "cls", "class": "cls", "txt": "txt", "text": "txt", "caption": "txt", "json": "json"}
"""Suffix of a side file -> what is in it."""
LISTS = ("dataset.json", "metadata.csv", "metadata.jsonl")
MAX_SIDE_FILE = 1 << 20
MAX_LIST = 512 << 20
PATHS = ("file_name", "filename", "file", "path")


class Unreadable(ValueError):
    """A neighbour from which nothing can be learnt, and why."""


@dataclass(frozen=True, slots=True)
class Facts:
    label: str | None = None
    class_name: str | None = None
    caption: str | None = None
    group: str | None = None

    def over(self, other: Facts) -> Facts:
        """These, and where they say nothing the other ones."""
        if self.label is None:
            label, class_name = other.label, self.class_name or other.class_name
        else:
            label, class_name = self.label, self.class_name
        return Facts(label, class_name, self.caption or other.caption, self.group or other.group)


NOTHING = Facts()


def from_record(record: Mapping[str, Any]) -> Facts:
    """Of the fields `label`, `class`, `caption` or `text`, and `group` of a JSON object or a row.

    A class without a label is the label; beside one it is its name.
    """
    label = label_of(record.get("label"))
    class_name = label_of(record.get("class") or record.get("class_name"))
    caption = text_of(record.get("caption")) or text_of(record.get("text"))
    if label is None:
        label, class_name = class_name, None
    return Facts(label, class_name, caption, label_of(record.get("group")))


def from_side_file(suffix: str, data: bytes) -> Facts:
    """What a side file says; of JSON without a caption the `name` is one. Unreadable where it is not what its suffix promises."""
    kind = SIDE_FILES[suffix]
    if kind == "cls":
        return Facts(label=label_of(data))
    if kind == "txt":
        return Facts(caption=text_of(data))
    record = _object(data)
    return from_record(record).over(Facts(caption=text_of(record.get("name"))))


def merged(facts: Mapping[str, Facts]) -> Facts:
    """By the kind of side file: a label is the `.cls`'s before the `.json`'s, a caption the `.txt`'s."""
    result = NOTHING
    for kind in ("cls", "txt", "json"):
        result = result.over(facts.get(kind, NOTHING))
    return result


def from_list(path: str, data: bytes) -> Iterator[tuple[str, Facts]]:
    """Path, relative to the source, and facts of each picture that the list at `path` names."""
    folder, _, name = path.rpartition("/")
    rows = _edm(data) if name == "dataset.json" else _rows(name, data)
    for picture, facts in rows:
        if picture:
            yield posixpath.normpath(posixpath.join(folder, picture)), facts


def bookkeeping(path: str) -> str | None:
    """The reason for files in which a tool kept its own accounts."""
    return "bookkeeping of img2dataset" if path.endswith("_stats.json") else None


def _edm(data: bytes) -> Iterator[tuple[str, Facts]]:
    labels = _object(data).get("labels") or []
    pairs = labels.items() if isinstance(labels, dict) else labels
    if not isinstance(labels, dict | list):
        raise Unreadable("its labels are no list of [path, label]")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise Unreadable("its labels are no list of [path, label]")
        yield pair[0], Facts(label=label_of(pair[1]))


def _rows(name: str, data: bytes) -> Iterator[tuple[str, Facts]]:
    text = data.decode("utf-8-sig", "replace")
    records: Iterable[Mapping[str, Any]]
    if name.endswith(".csv"):
        records = csv.DictReader(io.StringIO(text))
    else:
        records = (_object(line.encode()) for line in text.splitlines() if line.strip())
    try:
        for record in records:
            named = next((record[column] for column in PATHS if isinstance(record.get(column), str)), "")
            yield named, from_record(record)
    except csv.Error as error:
        raise Unreadable(f"not CSV: {error}") from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except RecursionError:
        raise Unreadable("JSON that is nested too deeply") from None
    except ValueError:
        raise Unreadable("not JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("JSON, but no object")
    return value
