"""``gmem sample``: pictures from snippets of the bank or of a picture, from what is near or between them, or from the prior's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from flows.commands.bank_options import At, BankUri, numbers
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import show
from storage.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from flows.explore import Generated
    from flows.models.snippets import Snippets
    from flows.recipe.model import Recipe
    from storage.tables.bank import Bank

RANDOM = 32
"""Samples of random snippets, where nothing says how many."""


def sample(
    recipe: RecipeName = "emoji",
    count: Annotated[
        int | None,
        typer.Option(
            "-n", "--count", min=1, help=f"how many; none: one of each that is named, {RANDOM} of random ones"
        ),
    ] = None,
    ids: Annotated[
        list[int] | None, typer.Option("--id", help="from the snippet of this row of the bank; repeatable")
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", help="from that of the row of this key; repeatable")
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--picture", help="from that of a picture file, which the bank need not have; repeatable"),
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
            help="the picture that is drawn: above each sample the snippet's own picture, or with --prior the nearest one; "
            "or a folder, which gets each sample as a file as well"
        ),
    ] = Path("samples.png"),
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Samples from snippets with a trained or imported network, drawn as one picture. For many, see 'gmem stage sample'."""
    from flows.engine.progress import Terminal
    from flows.explore import generate_from, open_bank, version_of, walk

    if [ids, keys, pictures, mixed, where].count(None) < 4:
        raise Refused("say which snippets: --id, --key, --picture, --mix or --where, one of them")
    if prior and [ids, keys, pictures, mixed, where, split, balanced_by, at, bank].count(None) < 9:
        raise Refused(
            "--prior draws snippets that are in no bank; leave --id, --mix, --where, --split and the like away"
        )
    if class_name is not None and not prior:
        raise Refused("--class goes with --prior; of the bank's own snippets, --where \"class = '…'\" chooses")
    if (noise or neighbours) and (prior or mixed is not None or pictures):
        raise Refused("--noise and --neighbours change snippets of the bank; leave --prior, --mix and --picture away")
    chosen = resolved(recipe, set, store)
    opened = open_bank(chosen, bank, version_of(at))
    with Terminal("sample") as progress:
        if mixed is not None:
            ends = _ends(mixed)
            made = walk(chosen, opened, ends, steps, network=network, progress=progress)
            shown = Shown(list(ends), None, [str(ends[0]), *[""] * (steps - 2), str(ends[1])])
        else:
            if prior:
                snippets, shown = _of_nobody(chosen, opened, count or RANDOM, class_name)
            elif pictures:
                snippets, shown = _of_files(chosen, opened, pictures, count or len(pictures))
            else:
                rows = _rows(chosen, opened, count, ids, keys, where, split, balanced_by)
                snippets, shown = _of_rows(chosen, opened, rows, noise, neighbours)
            made = generate_from(chosen, opened, snippets, network, progress)
    picture = _written(out, made, shown)
    about = {"ids": shown.rows, "calls": made.calls, "step": made.step, "seed": chosen.sample.seed}
    if json:
        print_json({"picture": str(picture.absolute())} | about)
    else:
        counted = f"{len(made.images)} samples, {made.calls} network calls each, checkpoint of step {made.step:,}"
        show(f"{counted}: {picture.absolute()}")


class Shown(NamedTuple):
    """What stands beside the samples."""

    rows: list[int]
    """Of the bank; those nearest to what is nobody's."""
    sources: Callable[[int], NDArray[np.uint8]] | None
    """Of a side in pixels, the pictures [N, side, side, 3] above the samples; None: there are none."""
    captions: list[str]


def _of_nobody(recipe: Recipe, bank: Bank, count: int, class_name: str | None) -> tuple[Snippets, Shown]:
    from flows.explore import draw_snippets
    from flows.figures import thumbnails

    drawn = draw_snippets(recipe, bank, count, class_name)
    captions = [f"nearest {similarity:.2f}" for similarity in drawn.similarity]
    return drawn.snippets, Shown(drawn.nearest.tolist(), partial(thumbnails, bank, drawn.nearest), captions)


def _of_files(recipe: Recipe, bank: Bank, paths: list[Path], count: int) -> tuple[Snippets, Shown]:
    import numpy as np
    import torch

    from flows.figures import resized
    from flows.incoming import encode_picture, read_picture
    from flows.models.snippets import NOBODY, Snippets

    each = np.arange(count) % len(paths)
    vectors = np.stack([encode_picture(path, recipe, bank) for path in paths])[each]
    if bank.memory:
        vectors = bank.memory.seen(vectors).astype(np.float32)
    pictures = np.stack([read_picture(path, recipe) for path in paths])[each]
    nobody = np.full(count, NOBODY)
    snippets = Snippets(torch.from_numpy(vectors), nobody, nobody, nobody)
    return snippets, Shown([], partial(resized, pictures), [paths[i].name for i in each])


def _of_rows(
    recipe: Recipe, bank: Bank, ids: NDArray[np.int64], noise: float, neighbours: int
) -> tuple[Snippets, Shown]:
    from flows.figures import thumbnails
    from flows.models.snippets import of_rows

    snippets = of_rows(bank, ids, recipe.sample.seed, noise, neighbours)
    keys = bank.rows(ids.tolist(), ["key"])["key"].to_pylist()
    captions = [f"{row} {key or ''}".strip() for row, key in zip(ids.tolist(), keys, strict=True)]
    return snippets, Shown(ids.tolist(), partial(thumbnails, bank, ids), captions)


def _rows(
    recipe: Recipe,
    bank: Bank,
    count: int | None,
    ids: list[int] | None,
    keys: list[str] | None,
    where: str | None,
    split: str | None,
    balanced_by: str | None,
) -> NDArray[np.int64]:
    """Ids [N] of the rows to sample from: those named, over and over where more are wanted, or random ones."""
    import numpy as np

    from flows.models.snippets import random_ids

    named = ids or [_row_of(bank, key) for key in keys or ()]
    if named:
        return np.resize(np.array(named, np.int64), count or len(named))
    return random_ids(bank, count or RANDOM, recipe.sample.seed, where, split, balanced_by)


def _row_of(bank: Bank, key: str) -> int:
    """The id of the row of a key, which is no mirror image."""
    from storage.tables.bank_where import equals

    rows = bank.scan(["flipped"], equals("key", key))
    found = [row["id"] for row in rows.to_pylist() if not row["flipped"]]
    if not found:
        raise Refused(f"the bank has no row of the key {key[:80]!r}; 'gmem bank search --text' looks for parts of keys")
    return int(found[0])


def _ends(text: str) -> tuple[int, int]:
    ends = numbers(text, "--mix")
    if len(ends) != 2:
        raise Refused(f"--mix leads from one row to another; give 2 ids, not {len(ends)}")
    return ends[0], ends[1]


def _written(out: Path, made: Generated, shown: Shown) -> Path:
    """Writes the sheet, and into a folder each sample beside it; returns where the sheet is."""
    from PIL import Image

    from flows.figures import pairs, sheet

    if shown.sources is None:
        drawn = sheet(list(made.images), shown.captions)
    else:
        drawn = pairs(shown.sources(made.images.shape[1]), made.images, captions=shown.captions)
    folder = out.is_dir() or not out.suffix
    picture = out / "sheet.png" if folder else out
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(drawn)
    if folder:
        for number, image in enumerate(made.images):
            Image.fromarray(image).save(out / f"{number:04d}.png")
    return picture
