"""The straight path between noise and data: x_t = t·x + (1−t)·ε, with velocity x − ε; t = 0 is noise, t = 1 is data."""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gmem.errors import InputError
from gmem.settings import TimeSampling

SHIFT_BASE = 4096  # dimensions of a latent whose noise levels are left as they are
DATA_WEIGHT_FLOOR = 0.05  # the loss of a data prediction grows no further below this noise level


def like(t: Tensor, x: Tensor) -> Tensor:
    """t [B] with as many dimensions as x [B, …]."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def interpolate(latent: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t·x + (1−t)·ε for latent and noise [B, C, H, W], t [B]."""
    return torch.lerp(noise, latent, like(t, latent))


def target(latent: Tensor, noise: Tensor) -> Tensor:
    """The path's velocity, x − ε."""
    return latent - noise


def shift(t: Tensor, factor: float) -> Tensor:
    """Moves times: t' = s·t / (1 + (s−1)·t). A factor below 1 moves them towards noise, 1 leaves them."""
    return factor * t / (1 + (factor - 1) * t)


def dimension_shift(dimensions: int, base: int = SHIFT_BASE) -> float:
    """The factor for `shift` that raises noise levels σ = 1−t by r = √(dimensions / base): σ' = r·σ / (1 + (r−1)·σ).

    High-dimensional latents keep their coarse content visible under more noise (Esser et al. 2024, section 5.3.2).
    """
    return math.sqrt(base / dimensions)


def times(normal: Tensor, kind: TimeSampling = "logit-normal", factor: float = 1.0) -> Tensor:
    """Training times in (0, 1) from standard normal draws [B], then shifted.

    "logit-normal" is the draw's logistic function, "uniform" its distribution function.
    """
    if kind not in get_args(TimeSampling):
        raise InputError(f"there is no time sampling {kind!r}; use one of {', '.join(get_args(TimeSampling))}")
    return shift(torch.sigmoid(normal) if kind == "logit-normal" else torch.special.ndtr(normal), factor)


def data_weight(t: Tensor) -> Tensor:
    """Weight [B] of the velocity error when the network predicts data: (1−t) / max(1−t, 0.05).

    The velocity error is the data error over 1−t; this keeps the division from exploding close to the data.
    """
    noise_level = 1 - t
    return noise_level / noise_level.clamp_min(DATA_WEIGHT_FLOOR)


def match_tokens(tokens: Tensor, count: int) -> Tensor:
    """Patch tokens [B, T, D] on the network's grid of `count` tokens: averages over squares where the grid is coarser."""
    have, want = math.isqrt(tokens.shape[1]), math.isqrt(count)
    if have == want:
        return tokens
    if have % want or have**2 != tokens.shape[1]:
        raise InputError(
            f"{tokens.shape[1]} patch tokens do not fit the network's {want} x {want} tokens; use an encoder input whose "
            "grid is the network's or a multiple of it"
        )
    side = have // want
    return tokens.unflatten(1, (want, side, want, side)).mean(dim=(2, 4)).flatten(1, 2)


class Losses(NamedTuple):
    """Each [B]: one value a sample. `total` is the weighted sum of the parts."""

    total: Tensor
    velocity: Tensor
    cosine: Tensor
    projection: Tensor

    def mean(self) -> Losses:
        """The same, each averaged over the batch to []."""
        return Losses(*(part.mean() for part in self))


def losses(
    velocity: Tensor,
    target: Tensor,
    projected: Tensor | None = None,
    tokens: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    cosine: float,
    align: float,
) -> Losses:
    """mean((v−u)²) + cosine · mean(1 − cos(v, u)) + align · mean(−cos(projected, token)), a sample.

    velocity, target [B, C, H, W] (cosine over channels), projected and tokens [B, T, D] (cosine over D, 0 when either
    is None); `weight` [B] multiplies both velocities before they are squared.
    """
    velocity, target = velocity.float(), target.float()
    error = (velocity - target).square().flatten(1).mean(1)
    if weight is not None:
        error = error * weight.square()
    apart = 1 - F.cosine_similarity(velocity, target, dim=1).flatten(1).mean(1)
    projection = torch.zeros_like(error)
    if projected is not None and tokens is not None:
        tokens = match_tokens(tokens.float(), projected.shape[1])
        projection = -F.cosine_similarity(projected.float(), tokens, dim=-1).mean(1)
    return Losses(error + cosine * apart + align * projection, error, apart, projection)
