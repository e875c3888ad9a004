"""A recipe's own bank with what the recipe keeps of it, to condition with and to draw from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from flows.engine.context import Context
from gmem.subset import nearest
from storage.errors import Refused
from storage.ids import id_of, sample_of
from storage.images.shards import TRAIN
from storage.store import Artifact
from storage.tables.bank import Bank
from storage.tables.bank_reader import BankReader
from storage.tables.memory import Memory, read_memory

if TYPE_CHECKING:
    from torch import Tensor

TRAINED = f"split = '{TRAIN}' AND origin = 'dataset' AND NOT flipped"
"""The rows whose pictures are trained on, without mirror images."""


def recipe_bank(context: Context) -> Bank:
    """The bank at the version that a stage reads, with the recipe's memory where it keeps less than all."""
    bank = Bank(context.artifact("bank").uri, context.versions.get("bank"))
    if "memory" in context.fingerprints:
        bank.kept_by = partial(open_memory, context.artifact("memory"))
    return bank


def open_memory(artifact: Artifact, bank: BankReader) -> Memory:
    """What a recipe keeps of this version of its bank.

    Pictures whose snippet was kept by one that was withdrawn since, and pictures that came back, have the nearest of those
    that remain. Refused where none remains.
    """
    memory = read_memory(artifact.uri)
    if not len(memory.pictures):
        return memory
    pictures = sample_of(bank.matching(TRAINED))
    kept = np.intersect1d(memory.kept, pictures)
    if not len(kept):
        raise Refused(f"every snippet that {artifact.folder} keeps was withdrawn from the bank; set another bank.seed")
    standing = sample_of(memory.standing(2 * pictures))
    homeless = ~np.isin(standing, kept)
    if homeless.any():
        others = np.concatenate([kept, pictures[homeless]])
        place, _ = nearest(upright(bank, others), torch.arange(len(kept)))
        standing[homeless] = kept[place[len(kept) :]]
    return Memory(pictures, standing, memory.basis)


def upright(bank: BankReader, pictures: NDArray[np.int64]) -> Tensor:
    """Snippets float16 [N, D] of these pictures of its, not mirrored."""
    return bank.snippets(id_of(pictures, False).tolist())
