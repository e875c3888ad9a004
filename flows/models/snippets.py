"""Snippets to generate from: those of a bank's rows, what lies near to them, or what a prior draws and is nobody's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.engine.errors import StageError
from flows.recipe.model import Selection
from gmem.memory import perturb
from gmem.noise import PERTURBING, normals
from gmem.prior import Prior, draw, load_prior
from storage.checkpoints import Checkpoint, load
from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_mixing import near_mixtures
from storage.tables.bank_where import equals, joined

NOBODY = -1
"""Stands for the row of a snippet that is no row's, for the class of one without, and for a partner of the unmixed."""


class Snippets(NamedTuple):
    """Snippets to generate from, and whose they are."""

    vectors: Tensor
    """[N, D], of any length."""
    ids: NDArray[np.int64]
    """[N] rows of the bank that they are of, or near to; NOBODY: none."""
    labels: NDArray[np.int64]
    """[N] of their classes; NOBODY: none."""
    partners: NDArray[np.int64]
    """[N] rows that they are mixed with, half and half; NOBODY: none."""

    def repeated(self, times: int) -> Snippets:
        """Each so many times, one after the other."""
        return Snippets(
            self.vectors.repeat_interleave(times, dim=0),
            self.ids.repeat(times),
            self.labels.repeat(times),
            self.partners.repeat(times),
        )


def chosen_ids(bank: Bank, selection: Selection, seed: int) -> NDArray[np.int64]:
    """Ids [count] of the rows that a selection chooses: those it names, over and over, or else random ones.

    Raises:
        Refused: there are no such rows.
    """
    if selection.ids:
        bank.rows(selection.ids, ["id"])
        return np.resize(np.array(selection.ids, np.int64), selection.count)
    return random_ids(bank, selection.count, seed, selection.where, selection.split, selection.balanced_by)


def random_ids(
    bank: Bank,
    count: int,
    seed: int,
    where: str | None = None,
    split: str | None = None,
    balanced_by: str | None = None,
) -> NDArray[np.int64]:
    """Ids [count] of random rows: of a split, of a condition; of neither, of the training pictures. As `Bank.sample`."""
    if split is None and where is None:
        split = "train"
    condition = joined(where, equals("split", split) if split is not None else None)
    return bank.sample(count, seed, condition, balanced_by)


def of_rows(
    bank: Bank,
    ids: NDArray[np.int64],
    seed: int,
    noise: float = 0.0,
    neighbours: int = 0,
    where: str | None = None,
    first: int = 0,
) -> Snippets:
    """Snippets of rows as a network is given them, or near to them; what is random is decided by seed and number of each.

    Args:
        bank: where they are.
        ids: [N] ids of rows; one may come several times.
        seed: not negative.
        noise: how far each is moved at random, beside its length of 1.
        neighbours: where above 0, each is first mixed with one of its so many nearest others.
        where: SQL condition on columns that those others fulfil.
        first: the number of the first; the others follow.
    """
    wanted = ids.tolist()
    labels = bank.rows(wanted, ["label"])["label"].fill_null(NOBODY).to_numpy().astype(np.int64)
    partners = np.full(len(ids), NOBODY)
    if neighbours:
        mixed, partners = near_mixtures(bank, wanted, neighbours, seed, where, first)
        vectors = torch.from_numpy(mixed)
    else:
        vectors = bank.conditions(wanted)
    if noise:
        places = range(first, first + len(ids))
        vectors = perturb(vectors, normals(seed, PERTURBING, 0, places, (bank.dim,)), noise)
    return Snippets(vectors, ids, labels, partners)


def of_nobody(prior: Prior, count: int, seed: int, label: int | None = None, first: int = 0) -> Snippets:
    """Snippets that a prior draws, of one class or of any; number i of a seed is always the same.

    Args:
        prior: trained.
        count: how many.
        seed: not negative.
        label: of the class; None: of none in particular.
        first: the number of the first.
    """
    vectors = draw(prior, count, seed, label, first=first)
    nobody = np.full(count, NOBODY)
    return Snippets(vectors, nobody, np.full(count, NOBODY if label is None else label), nobody)


def label_of(bank: Bank, class_name: str) -> int:
    """The label of a class of the bank; Refused names those there are."""
    labels = bank.labels()
    if class_name not in labels:
        known = ", ".join(sorted(labels)[:12]) or "none"
        raise Refused(f"the bank has no class {class_name[:80]!r}; its classes are {known}")
    return labels[class_name]


def open_prior(checkpoint: Checkpoint, device: str = "cpu") -> Prior:
    """The prior of a checkpoint that stage prior has left; StageError where it holds another thing."""
    tensors, _ = load(checkpoint, ["ema"])
    try:
        return load_prior(checkpoint.manifest.network, tensors, device)
    except (TypeError, RuntimeError) as error:
        raise StageError(f"{checkpoint.uri} holds no prior; name the artifact of a stage prior") from error
