"""Options of commands that name a bank, a version of it or rows in it."""

from __future__ import annotations

from typing import Annotated

import typer

from storage.errors import Refused

BankUri = Annotated[
    str | None, typer.Option("--bank", metavar="URI", help="another bank, such as an imported one, or its fingerprint")
]
At = Annotated[
    str | None, typer.Option("--at", metavar="VERSION", help="a version, a tag or a time, as history lists them")
]
Ids = Annotated[str, typer.Option("--ids", metavar="A,B", help="ids of rows, as search lists them")]


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise Refused(f"{option} {text[:80]!r} are no ids; give whole numbers with commas between, such as 12,40")
    return [int(part) for part in parts]


def shares(text: str | None) -> list[float] | None:
    """Weights with commas between."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise Refused(f"--weights {text!r:.80} are no numbers; give one for each id, such as 1,3") from error
