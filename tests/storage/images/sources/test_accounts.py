"""Tables beside pictures: what img2dataset keeps of a shard, and a folder's metadata.parquet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def table(path: Path, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def of_shard(path: Path, start: int) -> None:
    """As img2dataset writes it, of four pictures, one of which could not be downloaded."""
    table(
        path,
        url=[f"https://example.org/{n}" for n in range(4)],
        key=[f"{start + n:09d}" for n in range(4)],
        caption=["a cat", "a dog", None, "a hen"],
        label=[1, 2, 3, 4],
        status=["success", "success", "failed_to_download", "success"],
    )


def test_beside_a_tar_and_beside_a_folder_they_tell_the_same(
    tmp_path: Path, seen: type, tar: Callable[..., Path], tree: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    names = {f"{n:09d}.jpg": picture(n) for n in (0, 1, 3)}
    own = {"000000001.txt": b"its own words"}
    tar(tmp_path / "tars" / "00000.tar", names | own)
    tree(tmp_path / "folder" / "00000", names | own)
    for layout in ("tars", "folder"):
        of_shard(tmp_path / layout / "00000.parquet", 0)
        found = seen(tmp_path / layout)
        assert found.reasons == {}, "what something was learnt from has no row"
        told = [(entry.caption, entry.label) for entry in found.usable.values()]
        assert told == [("a cat", "1"), ("its own words", "2"), ("a hen", "4")]


@pytest.mark.parametrize("layout", ["tars", "folder"])
def test_one_table_of_all_shards_names_keys(
    layout: str, tmp_path: Path, seen: type, tar: Callable[..., Path], tree: Callable[..., Path], picture: Callable
) -> None:
    for shard in (0, 1):
        names = {f"{shard}{n:04d}.jpg": picture(n) for n in (0, 1)}
        if layout == "tars":
            tar(tmp_path / f"{shard:05d}.tar", names)
        else:
            tree(tmp_path / f"{shard:05d}", names)
    table(tmp_path / "metadata.parquet", key=["00000", "10001", "x"], caption=["first", "last", "nobody"])
    found = seen(tmp_path)
    assert [entry.caption for entry in found.usable.values()] == ["first", None, None, "last"] and not found.reasons


def test_a_folders_table_names_files(
    tmp_path: Path, seen: type, tree: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    tree(tmp_path / "set", {f"{name}.png": picture(1) for name in ("a", "deep/b", "c")})
    table(tmp_path / "set" / "metadata.parquet", file_name=["a.png", "deep/b.png"], label=["owl", "bee"])
    found = seen(tmp_path)
    assert [found.labels[f"set/{name}.png"] for name in ("a", "deep/b", "c")] == ["owl", "bee", None]


@pytest.mark.parametrize("layout", ["tars", "folder"])
def test_a_table_that_says_nothing_of_pictures_is_listed(
    layout: str, tmp_path: Path, seen: type, tar: Callable[..., Path], tree: Callable[..., Path], picture: Callable
) -> None:
    names = {"000.png": picture(0)}
    tar(tmp_path / "0.tar", names) if layout == "tars" else tree(tmp_path / "0", names)
    table(tmp_path / "0.parquet", key=["000"], url=["http://example.org"])
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    found = seen(tmp_path)
    assert len(found.usable) == 1
    assert found.reasons["0.parquet"] == "nothing is learnt from it: a table that says nothing of pictures"
    assert found.reasons["metadata.parquet"].startswith("nothing is learnt from it: unreadable: ")
