"""What rank 0 shows of a training as it goes: samples of fixed snippets, and a small Fréchet distance."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flows.figures import grid
from flows.recipe.model import Recipe
from gmem.encoder import Encoder, load_encoder
from gmem.generator import Generator
from gmem.memory import normalise
from gmem.metrics import frechet_distance_of_features
from gmem.network import Network
from gmem.pixels import channels_last, from_bytes
from gmem.settings import SamplerConfig
from gmem.tokenizer import load_tokenizer, standardise
from storage.ids import is_flipped
from storage.tables.bank_draws import draw_evenly
from storage.tables.training_data import TrainingTable

SHOWN, MEASURED = 16, 256


class Preview:
    """Fixed snippets, seeds and reference, so that what changes between two steps is the network alone.

    Where few snippets are kept some come several times, each time with other noise. The reference of the small distance
    is the pictures' own latents decoded: what a perfect network would make.
    """

    def __init__(self, recipe: Recipe, data: TrainingTable, network: Network) -> None:
        self.recipe, self.data, self.network = recipe, data, network
        self.device = next(network.parameters()).device
        upright = data.ids[~is_flipped(data.ids)]
        self.ids = np.random.default_rng(recipe.sample.seed).permutation(upright)[:MEASURED]
        kept = np.intersect1d(upright, data.drawn_from)
        self.sources = draw_evenly(kept, len(self.ids), np.random.default_rng(recipe.sample.seed))

    @cached_property
    def generator(self) -> Generator:
        tokenizer = load_tokenizer(self.recipe.tokenizer.source, self.device)
        return Generator(self.network, tokenizer, self.data.mean.to(self.device), self.data.std.to(self.device))

    @cached_property
    def sampler(self) -> SamplerConfig:
        """As samples are made later, but without a guide: it may be a checkpoint that is still to come."""
        sample = self.recipe.sample
        return sample.model_copy(update={"guidance": 1.0}) if sample.guide else sample

    @cached_property
    def encoder(self) -> Encoder:
        return load_encoder(self.recipe.evaluate.encoder, self.device, self.recipe.data.image_size)

    @cached_property
    def reference(self) -> Tensor:
        latents = self.data.batch(self.ids)["latent"].float().to(self.device)
        decoded = [
            self.generator.decode(standardise(part, self.generator.mean, self.generator.std))
            for part in latents.split(self.recipe.sample.batch)
        ]
        return self._features(torch.cat(decoded))

    def grid(self) -> bytes:
        """PNG of samples of the first fixed snippets."""
        return grid(channels_last(self._samples(SHOWN)))

    def distance(self) -> float:
        return frechet_distance_of_features(self._features(self._samples(MEASURED)), self.reference)

    def _samples(self, count: int) -> Tensor:
        """uint8 [count, 3, H, W]"""
        rows, sample = self.data.batch(self.sources[:count]), self.recipe.sample
        snippets, indices = normalise(rows["snippet"].float()), torch.arange(len(rows["snippet"]))
        made = self.generator.batches(snippets, indices, self.sampler, sample.seed, rows["label"], size=sample.batch)
        return torch.cat([images for images, _ in made])

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat(
            [self.encoder(from_bytes(part)).snippet for part in images.split(self.recipe.evaluate.batch)]
        ).cpu()
