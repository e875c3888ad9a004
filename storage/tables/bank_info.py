"""What a bank holds, and in what state it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from storage.tables import bank_index

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader


@dataclass(frozen=True)
class BankInfo:
    """What the bank holds. `unindexed` rows are found all the same, by reading them one and all."""

    rows: int
    by_origin: dict[str, int]
    by_split: dict[str, int]
    by_label: dict[str, int]
    by_class: dict[str, int]
    dim: int
    rank: int | None
    """Numbers kept of a snippet; None: all of them."""
    encoder: dict[str, Any]
    version: int
    content_revision: int
    tags: dict[str, int]
    index: str | None
    unindexed: int
    search: dict[str, Any] | None
    """How the index is searched, and the recall measured at its last maintenance; None without an index."""
    fragments: int
    versions: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def info(bank: BankReader) -> BankInfo:
    """As `BankReader.info`."""
    columns = bank.read(["origin", "split", "label", "class"])
    index = bank.index
    search = bank_index.search_of(bank) if index else None
    fragments = bank.dataset.get_fragments()
    files = (file for fragment in fragments for file in fragment.metadata.files)
    return BankInfo(
        rows=len(columns),
        by_origin=counted(columns["origin"]),
        by_split=counted(columns["split"]),
        by_label=counted(columns["label"]),
        by_class=counted(columns["class"]),
        dim=bank.dim,
        rank=bank.basis.rank if bank.basis else None,
        encoder=bank.encoder,
        version=bank.version,
        content_revision=bank.content_revision,
        tags={name: tag["version"] for name, tag in bank.table.tags.list().items()},
        index=index.index_type if index else None,
        unindexed=index.num_unindexed_rows if index else len(columns),
        search=asdict(search) if search else None,
        fragments=len(fragments),
        versions=len(bank.dataset.versions()),
        bytes=sum(file.file_size_bytes or 0 for file in files),
    )


def counted(column: pa.ChunkedArray) -> dict[str, int]:
    """How many rows have each value; "None" is last."""
    pairs = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
    return {str(name): pairs[name] for name in sorted(pairs, key=lambda name: (name is None, name))}
