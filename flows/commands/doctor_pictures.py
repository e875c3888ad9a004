"""``gmem doctor RECIPE --pictures N``: do these pictures suit the recipe's tokenizer and encoder?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gmem.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from flows.recipe.model import Recipe
    from storage.images.survey import Look

GOOD_PSNR = 23.0
"""In dB. The autoencoder that most latent diffusion began with gives COCO's pictures back at 23.4 at 256 pixels, its
successor of SDXL at 24.7 (Podell et al., "SDXL", 2023, table 3)."""
GOOD_SHARE = 0.3
"""Of the way from chance to the best that is possible among the pictures looked at. The demo's encoder comes to 0.6."""
MANY_COPIES = 0.2
FEWEST = 8
"""Pictures below which neighbours say nothing."""
NAMED = 4

Finding = tuple[str, bool, str]
"""As in doctor.py: what was looked at, whether it will do, what was found."""


def examine_pictures(recipe: Recipe, count: int, arguments: str) -> list[Finding]:
    """Looks at so many of a recipe's pictures; `arguments` name the recipe in a command, with what was set in it."""
    from storage.images.sources import list_source
    from storage.images.survey import survey

    data = recipe.data
    listing = list_source(recipe.source, data.layout, data.label)
    looks = list(survey(listing, count, data.image_size, data.max_pixels, data.background))
    usable = [look for look in looks if not look.reason]
    found = [_files(looks, len(listing)), _classes(listing.table["label"].drop_null().to_pylist(), len(listing))]
    if not usable:
        return found
    images, labels = _tensors(usable)
    return [
        *found,
        _sizes(usable, data.image_size),
        ("pictures: modes", True, _counted(look.mode or "unknown" for look in usable)),
        ("pictures: colours", True, _counted(look.profile or "no profile, taken for sRGB" for look in usable)),
        _copies(usable),
        _tokenizer(recipe, images, arguments),
        _encoder(recipe, images, labels, arguments),
    ]


def _tensors(looks: list[Look]) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, H, W], and labels [N] as numbers, -1 where there is none."""
    import torch

    from gmem.pixels import channels_first

    images = channels_first(np.stack([look.image for look in looks if look.image is not None])).contiguous()
    names = {name: place for place, name in enumerate(sorted({look.label for look in looks if look.label}))}
    return images, torch.tensor([names.get(look.label or "", -1) for look in looks])


# --- the pictures themselves -----------------------------------------------------------------------------------------


def _files(looks: list[Look], inputs: int) -> Finding:
    refused = [look.reason for look in looks if look.reason]
    said = f"{len(looks):,} of {inputs:,} inputs looked at, {len(looks) - len(refused):,} can be used"
    return "pictures: files", len(refused) < len(looks), said + (f"; {_counted(refused)}" if refused else "")


def _classes(labels: list[str], inputs: int) -> Finding:
    if not labels:
        return "pictures: classes", True, "no labels; nothing here needs them but sampling by class"
    counts = Counter(labels).most_common()
    (most, largest), (least, smallest) = counts[0], counts[-1]
    without = inputs - len(labels)
    said = f"{len(counts):,} classes, from {smallest:,} ({least[:40]}) to {largest:,} ({most[:40]}) pictures"
    return "pictures: classes", True, said + (f"; {without:,} inputs without a label" if without else "")


def _sizes(looks: list[Look], size: int) -> Finding:
    sides = np.array([min(look.width, look.height) for look in looks])
    small = int((sides < size).sum())
    said = f"shorter side {sides.min()} to {sides.max()} px, half of them up to {np.median(sides):.0f}"
    if small:
        said += f"; {small:,} of {len(looks):,} are enlarged to data.image_size={size}"
    if 2 * small <= len(looks):
        return "pictures: sizes", True, said
    return "pictures: sizes", False, f"{said}, which adds nothing but pixels: set a smaller data.image_size"


def _copies(looks: list[Look]) -> Finding:
    copies = len(looks) - len({look.content for look in looks})
    said = f"{copies:,} of {len(looks):,} have the pixels of another one of them"
    if copies <= MANY_COPIES * len(looks):
        return "pictures: copies", True, said
    return "pictures: copies", False, f"{said}: what is held out is trained on all the same; take copies out"


def _counted(values: Iterable[str]) -> str:
    counts = Counter(values).most_common()
    rest = sum(number for _, number in counts[NAMED:])
    return ", ".join(
        [f"{value} {number:,}" for value, number in counts[:NAMED]] + ([f"others {rest:,}"] if rest else [])
    )


# --- how the recipe's networks take them ------------------------------------------------------------------------------


def _tokenizer(recipe: Recipe, images: Tensor, arguments: str) -> Finding:
    """How well it gives the pictures back."""
    from gmem.pretrain.tokenizer import measure
    from gmem.tokenizer import load_tokenizer

    what = "tokenizer: reconstruction"
    try:
        figures: dict[str, Any] = measure(load_tokenizer(recipe.tokenizer.source), images, recipe.tokenizer.batch)
    except InputError as error:
        return what, False, str(error)
    psnr = figures["held_out_psnr"]
    said = f"PSNR {psnr:.1f} dB on {len(images):,} pictures"
    if psnr >= GOOD_PSNR:
        return what, True, f"{said}: good enough"
    command = f"gmem pretrain tokenizer {arguments} --out tokenizer{_shape(recipe)}"
    return what, False, f"{said}, less than {GOOD_PSNR:g}: pretrain one, by '{command}'"


def _shape(recipe: Recipe) -> str:
    """What gives a pretrained tokenizer the recipe's factor and channels, where those are not the usual ones."""
    from gmem.pretrain.tokenizer import TokenizerTraining

    usual, levels = TokenizerTraining(), recipe.tokenizer.factor.bit_length()
    said = ""
    if levels != len(usual.widths):
        widths = (*usual.widths, *[usual.widths[-1]] * levels)[:levels]
        said += f" --with widths=[{','.join(map(str, widths))}]"
    if recipe.tokenizer.channels != usual.latent_channels:
        said += f" --with latent_channels={recipe.tokenizer.channels}"
    return said


def _encoder(recipe: Recipe, images: Tensor, labels: Tensor, arguments: str) -> Finding:
    """How often the nearest picture is of the same class, beside chance and the best that is possible."""
    from gmem.encoder import load_encoder
    from gmem.pretrain.encoder import leave_one_out

    what = "encoder: neighbours"
    images, labels = images[labels >= 0], labels[labels >= 0]
    if len(images) < FEWEST or len(labels.unique()) < 2:
        return what, True, "not judged: that takes labels of at least two classes"
    try:
        encoder = load_encoder(recipe.encoder.source, image_size=recipe.data.image_size)
        figures = leave_one_out(encoder, images, labels)
    except InputError as error:
        return what, False, str(error)
    accuracy, chance, best = (figures[name] for name in ("accuracy", "chance", "possible"))
    said = f"the nearest of {len(images):,} pictures is of the same class for {accuracy:.0%}; by chance {chance:.0%}"
    if best <= chance:
        return what, True, f"{said}: not judged, as no two pictures looked at are of one class; raise --pictures"
    if accuracy - chance >= GOOD_SHARE * (best - chance):
        return what, True, f"{said}, at best {best:.0%}: good enough"
    command = f"gmem pretrain encoder {arguments} --out encoder"
    return what, False, f"{said}, at best {best:.0%}: pretrain one, by '{command}'"
