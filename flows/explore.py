"""Look into a recipe's memory and generate from it: for commands, notebooks and pages alike.

recipe = load("emoji")
bank = open_bank(recipe)
ids = bank.sample(8, seed=0, where="class = 'flags'")
made = generate(recipe, bank, ids)
Path("samples.png").write_bytes(figures.grid(made.images))
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from storage.store import Store

if TYPE_CHECKING:
    from flows.models.snippets import Snippets
    from gmem.encoder import Encoder
    from storage.checkpoints import Checkpoint
    from storage.images.sources.entries import Entry
    from storage.tables.bank import Bank
    from storage.tables.bank_edits import Added


class Generated(NamedTuple):
    """What came of a generation."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]"""
    calls: int
    """The most network calls that a sample took."""
    step: int
    """Of the checkpoint."""


def open_bank(recipe: Recipe, uri: str | None = None, version: int | str | datetime | None = None) -> Bank:
    """A bank to search, to draw snippets from, to sample with and to edit.

    Args:
        recipe: whose store is looked into, and whose own finished bank it is unless `uri` names another; what it keeps
            of the bank is the opened bank's `memory`.
        uri: an artifact, in full or relative to the store, such as `bank/emoji-0123456789ab`, or its fingerprint.
        version: a version, a tag or a time; none: the newest.

    Raises:
        Refused: there is none; says what to run.
    """
    from flows.engine.stage import Plan
    from flows.models import resolve
    from flows.stages.bank.stage import BANK, MEMORY

    if uri:
        return resolve.open_bank(uri, Store(recipe.store), version)
    plan = Plan(recipe)
    for output in (BANK, MEMORY):
        if output.wanted(recipe) and not plan.artifact(output).complete:
            raise StageError(
                f"recipe {recipe.name} has no {output.kind} in {recipe.store} yet; run 'gmem run' with the same store"
            )
    bank = resolve.open_bank(plan.artifact(BANK).uri, plan.store, version)
    if MEMORY.wanted(recipe):
        from flows.models.memory import open_memory

        bank.kept_by = partial(open_memory, plan.artifact(MEMORY))
    return bank


def version_of(text: str | None) -> int | str | datetime | None:
    """A number is a version, what reads as a time (ISO 8601) is one, anything else is a tag."""
    if text is None or not text.isdecimal():
        try:
            return text and datetime.fromisoformat(text)
        except ValueError:
            return text
    return int(text)


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
    image = read_picture(path, recipe)
    return _encoded(_encoder(recipe, bank), image[None])[0]


def read_picture(path: Path, recipe: Recipe) -> NDArray[np.uint8]:
    """A picture file [S, S, 3] as ingest would keep it; StageError says why it cannot be used."""
    if not path.is_file():
        raise StageError(f"{path} is not a file; name a picture")
    image = _prepared(path.read_bytes(), recipe)
    if isinstance(image, str):
        raise StageError(f"{path} cannot be used: {image}")
    return image


class AddedPictures(NamedTuple):
    """What became of the inputs of a source."""

    added: Added
    unusable: dict[str, str]
    """Path and reason."""


