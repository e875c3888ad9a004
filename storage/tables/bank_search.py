"""The rows near a snippet: through the index, or by reading those in question where they are few.

Under a condition that few rows fulfil an index finds too little: the nearest of those lie in partitions that it does not look
into. Their snippets are read then, and kept for the next search under the same condition.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        few = _few(bank, wanted) if wanted is not None and effort is None else None
        if few is not None:
            return _among(bank, few, snippet, k, columns)
        probes, refine = effort or _effort(bank, wanted)
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
) -> pa.Table:
    """By Lance: the index, or every row that fulfils the condition."""
    asked = bank.basis.query(snippet) if bank.basis else snippet
    nearest = {"column": "snippet", "q": asked, "k": k, "metric": bank_index.metric(bank), **how}
    names = [*bank.stored(columns), DISTANCE]
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


def _few(bank: BankReader, wanted: str) -> Few | None:
    """The rows that fulfil a condition, where an exhaustive search among them is worth it."""
    known, key = bank.few, (bank.version, wanted)
    if key not in known:
        few = _read(bank, wanted)
        room = bank_index.rows_kept(bank) - _count(few)
        while len(known) >= KEPT or sum(map(_count, known.values())) > room:
            known.pop(next(iter(known)))
        known[key] = few
    return known[key]


def _count(few: Few | None) -> int:
    return len(few.ids) if few else 0


def _read(bank: BankReader, wanted: str) -> Few | None:
    most = bank_index.rows_kept(bank)
    if bank.dataset.to_table(columns=["id"], filter=wanted, limit=most + 1).num_rows > most:
        return None
    rows = bank.read([*FOUND, "snippet"], wanted)
    told = rows.select(FOUND).combine_chunks()
    return Few(rows["id"].to_numpy(), comparable(bank, to_matrix(rows["snippet"])), told)


def _effort(bank: BankReader, wanted: str | None) -> tuple[int, int]:
    known = bank.known_of_search
    effort = (known.filtered if wanted else None) or known.plain if known else None
    return (effort.probes, effort.refine) if effort else bank_index.EFFORTS[2]
