"""``gmem pretrain``: a small tokenizer or encoder for pictures that no published one fits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import show
from storage.errors import Refused

if TYPE_CHECKING:
    from flows.engine.progress import Terminal
    from flows.recipe.model import Recipe

app = typer.Typer(no_args_is_help=True, help="Train a small tokenizer or encoder on a recipe's pictures.")

Out = Annotated[
    Path, typer.Option("--out", help="folder for the weights; name it as tokenizer.source or encoder.source")
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="KEY=VALUE", help="a parameter of the pretraining, such as steps=2000; repeatable"),
]


@app.command()
def tokenizer(
    recipe: RecipeName,
    out: Out,
    parameters: With = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """An AutoencoderKL on the recipe's training pictures; goes on from its own checkpoint in the folder."""
    from flows.engine.progress import Terminal
    from gmem.pretrain.tokenizer import TokenizerTraining, pretrain_tokenizer

    chosen, training = resolved(recipe, set, store), TokenizerTraining(**_parameters(TokenizerTraining, parameters))
    pictures = Pictures(chosen)
    with Terminal("tokenizer") as bar:
        figures = pretrain_tokenizer(
            pictures.images,
            pictures.held_images,
            training,
            out,
            _shown(bar),
            origin=_origin(chosen, "tokenizer", recipe, parameters),
        )
    _tell(figures, out, json)


@app.command()
def encoder(
    recipe: RecipeName,
    out: Out,
    parameters: With = None,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """A vision transformer on the recipe's training pictures, by self-supervision; labels serve its figures only."""
    from flows.engine.progress import Terminal
    from gmem.pretrain.encoder import EncoderTraining, pretrain_encoder

    given = _parameters(EncoderTraining, parameters)
    chosen, training = resolved(recipe, set, store), EncoderTraining.of(given.pop("method", "contrast"), **given)
    pictures = Pictures(chosen)
    with Terminal("encoder") as bar:
        figures = pretrain_encoder(
            pictures.images,
            pictures.labels,
            pictures.held_images,
            pictures.held_labels,
            training,
            out,
            _shown(bar),
            origin=_origin(chosen, "encoder", recipe, parameters),
        )
    _tell(figures, out, json)


class Pictures:
    """A recipe's pictures as tensors, ingested into a temporary folder: uint8 [N, 3, H, W] and labels [N], by split."""

    def __init__(self, recipe: Recipe) -> None:
        import numpy as np
        import torch

        from gmem.pixels import channels_first
        from storage.images.index import index_shards, read_index
        from storage.images.shards import ShardPlan, read_shard, write_index, write_shard
        from storage.images.sources import list_source

        data = recipe.data
        listing = list_source(recipe.source, data.layout, data.label)
        classes = tuple(listing.classes())
        plan = ShardPlan(recipe.source, data.image_size, data.held_out, classes, data.max_pixels, data.background)
        shards = -(-len(listing) // data.shard_size)
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            for n in range(shards):
                write_shard(folder, n, listing.slice(n * data.shard_size, (n + 1) * data.shard_size), plan)
            write_index(folder, shards, plan)
            pictures = [picture for shard in index_shards(read_index(folder)) for picture in read_shard(folder, shard)]
        images = channels_first(np.stack([p.image for p in pictures])).contiguous()
        labels = torch.tensor([-1 if p.label is None else p.label for p in pictures])
        held = torch.tensor([p.split == "held_out" for p in pictures])
        if not held.any():
            raise Refused("no picture is held out, so nothing could be measured; raise data.held_out")
        self.images, self.labels = images[~held], labels[~held]
        self.held_images, self.held_labels = images[held], labels[held]


def _parameters(kind: type, pairs: list[str] | None) -> dict[str, Any]:
    from flows.recipe.files import assignments

    given = assignments(pairs or [])
    known = [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise Refused(f"unknown parameter {key} of the pretraining; known are {', '.join(known)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def _origin(recipe: Recipe, what: str, name: str, parameters: list[str] | None) -> dict[str, Any]:
    """What the provenance file says of where the weights come from."""
    command = " ".join(["gmem", "pretrain", what, name, *(f"--with {pair}" for pair in parameters or [])])
    return {
        "data": recipe.data.source,
        "image_size": recipe.data.image_size,
        "held_out": recipe.data.held_out,
        "command": command,
    }


def _shown(bar: Terminal) -> Callable[[dict[str, Any]], None]:
    """Passes the pretraining's progress on to the bar."""
    done: int | None = None

    def show(values: dict[str, Any]) -> None:
        nonlocal done
        if done is None:
            bar.total(values["steps"], values["step"])
        else:
            bar.advance(values["step"] - done, loss=values["loss"])
        done = values["step"]

    return show


def _tell(figures: dict[str, Any], out: Path, json: bool) -> None:
    if json:
        print_json(figures | {"folder": str(out.absolute())})
        return
    for name, value in figures.items():
        show(f"{name}: {_plain(value)}")
    show(f"weights: {out.absolute()}")


def _plain(value: Any) -> str:
    """Numbers with as many digits as say something."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