def add_pictures(
    recipe: Recipe, bank: Bank, source: str, batch: str, reason: str | None = None, progress: Progress | None = None
) -> AddedPictures:
    """Adds pictures from elsewhere to a bank, encoded by its own encoder, in one commit.

    Args:
        recipe: names the encoder, and the side that pictures are cropped to.
        bank: gets them, as rows of origin `external`; those it has already are told and not added twice.
        source: whatever ingest reads: a folder, tars.
        batch: a name for them all, with which their keys begin.
        reason: stays in the bank's history.
        progress: is told how many there are and are encoded.
    """
    import pyarrow as pa

    from storage.images.decoding import thumbnail
    from storage.images.sources import list_source, require_usable
    from storage.tables.bank_edits import Pictures, require_batch

    require_batch(batch)
    encoder, listing = _encoder(recipe, bank), list_source(source)
    entries = listing.slice(0, len(listing))
    unusable = {entry.path: entry.reason for entry in entries if entry.reason}
    usable = [entry for entry in entries if not entry.reason]
    if progress:
        progress.total(len(usable))
    kept, snippets, small = [], list[NDArray[np.float32]](), list[bytes]()
    prepared = _prepared_entries(recipe, usable, source, unusable)
    while part := list(islice(prepared, recipe.encoder.batch)):
        kept += [entry for entry, _ in part]
        snippets.append(_encoded(encoder, np.stack([image for _, image in part])))
        small += [thumbnail(image) for _, image in part]
        if progress:
            progress.advance(len(part))
    if not kept:
        require_usable(source, pa.array(list(unusable.values()), pa.string()), "name a folder of pictures")
    pictures = Pictures(
        np.concatenate(snippets),
        [e.key for e in kept],
        small,
        [e.class_name or e.label for e in kept],
        [e.caption for e in kept],
    )
    return AddedPictures(bank.add(pictures, batch, encoder.identity, reason), unusable)


def source_pictures(recipe: Recipe, source: str, keys: Collection[str]) -> dict[str, NDArray[np.uint8]]:
    """The pictures [S, S, 3] of a source that have these keys, as ingest would keep them; unusable ones are left out."""
    from storage.images.sources import list_source

    listing = list_source(source)
    wanted = [entry for entry in listing.slice(0, len(listing)) if not entry.reason and entry.key in keys]
    return {entry.key: image for entry, image in _prepared_entries(recipe, wanted, source, {})}


def _prepared_entries(
    recipe: Recipe, entries: list[Entry], source: str, unusable: dict[str, str]
) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """The usable ones with their pictures; of others `unusable` gets path and reason."""
    from storage.images.sources import read_entries

    for entry, data in zip(entries, read_entries(entries, source), strict=True):
        image = _prepared(data, recipe)
        if isinstance(image, str):
            unusable[entry.path] = image
        else:
            yield entry, image


def _encoder(recipe: Recipe, bank: Bank) -> Encoder:
    """The recipe's, on the GPU where there is one. Refused unless the bank was made by it."""
    import torch

    from gmem.encoder import load_encoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(recipe.encoder.source, device, recipe.data.image_size)
    bank.require_encoder(encoder.identity)
    return encoder


def _prepared(data: bytes | OSError, recipe: Recipe) -> NDArray[np.uint8] | str:
    """A square uint8 [S, S, 3] as ingest keeps it, or why there is none."""
    from storage.images.decoding import Rejected, centre_crop, decode

    if isinstance(data, OSError):
        return f"unreadable: {data.strerror or data}"
    decoded = decode(data, recipe.data.max_pixels)
    if isinstance(decoded, Rejected):
        return decoded.reason
    try:
        return np.array(centre_crop(decoded.image, recipe.data.image_size, recipe.data.max_pixels))
    except ValueError as error:
        return str(error)


