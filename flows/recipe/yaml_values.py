"""YAML within bounds: whatever it holds, it is read at once and takes no more memory than a recipe needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""With every alias written out: a page of them can stand for billions."""


class NotYaml(ValueError):
    """Text that cannot be read as YAML, and why, without what to do about it."""


Place = tuple[str, ...]
"""Where a value is: the keys that lead to it."""


@dataclass(frozen=True)
class Document:
    """The plain values in a YAML document, and the line, from 1, of each of its keys."""

    values: Any
    lines: dict[Place, int]


def read_yaml(text: str) -> Any:
    """The plain values in a YAML document. NotYaml where it is none, or would grow beyond all bounds."""
    return read_document(text).values


def read_document(text: str) -> Document:
    """The same with the lines of keys."""
    if len(text) > MAX_CHARACTERS:
        raise NotYaml(f"it is longer than {MAX_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        _require_bounded(node)
        return Document(loader.construct_document(node), _lines(node, ()))
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        raise NotYaml(f"it breaks at line {place.line + 1}" if place else "it holds signs that no text has") from None
    except RecursionError:
        raise NotYaml(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except NotYaml:
        raise
    except Exception as error:  # noqa: BLE001 - yaml's makers of numbers and dates raise what Python raises
        words = " ".join(str(error).split())[:60]
        raise NotYaml(f"it holds a number, date or tag that cannot be: {words}") from None


def _require_bounded(root: yaml.Node) -> None:
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node, depth: int) -> int:
        """Values in a node, each alias counted as often as it is named."""
        if depth > MAX_DEPTH:  # an alias for what it lies in is nested without end
            raise NotYaml(f"it is nested deeper than {MAX_DEPTH} levels")
        if id(node) not in sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            below = [each for pair in inner for each in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size_of(each, depth + 1) for each in below)
        return sizes[id(node)]

    if size_of(root, 0) > MAX_VALUES:
        raise NotYaml(f"it stands for more than {MAX_VALUES:,} values")


def _lines(node: yaml.Node, place: Place) -> dict[Place, int]:
    """Of the keys in a mapping, and in the mappings in it."""
    found: dict[Place, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            found[inner] = key.start_mark.line + 1
            found |= _lines(value, inner)
    return found
