"""What a training keeps in the store, before it has begun."""

from __future__ import annotations

from flows.recipe.model import Recipe
from flows.stages.bank.stage import SNIPPET_WIDTH
from gmem.settings import NetworkConfig
from gmem.size import parameter_count

COPIES = 4
"""Of the weights in a checkpoint, in float32: network, average, and the optimiser's two moments."""


def checkpoint_bytes(recipe: Recipe) -> int:
    """About what the checkpoints of a whole training take: the newest, the best, and those that were asked for."""
    written = -(-recipe.train.steps // recipe.train.checkpoint_every)
    asked = sum(step <= recipe.train.steps for step in recipe.train.checkpoint_at)
    return (min(written, recipe.train.keep + 1) + asked) * COPIES * 4 * parameter_count(_network(recipe))


def _network(recipe: Recipe) -> NetworkConfig:
    """With snippets of the published encoder's width and one class, which hardly count: neither is known before data is."""
    return NetworkConfig.of(
        recipe.network.size,
        patch=recipe.network.patch,
        latent_channels=recipe.tokenizer.channels,
        latent_size=recipe.grid,
        snippet_dim=SNIPPET_WIDTH,
        projection_dim=SNIPPET_WIDTH if recipe.train.align else 0,
        projection_hidden=recipe.network.projection_hidden,
        conditioning=recipe.network.conditioning,
        classes=1 if recipe.network.conditioning == "label" else 0,
    )
