"""What a bank says of itself."""

from __future__ import annotations

from storage.tables.bank import Bank

from .conftest import DIM, ENCODER


def test_info_counts_what_is_there(bank: Bank) -> None:
    info = bank.info()
    assert info.rows == len(bank) == 60
    assert info.by_origin == {"dataset": 60}
    assert info.by_split == {"held_out": 12, "train": 48}
    assert sum(info.by_label.values()) == 60
    assert (info.dim, info.encoder, info.content_revision) == (DIM, ENCODER, 1)
    assert (info.index, info.unindexed) == (None, 60)
    assert info.bytes > 60 * DIM * 2
