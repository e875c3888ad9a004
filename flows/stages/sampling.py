"""What evaluation and sampling share on their workers: a generator, and where its snippets come from."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.cluster.workers import set_threads_and_device
from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.models.generation import load_generator, require_pieces, require_snippets
from flows.models.memory import recipe_bank
from flows.models.resolve import open_bank, open_network
from flows.models.snippets import NOBODY, Snippets, open_prior
from gmem.generator import Generator
from gmem.memory import normalise
from gmem.pixels import channels_last
from gmem.prior import Prior
from storage.checkpoints import Checkpoint, at
from storage.retention.checkpoints import pin
from storage.samples import SampleRow, write_samples
from storage.tables.bank import Bank


def subject_of(context: Context, kind: str) -> tuple[Checkpoint, Bank]:
    """The network and the bank to sample from for an artifact of this kind; they are checked to belong together."""
    recipe = context.recipe
    evaluate = recipe.evaluate
    if evaluate.network:
        checkpoint = open_network(evaluate.network, context.store)
    else:  # not simply the newest: the training may have gone on since
        checkpoint = at(context.artifact("training"), context.parameters[kind]["step"])
    bank = bank_of(context)
    if checkpoint.manifest.encoder:
        bank.require_encoder(checkpoint.manifest.encoder)
    require_snippets(checkpoint, bank.dim, bank.artifact)
    side = checkpoint.manifest.network["latent_size"] * recipe.tokenizer.factor
    if side != recipe.data.image_size:
        raise StageError(
            f"{checkpoint.uri} makes pictures of {side} px, and those of recipe {recipe.name} have "
            f"{recipe.data.image_size} px; sample it with a recipe of data.image_size={side}"
        )
    return checkpoint, bank


def kept_with_guide(context: Context, checkpoint: Checkpoint, kind: str) -> Checkpoint | None:
    """The network's guide, if the recipe has one; both stay for as long as the artifact of this kind does."""
    guide = require_pieces(checkpoint, context.recipe)
    for each in (checkpoint, guide):
        if each and each.uri.startswith(f"{context.store.root}/"):  # others' stores are theirs to keep
            pin(each, context.artifact(kind).folder)
    return guide


def record_of(context: Context, checkpoint: Checkpoint, guide: Checkpoint | None, bank: Bank) -> dict[str, Any]:
    """What a manifest says of samples: step, the bank's version and revision, and what was used by address, which is kept
    from being cleaned up; fingerprints go by its content."""
    named = context.recipe.evaluate.bank
    return {
        "step": checkpoint.step,
        "bank": {"version": bank.version, "revision": bank.content_revision},
        "used": {
            "network": context.store.relative(checkpoint.uri),
            "guide": guide and context.store.relative(guide.uri),
            "bank": named and context.store.relative(named),
        },
    }


def bank_of(context: Context) -> Bank:
    """The bank that is sampled from, at the version that the stage was given: the one that `evaluate.bank` names, or what
    the recipe keeps of its own."""
    if named := context.recipe.evaluate.bank:
        return open_bank(named, context.store, context.versions.get("bank"))
    return recipe_bank(context)


class Sampler:
    """Holds generator, bank and prior, each loaded when it is first needed."""

    MAKES: ClassVar[str]
    """The kind of artifact whose parameters say what is sampled."""

    def __init__(self, threads: int, context: Context, checkpoint: Checkpoint) -> None:
        self.context, self.recipe, self.device = context, context.recipe, set_threads_and_device(threads)
        self.checkpoint = checkpoint

    @cached_property
    def generator(self) -> Generator:
        generator = load_generator(self.checkpoint, self.recipe, self.device)
        if self.recipe.sample.compile:
            for network in filter(None, (generator.network, generator.guide)):
                network.compile_blocks()
        return generator

    @cached_property
    def bank(self) -> Bank:
        return bank_of(self.context)

    @cached_property
    def prior(self) -> Prior:
        return open_prior(at(self.context.artifact("prior"), self.context.parameters[self.MAKES]["prior_step"]))

    def generate(self, indices: NDArray[np.int64], snippets: Snippets) -> tuple[Tensor, int]:
        """Pictures uint8 [N, 3, H, W] of snippets, and the most network calls that one took; `indices` [N] seed the noise."""
        sample = self.recipe.sample
        made = self.generator.batches(
            normalise(snippets.vectors),
            torch.from_numpy(indices),
            sample,
            sample.seed,
            torch.from_numpy(snippets.labels),
            size=sample.batch,
        )
        images, calls = zip(*((part.cpu(), taken) for part, taken in made), strict=True)
        return torch.cat(images), max(calls)

    def keep(self, path: str, indices: NDArray[np.int64], snippets: Snippets, images: Tensor, calls: int) -> None:
        """Writes the samples of these numbers as a shard, with whose snippets they are of."""
        rows = [
            SampleRow(int(number), snippet, picture, calls, None if partner == NOBODY else partner)
            for number, snippet, picture, partner in zip(
                indices, snippets.ids.tolist(), channels_last(images), snippets.partners.tolist(), strict=True
            )
        ]
        write_samples(self.context.store, path, rows, self.recipe.sample.seed)
