"""What a training begins with: its data, its network and its learner, as the recipe says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flows.engine.context import Context
from flows.models.generation import load_into
from flows.models.memory import recipe_bank
from flows.models.resolve import open_network
from flows.recipe.model import Recipe
from gmem.batch import Batch
from gmem.memory import Components
from gmem.network import Network
from gmem.settings import NetworkConfig
from gmem.tokenizer import standardise
from storage.store import Store
from storage.tables.training_data import TrainingTable


def open_data(context: Context, split: str) -> TrainingTable:
    return TrainingTable(
        context.artifact("latents").uri,
        context.artifact("bank").uri,
        context.artifact("patches").uri if context.recipe.train.align else None,
        split,
        versions=context.versions,
        memory=recipe_bank(context).memory if "memory" in context.fingerprints else None,
        memory_limit=int(context.recipe.train.memory_gib * 2**30),
        cache=context.recipe.cluster.cache,
    )


def batch_of(recipe: Recipe, data: TrainingTable, ids: Tensor | NDArray[np.int64]) -> Batch:
    """The rows of these ids as the learner takes them."""
    return to_batch(recipe, data, data.batch(ids))


def to_batch(recipe: Recipe, data: TrainingTable, rows: dict[str, Tensor]) -> Batch:
    """Rows of the training data as the learner takes them: latents standardised, patch tokens as coefficients."""
    label = rows["label"] if recipe.network.conditioning == "label" else None
    latent = standardise(rows["latent"].float(), data.mean, data.std)
    return Batch(latent, rows["snippet"].float(), rows.get("tokens"), label)


def components_of(data: TrainingTable) -> Components | None:
    """What brings the patch tokens to full width."""
    return Components(data.patches.mean, data.patches.components) if data.patches else None


def make_network(recipe: Recipe, data: TrainingTable) -> Network:
    """With fresh weights, or those of `train.start_from`."""
    network = Network(network_config(recipe, data))
    if recipe.train.start_from:
        load_into(network, open_network(recipe.train.start_from, Store(recipe.store)), "train.start_from")
    return network


def network_config(recipe: Recipe, data: TrainingTable) -> NetworkConfig:
    network = recipe.network
    return NetworkConfig.of(
        network.size,
        patch=network.patch,
        latent_channels=recipe.tokenizer.channels,
        latent_size=recipe.grid,
        snippet_dim=data.snippet_dim,
        projection_dim=data.token_dim,
        projection_hidden=network.projection_hidden,
        conditioning=network.conditioning,
        snippet_scale=network.snippet_scale,
        classes=data.classes if network.conditioning == "label" else 0,
        prediction=network.prediction,
        initialisation=network.initialisation,
    )
