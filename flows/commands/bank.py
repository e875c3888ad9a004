"""``gmem bank``: what the memory holds, what lies near a row, a picture or a word in it, and what has become of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import bank_edit, bank_withdraw, published
from flows.commands.bank_options import At, BankUri, Ids, numbers
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import new_table, show, tell
from storage.errors import Refused

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(no_args_is_help=True, help="Look into the memory bank of a recipe, and edit it.")
app.command()(bank_edit.add)
app.command()(bank_edit.mix)
app.command()(bank_edit.factorise)
app.command()(bank_withdraw.withdraw)
app.command()(bank_edit.tag)
app.command()(bank_edit.restore)
app.command()(bank_edit.optimise)
app.command("import")(published.bank)

SHOWN = ("id", "key", "flipped", "label", "class", "caption", "split", "origin", "parents")
DRAWN = (*SHOWN, "thumbnail")
MOST = 50
"""Rows of a difference, or values, that the terminal lists; --json has them all."""
Sheet = Annotated[Path, typer.Option(help="where the contact sheet is drawn")]


@app.command()
def info(
    recipe: RecipeName = "emoji",
    at: At = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Rows by origin, split, label and class, encoder, versions, tags, index."""
    from flows.explore import kept_of, open_bank, version_of

    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank, version_of(at))
    about, memory = opened.info().to_dict(), kept_of(chosen, opened)
    if json:
        print_json(about | {"uri": opened.artifact, "memory": memory})
        return
    table = new_table("", "", title=opened.artifact, header=False)
    if not about["index"]:
        about |= {"index": "none: a search reads every row", "unindexed": None}
    for key, value in about.items():
        if value is not None:
            table.add_row(key, _listed(value) if isinstance(value, dict) else str(value))
    if memory:
        table.add_row("memory", _memory(memory))
    show(table)
    show(f'in Python: lancedb.connect("{opened.artifact}").open_table("bank")')


def _memory(about: dict[str, Any]) -> str:
    """What `kept_of` tells, in words."""
    said = [f"{about['kept']:,} of {about['of']:,} snippets"]
    if about["choice"]:
        said.append(f"chosen {about['choice']}, at a cosine of {about['cosine']:.3f} to those they stand for")
    if about["rank"]:
        said.append(f"{about['rank']} numbers each, which keep {about['energy']:.1%} of the variance")
    return "; ".join([*said, about["uri"]])


def _listed(values: dict[str, Any]) -> str:
    said = [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in values.items()]
    more = [f"and {len(said) - MOST} more"] if len(said) > MOST else []
    return ", ".join([*said[:MOST], *more])


@app.command()
def search(
    recipe: RecipeName = "emoji",
    picture: Annotated[Path | None, typer.Argument(help="a picture file, encoded as the bank's own were")] = None,
    row: Annotated[
        int | None, typer.Option(help="id of a row of the bank (2 x sample, plus 1 for a mirror image)")
    ] = None,
    text: Annotated[str | None, typer.Option(help="words of key, class or caption")] = None,
    where: Annotated[
        str | None, typer.Option(help="condition on columns, such as \"split = 'train' AND NOT flipped\"")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="how many rows at most")] = 16,
    exact: Annotated[bool, typer.Option("--exact", help="past the index, by reading every row")] = False,
    sheet: Sheet = Path("neighbours.png"),
    at: At = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Rows near a picture or a row, or with some words, or that fulfil a condition; drawn as a contact sheet too."""
    from flows.explore import open_bank, version_of
    from flows.incoming import encode_picture

    if [row, picture, text].count(None) < 2 or [row, picture, text, where].count(None) == 4:
        raise Refused(
            "say what to search for: a PICTURE, --row ID or --text WORDS, with or without --where, or --where alone"
        )
    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank, version_of(at))
    query = encode_picture(picture, chosen, opened) if picture else text if row is None else row
    _answer(opened.search(query, k, where, exact, columns=DRAWN), sheet, json)


@app.command("show")
def show_rows(
    recipe: RecipeName,
    ids: Ids,
    sheet: Sheet = Path("rows.png"),
    at: At = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Rows by their ids, with their pictures as a contact sheet."""
    from flows.explore import open_bank, version_of

    opened = open_bank(resolved(recipe, set, store), bank, version_of(at))
    _answer(opened.rows(numbers(ids, "--ids"), [*DRAWN]), sheet, json)


