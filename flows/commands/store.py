"""``gmem store``: what a store holds and how big it is, and the removal of what nobody needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.commands.options import Json, StoreUri, opened, print_json
from flows.commands.units import age, size
from flows.console import new_table, show, tell

app = typer.Typer(no_args_is_help=True, help="Look into a store, and clear away what nobody needs.")


@app.command()
def usage(store: StoreUri = None, json: Json = False) -> None:
    """Every artifact: state, size, age, and what is used by what; then what else lies there."""
    from storage.retention.inventory import usage as rows_of

    root = opened(store)
    rows = rows_of(root)
    total = sum(row["bytes"] for row in rows)
    if json:
        print_json({"store": root.root, "bytes": total, "artifacts": rows})
        return
    columns = ("artifact", "state", "bytes", "age", "used by")
    table = new_table(*columns, names="artifact", title=f"{size(total)} in {root.root}")
    for row in rows:
        aged = "" if row["age_s"] is None else age(row["age_s"])
        table.add_row(row["artifact"], row["state"], size(row["bytes"]), aged, "\n".join(row["used_by"]))
    show(table)


@app.command()
def clean(
    store: StoreUri = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove; without it nothing is removed, only listed")] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="also superseded artifacts and checkpoints: all but the newest N of a kind and name"
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="also superseded artifacts and checkpoints (all but the newest), versions of banks, older than DAYS",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Removes what was begun and never finished, and files that nobody refers to; a dry run unless --yes is given.

    Kept in any case: what a kept result depends on, tagged versions of banks, the newest and the best checkpoint.
    """
    from storage.retention.clean import clean as cleaned

    root = opened(store)
    if yes:
        root.require_writable()
    done = cleaned(root, keep, older_than, remove=yes)
    if json:
        rows = [{k: v for k, v in asdict(r).items() if k in ("folder", "what", "why", "bytes")} for r in done.removals]
        print_json({"removed": yes, "bytes": done.bytes, "removals": rows, "notes": done.notes})
        return
    table = new_table("artifact", "what", "why", "bytes", names="artifact")
    for removal in done.removals:
        table.add_row(removal.folder, removal.what, removal.why, size(removal.bytes))
    if done.removals:
        show(table)
    for note in dict.fromkeys(done.notes):
        tell(note)
    said = "freed" if yes else "could be freed; nothing was removed, --yes removes it"
    show(f"{size(done.bytes)} {said}")
