"""The rows near a snippet: through the index, or by reading those in question where they are few.

Under a condition that few rows fulfil an index finds too little: the nearest of those lie where it does not look. Their
snippets are read then, and kept for the next search under the same condition. Where more rows fulfil it, it is kept which,
and the index is searched the further the fewer they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from lancedb.query import FullTextOperator, MultiMatchQuery
from numpy.typing import NDArray

from storage.errors import Refused
from storage.tables import bank_index
from storage.tables.bank_nearest import comparable, cosines
from storage.tables.bank_rows import with_later_columns
from storage.tables.bank_where import condition, said_of
from storage.tables.fragments import to_matrix

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader

KEPT = 8
"""Conditions of which it is kept which rows fulfil them; all of those rows together are no more than of one may be."""
FOUND = ("id", "key", "split", "origin", "class", "caption")
"""Columns of what a search finds; each further one takes some half a millisecond of a
large bank, and pictures more."""
DISTANCE = "_distance"
GRAPHS = 100
"""More than the graphs that an index is made of, one for each million rows, all of which are searched."""


class Few(NamedTuple):
    """Rows that fulfil a condition."""

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    """[N, W], comparable."""
    told: pa.Table
    """The columns of each that a search tells unless asked for others."""


class Marked(NamedTuple):
    """Which rows fulfil a condition, a bit for each row of the table."""

    rows: int
    """How many do."""
    starts: NDArray[np.int64]
    """[F + 1] place of the first bit of each fragment, by its number; last, of the first bit after them."""
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, places: NDArray[np.uint64]) -> Marked:
        """Of the row ids [N] of those that do."""
        fragments, offsets = _split(places)
        sizes = np.zeros(int(fragments.max(initial=0)) + 1, np.int64)
        np.maximum.at(sizes, fragments, offsets + 1)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        marks = np.zeros(starts[-1] + 1, np.bool_)  # the last for those that are nowhere
        marks[starts[fragments] + offsets] = True
        return cls(len(places), starts, np.packbits(marks))

    def has(self, places: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Of row ids [N] whether each is one of them."""
        fragments, offsets = _split(places)
        known = np.minimum(fragments, len(self.starts) - 2)
        bit = self.starts[known] + offsets
        there = (known == fragments) & (bit < self.starts[known + 1])
        bit[~there] = self.starts[-1]
        marked: NDArray[np.bool_] = (self.bits[bit >> 3] >> (7 - (bit & 7)) & 1).astype(np.bool_)
        return marked


