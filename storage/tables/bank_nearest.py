"""The true nearest rows of a bank, without an index: every row is read once, in blocks, for all questions together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.tables.fragments import to_matrix

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader

BLOCK = 8_192
"""Rows read at a time."""


class Nearest(NamedTuple):
    """The nearest rows of each of Q snippets, nearest first; fewer than K where there are no more."""

    ids: NDArray[np.int64]
    """[Q, K]"""
    similarity: NDArray[np.float32]
    """[Q, K] cosines."""


def true_nearest(
    bank: BankReader,
    queries: NDArray[np.floating],
    k: int,
    among: Sequence[NDArray[np.int64] | None] = (None,),
) -> list[Nearest]:
    """The nearest rows of snippets [Q, D], for each of several choices of rows.

    Args:
        bank: whose every row is read, once.
        queries: none of them zero.
        k: how many.
        among: ids of the rows to choose from, sorted; None: all.
    """
    asked = _asked(bank, queries)
    nothing = Nearest(np.empty((len(asked), 0), np.int64), np.empty((len(asked), 0), np.float32))
    best = [nothing] * len(among)
    for ids, stored in _blocks(bank):
        similarity = asked @ stored.T
        for place, chosen in enumerate(among):
            mine = slice(None) if chosen is None else np.isin(ids, chosen, assume_unique=True)
            best[place] = _better(best[place], ids[mine], similarity[:, mine], k)
    return best


def near_to(bank: BankReader, query: NDArray[np.floating], similarity: float) -> NDArray[np.int64]:
    """Sorted ids of the rows whose cosine with a snippet [D] is at least `similarity`."""
    asked = _asked(bank, query[None])
    found = [ids[(asked @ stored.T)[0] >= similarity] for ids, stored in _blocks(bank)]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))


def comparable(bank: BankReader, stored: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows [N, W] of the column `snippet` such that their product with what is `_asked` is the cosine."""
    rows = np.asarray(stored, np.float32)
    if bank.basis:
        return rows
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= lengths[:, None]
    return rows


def _asked(bank: BankReader, queries: NDArray[np.floating]) -> NDArray[np.float32]:
    """[Q, W]"""
    if bank.basis:
        return np.stack([bank.basis.query(query) for query in queries])
    snippets = np.asarray(queries, np.float32)
    units: NDArray[np.float32] = snippets / np.linalg.norm(snippets, axis=1, keepdims=True)
    return units


def cosines(bank: BankReader, query: NDArray[np.floating], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N] of a snippet [D] with rows [N, W] made `comparable`."""
    products: NDArray[np.float32] = rows @ _asked(bank, query[None])[0]
    return products


def _blocks(bank: BankReader) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids, and rows made comparable."""
    for batch in bank.dataset.to_batches(columns=["id", "snippet"], batch_size=BLOCK):
        yield batch["id"].to_numpy(), comparable(bank, to_matrix(batch["snippet"]))


def _better(known: Nearest, ids: NDArray[np.int64], similarity: NDArray[np.float32], k: int) -> Nearest:
    """The nearest of those known and of further rows."""
    if len(ids) > k:  # sorting a few is cheaper than sorting all
        few = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        ids_of_few, similarity = ids[few], np.take_along_axis(similarity, few, axis=1)
    else:
        ids_of_few = np.broadcast_to(ids, similarity.shape)
    all_ids = np.concatenate([known.ids, ids_of_few], axis=1)
    all_similarity = np.concatenate([known.similarity, similarity], axis=1)
    order = np.argsort(-all_similarity, axis=1, kind="stable")[:, :k]
    return Nearest(np.take_along_axis(all_ids, order, axis=1), np.take_along_axis(all_similarity, order, axis=1))
