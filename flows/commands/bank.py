"""``gmem bank``: what the memory holds, and what lies near a row or a picture in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import new_table, show
from storage.errors import Refused

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(no_args_is_help=True, help="Look into the memory bank of a recipe.")


BankUri = Annotated[str | None, typer.Option("--bank", metavar="URI", help="another bank, such as an imported one")]


@app.command()
def info(
    recipe: RecipeName = "emoji", bank: BankUri = None, set: Set = None, store: StoreUri = None, json: Json = False
) -> None:
    """Rows by origin, split and label, encoder, versions, tags, index."""
    from flows.explore import open_bank

    opened = open_bank(resolved(recipe, set, store), bank)
    about = opened.info()
    if json:
        print_json(about.to_dict() | {"uri": opened.artifact})
        return
    table = new_table("", "", title=opened.artifact, header=False)
    for key, value in about.to_dict().items():
        shown = (
            ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        table.add_row(key, shown)
    show(table)
    show(f'in Python: lancedb.connect("{opened.artifact}").open_table("bank")')


@app.command()
def search(
    recipe: RecipeName = "emoji",
    row: Annotated[
        int | None, typer.Option(help="id of a row of the bank (2 x sample, plus 1 for a mirror image)")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="a picture file, encoded as the bank's own were")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="how many neighbours")] = 16,
    where: Annotated[
        str | None, typer.Option(help="condition on columns, such as \"split = 'train' AND NOT flipped\"")
    ] = None,
    sheet: Annotated[Path, typer.Option(help="where the contact sheet is drawn")] = Path("neighbours.png"),
    bank: BankUri = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """The nearest rows by cosine, as a table and drawn as a contact sheet."""
    from flows.explore import encode_picture, open_bank

    if (row is None) == (picture is None):
        raise Refused("say what to search for: either --row ID or --picture FILE")
    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank)
    query = encode_picture(picture, chosen, opened) if picture else row
    assert query is not None, "one of the two is given"
    found = opened.search(query, k, where)
    draw(found, sheet)
    columns = ("id", "key", "flipped", "label", "split", "origin", "_distance")
    rows = found.select(columns).to_pylist()
    if json:
        print_json({"sheet": str(sheet.absolute()), "rows": rows})
        return
    table = new_table(*(column.strip("_") for column in columns), names="key")
    for line in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for v in line.values()))
    show(table)
    show(f"contact sheet: {sheet.absolute()}")


def draw(found: pa.Table, path: Path) -> None:
    """The thumbnails of rows, each with its label or key and its distance."""
    import io

    import numpy as np
    from PIL import Image

    from flows.figures import sheet

    blank = np.full((64, 64, 3), 230, np.uint8)
    rows: list[dict[str, Any]] = found.to_pylist()
    images = [
        np.asarray(Image.open(io.BytesIO(r["thumbnail"])).convert("RGB")) if r["thumbnail"] else blank for r in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet(images, [f"{r['key'] or r['id']}"[:12] + f" {r['_distance']:.2f}" for r in rows]))
