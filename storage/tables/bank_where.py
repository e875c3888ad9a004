"""Conditions on the bank's columns, as people type them: SQL, of which only what Lance would do in silence is changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import accumulate

from storage.errors import Refused
from storage.tables.bank_rows import LATER_COLUMNS

LONGEST = 10_000
"""Characters of a condition; the parser's time grows with its depth."""
_PARTS = re.compile(r"'(?:[^']|'')*'|`[^`]*`|\"[^\"]*\"|[A-Za-z_]\w*|.", re.DOTALL)


def equals(column: str, value: str) -> str:
    """The condition that a text column has this value, whatever is in it."""
    doubled = value.replace("'", "''")
    return f"{column} = '{doubled}'"


def joined(*conditions: str | None) -> str | None:
    """All of these conditions, those that are None aside. Refused as by `condition`."""
    given = [f"({''.join(_parts(condition))})" for condition in conditions if condition is not None]
    return " AND ".join(given) or None


def condition(where: str | None, columns: Collection[str]) -> str | None:
    """The condition as Lance is to apply it to a table of these columns.

    A row that says nothing of being flipped is no mirror image, so that `NOT flipped` finds it. Columns of a later
    release are null in an earlier one's bank.

    Raises:
        Refused: a text or a bracket that does not end, or a second statement, which Lance would pass over.
    """
    if where is None:
        return None
    absent = {field.name for field in LATER_COLUMNS} - set(columns)
    replaced = {"flipped": "coalesce(flipped, false)"} | {name: "CAST(NULL AS string)" for name in absent}
    return "".join(replaced.get(part, part) for part in _parts(where))


def _parts(where: str) -> list[str]:
    """Texts, names and whatever is between them."""
    if len(where) > LONGEST:
        raise Refused(
            f"the condition has {len(where):,} characters, at most {LONGEST:,} are possible; name ids instead"
        )
    parts = _PARTS.findall(where)
    depths = list(accumulate((part == "(") - (part == ")") for part in parts))
    if not where.strip() or {";", "'", "`"} & set(parts) or min(depths) < 0 or depths[-1]:
        raise Refused(
            f"the condition {where[:80]!r} is not one SQL condition; write for example split = 'train' AND NOT flipped, "
            "and double a quote that is part of a text"
        )
    return parts


@contextmanager
def said_of(where: str | None, columns: Collection[str]) -> Iterator[None]:
    """Turns what Lance says of a condition into one sentence."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if where is None:
            raise
        reason = str(error).split(", /")[0].splitlines()[0].removeprefix("Invalid user input: ")[:160]
        raise Refused(
            f"the condition {where[:80]!r} cannot be applied ({reason}); columns are {', '.join(columns)}"
        ) from error
