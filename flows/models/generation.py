"""A generator from a checkpoint and what the recipe names; checks that the pieces belong together."""

from __future__ import annotations

import torch

from flows.engine.errors import StageError
from flows.models.resolve import average_of, open_guide
from flows.recipe.model import Recipe
from gmem.generator import Generator
from gmem.network import Network
from gmem.settings import NetworkConfig
from gmem.states import below
from gmem.tokenizer import Tokenizer, load_tokenizer
from storage.checkpoints import EMA, Checkpoint, load
from storage.store import Store

HEAD = "projector."
"""The alignment head's tensors: only training uses them, so one of another width does not make another network."""


def load_into(network: Network, checkpoint: Checkpoint, said: str = "", average: str = EMA) -> None:
    """Puts the averaged weights of a checkpoint or an imported network into `network`.

    An alignment head that is not there or of another shape leaves the network's own. `said` is the recipe key that
    names the checkpoint, `average` the group of its tensors. StageError where the weights are those of another network.
    """
    about = checkpoint.manifest.network
    for field in ("prediction", "snippet_scale"):  # which no shape tells
        if about.get(field, getattr(network.config, field)) != (mine := getattr(network.config, field)):
            raise StageError(
                f"{said} {checkpoint.uri} is another network: its {field} is {about[field]}, not {mine}; set network.{field} "
                "to the former".strip()
            )
    tensors, _ = load(checkpoint, [average])
    given = below(tensors, f"{average}.")
    wanted = network.state_dict()
    wrong = {n for n in given.keys() | wanted.keys() if n not in given or n not in wanted}
    wrong |= {n for n in given.keys() & wanted.keys() if given[n].shape != wanted[n].shape}
    if others := sorted(name for name in wrong if not name.startswith(HEAD)):
        raise StageError(
            f"{said} {checkpoint.uri} is another network: {len(others)} tensors are missing, surplus or of another shape, "
            f"first {', '.join(others[:3])}; name one of the recipe's size, latents and snippets".strip()
        )
    fitting = (
        {} if any(name.startswith(HEAD) for name in wrong) else {n: v for n, v in given.items() if n.startswith(HEAD)}
    )
    network.load_state_dict({n: v for n, v in given.items() if not n.startswith(HEAD)} | fitting, strict=False)


def load_network(checkpoint: Checkpoint, device: str, average: str = EMA) -> Network:
    """The averaged network of a checkpoint or an imported one, in float32."""
    network = Network(NetworkConfig(**checkpoint.manifest.network))
    load_into(network, checkpoint, average=average)
    return network.requires_grad_(False).eval().to(device)


def load_generator(checkpoint: Checkpoint, recipe: Recipe, device: str) -> Generator:
    """With the recipe's tokenizer and guide, of the average that it samples; the guide's is its first.

    StageError where the checkpoint lacks latent statistics or belongs to another tokenizer, or the guide to another
    kind of network.
    """
    guided_by = require_pieces(checkpoint, recipe)
    tokenizer = load_tokenizer(recipe.tokenizer.source, device)
    require_tokenizer(tokenizer, checkpoint)
    manifest = checkpoint.manifest
    mean, std = (torch.tensor(values, device=device) for values in (manifest.latent_mean, manifest.latent_std))
    guide = load_network(guided_by, device) if guided_by else None
    network = load_network(checkpoint, device, average_of(checkpoint, recipe))
    return Generator(network, tokenizer, mean, std, guide)


def require_pieces(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint | None:
    """The guide, if there is one. StageError where latent statistics are missing or the guide does not fit, Refused where
    the average that the recipe samples is not there."""
    average_of(checkpoint, recipe)
    if not checkpoint.manifest.latent_mean:
        raise StageError(
            f"{checkpoint.uri} holds no latent statistics, without which samples cannot be decoded; "
            "import it again with --latent-stats, naming the published latents_stats.pt or a latents table"
        )
    guide = open_guide(recipe.sample, checkpoint, Store(recipe.store))
    if guide:
        require_same_kind(guide, checkpoint)
    return guide


def require_tokenizer(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    trained_on, channels = checkpoint.manifest.tokenizer, checkpoint.manifest.network["latent_channels"]
    if trained_on and trained_on["sha256"] != tokenizer.identity["sha256"]:
        raise StageError(
            f"{checkpoint.uri} was trained on latents of {trained_on['name']} ({trained_on['sha256'][:12]}), not of "
            f"{tokenizer.identity['name']} ({tokenizer.identity['sha256'][:12]}); set tokenizer.source to the former"
        )
    if tokenizer.channels != channels:
        raise StageError(
            f"{checkpoint.uri} makes latents of {channels} channels, and tokenizer.source {tokenizer.identity['name']} "
            f"decodes {tokenizer.channels}; set tokenizer.source to the tokenizer it was trained with"
        )


def require_snippets(checkpoint: Checkpoint, bank_dim: int, bank: str) -> None:
    """StageError unless the network takes snippets of the bank's dimension."""
    network = checkpoint.manifest.network
    if network.get("conditioning", "memory") == "memory" and network["snippet_dim"] != bank_dim:
        raise StageError(
            f"{checkpoint.uri} takes snippets of {network['snippet_dim']} numbers, and those of the bank {bank} have "
            f"{bank_dim}; name the bank it was trained with, by --bank or evaluate.bank"
        )


def require_same_kind(guide: Checkpoint, checkpoint: Checkpoint) -> None:
    """StageError unless both speak of the same latents and snippets; only their sizes and steps may differ."""
    fields = ("latent_channels", "latent_size", "conditioning", "snippet_dim")
    mine, other = (NetworkConfig(**each.manifest.network) for each in (checkpoint, guide))
    differing = [f for f in fields if getattr(mine, f) != getattr(other, f)]
    if guide.manifest.latent_mean and guide.manifest.latent_mean != checkpoint.manifest.latent_mean:
        differing.append("latent statistics")
    if differing:
        raise StageError(
            f"sample.guide {guide.uri} differs from {checkpoint.uri} in {', '.join(differing)}; "
            "name a smaller or earlier network of the same latents and snippets"
        )
