"""The rows near a snippet: through the index, or by reading those in question where they are few.

Under a condition that few rows fulfil an index finds too little: the nearest of those lie in partitions that it does not look
into. Their snippets are read then, and kept for the next search under the same condition. Where more rows fulfil it, the index
is searched the further the fewer they are; where many do, without the condition, which the rows found are then asked for.
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


class Few(NamedTuple):
    """Rows that fulfil a condition."""

    ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    """[N, W], comparable."""
    told: pa.Table
    """The columns of each that a search tells unless asked for others."""


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
            return _through(bank, snippet, k, wanted, {"use_index": False}, columns)
        left = None if wanted is None else _left(bank, wanted)
        if isinstance(left, Few):
            if effort is None:
                return _among(bank, left, snippet, k, columns)
            left = len(left.ids)
        share = None if left is None else left / bank.dataset.count_rows()
        probes, refine = effort or _effort(bank, share)
        if share is not None and share >= min(bank_index.WIDE):
            # To tell Lance beforehand which rows those are costs more than all the rest of the search.
            more = ceil((k + 3 * sqrt(k * (1 - share))) / share)
            how = {"nprobes": probes, "refine_factor": max(round(refine * k / (share * more)), 1)}
            rows = _through(bank, snippet, more, wanted, how, columns, prefilter=False)
            if len(rows) >= k:
                return rows.slice(0, k)
        return _through(bank, snippet, k, wanted, {"nprobes": probes, "refine_factor": refine}, columns)


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
    wanted: str | None,
    how: dict[str, Any],
    columns: Sequence[str],
    prefilter: bool = True,
) -> pa.Table:
    """By Lance: the index, or every row that fulfils the condition. Up to `k` rows, the nearest first; without `prefilter`
    those of the `k` nearest that fulfil it."""
    asked = bank.basis.query(snippet) if bank.basis else snippet
    nearest = {"column": "snippet", "q": asked, "k": k, "metric": bank_index.metric(bank), **how}
    names = [*bank.stored(columns), DISTANCE]
    rows = bank.dataset.to_table(columns=names, nearest=nearest, filter=wanted, prefilter=prefilter)
    return with_later_columns(rows, columns)


def _among(bank: BankReader, few: Few, snippet: NDArray[np.float32], k: int, columns: Sequence[str]) -> pa.Table:
    similarity = cosines(bank, snippet, few.rows)
    order = np.argsort(-similarity, kind="stable")[:k]
    if set(columns) <= set(few.told.column_names):
        rows = few.told.select([*columns]).take(order)
    else:
        rows = bank.rows(few.ids[order].tolist(), [*columns]).select([*columns])
    return rows.append_column(DISTANCE, pa.array(1 - similarity[order], pa.float32()))


def _left(bank: BankReader, wanted: str) -> Few | int:
    """The rows that fulfil a condition where it is worth it to compare all of them, else how many they are."""
    known, key = bank.left, (bank.version, wanted)
    if key not in known:
        left = _read(bank, wanted)
        room = bank_index.rows_kept(bank) - _kept(left)
        while len(known) >= KEPT or sum(map(_kept, known.values())) > room:
            known.pop(next(iter(known)))
        known[key] = left
    return known[key]


def _kept(left: Few | int) -> int:
    return len(left.ids) if isinstance(left, Few) else 0


def _read(bank: BankReader, wanted: str) -> Few | int:
    most = bank_index.rows_kept(bank)
    if bank.dataset.to_table(columns=["id"], filter=wanted, limit=most + 1).num_rows > most:
        return int(bank.dataset.count_rows(wanted))
    rows = bank.read([*FOUND, "snippet"], wanted)
    told = rows.select(FOUND).combine_chunks()
    return Few(rows["id"].to_numpy(), comparable(bank, to_matrix(rows["snippet"])), told)


def _effort(bank: BankReader, share: float | None) -> tuple[int, int]:
    """What a search takes where a condition leaves this share of the rows; None: without a condition."""
    known = bank.known_of_search
    if known is None:
        return bank_index.EFFORTS[2]
    effort = known.plain if share is None else known.under(share)
    return effort.probes, effort.refine
