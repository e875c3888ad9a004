"""Pictures from elsewhere, which become snippets of a bank: one as a question to it, or many to be added."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.model import Recipe

if TYPE_CHECKING:
    from gmem.encoder import Encoder
    from storage.images.sources.entries import Entry
    from storage.tables.bank import Bank
    from storage.tables.bank_edits import Added


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
    decoded = decode(data, recipe.data.max_pixels, recipe.data.background)
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