def _answer(found: pa.Table, sheet: Path, json: bool) -> None:
    """Rows as a table and as a contact sheet. That there are none is an answer."""
    measures = [name for name in ("_distance", "_score") if name in found.column_names]
    rows = found.select([*SHOWN, *measures]).to_pylist()
    if rows:
        draw(found, sheet)
    if json:
        print_json({"sheet": str(sheet.absolute()) if rows else None, "rows": rows})
        return
    if not rows:
        tell("no row fits")
        return
    table = new_table(*(column.strip("_") for column in rows[0]), names="key")
    for line in rows:
        table.add_row(*map(_cell, line.values()))
    show(table)
    show(f"contact sheet: {sheet.absolute()}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:z.4f}" if isinstance(value, float) else str(value)


def draw(found: pa.Table, path: Path) -> None:
    """The thumbnails of rows, each with its class, key or id, and its distance where there is one."""
    import io

    import numpy as np
    from PIL import Image

    from flows.figures import BLANK, sheet

    blank = np.full((64, 64, 3), BLANK, np.uint8)
    rows: list[dict[str, Any]] = found.to_pylist()
    images = [
        np.asarray(Image.open(io.BytesIO(r["thumbnail"])).convert("RGB")) if r["thumbnail"] else blank for r in rows
    ]
    captions = [f"{r['class'] or r['key'] or r['id']}" for r in rows]
    if "_distance" in found.column_names:
        captions = [f"{caption} {r['_distance']:.2f}" for caption, r in zip(captions, rows, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet(images, captions))


@app.command()
def history(
    recipe: RecipeName = "emoji", bank: BankUri = None, set: Set = None, store: StoreUri = None, json: Json = False
) -> None:
    """Every change of its rows: when, by whom, why, how many there were then, and under which tags."""
    from flows.explore import open_bank

    changes = [change.to_dict() for change in open_bank(resolved(recipe, set, store), bank).history()]
    if json:
        print_json({"changes": changes})
        return
    table = new_table("version", "time", "change", "rows", "by whom, why and how", names="time")
    for change in changes:
        why = (
            change["author"],
            change["reason"],
            _listed(change["details"]),
            *(f"tag {tag}" for tag in change["tags"]),
        )
        table.add_row(
            str(change["version"]), change["time"], change["kind"], f"{change['rows']:,}", "; ".join(filter(None, why))
        )
    show(table)


@app.command()
def diff(
    recipe: RecipeName,
    a: Annotated[str, typer.Argument(help="a version, a tag or a time")],
    b: Annotated[str | None, typer.Argument(help="another; none: the newest")] = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Rows that came, went or changed between two versions."""
    from flows.explore import open_bank, version_of

    chosen = resolved(recipe, set, store)
    before, after = (open_bank(chosen, bank, version_of(version)) for version in (a, b))
    found = after.diff(before.version)
    ids = {name: values.tolist() for name, values in vars(found).items()}
    if json:
        print_json({"from": before.version, "to": after.version, **ids})
        return
    show(f"version {before.version} to {after.version}: " + ", ".join(f"{len(v):,} {name}" for name, v in ids.items()))
    table = new_table("", "id", "key", "class", "origin", names="key")
    for name, each in ids.items():
        side = before if name == "removed" else after
        for row in side.rows(each[:MOST], ["id", "key", "class", "origin"]).to_pylist():
            table.add_row(name, *map(_cell, row.values()))
    if any(ids.values()):
        show(table)


@app.command()
def export(
    recipe: RecipeName,
    out: Annotated[
        Path, typer.Argument(help=".parquet: every column; .npy: the snippets, and beside it a .csv of whose they are")
    ],
    where: Annotated[str | None, typer.Option(help="only rows that fulfil this condition")] = None,
    at: At = None,
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Rows as one file for other programs, read a part at a time."""
    from flows.explore import open_bank, version_of
    from storage.tables.bank_export import export_bank

    opened = open_bank(resolved(recipe, set, store), bank, version_of(at))
    rows = export_bank(opened, out, where)
    if json:
        print_json({"file": str(out.absolute()), "rows": rows, "version": opened.version})
    else:
        show(f"{rows:,} rows of version {opened.version}: {out.absolute()}")
