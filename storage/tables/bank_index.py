"""Indices of a bank: over its snippets where an exhaustive search would take too long, over ids, and over words."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from lance.dataset import LanceDataset
from lancedb.index import FTS, Bitmap, BTree, HnswSq, IvfFlat, IvfPq, IvfRq
from numpy.typing import NDArray

from storage.tables.bank_commits import note, update_metadata
from storage.tables.bank_nearest import Nearest, true_nearest
from storage.tables.bank_where import equals
from storage.tables.metadata import schema_entry

if TYPE_CHECKING:
    from storage.tables.bank import Bank
    from storage.tables.bank_reader import BankReader

EXHAUSTIVE = 3_000_000
"""Numbers in all snippets together; up to there a search reads every row, in some 10 ms, and forgets nothing."""
OF_A_CONDITION = 20_000_000
"""Numbers in the snippets of the rows that fulfil a condition; up to there these are read, 80 MB at most, and kept for the next
search under it, which compares all of them in some 10 ms."""
HNSW_UNTIL = 5_000_000  # rows; above, the graph no longer fits beside the rest, and quantisation takes over
GRAPH = "IVF_HNSW_SQ"
CONFIGS: dict[str, Any] = {
    GRAPH: partial(HnswSq, m=16, ef_construction=100),  # of 200,000 x 768 made in a fifth of the defaults' time
    "IVF_RQ": IvfRq,
    "IVF_PQ": IvfPq,
    "IVF_FLAT": IvfFlat,
}
WANTED = 0.95
"""The share of the true 10 nearest that a search should find, with and without a condition."""
NEAREST, QUERIES = 10, 256
EFFORTS = (
    *((8, 4), (16, 4), (16, 16), (32, 4), (32, 16), (48, 4), (64, 4), (64, 16)),
    *((80, 4), (96, 4), (128, 4), (160, 4), (192, 16), (256, 64)),
)
"""Partitions looked into, and how many times the rows asked for are compared exactly: the least that finds enough is taken."""
EFFORTS_OF_A_GRAPH = ((100, 2), (200, 2), (400, 2), (800, 4), (1_600, 8))
"""Rows of it that are kept in view on the way, and as above."""
SEARCH = "search"
"""Key of the schema's metadata with what a search through the index takes, and found."""
WIDE = (9 / 10, 1 / 2, 1 / 12)
"""Shares of the rows that a condition leaves at least, for each of which it is measured what a search takes."""
NEVER = timedelta(days=36_500)
"""Age of versions that indexing removes: LanceDB's week would take those that results name, and fails at tagged ones."""
TEXT = ("key", "class", "caption")
"""Columns whose words are searched."""
VALUES = ("split", "class")
"""Columns whose values are indexed beside their words, under the name `<column>_values`, for conditions."""


@dataclass(frozen=True)
class Effort:
    """What a search takes."""

    probes: int
    """Partitions that are looked into; of a graph the rows that are kept in view on the way, Lance's `ef`."""
    refine: int
    """How many times the rows asked for are compared exactly."""
    recall: float
    """Share of the true 10 nearest that are found, over random rows."""


@dataclass(frozen=True)
class Wide(Effort):
    share: float
    """Of the rows, which a condition leaves at least."""


@dataclass(frozen=True)
class Search:
    """How the index is searched, and what was measured of it when it was made."""

    plain: Effort
    filtered: Effort | None
    """Under a condition that too many rows fulfil to be read: what the rarest such split and class need, and as few rows
    chosen at random; None where every condition leaves so few rows that they are read."""
    rows: int
    time: str
    wide: tuple[Wide, ...] = ()
    """As `filtered`, where a condition leaves a larger share; the largest share first."""

    def under(self, share: float) -> Effort:
        """Under a condition that leaves this share of the rows."""
        return next((effort for effort in self.wide if effort.share <= share), self.filtered or self.plain)


