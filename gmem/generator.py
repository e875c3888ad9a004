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
    """A trained network with what it needs to make pictures; `flows.models.generation.load_generator` loads one.

    `mean` and `std` [C] are those of the latents it was trained on.

    >>> from gmem.settings import NetworkConfig
    >>> from gmem.tokenizer import load_tokenizer
    >>> network = Network(NetworkConfig.of("T", latent_channels=12, latent_size=8, snippet_dim=192)).eval()
    >>> generator = Generator(network, load_tokenizer("shipped:emoji-tokenizer"), torch.zeros(12), torch.ones(12))
    >>> snippets = torch.nn.functional.normalize(torch.randn(2, 192), dim=1)
    >>> images, calls = generator.images(snippets, torch.arange(2), SamplerConfig("ode", "euler", steps=3), seed=0)
    >>> images.shape, images.dtype, calls
    (torch.Size([2, 3, 64, 64]), torch.uint8, 2)
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
        """Pictures uint8 [B, 3, H, W], and the most network calls that one of them took.

        Args:
            snippets: [B, D] of unit length, on the network's device.
            indices: [B] numbers of the samples; each has its own noise under `seed`, whatever batch it is in.
            config: how they are drawn.
            seed: not negative.
            labels: [B] (-1: none), for a network that is conditioned on them.
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
        """What `images` gives for the same arguments, which may lie on any device, of up to `size` samples at a time."""
        for start in range(0, len(snippets), size):
            part, device = slice(start, start + size), self.mean.device
            label = None if labels is None else labels[part].to(device)
            yield self.images(snippets[part].to(device), indices[part], config, seed, label)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of standardised latents [B, C, h, w]."""
        return to_bytes(self.tokenizer.decode(destandardise(latents, self.mean, self.std)))
