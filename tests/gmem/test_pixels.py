"""Pictures in the layouts of files and of networks."""

from __future__ import annotations

import numpy as np
import torch

from gmem.pixels import channels_first, channels_last, from_bytes, to_bytes


def test_bytes_survive_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(every)), every)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_channels_first_and_last_are_inverse_and_share_memory() -> None:
    pictures = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    images = channels_first(pictures)
    assert images.shape == (2, 3, 4, 5) and images[1, 2, 3, 4] == pictures[1, 3, 4, 2]
    assert np.array_equal(channels_last(images), pictures)
    assert np.array_equal(channels_last(channels_first(pictures[0])), pictures[0])
    pictures[0, 0, 0, 0] = 77
    assert images[0, 0, 0, 0] == 77