def build(bank: Bank, kind: str) -> str | None:
    """As `Bank.build_index`."""
    if not len(bank):
        return None
    note(bank.artifact)
    bank.refresh()
    kinds = _suited(bank) if kind == "auto" else [kind] if kind != "none" else []
    present = {index.name: index for index in bank.table.list_indices()}
    if present:
        bank.table.optimize(cleanup_older_than=NEVER)
    _over_columns(bank, set(present), bool(kinds))
    kept = next((index.index_type for index in present.values() if index.columns == ["snippet"]), "")
    made = _over_snippets(bank, kinds, _spelled(kept))
    bank.refresh()
    return made


def _over_columns(bank: Bank, present: set[str], large: bool) -> None:
    """Words, and where a search does not read every row, ids and values too. What has a name of its own stands beside an
    index over the same column, and does not replace it."""
    wanted: list[tuple[str, str, Any]] = [(f"{name}_idx", name, FTS(remove_stop_words=False)) for name in TEXT]
    if large:
        wanted.append(("id_idx", "id", BTree()))
        wanted += [(f"{name}_values", name, Bitmap()) for name in VALUES]
    for index, column, config in wanted:
        if index not in present and column in bank.schema.names:
            bank.table.create_index(column, config=config, name=index)


def _over_snippets(bank: Bank, kinds: list[str], present: str) -> str | None:
    """The first of the kinds through which enough is found, the one that is there before all; else the last."""
    bank.refresh()
    trial = Trial.of(bank) if kinds else None
    for kind in sorted(kinds, key=lambda kind: _spelled(kind) != present):
        if _spelled(kind) != present:
            bank.table.create_index("snippet", config=CONFIGS[kind](distance_type=metric(bank)))
        bank.refresh()
        assert trial is not None, "there is a kind"
        search = trial.measured(bank)
        update_metadata(bank.artifact, partial(_noted, search), remembered=())
        if min(effort.recall for effort in (search.plain, search.filtered, *search.wide) if effort) >= WANTED:
            break
    return kind if kinds else None


def _noted(search: Search, _dataset: LanceDataset) -> dict[str, str]:
    return {SEARCH: json.dumps(asdict(search))}


def _suited(bank: Bank) -> list[str]:
    """Kinds that are worth trying, the one that is searched soonest first."""
    if len(bank) <= few_rows(bank):
        return []
    # IVF_RQ puts the bits of eight numbers into a byte; rank-reduced rows are short enough to be kept as they are.
    partitions = "IVF_FLAT" if _width(bank) % 8 else "IVF_RQ"
    graph = [GRAPH] if len(bank) <= HNSW_UNTIL else []
    return [*graph, partitions, "IVF_PQ"]


def few_rows(bank: BankReader) -> int:
    """Up to how many rows are read one and all."""
    return EXHAUSTIVE // _width(bank)


def rows_kept(bank: BankReader) -> int:
    """Up to how many rows that fulfil a condition are compared one and all."""
    return max(EXHAUSTIVE, OF_A_CONDITION) // _width(bank)


def _width(bank: BankReader) -> int:
    """As stored: a rank-reduced bank has one number more."""
    return bank.schema.field("snippet").type.list_size


def kind_of(described: str) -> str:
    """The kind of an index, of how LanceDB describes it."""
    return next(kind for kind in CONFIGS if _spelled(kind) == _spelled(described))


def efforts(bank: BankReader) -> tuple[tuple[int, int], ...]:
    """Those worth trying of the bank's index, the least first."""
    return EFFORTS_OF_A_GRAPH if is_graph(bank) else EFFORTS


def is_graph(bank: BankReader) -> bool:
    return bank.index is not None and _spelled(bank.index.index_type) == _spelled(GRAPH)


def _spelled(kind: str) -> str:
    return kind.upper().replace("_", "")


