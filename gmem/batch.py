"""What a step of training takes: a share of the global batch, and the random numbers that belong to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmem import noise


class Batch(NamedTuple):
    """A worker's share of a global batch: standardised latents, snippets as the bank has them, patch tokens, labels."""

    latent: Tensor  # [b, C, H, W]
    snippet: Tensor  # [b, D]
    tokens: Tensor | None = None  # [b, T, D'], or [b, T, K] on the learner's `components`
    label: Tensor | None = None  # [b]

    def pinned(self) -> Batch:
        """In memory from which a GPU copies while it computes."""
        return self._replace(**{name: part.pin_memory() for name, part in self._asdict().items() if part is not None})

    def on(self, device: torch.device, rows: slice = slice(None)) -> Batch:
        """These rows of it, on a device."""
        parts = {name: part for name, part in self._asdict().items() if part is not None}
        return self._replace(**{name: _on(part[rows], device) for name, part in parts.items()})


class Draws(NamedTuple):
    """The random numbers of the same share."""

    noise: Tensor  # [b, C, H, W], standard normal
    time: Tensor  # [b], standard normal
    mask: Tensor  # [b, D], uniform in [0, 1)
    drop: Tensor  # [b], uniform in [0, 1)
    route: Tensor  # [b, T], uniform in [0, 1); T is 0 where no tokens are routed

    def pinned(self) -> Draws:
        """In memory from which a GPU copies while it computes."""
        return Draws(*(part.pin_memory() for part in self))

    def on(self, device: torch.device, rows: slice = slice(None)) -> Draws:
        """These rows of them, on a device."""
        return Draws(*(_on(part[rows], device) for part in self))


def draw(
    seed: int,
    step: int,
    global_batch: int,
    latent_shape: tuple[int, ...],
    snippet_dim: int,
    rows: slice,
    attempt: int = 0,
    tokens: int = 0,
) -> Draws:
    """The draws for these rows of the global batch at this step: the same however the batch is cut.

    Args:
        seed, step, global_batch: of the training; each place in the global batch has its own stream.
        latent_shape: [C, H, W].
        snippet_dim: D.
        rows: a slice of the global batch, b of its places.
        attempt: at this step; another has other draws.
        tokens: T of the network, where `train.route` sends some of them around its middle. The other draws are the same.
    """
    places = range(global_batch)[rows]
    streams = [noise.stream(seed, noise.TRAINING + (attempt << 8), step, place) for place in places]
    return Draws(
        noise=_rows([s.standard_normal(latent_shape, dtype="float32") for s in streams], latent_shape),
        time=_rows([s.standard_normal((), dtype="float32") for s in streams], ()),
        mask=_rows([s.random(snippet_dim, dtype="float32") for s in streams], (snippet_dim,)),
        drop=_rows([s.random((), dtype="float32") for s in streams], ()),
        route=_rows([s.random(tokens, dtype="float32") for s in streams], (tokens,)),
    )


def _rows(rows: list[Any], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.as_tensor(row) for row in rows]) if rows else torch.zeros(0, *shape)


def _on(part: Tensor, device: torch.device) -> Tensor:
    return part.to(device, non_blocking=True)
