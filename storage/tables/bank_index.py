"""Indices of a bank: over its snippets where an exhaustive search would take too long, over ids, and over words."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from lancedb.index import FTS, BTree, HnswSq, IvfPq, IvfRq

from storage.tables.bank_commits import note, update_metadata
from storage.tables.bank_where import equals

if TYPE_CHECKING:
    from storage.tables.bank import Bank
    from storage.tables.bank_reader import BankReader

EXHAUSTIVE = 3_000_000
"""Numbers in all snippets together; up to there a search reads every row, in some 10 ms, and forgets nothing."""
HNSW_UNTIL = 5_000_000  # rows; above, the graph no longer fits beside the rest, and quantisation takes over
CONFIGS: dict[str, Any] = {"IVF_HNSW_SQ": HnswSq, "IVF_RQ": IvfRq, "IVF_PQ": IvfPq}
WANTED = 0.95
"""The share of the true 10 nearest that a search should find, with and without a condition."""
NEAREST, QUERIES = 10, 32
EFFORTS = ((8, 4), (16, 8), (32, 8), (32, 32), (64, 16), (64, 64), (128, 32), (256, 64))
"""Partitions looked into, and how many times the rows asked for are compared exactly: the first that finds enough is taken."""
SEARCH = "search"
"""Key of the schema's metadata with what a search through the index takes, and found."""
NEVER = timedelta(days=36_500)
"""Age of versions that indexing removes: LanceDB's week would take those that results name, and fails at tagged ones."""
TEXT = ("key", "class", "caption")
"""Columns whose words are searched."""


@dataclass(frozen=True)
class Effort:
    """`probes` partitions are looked into, and `refine` times the rows asked for are compared exactly."""

    probes: int
    refine: int
    recall: float
    """Share of the true 10 nearest that are found, over random rows."""


@dataclass(frozen=True)
class Search:
    """How the index is searched, and what was measured of it when it was made."""

    plain: Effort
    filtered: Effort | None
    """Under a condition: what the rarest split and the rarest class need; None where there is neither."""
    rows: int
    time: str


def build(bank: Bank, kind: str) -> str | None:
    """As `Bank.build_index`."""
    if not len(bank):
        return None
    note(bank.artifact)
    bank.refresh()
    kinds = _suited(bank) if kind == "auto" else [kind] if kind != "none" else []
    present = {name: index.index_type for index in bank.table.list_indices() for name in index.columns}
    if present:
        bank.table.optimize(cleanup_older_than=NEVER)
    for column in TEXT:
        if column in bank.table.schema.names and column not in present:
            bank.table.create_index(column, config=FTS(remove_stop_words=False))
    if kinds and "id" not in present:
        bank.table.create_index("id", config=BTree())
    made = _over_snippets(bank, kinds, _spelled(present.get("snippet", "")))
    bank.refresh()
    return made


def _over_snippets(bank: Bank, kinds: list[str], present: str) -> str | None:
    """The first of the kinds through which enough is found, the one that is there before all; else the last."""
    for kind in sorted(kinds, key=lambda kind: _spelled(kind) != present):
        if _spelled(kind) != present:
            bank.table.create_index("snippet", config=CONFIGS[kind](distance_type=metric(bank)))
        bank.refresh()
        search = _measured(bank)
        update_metadata(bank.artifact, partial(_noted, search), remembered=())
        if min(effort.recall for effort in (search.plain, search.filtered) if effort) >= WANTED:
            break
    return kind if kinds else None


def _noted(search: Search, _dataset: LanceDataset) -> dict[str, str]:
    return {SEARCH: json.dumps(asdict(search))}


def _suited(bank: Bank) -> list[str]:
    """Kinds that are worth trying, the one that is built soonest first: of 50,000 x 768, IVF_RQ takes two seconds."""
    width = bank.table.schema.field("snippet").type.list_size  # as stored: a rank-reduced bank has one number more
    if len(bank) * width <= EXHAUSTIVE:
        return []
    packed = [] if width % 8 else ["IVF_RQ"]  # which puts the bits of eight numbers into a byte
    graph = ["IVF_HNSW_SQ"] if len(bank) <= HNSW_UNTIL else []
    return [*packed, *graph, "IVF_PQ"]


def _spelled(kind: str) -> str:
    return kind.upper().replace("_", "")


def _measured(bank: Bank) -> Search:
    """The least effort that finds enough in the bank as it is, else the greatest; with and without a condition."""
    queries = [int(query) for query in bank.sample(min(QUERIES, len(bank)), 0, mirrored=True)]
    plain = _least(bank, queries, None)
    filtered = [_least(bank, queries, where) for where in _conditions(bank)]
    hardest = max(filtered, key=lambda effort: (effort.probes, effort.refine, -effort.recall), default=None)
    return Search(plain, hardest, len(bank), datetime.now(UTC).isoformat(timespec="seconds"))


def _least(bank: Bank, queries: list[int], where: str | None) -> Effort:
    true = [_ids(bank.search(query, NEAREST, where, exact=True)) for query in queries]
    for probes, refine in EFFORTS:
        found = [_ids(bank.search(query, NEAREST, where, effort=(probes, refine))) for query in queries]
        share = _share(true, found)
        if share >= WANTED:
            break
    return Effort(probes, refine, share)


def _conditions(bank: Bank) -> list[str]:
    """The rarest split and the rarest class of which there are still many times the nearest."""
    rows, found = bank.scan(["split", "class"]), []
    for column in ("split", "class"):
        counts = Counter(value for value in rows[column].to_pylist() if value is not None)
        enough = [(count, value) for value, count in counts.items() if 10 * NEAREST <= count < len(bank)]
        if enough:
            found.append(equals(column, min(enough)[1]))
    return found


def _ids(rows: pa.Table) -> set[int]:
    return set(rows["id"].to_pylist())


def _share(true: list[set[int]], found: list[set[int]]) -> float:
    """Of the true ids, those found."""
    return sum(len(a & b) for a, b in zip(true, found, strict=True)) / sum(len(a) for a in true)


def search_of(bank: BankReader) -> Search | None:
    """What was found out when the index was made or maintained last; None where that was never."""
    text = (bank.table.schema.metadata or {}).get(SEARCH.encode())
    if not text:
        return None
    stored = json.loads(text)
    efforts = {name: Effort(**stored[name]) if stored[name] else None for name in ("plain", "filtered")}
    return Search(**stored | efforts)


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