class Trial(NamedTuple):
    """Questions to a bank, and their true answers, for which it is read once."""

    queries: NDArray[np.float16]
    """Snippets [Q, D] of random rows."""
    filtered: list[str]
    """Conditions that leave few rows, but more than are read."""
    wide: dict[float, list[str]]
    """Conditions that leave at least a share of the rows, by share."""
    true: dict[str | None, Nearest]
    """By condition, of which None is one."""

    @classmethod
    def of(cls, bank: Bank) -> Trial:
        fewest = max(rows_kept(bank), 10 * NEAREST)
        values = bank.scan(VALUES)
        filtered = _conditions(values, fewest)
        wide = {share: _conditions(values, max(fewest, ceil(share * len(values)))) for share in WIDE}
        every = list(dict.fromkeys([None, *filtered, *chain.from_iterable(wide.values())]))
        among = [None if where is None else bank.matching(where) for where in every]
        queries = _asked(bank, QUERIES, 0)
        true = true_nearest(bank, queries, NEAREST, among)
        return cls(queries, filtered, wide, dict(zip(every, true, strict=True)))

    def measured(self, bank: Bank) -> Search:
        """The least effort that finds enough in the bank as it is, else the greatest; with and without a condition."""
        least = {where: self._least(bank, where) for where in self.true}

        def hardest(conditions: list[str]) -> Effort | None:
            efforts = (least[where] for where in conditions)
            return max(efforts, key=lambda effort: (effort.probes, effort.refine, -effort.recall), default=None)

        wide = {share: hardest(conditions) for share, conditions in self.wide.items()}
        return Search(
            least[None],
            hardest(self.filtered),
            rows=len(bank),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            wide=tuple(Wide(share=share, **asdict(effort)) for share, effort in wide.items() if effort),
        )

    def _least(self, bank: Bank, where: str | None) -> Effort:
        shares: dict[tuple[int, int], float] = {}

        def enough(effort: tuple[int, int]) -> bool:
            shares[effort] = _found(bank, self.queries, self.true[where], where, effort)
            return shares[effort] >= WANTED

        # Each costs hundreds of searches, and the further one is the more it finds.
        known = efforts(bank)
        effort = known[bisect_left(known[:-1], True, key=enough)]
        if effort not in shares:
            enough(effort)
        return Effort(*effort, shares[effort])


def _conditions(values: pa.Table, fewest: int) -> list[str]:
    """The rarest split and the rarest class of at least so many rows, and little more than those at random."""
    found = []
    for column in VALUES:
        counts = Counter(value for value in values[column].to_pylist() if value is not None)
        enough = [(count, value) for value, count in counts.items() if fewest <= count < len(values)]
        if enough:
            found.append(equals(column, min(enough)[1]))
    if len(values) >= 2 * fewest:
        found.append(f"id / 2 % {len(values) // fewest} = 0")
    return found


def _asked(bank: BankReader, count: int, seed: int) -> NDArray[np.float16]:
    """Snippets [Q, D] of random rows."""
    return bank.matrix(bank.sample(min(count, len(bank)), seed, mirrored=True).tolist())


def recall(bank: BankReader, k: int, queries: int, seed: int, where: str | None) -> float:
    """As `Bank.recall`."""
    asked = _asked(bank, queries, seed)
    (true,) = true_nearest(bank, asked, k, [None if where is None else bank.matching(where)])
    return _found(bank, asked, true, where, None)


def _found(
    bank: BankReader,
    queries: NDArray[np.float16],
    true: Nearest,
    where: str | None,
    effort: tuple[int, int] | None,
) -> float:
    """Of the true nearest rows the share that a search finds."""
    hits = 0
    for query, ids in zip(queries, true.ids, strict=True):
        there = bank.search(query, len(ids), where, effort=effort, columns=["id"])["id"].to_pylist()
        hits += len(set(there) & set(ids.tolist()))
    return hits / true.ids.size


def search_of(bank: BankReader) -> Search | None:
    """What was found out when the index was made or maintained last; None where that was never."""
    schema = bank.schema
    if not (schema.metadata or {}).get(SEARCH.encode()):
        return None
    return schema_entry(schema, SEARCH, Search, bank.artifact)


def metric(bank: BankReader) -> Literal["cosine", "dot"]:
    """Of LanceDB's: both give 1 - cosine, since what a rank-reduced bank stores is scaled for that."""
    return "dot" if bank.basis else "cosine"


def of_snippets(bank: BankReader) -> Any:
    """LanceDB's description of the index over snippets; None where there is none."""
    return next((index for index in bank.table.list_indices() if index.columns == ["snippet"]), None)
