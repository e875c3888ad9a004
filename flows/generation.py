"""A generator from a checkpoint and what the recipe names; checks that the pieces belong together."""

from __future__ import annotations

import torch

from flows.recipe import Recipe, Sample
from flows.stage import StageError
from gmem.generator import Generator
from gmem.network import Network, NetworkConfig
from gmem.sampler import SamplerConfig
from gmem.tokenizer import Tokenizer, load_tokenizer
from storage.checkpoints import Checkpoint, load


def sampler_config(sample: Sample) -> SamplerConfig:
    return SamplerConfig(
        kind=sample.kind,
        method=sample.method,
        steps=sample.steps,
        shift=sample.shift,
        diffusion=sample.diffusion,
        last=sample.last,
        last_size=sample.last_size,
        guidance_scale=sample.guidance,
        guidance_start=sample.guidance_from,
        guidance_end=sample.guidance_until,
    )


def load_network(checkpoint: Checkpoint, device: str) -> Network:
    """The averaged network of a checkpoint or an imported one."""
    network = Network(NetworkConfig(**checkpoint.manifest.network))
    tensors, _ = load(checkpoint, ["ema"], device)
    network.load_state_dict({name.removeprefix("ema."): value for name, value in tensors.items()})
    return network.requires_grad_(False).eval().to(device)


def load_generator(checkpoint: Checkpoint, recipe: Recipe, device: str) -> Generator:
    """Raises StageError where the checkpoint lacks latent statistics or was trained on another tokenizer's latents."""
    manifest = checkpoint.manifest
    if not manifest.latent_mean:
        raise StageError(
            f"{checkpoint.uri} holds no latent statistics, without which samples cannot be decoded; "
            "import it again with --latent-stats, naming the published latents_stats.pt or a latents table"
        )
    tokenizer = load_tokenizer(recipe.tokenizer.source, device)
    require_tokenizer(tokenizer, checkpoint)
    mean, std = (torch.tensor(values, device=device) for values in (manifest.latent_mean, manifest.latent_std))
    return Generator(load_network(checkpoint, device), tokenizer, mean, std)


def require_tokenizer(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    trained_on = checkpoint.manifest.tokenizer
    if trained_on and trained_on["sha256"] != tokenizer.identity["sha256"]:
        raise StageError(
            f"{checkpoint.uri} was trained on latents of {trained_on['name']} ({trained_on['sha256'][:12]}), not of "
            f"{tokenizer.identity['name']} ({tokenizer.identity['sha256'][:12]}); set tokenizer.source to the former"
        )
