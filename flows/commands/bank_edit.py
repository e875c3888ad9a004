"""``gmem bank``'s edits: each is one commit, which the history lists and `restore` undoes."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.bank_options import BankUri, Ids, numbers, shares
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.commands.units import size
from flows.console import new_table, show

Reason = Annotated[str | None, typer.Option(help="why; stays in the history")]
LISTED = 20
"""Pictures that were not added which the terminal lists; --json has them all."""


def add(
    recipe: RecipeName,
    folder: Annotated[str, typer.Argument(help="pictures: a folder, tars, s3://…, as ingest reads them")],
    name: Annotated[str, typer.Option(metavar="BATCH", help="of them all; their keys begin with it")],
    reason: Reason = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Adds pictures from elsewhere, encoded by the bank's own encoder; those that are there are told, not added twice."""
    from flows.engine.progress import Terminal
    from flows.explore import open_bank
    from flows.incoming import add_pictures

    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank)
    with Terminal("encode") as progress:
        added, unusable = add_pictures(chosen, opened, folder, name, reason, progress)
    if json:
        print_json(added.to_dict() | {"unusable": unusable, "version": opened.version})
        return
    left_out = [(key, f"there already as {other}") for key, other in added.duplicates.items()]
    left_out += [(key, f"withdrawn: {why}") for key, why in added.withdrawn.items()]
    left_out += list(unusable.items())
    show(f"{len(added.ids):,} pictures added as {name}/…, {len(left_out):,} left out; version {opened.version}")
    table = new_table("left out", "because", names="left out")
    for key, why in left_out[:LISTED]:
        table.add_row(key, why)
    if left_out:
        show(table)


def factorise(
    recipe: RecipeName,
    rank: Annotated[int, typer.Option(min=1, help="numbers kept of each snippet, such as 64 of 768")],
    name: Annotated[str | None, typer.Option(help="of the artifact; none: the bank's, with the rank")] = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Makes of a bank a rank-reduced one of a fraction of its bytes, which answers the same questions."""
    from flows.engine.progress import Terminal
    from flows.exchange.factorising import factorise as reduce
    from flows.explore import open_bank
    from storage.store import Store

    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank)
    with Terminal("factorise") as progress:
        made = reduce(Store(chosen.store), opened, rank, name or f"{chosen.name}-rank{rank}", progress)
    if json:
        print_json({"uri": made.artifact} | made.counts | made.details)
        return
    counts, details = made.counts, made.details
    show(f"{counts['rows']:,} rows, {details['energy']:.1%} of the variance kept, snippets {details['error']:.1%} off")
    show(f"{size(counts['bytes'])} in place of {size(counts['bytes_before'])}, thumbnails included")
    show(f"name it by --bank {made.artifact}")


def mix(
    recipe: RecipeName,
    ids: Ids,
    method: Annotated[str, typer.Option(help="linear, spherical, halves or mask")] = "spherical",
    weights: Annotated[str | None, typer.Option(metavar="A,B", help="the parents' shares; none: equal ones")] = None,
    seed: Annotated[int, typer.Option(min=0, help="decides which coordinates mask takes of whom")] = 0,
    reason: Reason = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Adds a mixture of rows, with its parents."""
    from flows.explore import open_bank

    opened = open_bank(resolved(recipe, set, store), bank)
    made = opened.mix(numbers(ids, "--ids"), method, shares(weights), seed, reason)
    if json:
        print_json({"id": made, "version": opened.version})
    else:
        show(f"row {made} is the {method} mixture of {ids}: gmem sample {recipe} --id {made}")


def tag(
    recipe: RecipeName,
    name: Annotated[str, typer.Argument(help="of the newest version")],
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Names the newest version, which is never cleaned up then."""
    from flows.explore import open_bank

    version = open_bank(resolved(recipe, set, store), bank).tag(name)
    if json:
        print_json({"tag": name, "version": version})
    else:
        show(f"version {version} is {name}")


def restore(
    recipe: RecipeName,
    version: Annotated[str, typer.Argument(help="a version, a tag or a time, as history lists them")],
    reason: Reason = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Makes the rows of an earlier version the newest again, those that were withdrawn since included."""
    from flows.explore import open_bank, version_of

    chosen = resolved(recipe, set, store)
    earlier = open_bank(chosen, bank, version_of(version))  # opens also where the newest cannot be used
    of = earlier.version
    made = earlier.restore(of, reason)
    if json:
        print_json({"version": made, "of": of, "rows": len(earlier)})
    else:
        show(f"version {made} has the {len(earlier):,} rows of version {of}")


def optimise(
    recipe: RecipeName = "emoji", bank: BankUri = None, set: Set = None, store: StoreUri = None, json: Json = False
) -> None:
    """Compacts, takes new rows into the indices, and sets what a search takes by what it then finds."""
    from flows.explore import open_bank
    from flows.upkeep import maintained, optimised

    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank)
    with maintained(chosen, "bank-optimise", {"bank": opened.artifact}) as run:
        about = optimised(opened, run)
    if json:
        print_json(about)
        return
    search = about["search"]
    found = "none is needed, every row is read"
    if search:
        under = [effort["recall"] for effort in (search["filtered"], *search["wide"]) if effort]
        found = f"{about['index']}, which finds {search['plain']['recall']:.1%} of the 10 nearest"
        if under:
            found += f", {min(under):.1%} under a condition"
    table = new_table("rows", "index over snippets", "fragments", "version")
    table.add_row(f"{about['rows']:,}", found, f"{about['fragments']:,}", str(about["version"]))
    show(table)
