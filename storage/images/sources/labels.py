"""Labels as people write them: numbers in words, names of classes, names of folders."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Literal

Rule = Literal["folder", "parent", "none"]
"""Whose name is the label: the first folder below the source, the folder that a picture lies in, or nobody's."""

MAX_NUMBER = 99_999
"""Larger numbers are taken for names: as many classes would be made as the largest says."""
PARTS = {
    "train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout", "held_out",
    "image", "images", "img", "imgs", "picture", "pictures", "photos", "jpegimages", "annotation", "annotations",
    "mask", "masks", "label", "labels", "data",
}  # fmt: skip
PORTION = re.compile(r"0\d{3,}|(part|chunk|shard|split)[-_]?\d+", re.IGNORECASE)


def label_of(value: Any) -> str | None:
    """A label from a file, a column or a field of JSON; None for what says that there is none.

    Numbers are whole: 3.0 is 3. Unknown are -1, nothing at all, and what is neither a number nor a text.
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = printable(value.strip())
        value = float(text) if re.fullmatch(r"[+-]?\d{1,15}\.0*", text, re.ASCII) else text
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else str(value)
    if not isinstance(value, int | str) or str(value) in ("", "-1"):
        return None
    return str(value)


def text_of(value: Any) -> str | None:
    """A caption, or another text: the first where there are several, None where there is none."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return printable(value.strip()) or None if isinstance(value, str) else None


def printable(text: str) -> str:
    """The same with halves of characters, which no file can hold, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def class_names(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their numbers. Those that are all numbers keep their own."""
    names = sorted(labels, key=_place)
    numbers = [int(name) for name in names if re.fullmatch(r"0|[1-9]\d{0,4}", name, re.ASCII)]
    if names and len(numbers) == len(names):
        return [str(number) for number in range(max(numbers) + 1)]
    return names


def _place(name: str) -> tuple[bool, int, str]:
    """Numbers before words, by their size; words as text."""
    is_number = bool(re.fullmatch(r"\d{1,18}", name, re.ASCII))
    return not is_number, int(name) if is_number else 0, name


def folder_label(path: str, rule: Rule | None) -> str | None:
    """The label that a picture's folders give, `path` being relative to the source."""
    folders = PurePosixPath(path).parts[:-1]
    if not folders or rule == "none":
        return None
    return folders[-1] if rule == "parent" else folders[0]


def doubt(labels: set[str]) -> str | None:
    """A sentence where folders that became classes look like the parts of a set."""
    if not labels or not all(name.lower() in PARTS or PORTION.fullmatch(name) for name in labels):
        return None
    shown = ", ".join(sorted(labels)[:4])
    return (
        f"the classes are named {shown}, which look like parts of a set: data.label=parent takes the folder each picture "
        "lies in, data.label=none no classes, data.label=folder keeps these; for one part alone name it in data.source"
    )
