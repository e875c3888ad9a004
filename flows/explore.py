"""Look into a recipe's memory and generate from it: for commands, notebooks and pages alike.

recipe = load("emoji")
bank = open_bank(recipe)
ids = bank.sample_ids("train", 8, seed=0)
made = generate(recipe, bank, ids)
Path("samples.png").write_bytes(figures.grid(made.images))
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from storage.store import Store

if TYPE_CHECKING:
    from storage.checkpoints import Checkpoint
    from storage.tables.bank import Bank

BLANK = (230, 230, 230)
"""Stands for a picture that the bank does not have."""


class Generated(NamedTuple):
    """What came of a generation."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]"""
    calls: int
    """The most network calls that a sample took."""
    step: int
    """Of the checkpoint."""


def open_bank(recipe: Recipe, uri: str | None = None) -> Bank:
    """A bank to search, to draw snippets from and to sample with.

    Args:
        recipe: whose store is looked into, and whose own finished bank it is unless `uri` names another.
        uri: an artifact, in full or relative to the store, such as `bank/emoji-0123456789ab`.

    Raises:
        Refused: there is none; says what to run.
    """
    if uri:
        from flows.models import resolve

        return resolve.open_bank(uri, Store(recipe.store))
    from flows.engine.stage import Plan
    from flows.stages.bank.stage import BANK
    from storage.tables.bank import Bank

    artifact = Plan(recipe).artifact(BANK)
    if not artifact.complete:
        raise StageError(f"recipe {recipe.name} has no bank in {recipe.store} yet; run 'gmem run' with the same store")
    return Bank(artifact.uri)


def open_network(recipe: Recipe, uri: str | None = None) -> Checkpoint:
    """A checkpoint to sample from: at `uri`, or that of the recipe's training which its evaluation would take."""
    from flows.engine.stage import Plan
    from flows.models import resolve
    from flows.stages.train.stage import TRAINING, chosen_checkpoint

    if uri:
        return resolve.open_network(uri, Store(recipe.store))
    checkpoint = chosen_checkpoint(recipe, Plan(recipe).artifact(TRAINING))
    if checkpoint is None:
        raise StageError(
            f"recipe {recipe.name} has no checkpoint in {recipe.store} yet; run 'gmem run' or name one with --network"
        )
    return checkpoint


def encode_picture(path: Path, recipe: Recipe, bank: Bank) -> NDArray[np.float32]:
    """The snippet [D] of a picture file, prepared as ingest prepares pictures.

    Args:
        path: a picture of any size, in a format that ingest reads.
        recipe: names the encoder, and the side that pictures are cropped to.
        bank: whose encoder it must be.
    """

    from gmem.encoder import load_encoder
    from gmem.pixels import channels_first, from_bytes
    from storage.images.decoding import Rejected, centre_crop, decode

    if not path.is_file():
        raise StageError(f"{path} is not a file; name a picture")
    decoded = decode(path.read_bytes(), recipe.data.max_pixels)
    if isinstance(decoded, Rejected):
        raise StageError(f"{path} cannot be used: {decoded.reason}")
    encoder = load_encoder(recipe.encoder.source, image_size=recipe.data.image_size)
    bank.require_encoder(encoder.identity)
    image = np.asarray(centre_crop(decoded.image, recipe.data.image_size, recipe.data.max_pixels))
    return encoder(from_bytes(channels_first(image.copy())[None])).snippet[0].numpy()


def generate(
    recipe: Recipe,
    bank: Bank,
    ids: NDArray[np.int64],
    network: str | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Samples from snippets of a bank, with the recipe's sampler and seed, on the GPU where there is one.

    Args:
        recipe: its `sample` section says how; `sample.seed` and a sample's place in `ids` decide its noise.
        bank: where the snippets are.
        ids: [N] ids of rows; one may come several times.
        network: URI of a checkpoint, training or imported network; None: the recipe's own.
    """
    import torch

    from flows.models.generation import load_generator, require_snippets
    from gmem.memory import normalise
    from gmem.pixels import channels_last

    checkpoint = open_network(recipe, network)
    if checkpoint.manifest.encoder:
        bank.require_encoder(checkpoint.manifest.encoder)
    require_snippets(checkpoint, bank.dim, bank.artifact)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = load_generator(checkpoint, recipe, device)
    wanted = ids.tolist()
    labels = [-1 if label is None else label for label in bank.rows(wanted, ["label"])["label"].to_pylist()]
    batches = generator.batches(
        normalise(bank.snippets(wanted)),
        torch.arange(len(ids)),
        recipe.sample,
        recipe.sample.seed,
        torch.tensor(labels),
        size=recipe.sample.batch,
    )
    images, calls = [], 0
    if progress:
        progress.total(len(ids))
    for batch, taken in batches:
        images.append(batch.cpu())
        calls = max(calls, taken)
        if progress:
            progress.advance(len(batch))
    return Generated(channels_last(torch.cat(images)), calls, checkpoint.step)


def thumbnails(bank: Bank, ids: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """uint8 [N, side, side, 3]: the pictures of rows; grey where the bank has none."""
    return np.stack([_picture(data, side) for data in bank.rows(ids.tolist(), ["thumbnail"])["thumbnail"].to_pylist()])


def _picture(data: bytes | None, side: int) -> NDArray[np.uint8]:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB") if data else Image.new("RGB", (side, side), BLANK)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