def _split(places: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of row ids the number of the fragment and the row in it."""
    return (places >> 32).astype(np.int64), (places & 0xFFFFFFFF).astype(np.int64)


def near(
    bank: BankReader,
    snippet: NDArray[np.float32],
    k: int,
    where: str | None,
    exact: bool,
    effort: tuple[int, int] | None,
    columns: Sequence[str],
) -> pa.Table:
    """As `BankReader.search`, of a snippet [D] that has a direction."""
    wanted = condition(where, bank.names)
    with said_of(where, bank.columns):
        if exact or bank.index is None:
            return _by_lance(bank, snippet, k, wanted, {"use_index": False}, columns)
        left = None if wanted is None else _left(bank, wanted)
        if isinstance(left, Few):
            assert wanted is not None, "there is a condition"
            if effort is None or not len(left.ids):
                return _among(bank, left, snippet, k, columns)
            left = _marked(bank, wanted)
        share = 1.0 if left is None else left.rows / bank.dataset.count_rows()
        probes, refine = effort or _effort(bank, None if left is None else share)
        rows = _through(bank, snippet, k, left, share, probes, refine, columns)
        if len(rows) == k or left is None:
            return rows
        # Among the nearest of all were too few that fulfil the condition: Lance looks on until there are enough.
        how = {"refine_factor": refine, **_far(bank, probes, k * refine)}
        return _by_lance(bank, snippet, k, wanted, how, columns)


def with_words(bank: BankReader, words: str, k: int, where: str | None, columns: Sequence[str]) -> pa.Table:
    """Up to `k` rows whose key, class or caption has one of the words, the best first. Refused where there are none."""
    if not words.strip():
        raise Refused("there are no words to search for; give at least one")
    texts = [name for name in bank_index.TEXT if name in bank.names]
    asked = MultiMatchQuery(words, texts, boosts=None, operator=FullTextOperator.OR)
    query: Any = bank.table.search(asked, query_type="fts").limit(k).select([*bank.stored(columns), "_score"])
    if where is not None:
        query = query.where(condition(where, bank.names), prefilter=True)
    with said_of(where, bank.columns):
        rows = query.to_arrow()
    return with_later_columns(rows, columns)


def _through(
    bank: BankReader,
    snippet: NDArray[np.float32],
    k: int,
    left: Marked | None,
    share: float,
    probes: int,
    refine: int,
    columns: Sequence[str],
) -> pa.Table:
    """Through the index: of as many rows that seem near as leave `refine` times `k` under the condition, the nearest."""
    seeming = ceil(refine * (k + 3 * sqrt(k * (1 - share))) / share)
    # Their row ids come from the index alone; to tell Lance the condition costs more than all the rest of the search.
    nearest = _nearest(bank, snippet, seeming) | _far(bank, probes, seeming)
    places = bank.dataset.to_table(columns=["_rowid", DISTANCE], nearest=nearest)["_rowid"].to_numpy()
    if left is not None:
        places = places[left.has(places)]
    places = places[: refine * k]
    similarity = cosines(bank, snippet, comparable(bank, to_matrix(_at(bank, places, ["snippet"])["snippet"])))
    order = np.argsort(-similarity, kind="stable")[:k]
    rows = with_later_columns(_at(bank, places[order], bank.stored(columns)), columns)
    return rows.append_column(DISTANCE, pa.array(1 - similarity[order], pa.float32()))


def _far(bank: BankReader, probes: int, seeming: int) -> dict[str, int]:
    """How far Lance looks in the index for so many rows."""
    if bank_index.is_graph(bank):
        return {"ef": max(probes, ceil(1.5 * seeming)), "nprobes": GRAPHS}
    return {"nprobes": probes}


def _nearest(bank: BankReader, snippet: NDArray[np.float32], k: int) -> dict[str, Any]:
    asked = bank.basis.query(snippet) if bank.basis else snippet
    return {"column": "snippet", "q": asked, "k": k, "metric": bank_index.metric(bank)}


def _at(bank: BankReader, places: NDArray[np.uint64], names: Sequence[str]) -> pa.Table:
    """The rows of these row ids, in this order."""
    # LanceDB's take_row_ids is the same in an order of its own, and takes a millisecond more.
    return bank.dataset._take_rows(places.tolist(), columns=[*names])


def _by_lance(
    bank: BankReader,
    snippet: NDArray[np.float32],
    k: int,
    wanted: str | None,
    how: dict[str, Any],
    columns: Sequence[str],
) -> pa.Table:
    """By Lance alone, which applies the condition before it searches."""
    names = [*bank.stored(columns), DISTANCE]
    nearest = _nearest(bank, snippet, k) | how
    rows = bank.dataset.to_table(columns=names, nearest=nearest, filter=wanted, prefilter=True)
    return with_later_columns(rows, columns)


def _among(bank: BankReader, few: Few, snippet: NDArray[np.float32], k: int, columns: Sequence[str]) -> pa.Table:
    similarity = cosines(bank, snippet, few.rows)
    order = np.argsort(-similarity, kind="stable")[:k]
    if set(columns) <= set(few.told.column_names):
        rows = few.told.select([*columns]).take(order)
    else:
        rows = bank.rows(few.ids[order].tolist(), [*columns]).select([*columns])
    return rows.append_column(DISTANCE, pa.array(1 - similarity[order], pa.float32()))


def _left(bank: BankReader, wanted: str) -> Few | Marked:
    """The rows that fulfil a condition: where it is worth it to compare all of them, themselves, else which they are."""
    known, key = bank.left, (bank.version, wanted)
    if key not in known:
        left = _read(bank, wanted)
        room = bank_index.rows_kept(bank) - _kept(left)
        while len(known) >= KEPT or sum(map(_kept, known.values())) > room:
            known.pop(next(iter(known)))
        known[key] = left
    return known[key]


def _kept(left: Few | Marked) -> int:
    return len(left.ids) if isinstance(left, Few) else 0


def _read(bank: BankReader, wanted: str) -> Few | Marked:
    most = bank_index.rows_kept(bank)
    if bank.dataset.to_table(columns=["id"], filter=wanted, limit=most + 1).num_rows > most:
        return _marked(bank, wanted)
    rows = bank.read([*FOUND, "snippet"], wanted)
    told = rows.select(FOUND).combine_chunks()
    return Few(rows["id"].to_numpy(), comparable(bank, to_matrix(rows["snippet"])), told)


def _marked(bank: BankReader, wanted: str) -> Marked:
    return Marked.of(bank.dataset.to_table(columns=["_rowid"], filter=wanted)["_rowid"].to_numpy())


def _effort(bank: BankReader, share: float | None) -> tuple[int, int]:
    """What a search takes where a condition leaves this share of the rows; None: without a condition."""
    known = bank.known_of_search
    if known is None:
        return bank_index.efforts(bank)[2]
    effort = known.plain if share is None else known.under(share)
    return effort.probes, effort.refine
