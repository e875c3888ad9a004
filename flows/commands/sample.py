"""``gmem sample``: pictures from snippets of the bank, from what is near or between them, or from the prior's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.bank_options import At, BankUri, numbers
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import show
from storage.errors import Refused

if TYPE_CHECKING:
    from flows.recipe.model import Recipe
    from storage.tables.bank import Bank


def sample(
    recipe: RecipeName = "emoji",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many, from random snippets")] = 32,
    ids: Annotated[
        list[int] | None, typer.Option("--id", help="from the snippet of this row of the bank; repeatable")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="random snippets that fulfil this condition, such as \"class = 'flags'\"")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="random snippets of this split: train (unless --where is given) or held_out")
    ] = None,
    balanced_by: Annotated[
        str | None, typer.Option(help="equally many of each value of a column: class, label, origin or split")
    ] = None,
    mixed: Annotated[
        str | None, typer.Option("--mix", metavar="A,B", help="from one row to another, by mixtures, of one noise")
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="from snippets that are nobody's, drawn from the recipe's prior")
    ] = False,
    class_name: Annotated[str | None, typer.Option("--class", help="with --prior: only of this class")] = None,
    noise: Annotated[
        float, typer.Option(min=0, help="moves each snippet, of length 1, at random by about this much")
    ] = 0.0,
    neighbours: Annotated[
        int,
        typer.Option(min=0, help="mixes each snippet half and half with one of its so many nearest others; 0: none"),
    ] = 0,
    steps: Annotated[int, typer.Option(min=2, max=64, help="samples on the way, the ends included")] = 7,
    network: Annotated[
        str | None, typer.Option(metavar="URI", help="a checkpoint, training or imported network; none: the recipe's")
    ] = None,
    at: At = None,
    bank: BankUri = None,
    out: Annotated[
        Path,
        typer.Option(
            help="the picture that is drawn: above each sample the snippet's own picture, or with --prior the nearest one"
        ),
    ] = Path("samples.png"),
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Samples from snippets of the bank with a trained or imported network, drawn as one picture."""
    import numpy as np

    from flows.engine.progress import Terminal
    from flows.explore import draw_snippets, generate, generate_drawn, open_bank, thumbnails, version_of, walk
    from flows.figures import grid, pairs

    if [ids, mixed, where].count(None) < 2:
        raise Refused("say which snippets: --id, --mix or --where, one of them")
    if prior and [ids, mixed, where, split, balanced_by, at, bank].count(None) < 7:
        raise Refused(
            "--prior draws snippets that are in no bank; leave --id, --mix, --where, --split and the like away"
        )
    if class_name is not None and not prior:
        raise Refused("--class goes with --prior; of the bank's own snippets, --where \"class = '…'\" chooses")
    if (noise or neighbours) and (prior or mixed is not None):
        raise Refused("--noise and --neighbours change snippets of the bank; leave --prior and --mix away")
    chosen = resolved(recipe, set, store)
    snippets = open_bank(chosen, bank, version_of(at))
    with Terminal("sample") as progress:
        if prior:
            found = draw_snippets(chosen, snippets, count, class_name)
            rows = found.nearest.tolist()
            made = generate_drawn(chosen, snippets, found, network, progress)
            drawn = pairs(thumbnails(snippets, found.nearest, made.images.shape[1]), made.images)
        elif mixed is not None:
            ends = _ends(mixed)
            rows = list(ends)
            made = walk(chosen, snippets, ends, steps, network=network, progress=progress)
            drawn = grid(made.images)
        else:
            rows = ids or _drawn(chosen, snippets, count, where, split, balanced_by)
            made = generate(chosen, snippets, np.array(rows), network, progress, noise, neighbours)
            drawn = pairs(thumbnails(snippets, np.array(rows), made.images.shape[1]), made.images)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(drawn)
    about = {"ids": rows, "calls": made.calls, "step": made.step, "seed": chosen.sample.seed}
    if json:
        print_json({"picture": str(out.absolute())} | about)
    else:
        counted = f"{len(made.images)} samples, {made.calls} network calls each, checkpoint of step {made.step:,}"
        show(f"{counted}: {out.absolute()}")


def _ends(text: str) -> tuple[int, int]:
    ends = numbers(text, "--mix")
    if len(ends) != 2:
        raise Refused(f"--mix leads from one row to another; give 2 ids, not {len(ends)}")
    return ends[0], ends[1]


def _drawn(
    recipe: Recipe, bank: Bank, count: int, where: str | None, split: str | None, balanced_by: str | None
) -> list[int]:
    from storage.tables.bank_where import equals, joined

    if split is None and where is None:
        split = "train"
    condition = joined(where, equals("split", split) if split is not None else None)
    return bank.sample(count, recipe.sample.seed, condition, balanced_by).tolist()
