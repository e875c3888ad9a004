"""Names of classes as Hugging Face's data sets tell them: in a table's own schema, in README.md, in dataset_infos.json.

A set is split over many files, of which some writers leave the names out; then those of another file of the set hold,
or those of its card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import yaml

from storage.images.sources.entries import File, Place

CARDS = ("README.md", "dataset_infos.json")
MAX_CARD = 4 << 20
MAX_FRONT_MATTER = 256 << 10
"""Characters of YAML that are read: a thousand names take thirty thousand."""

Names = dict[str, tuple[str, ...]]
"""Of the classes by their number, of each column that holds such numbers."""


def in_schema(schema: pa.Schema) -> Names:
    """Those that a table's own schema tells."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return _of_features(features)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def in_cards(place: Place, files: Iterable[File]) -> tuple[Names, set[str]]:
    """Those that the cards of a data set tell, and the paths of the cards that told any."""
    found: Names = {}
    told = set()
    for file in files:
        if file.path.rpartition("/")[2] in CARDS and not file.reason and file.size <= MAX_CARD:
            text = _text(place, file)
            names = _of_card(text) if file.suffix == "md" else _of_infos(text)
            found = names | found
            told |= {file.path} if names else set()
    return found, told


def _text(place: Place, file: File) -> str:
    try:
        return bytes(place.filesystem.cat_file(file.name)).decode("utf-8", "replace")
    except (FileNotFoundError, PermissionError):
        return ""


def _of_card(text: str) -> Names:
    """Of the YAML that a card begins with: `dataset_info`, once or a list of configurations."""
    front = re.match(r"---\n(.*?)\n---", text[:MAX_FRONT_MATTER].replace("\r\n", "\n"), re.DOTALL)
    try:
        about = yaml.load(front[1], getattr(yaml, "CSafeLoader", yaml.SafeLoader))["dataset_info"] if front else []
        found: Names = {}
        for configuration in about if isinstance(about, list) else [about]:
            for feature in configuration["features"]:
                if isinstance(kind := feature.get("dtype"), dict) and "class_label" in kind:
                    found.setdefault(str(feature["name"]), _in_order(kind["class_label"]["names"]))
        return found
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _of_infos(text: str) -> Names:
    """Of the older file, which has a configuration under each name."""
    try:
        found: Names = {}
        for configuration in json.loads(text).values():
            found = _of_features(configuration["features"]) | found
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _of_features(features: dict[str, Any]) -> Names:
    labels = {column: about for column, about in features.items() if isinstance(about, dict)}
    return {
        column: tuple(map(str, about["names"]))
        for column, about in labels.items()
        if about.get("_type") == "ClassLabel" and isinstance(about.get("names"), list)
    }


def _in_order(names: Any) -> tuple[str, ...]:
    """Of a list, or of a mapping from the number, which YAML may have taken for a text."""
    if isinstance(names, dict):
        return tuple(str(names[number]) for number in sorted(names, key=int))
    return tuple(map(str, names))
