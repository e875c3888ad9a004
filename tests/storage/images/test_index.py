from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pytest

from storage.images import index
from storage.images.index import Counts, done_shards, index_shards, number_parts, read_index, shard_name, write_part

SIZES = (3, 0, 5, 1, 4, 2, 0)
"""Pictures kept of each shard, after one that is refused."""


def rows(number: int, kept: int) -> list[dict[str, Any]]:
    refused = {"path": f"{number}/", "kept": False, "reason": "empty file" if number % 2 else "broken"}
    usable = {"shard": shard_name(number), "split": "train" if number % 2 else "held_out", "kept": True}
    return [refused, *({"path": f"{number}/{place}", **usable} for place in range(kept))]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(index, "BLOCK", 2)
    for number, kept in enumerate(SIZES):
        write_part(str(tmp_path), number, rows(number, kept))
    return str(tmp_path)


def backwards(function: Callable[[Any], Any], blocks: Sequence[Any]) -> list[Any]:
    """Whoever is done first: the results are in order all the same."""
    return [function(block) for block in blocks[::-1]][::-1]


def test_parts_are_numbered_in_order_by_whomever(root: str, tmp_path: Path) -> None:
    assert done_shards(root) == set(range(7))
    counts = number_parts(root, 7, {"size": "8"}, backwards)
    table = read_index(root)
    kept = table.filter(table["kept"])
    assert kept["sample"].to_pylist() == list(range(len(kept))) and counts.kept == len(kept) == sum(SIZES)
    assert table["path"].to_pylist() == [row["path"] for number, kept in enumerate(SIZES) for row in rows(number, kept)]
    assert table["sample"].null_count == counts.refused == len(table) - len(kept)
    assert counts.splits == {"held_out": 12, "train": 3} and set(counts.reasons) == {"empty file", "broken"}
    assert len(index_shards(table)) == counts.shards == 5
    for shard in index_shards(table):
        assert read_index(root, shard).equals(kept.filter(ds.field("shard") == shard))


def test_other_readers_take_the_folder_for_one_table(root: str) -> None:
    number_parts(root, 7, {"size": "8"})
    frame = pd.read_parquet(f"{root}/index.parquet")
    assert frame["path"].tolist() == read_index(root)["path"].to_pylist()
    assert frame["sample"].dropna().tolist() == list(range(sum(SIZES)))


def test_numbered_anew_after_an_interruption(root: str) -> None:
    def killed(function: Callable[[Any], Any], blocks: Sequence[Any]) -> list[Any]:
        if isinstance(blocks[0], tuple):
            function(blocks[1])
            raise KeyboardInterrupt
        return [function(block) for block in blocks]

    with pytest.raises(KeyboardInterrupt):
        number_parts(root, 7, {}, killed)
    number_parts(root, 7, {})
    assert read_index(root, columns=["sample"])["sample"].drop_null().to_pylist() == list(range(sum(SIZES)))


def test_of_nothing_kept_nothing_is_numbered(tmp_path: Path) -> None:
    write_part(str(tmp_path), 0, [{"path": "a", "kept": False, "reason": "empty file"}])
    counts = number_parts(str(tmp_path), 1, {})
    assert (counts.kept, counts.reasons) == (0, {"empty file": 1}) and not (tmp_path / "index.parquet").exists()
    assert Counts() + counts == counts
