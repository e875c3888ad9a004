"""The bank: one snippet for each picture that the generator can draw on, as a LanceDB table anybody can query.

`<artifact>/bank.lance` is the table `bank` of the LanceDB database `<artifact>`. `Bank` reads, searches and edits it:

    bank = Bank("runs/bank/emoji-0123456789ab")           # or at a version, a tag, a time
    near = bank.search(42, k=8, where="class = 'flags'")  # or a snippet, or words
    bank.withdraw(where="key LIKE 'private/%'", reason="asked for by their owner")
    bank.history()

What it can be asked is in `bank_reader`, what rows are in `bank_rows`, how edits are committed in `bank_commits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import lance
import numpy as np
from numpy.typing import NDArray

from storage.errors import Refused, StoreError
from storage.files.s3 import lance_options
from storage.tables import bank_edits, bank_index, bank_purge
from storage.tables.bank_commits import Edit, note, restore_version
from storage.tables.bank_edits import Added, Pictures, Withdrawal
from storage.tables.bank_purge import Purged
from storage.tables.bank_reader import BankReader
from storage.tables.bank_rows import schema, table_uri
from storage.tables.fragments import translate_errors


class Bank(BankReader):
    """A finished bank that can be edited: each edit is one commit, on the newest version, whichever was opened."""

    @classmethod
    def create(cls, artifact: str, dim: int, encoder: dict[str, Any]) -> Bank:
        """An empty bank to `append` to, for snippets that do not come from shards."""
        uri = table_uri(artifact)
        try:
            with translate_errors("written", uri):
                lance.write_dataset(schema(dim, encoder).empty_table(), uri, storage_options=lance_options(uri))
        except StoreError as error:
            if "already exists" not in str(error):
                raise
            raise Refused(f"{artifact} holds a bank already; open it to append to it") from error
        note(artifact)
        return cls(artifact)

    def append(
        self,
        snippets: NDArray[np.floating],
        origin: str,
        encoder: dict[str, Any],
        reason: str | None = None,
        **columns: Any,
    ) -> NDArray[np.int64]:
        """Adds snippets [N,D] with new ids, which it returns; `columns` as in `bank_rows.make_rows`.

        Refused for another encoder's snippets. Several processes may append to one bank at the same time.
        """
        edit = Edit("append", reason, {"origin": origin, "rows": len(snippets)})
        return bank_edits.append(self, snippets, origin, encoder, edit, **columns)

    def add(self, pictures: Pictures, batch: str, encoder: dict[str, Any], reason: str | None = None) -> Added:
        """Adds pictures from elsewhere under the keys `<batch>/<key>`: those that the bank does not have, nor had and
        withdrew. Refused for another encoder's snippets or an odd batch name."""
        return bank_edits.add(self, pictures, batch, encoder, reason)

    def mix(
        self,
        ids: Sequence[int],
        method: str = "spherical",
        weights: Sequence[float] | None = None,
        seed: int = 0,
        reason: str | None = None,
    ) -> int:
        """Adds a mixture of these rows, which are kept as its parents; returns its id."""
        return bank_edits.mix(self, ids, method, weights, seed, reason)

    def withdraw(self, reason: str, ids: Sequence[int] | None = None, where: str | None = None) -> Withdrawal:
        """Takes rows, their mirror images and the mixtures descending from them out of the newest version.

        What was withdrawn stays known by id, key and picture: no later run or `add` brings it back. Earlier versions
        keep it until they are cleaned up or purged; until then a training that names one can be continued.

        Raises:
            Refused: no reason, no such row, or nothing would be left.
        """
        if (ids is None) == (where is None):
            raise Refused("say what to withdraw: either ids or a condition")
        self.refresh()
        chosen = self.rows(ids, ["id"])["id"].to_numpy() if ids is not None else self.matching(where)
        return bank_edits.withdraw(self, np.unique(chosen), reason)

    def purge(self, reason: str) -> Purged:
        """Removes all versions but the newest for good, tagged ones included, and with them what was withdrawn.

        What was made with them cannot be made again or continued. Nobody else should be adding to the bank meanwhile.
        """
        return bank_purge.purge(self, reason)

    def withdrawn_from(self, other: str) -> dict[str, list[int]]:
        """Ids of the rows here whose pictures were withdrawn from the bank of another artifact, by reason: those of the
        same key, or the same thumbnail."""
        return bank_edits.withdrawn_from(self, other)

    def restore(self, version: int | str | datetime, reason: str | None = None) -> int:
        """Makes the rows of an earlier version, tag or time the newest again, those withdrawn since included; returns
        the version this gives."""
        earlier = Bank(self.artifact, version).version
        restore_version(self.artifact, earlier, Edit("restore", reason, {"of": earlier}))
        self.refresh()
        return self.version

    def tag(self, name: str) -> int:
        """Keeps the present version from ever being cleaned up; returns it. Refused when the name is another's."""
        known = self.table.tags.list()
        if name not in known:
            self.table.tags.create(name, self.version)
        elif known[name]["version"] != self.version:
            raise Refused(f"tag {name!r} names version {known[name]['version']} already; choose another name")
        return self.version

    def refresh(self) -> None:
        """Moves to the newest version."""
        self.table.checkout_latest()
        for known in ("names", "index", "known_of_search", "memory"):
            self.__dict__.pop(known, None)

    def build_index(self, kind: str = "auto") -> str | None:
        """Compacts, and indexes words, snippets and ids, or adds new rows to the indices.

        Args:
            kind: of the index over snippets: auto (none for a small bank, else what finds 95 % of the 10 nearest, tried
                on the bank itself), IVF_HNSW_SQ (fast, large), IVF_RQ or IVF_PQ (small, coarser), IVF_FLAT (for few
                numbers), none.

        Returns:
            The kind, None where none is worth it.
        """
        return bank_index.build(self, kind)

    def recall(self, k: int = 10, queries: int = 100, seed: int = 0, where: str | None = None) -> float:
        """The share of the true `k` nearest rows that a search finds, over random rows, under a condition if one is given."""
        return bank_index.recall(self, k, queries, seed, where)
