"""How near pictures come to the true ones that they ought to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.metrics.distances import blocks
from gmem.metrics.frechet import frechet_distance_of_features
from gmem.metrics.memorisation import Nearest
from gmem.metrics.statistics import as_features

_AT_ONCE = 256


@dataclass(frozen=True)
class Fidelity:
    """Of made pictures to their true ones."""

    paired: float
    """Mean distance between the features of a made picture and of its true one."""
    frechet: float
    """Between the features of all made and all true ones."""
    recognised: float
    """Share of made pictures whose nearest true picture, by features, is their own."""
    pixels: float
    """Root of the mean squared difference of pixel values, in [0, 1]."""


def fidelity(
    made: Tensor | NDArray, true: Tensor | NDArray, made_pixels: NDArray[np.uint8], true_pixels: NDArray[np.uint8]
) -> Fidelity:
    """Features [N, D] and pictures [N, H, W, 3] of N made pictures beside those of the true ones, in one order.

    Raises ValueError where they are not as many, or fewer than 2.
    """
    ours, theirs = as_features(made, "The made pictures' features"), as_features(true, "The true pictures' features")
    if ours.shape != theirs.shape or made_pixels.shape != true_pixels.shape or len(ours) != len(made_pixels):
        raise ValueError(
            f"{len(ours)} made pictures {made_pixels.shape[1:]} cannot be paired with {len(theirs)} true ones "
            f"{true_pixels.shape[1:]}: give one true picture for each, of the same size."
        )
    search = Nearest(ours)
    search.update(theirs, np.arange(len(theirs)))
    return Fidelity(
        paired=float(np.linalg.norm(ours.astype(np.float64) - theirs, axis=1).mean()),
        frechet=frechet_distance_of_features(ours, theirs),
        recognised=float((search.id == np.arange(len(theirs))).mean()),
        pixels=_pixel_error(made_pixels, true_pixels),
    )


def _pixel_error(made: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    total = 0.0
    for part in blocks(len(made), _AT_ONCE):
        step = torch.from_numpy(made[part]).double() - torch.from_numpy(true[part]).double()
        total += float(step.square().mean()) * len(step)
    return (total / len(made)) ** 0.5 / 255
