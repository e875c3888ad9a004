"""JSON that lies in a store, read within bounds: whoever wrote it, it is what was expected, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from storage.errors import Damaged

LARGEST = 256 << 20
"""Bytes of a document. The parser bounds the rest: 200 levels, numbers of 4,300 digits, whole characters."""

Shape = TypeVar("Shape")
_adapter: Callable[[Any], TypeAdapter[Any]] = lru_cache(TypeAdapter)


def read_json(data: str | bytes, where: str, shape: type[Shape], remedy: str) -> Shape:
    """What a document holds, of the type `shape`: a plain one such as `dict[str, Any]`, or of pydantic.

    Args:
        where: the file, or the entry of a table, as the message names it.
        remedy: what to do about a damaged one, as the message ends.

    Raises:
        Damaged: it is no JSON within these bounds, or of another type.
    """
    if len(data) > LARGEST:
        raise Damaged(f"{where} is damaged ({len(data):,} bytes of JSON): {remedy}")
    try:
        return _adapter(shape).validate_json(data)
    except ValidationError as problem:
        raise Damaged(f"{where} is damaged ({reason(problem)}): {remedy}") from problem


def reason(problem: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    first = problem.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return f"no whole JSON document: {first['ctx']['error']}"
    place = ".".join(str(part) for part in first["loc"])[:80]
    return f"{place}: {first['msg'][:200]}" if place else first["msg"][:200]
