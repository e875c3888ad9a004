"""Pictures between the layouts they come in: uint8 [..., H, W, 3] of files, [..., 3, H, W] of networks, bytes and [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures [..., H, W, 3] as a tensor [..., 3, H, W] of the same memory."""
    return torch.from_numpy(pictures).movedim(-1, -3)


def channels_last(images: Tensor) -> NDArray[np.uint8]:
    """Images uint8 [..., 3, H, W] as pictures [..., H, W, 3] in the CPU's memory."""
    return images.movedim(-3, -1).cpu().numpy()


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, by trunc(127.5 x + 128) clamped: the rounding of the published code, which FID depends on."""
    return (127.5 * images.float() + 128).clamp(0, 255).to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]; `to_bytes` gives the same bytes back."""
    return images.float() / 127.5 - 1
