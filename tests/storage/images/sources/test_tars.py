"""WebDataset tars as other tools write them, and as nobody should."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

Tar = Callable[..., Path]


def test_the_key_ends_at_the_first_dot(tmp_path: Path, tar: Tar, seen: type) -> None:
    path = tar(
        tmp_path / "t.tar",
        {"v1.2/a.seg.png": b"2", "v1.2/a.jpg": b"1", "v1.2/a.meta.json": b'{"label": 3}', "b.input.jpg": b"3"}
        | {"b.target.jpg": b"4", "b.output.cls": b"5"},
    )
    found = seen(path)
    assert {path: (entry.key, entry.label) for path, entry in found.usable.items()} == {
        "t.tar/v1.2/a.jpg": ("v1.2/a", "3"),
        "t.tar/b.input.jpg": ("b", "5"),
    }
    assert set(found.reasons) == {"t.tar/v1.2/a.seg.png", "t.tar/b.target.jpg"}


def test_members_of_a_key_are_joined_wherever_they_lie(tmp_path: Path, tar: Tar, seen: type) -> None:
    names = [f"{number}.{kind}" for kind in ("jpg", "cls", "txt") for number in range(3)]
    found = seen(tar(tmp_path / "t.tar", {name: name[:1].encode() for name in [*names, "9.cls", "8.npy"]}))
    assert [(e.key, e.label, e.caption) for e in found.usable.values()] == [(str(n), str(n), str(n)) for n in range(3)]
    assert found.reasons == {"t.tar/9.cls": "no picture of this name in the tar", "t.tar/8.npy": "not a picture: .npy"}


def test_labels_are_numbers_in_words(tmp_path: Path, tar: Tar, seen: type) -> None:
    said = {"a": b"2\n", "b": b"10", "c": b"3.0", "d": b"-1", "e": b"", "f": b" 2 "}
    members = [(f"{key}.{kind}", data) for key, data in said.items() for kind in ("png", "cls")]
    found = seen(tar(tmp_path / "t.tar", members))
    assert list(found.labels.values()) == ["2", "10", "3", None, None, "2"]
    assert len(found.classes) == 11


def test_what_a_mac_leaves_in_a_tar(tmp_path: Path, tar: Tar, seen: type) -> None:
    names = ["./._a.jpg", "./a.jpg", "./._a.cls", "./a.cls", "__MACOSX/a.jpg", ".DS_Store", ".cache/b.jpg"]
    found = seen(tar(tmp_path / "t.tar", {name: b"1" for name in names}))
    assert found.labels == {"t.tar/./a.jpg": "1"}
    assert set(found.reasons.values()) == {"left behind by a tool", "hidden", "not a picture: .ds_store"}


def test_tars_one_behind_the_other(tmp_path: Path, tar: Tar, seen: type) -> None:
    one, two = (tar(tmp_path / f"{name}.tar", {f"{name}.png": b"1"}).read_bytes() for name in "ab")
    (tmp_path / "both.tar").write_bytes(one + two)
    assert list(seen(tmp_path / "both.tar").usable) == ["both.tar/a.png", "both.tar/b.png"]
    (tmp_path / "more.tar").write_bytes(one + b"rubbish" * 100)
    found = seen(tmp_path / "more.tar")
    assert list(found.usable) == ["more.tar/a.png"]
    assert found.reasons == {
        "more.tar": "truncated or broken tar: behind the archive's end lies something that is no tar"
    }


def test_compressed_tars_are_refused_with_the_remedy(tmp_path: Path, tar: Tar, seen: type) -> None:
    data = gzip.compress(tar(tmp_path / "a.tar", {"a.png": b"1"}).read_bytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.tar").write_bytes(data)
    (tmp_path / "in" / "c.tar.gz").write_bytes(data)
    assert seen(tmp_path / "in").reasons == {
        "b.tar": "a compressed tar, which cannot be read at random: 'gzip -d' it first",
        "c.tar.gz": "a compressed tar, which cannot be read at random: unpack it to a .tar first",
    }


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(tmp_path: Path, seen: type, picture: Callable, format: int) -> None:
    names = ["short.png", "f" * 90 + "/" + "n" * 60 + ".png"]
    if format != tarfile.USTAR_FORMAT:
        names += ["ä" * 150 + ".png", "d/" * 200 + "x.png"]
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
    found = seen(tmp_path / "t.tar")
    assert [path.removeprefix("t.tar/") for path in found.usable] == names
    assert all(row["kept"] for row in found.rows(tmp_path / "out"))


def test_one_name_many_times(tmp_path: Path, tar: Tar, seen: type, picture: Callable) -> None:
    found = seen(tar(tmp_path / "t.tar", [("a.png", picture(number)) for number in range(5)]))
    assert len(found.rows(tmp_path / "out")) == 5


@pytest.mark.parametrize("rule", ["folder", "parent", "none"])
def test_labels_by_folder(tmp_path: Path, tar: Tar, seen: type, rule: str) -> None:
    path = tar(tmp_path / "t.tar", {"train/cats/1.png": b"1", "train/cats/1.cls": b"7"})
    expected = {"folder": "train", "parent": "cats", "none": None}[rule]
    assert list(seen(path, rule=rule).labels.values()) == [expected]


def test_damaged_tars_end_and_what_is_kept_can_be_read(tmp_path: Path, tar: Tar, seen: type, picture: Callable) -> None:
    """Bytes of headers are changed at random; the seed is fixed."""
    members = [(f"{n:03d}{'x' * 120 * (n % 2)}.{end}", data) for n in range(6)
               for end, data in (("png", picture(n)), ("cls", b"1"), ("json", b'{"group": "g"}'))]  # fmt: skip
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    for seed in range(60):
        dice = random.Random(seed)
        data = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            block = 512 * dice.randrange(len(data) // 512)
            place = block + dice.choice([0, 0, 50, 100, 124, 125, 130, 156, 257, 345, dice.randrange(512)])
            data[place] = dice.choice([0, 32, 47, 46, 55, 76, 120, 128, 255, dice.randrange(256)])
            header = data[block : block + 512]
            header[148:156] = b" " * 8
            if dice.random() < 0.8:  # else its sum gives it away
                data[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        path = tmp_path / f"{seed}.tar"
        path.write_bytes(data)
        found = seen(path)
        if found.usable:
            try:
                found.rows(tmp_path / f"out-{seed}")
            except ValueError as error:
                assert "can be used" in str(error)  # none of its pictures could be decoded
