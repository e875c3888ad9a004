"""Building a bank: many workers write the rows of shards, one committer adds them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from lance.dataset import LanceDataset
from numpy.typing import NDArray

from storage.ids import FIRST_FOREIGN_ID
from storage.tables.bank_basis import Basis
from storage.tables.bank_commits import (
    CHECKED_TO,
    COUNTED_TO,
    NEXT_ID,
    REVISION,
    WITHDRAWN,
    Tombstone,
    complete_columns,
    packed,
    withdrawn,
)
from storage.tables.bank_rows import schema, table_uri
from storage.tables.fragments import FragmentWriter, Shard


class BankWriter(FragmentWriter):
    """The committer of a bank that is being built: `commit` groups of described shards, then `finish_bank`.

    It may find a bank that was finished and has changed since, if only its manifest was lost: what was added stays, and
    what was withdrawn does not come back.
    """

    FROM_SHARDS = "shard IS NOT NULL"

    def __init__(
        self, artifact: str, dim: int, encoder: dict[str, Any], lease: int = 0, basis: Basis | None = None
    ) -> None:
        """As `FragmentWriter`; with a `basis` the snippets of its rows are what that stores."""
        self.artifact = artifact
        super().__init__(table_uri(artifact), schema(dim, encoder, basis), lease)

    def finish_bank(self, expected: NDArray[np.int64], stones: list[Tombstone] | None = None) -> LanceDataset:
        """Checks that each expected id is there once, and begins counting revisions; the bank can be opened then.

        `stones` are the tombstones of the bank that this one is made of. Ids that were withdrawn are expected no more. Ids of foreign rows among the expected are given to no other, also
        when these rows are deleted.
        """
        gone = [stone["id"] for stone in withdrawn(self._dataset)]
        self.verify(np.setdiff1d(expected, gone))
        if self._finished:
            return self._dataset
        highest = max([int(expected.max(initial=0)), *(stone["id"] for stone in stones or [])])
        about = {REVISION: "1", NEXT_ID: str(max(FIRST_FOREIGN_ID, highest + 1))}
        about |= {WITHDRAWN: packed(stones)} if stones else {}
        version = str(self._dataset.version)
        return self.finish(about | {COUNTED_TO: version, CHECKED_TO: version}, about)

    @property
    def _finished(self) -> bool:
        return REVISION.encode() in (self._dataset.schema.metadata or {})

    def _take_over(self, schema: Any) -> LanceDataset:
        complete_columns(self.artifact)
        return super()._take_over(schema)

    def _recall(self) -> dict[str, Shard]:
        """Of a finished bank from its rows and those withdrawn: versions with what was remembered of shards may have
        been cleaned up."""
        if not self._finished:
            return super()._recall()
        shards = self._dataset.to_table(columns=["shard"], filter=self.FROM_SHARDS)["shard"]
        rows = Counter({each["values"]: each["counts"] for each in shards.value_counts().to_pylist()})
        rows.update(stone["shard"] for stone in withdrawn(self._dataset) if stone["shard"])
        return {shard: Shard(rows=count, memory={}) for shard, count in rows.items()}
