"""``gmem sample``: pictures from snippets of the bank."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from flows.commands.bank import open_bank
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.progress import Terminal, console
from flows.recipe import Recipe


def sample(
    recipe: RecipeName = "emoji",
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="how many, from random snippets")] = 32,
    ids: Annotated[
        list[int] | None, typer.Option("--id", help="from the snippet of this row of the bank; repeatable")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="random snippets of this split: train or held_out; none: all")
    ] = "train",
    checkpoint: Annotated[
        str | None, typer.Option(help="URI of a checkpoint or imported network; none: the recipe's")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="the picture that is drawn: each snippet's own picture above the sample")
    ] = Path("samples.png"),
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Samples from snippets of the bank with a trained or imported network, drawn as one picture."""
    from flows.pictures import pairs

    chosen = resolved(recipe, set, store)
    bank = open_bank(chosen)
    rows = np.array(ids) if ids else bank.sample_ids(split, count, chosen.sample.seed)
    made, calls, step = _generate(chosen, rows, checkpoint)
    sources = _thumbnails(bank.rows(rows.tolist(), ["thumbnail"])["thumbnail"].to_pylist(), made.shape[1])
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


def _generate(recipe: Recipe, ids: NDArray[np.int64], uri: str | None) -> tuple[NDArray[np.uint8], int, int]:
    """uint8 [N, H, W, 3], network calls for a sample, and the checkpoint's step."""
    import torch

    from flows.generation import load_generator, sampler_config
    from flows.stage import Plan
    from flows.train import TRAINING, chosen
    from gmem.memory import normalise
    from storage.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(uri) if uri else chosen(recipe, Plan(recipe).artifact(TRAINING))
    if checkpoint is None:
        raise ValueError(
            f"recipe {recipe.name} has no checkpoint in {recipe.store} yet; run 'gmem run' or name one with --checkpoint"
        )
    bank = open_bank(recipe)
    if checkpoint.manifest.encoder:
        bank.require_encoder(checkpoint.manifest.encoder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = load_generator(checkpoint, recipe, device)
    rows = bank.rows(ids.tolist(), ["label"])
    snippets = normalise(bank.snippets(ids.tolist())).to(device)
    labels = torch.tensor([-1 if label is None else label for label in rows["label"].to_pylist()], device=device)
    parts, calls, batch = [], 0, recipe.sample.batch
    with Terminal("sample") as bar:
        bar.total(len(ids))
        for start in range(0, len(ids), batch):
            part = slice(start, start + batch)
            numbers = torch.arange(len(ids))[part]
            images, calls = generator.images(
                snippets[part], numbers, sampler_config(recipe.sample), recipe.sample.seed, labels[part]
            )
            parts.append(images.cpu())
            bar.advance(len(images))
    return torch.cat(parts).permute(0, 2, 3, 1).numpy(), calls, checkpoint.step


def _thumbnails(data: list[bytes | None], side: int) -> NDArray[np.uint8]:
    """uint8 [N, side, side, 3]; grey where the bank has no picture."""
    pictures = []
    for item in data:
        image = Image.open(io.BytesIO(item)).convert("RGB") if item else Image.new("RGB", (side, side), (230, 230, 230))
        pictures.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(pictures)
