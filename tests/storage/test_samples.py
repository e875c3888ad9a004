"""Samples come back as they were written, and what is damaged among them is one sentence."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from storage.errors import Damaged
from storage.retention.bank_uses import snippets_of
from storage.samples import SampleRow, read_samples, write_samples
from storage.store import Store

GOOD = b'{"index": 0, "snippet": 4, "seed": 1}'


def row(number: int) -> SampleRow:
    return SampleRow(number, 2 * number, np.full((4, 4, 3), number, np.uint8), 20)


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_samples(store, f"{store.root}/a.tar", [row(1), row(0)], seed=3)
    found = list(read_samples(store, f"{store.root}/a.tar"))
    assert [(each.number, each.snippet, each.calls) for each in found] == [(1, 2, 20), (0, 0, 20)]
    assert all((each.image == each.number).all() for each in found)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"0.json": b"[" * 10_000, "0.png": b""}, r"0\.json is damaged \(no whole JSON"),
        ({"0.json": b'{"index": ' + b"9" * 5000 + b"}", "0.png": b""}, r"0\.json is damaged \(no whole JSON"),
        ({"0.json": b'{"index": "x"}', "0.png": b""}, r"0\.json is damaged \(index"),
        ({"0.png": b""}, r"0\.json is damaged"),
        ({"0.json": GOOD, "0.png": b"no picture"}, r"0\.png is damaged \(no whole picture\)"),
        ({"0.json": GOOD}, r"0\.png is damaged"),
    ],
)
def test_what_is_damaged_is_one_sentence(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    store = Store(str(tmp_path))
    with pytest.raises(Damaged, match=words + ".*: remove the artifact"):
        list(read_samples(store, f"{store.root}/a.tar"))


def test_of_a_damaged_shard_those_before_the_damage_are_told(tmp_path: Path) -> None:
    """A report of what was made with a bank goes on to the next shard."""
    members = {"0.json": GOOD, "1.json": b"[" * 10_000, "2.json": GOOD}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert list(snippets_of(Store(str(tmp_path)), str(tmp_path / "a.tar"))) == [(0, 4)]
