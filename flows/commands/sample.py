"""``gmem sample``: pictures from snippets of the bank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.bank import BankUri
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import show


def sample(
    recipe: RecipeName = "emoji",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many, from random snippets")] = 32,
    ids: Annotated[
        list[int] | None, typer.Option("--id", help="from the snippet of this row of the bank; repeatable")
    ] = None,
    split: Annotated[str, typer.Option(help="random snippets of this split: train or held_out")] = "train",
    network: Annotated[
        str | None, typer.Option(metavar="URI", help="a checkpoint, training or imported network; none: the recipe's")
    ] = None,
    bank: BankUri = None,
    out: Annotated[
        Path, typer.Option(help="the picture that is drawn: each snippet's own picture above the sample")
    ] = Path("samples.png"),
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Samples from snippets of the bank with a trained or imported network, drawn as one picture."""
    import numpy as np

    from flows.engine.progress import Terminal
    from flows.explore import generate, open_bank, thumbnails
    from flows.figures import pairs

    chosen = resolved(recipe, set, store)
    snippets = open_bank(chosen, bank)
    rows = np.array(ids) if ids else snippets.sample_ids(split, count, chosen.sample.seed)
    with Terminal("sample") as progress:
        made = generate(chosen, snippets, rows, network, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(pairs(thumbnails(snippets, rows, made.images.shape[1]), made.images))
    about = {"ids": rows.tolist(), "calls": made.calls, "step": made.step, "seed": chosen.sample.seed}
    if json:
        print_json({"picture": str(out.absolute())} | about)
    else:
        counted = f"{len(rows)} samples, {made.calls} network calls each, checkpoint of step {made.step:,}"
        show(f"{counted}: {out.absolute()}")
