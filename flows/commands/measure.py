"""``gmem evaluate`` and ``gmem compare``: numbers for a network from anywhere, and two reports side by side."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import run
from flows.commands.bank import BankUri
from flows.commands.options import Json, RecipeName, Set, StoreUri, opened, print_json
from flows.console import new_table, show

if TYPE_CHECKING:
    from rich.table import Table

    from flows.stages.evaluate.comparison import Pair

ALLOW = "an entry of the protocol that may differ, such as seed or count; repeatable"


def evaluate(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK", help="URI of a checkpoint, training or imported network")
    ],
    recipe: RecipeName = "emoji",
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Samples from a network and measures them against a recipe's pictures, with the recipe's tokenizer and sampler."""
    named = {"network": network} | ({"bank": bank} if bank else {})
    pairs = [f"evaluate.{key}={dumps(uri)}" for key, uri in named.items()]
    run.stage("evaluate", recipe, [*(set or []), *pairs], store, json)


def compare(
    a: Annotated[str, typer.Argument(metavar="REPORT", help="URI of a report, or its report.json")],
    b: Annotated[str, typer.Argument(metavar="REPORT", help="the other one")],
    allow: Annotated[list[str] | None, typer.Option(help=ALLOW)] = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Two reports side by side. Numbers that were measured in different ways get no difference, but what differs."""
    from flows.stages.evaluate.comparison import read_report, side_by_side

    where = opened(store)
    pairs = side_by_side(read_report(a, where), read_report(b, where), allow or [])
    if json:
        print_json([asdict(pair) for pair in pairs])
        return
    show(f"first:  {a}\nsecond: {b}")
    show(_beside(pairs))
    for mark, differs in _notes(pairs).values():
        show(f"{mark} measured differently: {differs}")


def _beside(pairs: list[Pair]) -> Table:
    """A line a metric, under a line for each kind of subject; what differs is marked, and told once below."""
    notes = _notes(pairs)
    table = new_table("metric", "first", "second", "change", "", names="metric")
    subject = ""
    for pair in pairs:
        if pair.subject != subject:
            subject = pair.subject
            table.add_section()
            table.add_row(f"{subject}:")
        change = "" if pair.change is None else f"{pair.change:+.4g}"
        mark = notes[pair.differs][0] if pair.differs else ""
        table.add_row(f"  {pair.metric}", f"{pair.a:.4g}", f"{pair.b:.4g}", change, mark)
    return table


def _notes(pairs: list[Pair]) -> dict[str, tuple[str, str]]:
    """What differs -> its mark and itself, in the order of the table."""
    differing = dict.fromkeys(pair.differs for pair in pairs if pair.differs)
    return {differs: (f"[{number}]", differs) for number, differs in enumerate(differing, 1)}
