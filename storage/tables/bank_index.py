"""Indices of a bank: over its snippets where an exhaustive search would take too long, over ids, and over words."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lancedb.index import FTS, BTree, HnswSq, IvfPq

from storage.tables.bank_commits import note

if TYPE_CHECKING:
    from storage.tables.bank import Bank
    from storage.tables.bank_reader import BankReader

INDEX_FROM = 200_000  # rows; below, an exhaustive search takes some tens of milliseconds and forgets nothing
HNSW_UNTIL = 5_000_000  # rows; above, the graph no longer fits beside the rest, and product quantisation takes over
PROBES, REFINE = 32, 8
NEVER = timedelta(days=36_500)
"""Age of versions that indexing removes: LanceDB's week would take those that results name, and fails at tagged ones."""
TEXT = ("key", "class", "caption")
"""Columns whose words are searched."""


def build(bank: Bank, kind: str) -> str | None:
    """As `Bank.build_index`."""
    if not len(bank):
        return None
    note(bank.artifact)
    bank.refresh()
    kind = _suited(len(bank)) if kind == "auto" else kind
    present = {name: index.index_type for index in bank.table.list_indices() for name in index.columns}
    if present:
        bank.table.optimize(cleanup_older_than=NEVER)
    for column in TEXT:
        if column in bank.table.schema.names and column not in present:
            bank.table.create_index(column, config=FTS(remove_stop_words=False))
    if kind != "none" and _spelled(present.get("snippet", "")) != _spelled(kind):
        distance = metric(bank)
        config = HnswSq(distance_type=distance) if kind == "IVF_HNSW_SQ" else IvfPq(distance_type=distance)
        bank.table.create_index("snippet", config=config)
        bank.table.create_index("id", config=BTree())
    bank.refresh()
    return None if kind == "none" else kind


def _suited(rows: int) -> str:
    if rows < INDEX_FROM:
        return "none"
    return "IVF_HNSW_SQ" if rows <= HNSW_UNTIL else "IVF_PQ"


def _spelled(kind: str) -> str:
    return kind.upper().replace("_", "")


def metric(bank: BankReader) -> Literal["cosine", "dot"]:
    """Of LanceDB's: both give 1 - cosine, since what a rank-reduced bank stores is scaled for that."""
    return "dot" if bank.basis else "cosine"


def of_snippets(bank: BankReader) -> Any:
    """LanceDB's description of the index over snippets; None where there is none."""
    return next((index for index in bank.table.list_indices() if index.columns == ["snippet"]), None)


def recall(bank: BankReader, k: int, queries: int, seed: int) -> float:
    """As `Bank.recall`."""
    shares = []
    for query in bank.sample(min(queries, len(bank)), seed, mirrored=True):
        true = bank.search(int(query), k, exact=True)["id"].to_pylist()
        found = bank.search(int(query), k)["id"].to_pylist()
        shares.append(len(set(true) & set(found)) / len(true))
    return float(np.mean(shares))
