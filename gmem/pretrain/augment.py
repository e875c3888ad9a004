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
    return torch.where(coin.view(-1, 1, 1, 1), images.flip(-1), images)


def draw_view(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """One random view of every picture (nothing erased yet: see `erase_patches`)."""
    out = _place(images, view, generator)
    if view.mirror:
        out = mirror(out, 0.5, generator)
    return _colour(out, view, generator).clamp(-1, 1)


def erase_patches(images: Tensor, share: float, patch: int, generator: torch.Generator) -> Tensor:
    """Paint a share of the patches of every picture over with one colour drawn for it."""
    b, _, h, w = images.shape
    drawn = torch.rand(b, 1, h // patch, w // patch, generator=generator) < share
    hole = drawn.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    paint = torch.rand(b, 3, 1, 1, generator=generator) * 2 - 1
    return torch.where(hole, paint, images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _place(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    """Zoom, turn and shift in one resampling; beyond the border its last pixels go on."""
    b = len(images)
    zoom = torch.exp(_uniform(b, math.log(view.zoom[0]), math.log(view.zoom[1]), generator))
    angle = _uniform(b, -view.turn, view.turn, generator) * math.pi / 180
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    dx, dy = (_uniform(b, -view.shift, view.shift, generator) for _ in range(2))
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colour(images: Tensor, view: View, generator: torch.Generator) -> Tensor:
    b = len(images)
    contrast = _uniform(b, 1 - view.gain, 1 + view.gain, generator).view(-1, 1, 1, 1)
    light = _uniform(b, -view.gain, view.gain, generator).view(-1, 1, 1, 1)
    tint = _uniform(3 * b, 1 - view.tint, 1 + view.tint, generator).view(b, 3, 1, 1)
    out = (images * contrast + light + 1) * tint - 1
    if view.hue:
        out = _turn_hue(out, _uniform(b, -view.hue, view.hue, generator))
    if view.grey:
        grey = torch.rand(b, generator=generator) < view.grey
        out = torch.where(grey.view(-1, 1, 1, 1), out.mean(1, keepdim=True).expand_as(out), out)
    return out


def _turn_hue(images: Tensor, share: Tensor) -> Tensor:
    """Rotate colours [B, 3, H, W] about the grey axis by shares [B] of a whole turn (Rodrigues' formula)."""
    angle = share * 2 * math.pi
    cos, sin = torch.cos(angle), torch.sin(angle) / math.sqrt(3)
    along, across = (1 - cos) / 3, cos
    circulant = torch.stack([along + across, along - sin, along + sin], 1)  # first row; the others are its shifts
    matrix = torch.stack([circulant, circulant.roll(1, 1), circulant.roll(2, 1)], 1)
    return torch.einsum("bij,bjhw->bihw", matrix, images)


def vary_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """Changes that leave edges as sharp as they are, for an autoencoder: [B, 3, H, W] -> the same shape.

    Every picture is shifted by whole pixels over a stride of the latent grid and mirrored by a coin; some lie on their
    side, some have their colour channels swapped; two batches in five are resized by -15 to +20 %.
    """
    b, _, h, w = images.shape
    if torch.rand((), generator=generator) < 0.4:
        factor = 0.85 + 0.35 * torch.rand((), generator=generator).item()
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
    over = max(h - images.shape[2], w - images.shape[3], 0)
    images = F.pad(images, (4 + over,) * 4, mode="replicate")
    top, left = (images.shape[2] - h) // 2, (images.shape[3] - w) // 2
    moves = torch.randint(-4, 5, (b, 2), generator=generator)
    coins = torch.rand(b, 3, generator=generator)
    out = []
    for picture, (down, right), (mirrored, swapped, lying) in zip(images, moves.tolist(), coins.tolist(), strict=True):
        part = picture[:, top + down : top + down + h, left + right : left + right + w]
        part = part.flip(-1) if mirrored < 0.5 else part
        part = part[torch.randperm(3, generator=generator)] if swapped < 0.25 else part
        out.append(part.mT if lying < 1 / 6 and h == w else part)
    return torch.stack(out)
