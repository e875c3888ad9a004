"""``gmem bank``: what the memory holds, and what lies near a row or a picture in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.engine.progress import console
from flows.recipe.model import Recipe

if TYPE_CHECKING:
    import pyarrow as pa

    from storage.tables.bank import Bank

app = typer.Typer(no_args_is_help=True, help="Look into the memory bank of a recipe.")


BankUri = Annotated[str | None, typer.Option("--bank", metavar="URI", help="another bank, such as an imported one")]


def open_bank(recipe: Recipe, uri: str | None = None) -> Bank:
    """The bank at a URI, or the finished one of the recipe; ValueError says what to run when there is none."""
    if uri:
        from flows.models import resolve as outside
        from storage.store import Store

        return outside.open_bank(uri, Store(recipe.store))
    from flows.engine.stage import Plan
    from flows.stages.bank.stage import BANK
    from storage.tables.bank import Bank

    artifact = Plan(recipe).artifact(BANK)
    if not artifact.complete:
        raise ValueError(f"recipe {recipe.name} has no bank in {recipe.store} yet; run 'gmem run' with the same store")
    return Bank(artifact.uri, storage_options=artifact.store.storage_options)


@app.command()
def info(
    recipe: RecipeName = "emoji", bank: BankUri = None, set: Set = None, store: StoreUri = None, json: Json = False
) -> None:
    """Rows by origin, split and label, encoder, versions, tags, index."""
    there = open_bank(resolved(recipe, set, store), bank)
    about = there.info()
    if json:
        print_json(about.to_dict() | {"uri": there.artifact})
        return
    table = Table(show_header=False, title=there.artifact)
    for key, value in about.to_dict().items():
        shown = (
            ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items())
            if isinstance(value, dict)
            else str(value)
        )
        table.add_row(key, shown)
    console.print(table)


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
    if (row is None) == (picture is None):
        raise ValueError("say what to search for: either --row ID or --picture FILE")
    chosen = resolved(recipe, set, store)
    there = open_bank(chosen, bank)
    query: int | NDArray[np.float32] = row if row is not None else encode_picture(picture, chosen, there)  # type: ignore[arg-type]
    found = there.search(query, k, where)
    draw(found, sheet)
    columns = ("id", "key", "flipped", "label", "split", "origin", "_distance")
    rows = found.select(columns).to_pylist()
    if json:
        print_json({"sheet": str(sheet.absolute()), "rows": rows})
        return
    table = Table(*(column.strip("_") for column in columns))
    for line in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for v in line.values()))
    console.print(table)
    console.print(f"contact sheet: {sheet.absolute()}", soft_wrap=True)


def encode_picture(path: Path, recipe: Recipe, bank: Bank) -> NDArray[np.float32]:
    """The snippet [D] of a picture file, prepared as ingest prepares pictures."""
    import torch

    from gmem.encoder import load_encoder
    from gmem.tokenizer import from_bytes
    from storage.images.decoding import Rejected, centre_crop, decode

    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a picture")
    decoded = decode(path.read_bytes(), recipe.data.max_pixels)
    if isinstance(decoded, Rejected):
        raise ValueError(f"{path} cannot be used: {decoded.reason}")
    encoder = load_encoder(recipe.encoder.source, image_size=recipe.data.image_size)
    bank.require_encoder(encoder.identity)
    image = np.asarray(centre_crop(decoded.image, recipe.data.image_size, recipe.data.max_pixels))
    return encoder(from_bytes(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])).snippet[0].numpy()


def draw(found: pa.Table, path: Path) -> None:
    """The thumbnails of rows, each with its label or key and its distance."""
    from flows.figures import sheet

    blank = np.full((64, 64, 3), 230, np.uint8)
    rows: list[dict[str, Any]] = found.to_pylist()
    images = [
        np.asarray(Image.open(io.BytesIO(r["thumbnail"])).convert("RGB")) if r["thumbnail"] else blank for r in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet(images, [f"{r['key'] or r['id']}"[:12] + f" {r['_distance']:.2f}" for r in rows]))
