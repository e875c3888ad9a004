"""How alike two pictures are once one is laid over the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.metrics.distances import blocks
from gmem.metrics.memorisation import COPY_QUANTILE
from gmem.metrics.statistics import Array

_PAIRS_AT_ONCE = 512  # 60 MB of spectra at 32 px


def aligned_similarity(x: NDArray[np.uint8], y: NDArray[np.uint8], shift: int | None = None) -> Array:
    """The highest correlation [N] of pictures uint8 [N, H, W, 3] with their partners [N, H, W, 3], over moves of up to
    `shift` pixels either way (left out: an eighth of the height), as they are and mirrored.

    Of colours less the picture's mean, divided by their lengths: 1 of the same picture in any contrast, 0 of a picture
    without any. What a move brings in at the border counts as the mean colour, so a large one costs something.

    Raises ValueError on other types or different shapes.
    """
    alike = x.dtype == y.dtype and x.shape == y.shape
    if not alike or x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(
            f"Pictures to align are uint8 [N, H, W, 3], as many on both sides, not {x.shape} and {y.shape}."
        )
    reach = x.shape[1] // 8 if shift is None else shift
    if not len(x):
        return np.zeros(0)
    parts = []
    for rows in blocks(len(x), _PAIRS_AT_ONCE):
        parts.append(_highest(_unit(x[rows]), _unit(y[rows]), reach))
    return torch.cat(parts).numpy()


def _unit(pictures: NDArray[np.uint8]) -> Tensor:
    """[N, 3, H, W] with mean 0 over each picture's every number, and of length 1 (0 where it has no contrast)."""
    everywhere = (1, 2, 3)
    values = torch.from_numpy(pictures).movedim(-1, 1).double()
    centred = values - values.mean(dim=everywhere, keepdim=True)
    squares = centred.square().sum(dim=everywhere, keepdim=True)
    lengths = squares.sqrt()
    return centred / lengths.clamp(min=1e-9)


def _highest(x: Tensor, y: Tensor, reach: int) -> Tensor:
    """By the Fourier transform: padded by `reach`, so that what leaves on one side does not come in on the other."""
    size = [side + reach for side in x.shape[2:]]
    moves = torch.arange(-reach, reach + 1)
    conjugate = torch.fft.rfft2(y, s=size).conj()
    best = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for view in (x, x.flip(-1)):
        spectrum = torch.fft.rfft2(view, s=size)
        products = (spectrum * conjugate).sum(dim=1)
        everywhere = torch.fft.irfft2(products, s=size)
        correlation = everywhere[:, moves[:, None], moves]
        best = torch.maximum(best, correlation.amax(dim=(1, 2)))
    return best


@dataclass(frozen=True)
class PixelCopies:
    """Share of samples more alike to a training picture than `similarity`, that of 99 % of held-out pictures."""

    share: float
    similarity: float


def pixel_copies(samples: Array, held_out: Array) -> PixelCopies:
    """Of the aligned similarity of samples [N], and of held-out pictures [M], to the training pictures nearest to them.

    New pictures come to a share of 0.01, as in `Memorisation.copied`. Raises ValueError where either is empty.
    """
    if not len(samples) or not len(held_out):
        raise ValueError("Copies need samples and held-out pictures to compare: there are none.")
    similarity = float(np.quantile(held_out, 1 - COPY_QUANTILE))
    return PixelCopies(float((samples > similarity).mean()), similarity)