def _encoded(encoder: Encoder, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Snippets [N, D] of uint8 [N, S, S, 3]."""
    from gmem.pixels import channels_first, from_bytes

    return encoder(from_bytes(channels_first(images))).snippet.cpu().numpy()


def generate(
    recipe: Recipe,
    bank: Bank,
    ids: NDArray[np.int64],
    network: str | None = None,
    progress: Progress | None = None,
    noise: float = 0.0,
    neighbours: int = 0,
) -> Generated:
    """Samples from snippets of a bank, with the recipe's sampler and seed, on the GPU where there is one.

    Args:
        recipe: its `sample` section says how; `sample.seed` and a sample's place in `ids` decide its noise.
        bank: where the snippets are.
        ids: [N] ids of rows; one may come several times.
        network: URI of a checkpoint, training or imported network; None: the recipe's own.
        progress: is told how many there are and are made.
        noise: how far each snippet is moved at random, beside its length of 1.
        neighbours: where above 0, each is first mixed with one of its so many nearest others.
    """
    from flows.models.snippets import of_rows

    snippets = of_rows(bank, ids, recipe.sample.seed, noise, neighbours)
    return generate_from(recipe, bank, snippets, network, progress)


class Drawn(NamedTuple):
    """Snippets that are nobody's, and the pictures that come nearest."""

    snippets: Snippets
    nearest: NDArray[np.int64]
    """[N] ids of rows of the bank."""
    similarity: NDArray[np.float64]
    """[N] cosines with those."""


def draw_snippets(recipe: Recipe, bank: Bank, count: int, class_name: str | None = None) -> Drawn:
    """Snippets drawn from the recipe's prior, which belong to no picture.

    Args:
        recipe: whose prior it is; `sample.seed` decides what is drawn.
        bank: in which the nearest rows are searched.
        count: how many.
        class_name: only of this class; None: of any.

    Raises:
        Refused: no prior was learned yet, or of no such class; says what to run.
    """
    from flows.engine.stage import Plan
    from flows.models.snippets import label_of, of_nobody, open_prior
    from flows.stages.prior.stage import PRIOR
    from storage.checkpoints import latest

    artifact = Plan(recipe).artifact(PRIOR)
    checkpoint = latest(artifact) if artifact.complete else None
    if checkpoint is None:
        raise StageError(
            f"recipe {recipe.name} has no prior in {recipe.store} yet, or its bank was edited since; "
            f"run 'gmem stage prior {recipe.name} --set prior.steps=800'"
        )
    label = None if class_name is None else label_of(bank, class_name)
    snippets = of_nobody(open_prior(checkpoint), count, recipe.sample.seed, label)
    found = [bank.search(snippet, k=1) for snippet in snippets.vectors]
    distances = np.array([row["_distance"][0].as_py() for row in found])
    return Drawn(snippets, np.array([row["id"][0].as_py() for row in found]), 1 - distances)


def walk(
    recipe: Recipe,
    bank: Bank,
    ends: tuple[int, int],
    steps: int,
    method: str = "spherical",
    network: str | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Samples from mixtures on the way from one row's snippet to another's, all of the same noise.

    Args:
        recipe: its `sample` section says how.
        bank: where the two rows are; nothing is added to it.
        ends: ids of the rows.
        steps: how many samples, the ends included.
        method: of mixing, as in `bank_mixing.mix`.
        network: as for `generate`.
        progress: as for `generate`.
    """
    import torch

    from flows.models.snippets import NOBODY, Snippets

    shares = np.linspace(0, 1, steps)
    mixed = [bank.mixture(ends, method, [1 - share, share]) for share in shares]
    nobody = np.full(steps, NOBODY)
    snippets = Snippets(torch.from_numpy(np.stack(mixed)), nobody, nobody, nobody)
    return generate_from(recipe, bank, snippets, network, progress, same_noise=True)


def generate_from(
    recipe: Recipe,
    bank: Bank,
    snippets: Snippets,
    network: str | None = None,
    progress: Progress | None = None,
    same_noise: bool = False,
) -> Generated:
    """Samples from snippets, whosever they are.

    Args:
        recipe: its `sample` section says how.
        bank: of whose encoder they are.
        snippets: N of them.
        network: as for `generate`.
        progress: as for `generate`.
        same_noise: whether they differ by their snippets alone.
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
    count = len(snippets.ids)
    batches = generator.batches(
        normalise(snippets.vectors),
        torch.zeros(count, dtype=torch.int64) if same_noise else torch.arange(count),
        recipe.sample,
        recipe.sample.seed,
        torch.from_numpy(snippets.labels),
        size=recipe.sample.batch,
    )
    images, calls = [], 0
    if progress:
        progress.total(count)
    for batch, taken in batches:
        images.append(batch.cpu())
        calls = max(calls, taken)
        if progress:
            progress.advance(len(batch))
    return Generated(channels_last(torch.cat(images)), calls, checkpoint.step)
