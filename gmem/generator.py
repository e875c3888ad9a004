"""From snippets to pictures: network, sampler and tokenizer together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gmem.network import Network
from gmem.pixels import to_bytes
from gmem.sampler import SamplerConfig, noise_for, sample
from gmem.tokenizer import Tokenizer, destandardise


@dataclass(frozen=True)
class Generator:
    """A trained network with what it needs to make pictures.

    `mean` and `std` [C] are those of the latents it was trained on.
    """

    network: Network
    tokenizer: Tokenizer
    mean: Tensor
    std: Tensor
    guide: Network | None = None
    """A smaller or earlier network for autoguidance."""

    @torch.inference_mode()
    def images(
        self, snippets: Tensor, indices: Tensor, config: SamplerConfig, seed: int, labels: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """uint8 [B, 3, H, W] for unit-length snippets [B, D], and the most network calls that one of them took.

        Sample number `indices[i]` has its own noise under `seed`: it does not depend on the batch it is in. `labels`
        [B] (-1: none) count for a network that is conditioned on them.
        """
        noise = noise_for(seed, indices, self.network.config.latent_shape).to(snippets.device)
        made = sample(self.network, noise, snippets, config, seed=seed, indices=indices, label=labels, guide=self.guide)
        return self.decode(made.latent), made.calls

    def batches(
        self,
        snippets: Tensor,
        indices: Tensor,
        config: SamplerConfig,
        seed: int,
        labels: Tensor | None = None,
        *,
        size: int,
    ) -> Iterator[tuple[Tensor, int]]:
        """What `images` gives, of up to `size` samples at a time, on the generator's device; arguments may lie elsewhere."""
        for start in range(0, len(snippets), size):
            part, device = slice(start, start + size), self.mean.device
            label = None if labels is None else labels[part].to(device)
            yield self.images(snippets[part].to(device), indices[part], config, seed, label)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of standardised latents [B, C, h, w]."""
        return to_bytes(self.tokenizer.decode(destandardise(latents, self.mean, self.std)))
