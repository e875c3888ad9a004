"""``gmem sample``: pictures from snippets of the bank."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from flows.commands.bank import BankUri, open_bank
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.engine.progress import Terminal, console
from flows.recipe.model import Recipe

if TYPE_CHECKING:
    from storage.checkpoints import Checkpoint
    from storage.tables.bank import Bank


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
    from flows.figures import pairs

    chosen = resolved(recipe, set, store)
    snippets = open_bank(chosen, bank)
    rows = np.array(ids) if ids else snippets.sample_ids(split, count, chosen.sample.seed)
    made, calls, step = _generate(chosen, rows, network, snippets)
    sources = _thumbnails(snippets.rows(rows.tolist(), ["thumbnail"])["thumbnail"].to_pylist(), made.shape[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(pairs(sources, made))
    if json:
        print_json(
            {
                "picture": str(out.absolute()),
                "ids": rows.tolist(),
                "calls": calls,
                "step": step,
                "seed": chosen.sample.seed,
            }
        )
    else:
        console.print(
            f"{len(rows)} samples, {calls} network calls each, checkpoint of step {step:,}: {out.absolute()}",
            soft_wrap=True,
        )


def _generate(
    recipe: Recipe, ids: NDArray[np.int64], network: str | None, bank: Bank
) -> tuple[NDArray[np.uint8], int, int]:
    """uint8 [N, H, W, 3], the most network calls for a sample, and the checkpoint's step."""
    import torch

    from flows.models.generation import load_generator, require_snippets, sampler_config
    from gmem.memory import normalise

    checkpoint = _checkpoint(recipe, network)
    if checkpoint.manifest.encoder:
        bank.require_encoder(checkpoint.manifest.encoder)
    require_snippets(checkpoint, bank.dim, bank.artifact)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = load_generator(checkpoint, recipe, device)
    rows = bank.rows(ids.tolist(), ["label"])
    snippets = normalise(bank.snippets(ids.tolist()))
    labels = torch.tensor([-1 if label is None else label for label in rows["label"].to_pylist()])
    chosen, made, calls = recipe.sample, [], 0
    with Terminal("sample") as bar:
        bar.total(len(ids))
        for images, taken in generator.batches(
            snippets, torch.arange(len(ids)), sampler_config(chosen), chosen.seed, labels, size=chosen.batch
        ):
            made.append(images.cpu())
            calls = max(calls, taken)
            bar.advance(len(images))
    return torch.cat(made).permute(0, 2, 3, 1).numpy(), calls, checkpoint.step


def _checkpoint(recipe: Recipe, network: str | None) -> Checkpoint:
    from flows.engine.stage import Plan
    from flows.models.resolve import open_network
    from flows.stages.train.stage import TRAINING, chosen_checkpoint
    from storage.store import Store

    if network:
        return open_network(network, Store(recipe.store))
    found = chosen_checkpoint(recipe, Plan(recipe).artifact(TRAINING))
    if found is None:
        raise ValueError(
            f"recipe {recipe.name} has no checkpoint in {recipe.store} yet; run 'gmem run' or name one with --network"
        )
    return found


def _thumbnails(data: list[bytes | None], side: int) -> NDArray[np.uint8]:
    """uint8 [N, side, side, 3]; grey where the bank has no picture."""
    pictures = []
    for item in data:
        image = Image.open(io.BytesIO(item)).convert("RGB") if item else Image.new("RGB", (side, side), (230, 230, 230))
        pictures.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(pictures)
