"""``gmem bank withdraw``: rows leave the bank, and what knew them is told; with --purge they leave the disk."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.bank_options import BankUri, numbers
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.commands.units import size
from flows.console import new_table, show
from storage.errors import Refused

if TYPE_CHECKING:
    from flows.recipe.model import Recipe
    from storage.tables.bank import Bank

LISTED = 20
"""Neighbours that the terminal lists; --json has them all."""


def withdraw(
    recipe: RecipeName,
    reason: Annotated[str, typer.Option(help="why; stays in the history, and is told to whoever would add it again")],
    where: Annotated[str | None, typer.Option(help="condition on columns, such as \"class = 'flags'\"")] = None,
    ids: Annotated[str | None, typer.Option("--ids", metavar="A,B", help="ids of rows")] = None,
    near: Annotated[
        str | None, typer.Option(metavar="PICTURE|ID", help="all that is near to a picture file or a row")
    ] = None,
    similarity: Annotated[float, typer.Option(help="with --near: the least cosine of snippets that counts")] = 0.95,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="also removes the bank's earlier versions for good; alone: with what was withdrawn before",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="with --purge: does not ask")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="generates from the nearest that remain, and tells how near that comes")
    ] = False,
    network: Annotated[
        str | None, typer.Option(metavar="URI", help="with --measure: a network; none: the recipe's")
    ] = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Takes rows out of the newest version, with mirror images and mixtures descending from them; no later run brings
    them back. Tells which models, samples and reports were made with them, and what is still like them."""
    from flows.engine.progress import Terminal
    from flows.explore import open_bank
    from flows.upkeep import maintained, tracking_of
    from flows.withdrawal import Asked
    from flows.withdrawal import withdraw as withdrawn

    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank)
    named = numbers(ids, "--ids") if ids is not None else None
    asked = Asked(reason, named, where, near, similarity, purge, measure, network)
    asked.require()
    if purge and not yes:
        _ask(chosen, opened, json)
    about = asdict(asked) | {"bank": opened.artifact}
    with Terminal("withdraw") as progress, maintained(chosen, "bank-withdraw", about) as run:
        told = withdrawn(chosen, opened, asked, run, tracking_of(chosen), progress)
    if json:
        print_json(told)
    else:
        _tell(told)


def _ask(recipe: Recipe, bank: Bank, json: bool) -> None:
    """Says what a purge costs, and goes on only if that is wanted."""
    from flows.withdrawal import lost_by_purge

    lost = lost_by_purge(recipe, bank)
    if json or not sys.stdin.isatty():
        raise Refused(
            f"--purge removes every earlier version of {bank.artifact}, on which {len(lost)} artifacts rest, and asks "
            "first where there is somebody to ask; give --yes"
        )
    _tell_lost(lost, "can no longer be continued or made again")
    if not typer.confirm("remove all earlier versions of the bank for good?"):
        raise Refused("nothing was withdrawn or purged")


def _tell(told: dict[str, Any]) -> None:
    from flows.withdrawal import rests_on

    if told["asked"]:
        rows, mirrored, mixtures = (len(told[name]) for name in ("asked", "mirrored", "descended"))
        parts = f"{rows:,} rows, {mirrored:,} mirror images, {mixtures:,} mixtures"
        show(f"withdrawn: {parts}; {told['rows']:,} rows are left")
    if lines := rests_on(told):
        table = new_table("what knew them", "how", names="what knew them")
        for line in lines:
            table.add_row(*line)
        show(table)
    _tell_neighbours(told.get("neighbours", []))
    if purged := told.get("purged"):
        _tell_lost(purged["lost"], "can no longer be continued or made again")
        show(f"purged: {purged['versions']:,} earlier versions, {size(purged['bytes'])}")
        if purged["undecided"]:
            show(f"{purged['undecided']} files that somebody may be adding stay for an hour; purge again then")
    else:
        show("earlier versions keep them until --purge removes those; what was trained before knows them still")


def _tell_neighbours(neighbours: list[dict[str, Any]]) -> None:
    if not neighbours:
        return
    table = new_table("withdrawn", "nearest that remains", "similarity", "generated from that", names="withdrawn")
    for row in neighbours[:LISTED]:
        generated = "" if row["generated"] is None else f"{row['generated']:.3f}"
        mine, other = row["key"] or row["withdrawn"], row["nearest_key"] or row["nearest"]
        table.add_row(str(mine), f"{other} ({row['nearest']})", f"{row['similarity']:.3f}", generated)
    show(table)


def _tell_lost(lost: list[dict[str, Any]], what: str) -> None:
    if not lost:
        return
    table = new_table(what, "versions of the bank", names=what)
    for each in lost:
        table.add_row(each["artifact"], ", ".join(map(str, each["versions"])))
    show(table)
