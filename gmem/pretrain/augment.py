"""Random changes of pictures, whole batches at a time: float [B, 3, H, W] in [-1, 1] -> the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How far a view may be from the picture: what it varies, the encoder learns to overlook."""

    zoom: tuple[float, float] = (0.8, 1.1)  # side of the picture in the view, 1 = as it is; larger = cropped
    shift: float = 0.08  # of half the side
    turn: float = 8.0  # degrees
    gain: float = 0.15  # contrast and brightness, each +- this share
    tint: float = 0.1  # gain of each colour channel, +- this share
    hue: float = 0.0  # turn of the colour circle, +- this share of it
    grey: float = 0.0  # chance of losing all colour
    erase: float = 0.25  # share of the patches painted over
    mirror: bool = False  # each view mirrored by its own coin


def mirror(images: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Mirror a share of the pictures."""
    coin = torch.rand(len(images), generator=generator) < chance
    return torch.where(_per_picture(coin), images.flip(-1), images)


def draw_view(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """One random view of every picture (nothing erased yet: see `erase_patches`)."""
    out = _place(images, view, generator)
    if view.mirror:
        out = mirror(out, 0.5, generator)
    return _colour(out, view, generator).clamp(-1, 1)


def erase_patches(images: Tensor, share: float, patch: int, generator: torch.Generator) -> Tensor:
    """Paint a share of the patches of every picture over with one colour drawn for it."""
    b, _, h, w = images.shape
    uniform = torch.rand(b, 1, h // patch, w // patch, generator=generator)
    patches = uniform < share
    hole = patches.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    paint = torch.rand(b, 3, 1, 1, generator=generator) * 2 - 1
    return torch.where(hole, paint, images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _per_picture(values: Tensor) -> Tensor:
    """Values [B] as [B, 1, 1, 1], beside pictures."""
    return values.view(-1, 1, 1, 1)


def _place(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Zoom, turn and shift in one resampling; beyond the border its last pixels go on."""
    b = len(images)
    smallest, largest = view.zoom
    zoom = torch.exp(_uniform(b, math.log(smallest), math.log(largest), generator))
    angle = _uniform(b, -view.turn, view.turn, generator) * math.pi / 180
    cos = torch.cos(angle) / zoom
    sin = torch.sin(angle) / zoom
    dx = _uniform(b, -view.shift, view.shift, generator)
    dy = _uniform(b, -view.shift, view.shift, generator)
    first_row = torch.stack([cos, -sin, dx], 1)
    second_row = torch.stack([sin, cos, dy], 1)
    theta = torch.stack([first_row, second_row], 1)  # [B, 2, 3]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(
        images,
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def _colour(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Contrast, brightness and tint, then hue and grey where the view varies them."""
    b = len(images)
    contrast = _uniform(b, 1 - view.gain, 1 + view.gain, generator)
    light = _uniform(b, -view.gain, view.gain, generator)
    tint = _uniform(3 * b, 1 - view.tint, 1 + view.tint, generator)
    lit = images * _per_picture(contrast) + _per_picture(light)
    out = (lit + 1) * tint.view(b, 3, 1, 1) - 1
    if view.hue:
        share = _uniform(b, -view.hue, view.hue, generator)
        out = _turn_hue(out, share)
    if view.grey:
        coin = torch.rand(b, generator=generator) < view.grey
        grey = out.mean(1, keepdim=True).expand_as(out)
        out = torch.where(_per_picture(coin), grey, out)
    return out


def _turn_hue(images: Tensor, share: Tensor) -> Tensor:
    """Rotate colours [B, 3, H, W] about the grey axis by shares [B] of a whole turn (Rodrigues' formula)."""
    angle = share * 2 * math.pi
    cos = torch.cos(angle)
    sin = torch.sin(angle) / math.sqrt(3)
    along = (1 - cos) / 3
    row = torch.stack([along + cos, along - sin, along + sin], 1)  # the first; the others are its shifts
    matrix = torch.stack([row, row.roll(1, 1), row.roll(2, 1)], 1)
    return torch.einsum("bij,bjhw->bihw", matrix, images)


def vary_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Changes that leave edges as sharp as they are, for an autoencoder: [B, 3, H, W] -> the same shape.

    Every picture is shifted by whole pixels over a stride of the latent grid and mirrored by a coin; some lie on their
    side, some have their colour channels swapped; two batches in five are resized by -15 to +20 %.
    """
    # The whole batch is resized, and continued beyond its border, so that every shift finds pixels.
    b, _, h, w = images.shape
    if torch.rand((), generator=generator) < 0.4:
        factor = 0.85 + 0.35 * torch.rand((), generator=generator).item()
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    over = max(h - images.shape[2], w - images.shape[3], 0)
    images = F.pad(images, (4 + over,) * 4, mode="replicate")
    middle_top = (images.shape[2] - h) // 2
    middle_left = (images.shape[3] - w) // 2

    # Then each picture goes its own way.
    moves = torch.randint(-4, 5, (b, 2), generator=generator).tolist()
    coins = torch.rand(b, 3, generator=generator).tolist()
    out = []
    for picture, move, coin in zip(images, moves, coins, strict=True):
        down, right = move
        top = middle_top + down
        left = middle_left + right
        part = picture[:, top : top + h, left : left + w]
        out.append(_vary_one(part, coin, generator))
    return torch.stack(out)


def _vary_one(picture: Tensor, coins: list[float], generator: torch.Generator) -> Tensor:
    """Picture [3, H, W] perhaps mirrored, its channels swapped, or (where it is square) laid on its side."""
    mirrored, swapped, lying = coins
    if mirrored < 0.5:
        picture = picture.flip(-1)
    if swapped < 0.25:
        picture = picture[torch.randperm(3, generator=generator)]
    if lying < 1 / 6 and picture.shape[1] == picture.shape[2]:
        picture = picture.mT
    return picture
