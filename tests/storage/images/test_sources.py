from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from storage.images.sources import Entry, list_source, read_entries


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes = b"picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_of(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def entries(source: Path | str) -> list[Entry]:
    listing = list_source(str(source))
    return listing.slice(0, len(listing))


def usable(source: Path | str) -> dict[str, Entry]:
    return {entry.key: entry for entry in entries(source) if entry.reason is None}


def reasons(source: Path | str) -> dict[str, str]:
    return {entry.path: entry.reason for entry in entries(source) if entry.reason}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_the_folder_below_the_root_is_the_label(tmp_path: Path) -> None:
    for name in ("cats/1.jpg", "cats/black/2.JPEG", "dogs/3.PNG", "4.webp"):
        put(tmp_path / name)
    listing = list_source(str(tmp_path))
    assert [(e.path, e.key, e.group, e.label) for e in listing.slice(0, 4)] == [
        ("4.webp", "4", "4", None),
        ("cats/1.jpg", "cats/1", "cats/1", "cats"),
        ("cats/black/2.JPEG", "cats/black/2", "cats/black/2", "cats"),
        ("dogs/3.PNG", "dogs/3", "dogs/3", "dogs"),
    ]
    assert listing.classes() == ["cats", "dogs"]
    assert [e.path for e in listing.slice(1, 3)] == ["cats/1.jpg", "cats/black/2.JPEG"]


def test_everything_else_in_the_folder_is_listed_with_a_reason(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "notes.txt")
    put(tmp_path / "README")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")))
    assert list(usable(tmp_path)) == ["a"]
    assert reasons(tmp_path) == {
        "README": "not a picture: no suffix",
        "gone.png": "unreadable: No such file or directory",
        "notes.txt": "not a picture: .txt",
        "\\xff.png": "file name is not valid UTF-8",
    }


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "b.png")
    put(tmp_path / "root" / "cats" / "a.png")
    (tmp_path / "root" / "cats" / "round").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "elsewhere")
    assert list(usable(tmp_path / "root")) == ["again/b", "cats/a", "linked/b"]
    assert reasons(tmp_path / "root") == {"cats/round": "a link to a folder above it"}


def test_equal_names_become_different_keys_and_stay_the_same(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "x.y.png", "x_y.png"):
        put(tmp_path / name)
    keys = [entry.key for entry in entries(tmp_path)]
    assert keys[0] == "a" and keys[3] == "x_y" and len(set(keys)) == 5
    assert keys == [entry.key for entry in entries(tmp_path)]
    assert all("." not in key for key in keys), "shards split names at the first dot"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_listed(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "closed" / "b.png").parent.chmod(0)
    assert reasons(tmp_path) == {"closed": "unreadable folder: Permission denied"}


def test_the_fingerprint_notices_other_pictures(tmp_path: Path) -> None:
    picture = put(tmp_path / "a.png", b"1")
    first = list_source(str(tmp_path)).fingerprint
    assert list_source(str(tmp_path)).fingerprint == first and len(first) == 12
    os.utime(picture, ns=(1, 1))
    touched = list_source(str(tmp_path)).fingerprint
    put(tmp_path / "b.png")
    assert len({first, touched, list_source(str(tmp_path)).fingerprint}) == 3


def test_nothing_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no pictures; name a folder"):
        list_source(str(tmp_path))
    assert reasons(tmp_path / "missing.tar") == {"missing.tar": "unreadable: No such file or directory"}


def test_labels_that_are_numbers_keep_them(tmp_path: Path) -> None:
    for name in ("0/a.png", "2/a.png", "10/a.png"):
        put(tmp_path / name)
    assert list_source(str(tmp_path)).classes() == [str(n) for n in range(11)]
    put(tmp_path / "cats/a.png")
    assert list_source(str(tmp_path)).classes() == ["0", "2", "10", "cats"]


# --- tars ------------------------------------------------------------------------------------------------------------


def test_a_webdataset_tar_is_read_as_it_is(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "data.tar",
        {
            "0001.cls": b"7",
            "0001.jpg": b"one",
            "0001.txt": "ein Bär\n".encode(),
            "sub/0002.json": b'{"label": "cats", "group": 12}',
            "sub/0002.png": b"two",
            "0003.webp": b"three",
            "0003.json": b"[not an object",
        },
    )
    found = usable(path)
    assert [(e.key, e.group, e.label, e.caption) for e in found.values()] == [
        ("0001", "0001", "7", "ein Bär"),
        ("sub/0002", "12", "cats", None),
        ("0003", "0003", None, None),
    ]
    assert list(read_entries(list(found.values()), str(path))) == [b"one", b"two", b"three"]


def test_several_tars_by_folder_braces_and_wildcards(tmp_path: Path) -> None:
    for number in range(3):
        tar_of(tmp_path / f"part-{number}.tar", {"a.jpg": str(number).encode()})
    put(tmp_path / "notes.txt")
    assert list(usable(tmp_path)) == ["part-0/a", "part-1/a", "part-2/a"]
    assert reasons(tmp_path) == {"notes.txt": "not a tar among tars"}
    assert list(usable(f"{tmp_path}/part-{{0..1}}.tar")) == ["part-0/a", "part-1/a"]
    assert list(usable(f"{tmp_path}/part-*.tar")) == ["part-0/a", "part-1/a", "part-2/a"]
    assert reasons(f"{tmp_path}/part-{{2..3}}.tar") == {"part-3.tar": "unreadable: No such file or directory"}
    everything = entries(f"{tmp_path}/part-*.tar")
    assert list(read_entries([everything[2], everything[0]], f"{tmp_path}/part-*.tar")) == [b"2", b"0"]


def test_pictures_without_a_name_are_refused(tmp_path: Path) -> None:
    """Their key would be empty, and no shard with them could be read again."""
    path = tmp_path / "some.tar"
    tar_of(path, {".png": b"one", "sub/.seg.jpg": b"two", "sub/.jpg": b"three", "a.png": b"good"})
    assert list(usable(path)) == ["a"]
    nameless = "refused: nothing before the first dot of its name"
    assert {name: why for name, why in reasons(path).items() if why == nameless} == {
        "some.tar/.png": nameless,
        "some.tar/sub/.jpg": nameless,
        "some.tar/sub/.seg.jpg": nameless,
    }


def test_hostile_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../up.png", "/etc/absolute.png", "a/../../b.png", "..\\windows.png", "good.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        for name, kind in (
            ("soft.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.png"
            tar.addfile(info)
    assert list(usable(path)) == ["good"]
    outside, link = "refused: its name leaves the folder", "refused: a link"
    assert reasons(path) == {
        "evil.tar/../up.png": outside,
        "evil.tar//etc/absolute.png": outside,
        "evil.tar/a/../../b.png": outside,
        "evil.tar/..\\windows.png": outside,
        "evil.tar/soft.png": link,
        "evil.tar/hard.png": link,
        "evil.tar/pipe.png": "refused: not a regular file",
    }
    assert sorted(os.listdir(tmp_path)) == ["evil.tar"]


@pytest.mark.parametrize("cut", [2 * 512 + 100, 2 * 512, 3 * 512 - 200, 512 + 20, 100, 0])
def test_of_a_truncated_tar_the_whole_members_remain(tmp_path: Path, cut: int) -> None:
    """Members of 500 bytes: header, block, header, block …"""
    path = tar_of(tmp_path / "cut.tar", {f"{n}.png": bytes(500) for n in range(3)})
    path.write_bytes(path.read_bytes()[:cut])
    found = entries(path)
    assert [e.key for e in found if e.reason is None] == [str(n) for n in range(cut // 1024)]
    told = [e.reason for e in found if e.reason]
    assert len(told) == 1 and "truncated" in told[0]


def test_what_is_no_tar_at_all(tmp_path: Path) -> None:
    put(tmp_path / "fake.tar", b"this is no tar file" * 100)
    tar_of(tmp_path / "good.tar", {"a.png": b"a"})
    assert list(usable(tmp_path)) == ["good/a"]
    assert "truncated or broken tar" in reasons(tmp_path)["fake.tar"]


def test_a_sample_has_one_picture(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.png", b"2"), ("a.seg.png", b"3"), ("a.npy", b"4"), ("b.jpg", b"5")]
    path = tar_of(tmp_path / "t.tar", [*members, ("b.cls", b"1"), ("b.jpg", b"6"), ("b.cls", b"2")])
    found = usable(path)
    assert list(read_entries(list(found.values()), str(path))) == [b"1", b"5", b"6"]
    assert [e.label for e in found.values()] == [None, "1", "2"], "a name that begins anew is another sample"
    further = "a further picture of the same sample"
    assert reasons(path) == {"t.tar/a.png": further, "t.tar/a.seg.png": further, "t.tar/a.npy": "not a picture: .npy"}


# --- reading ---------------------------------------------------------------------------------------------------------


def test_files_that_vanish_are_told_one_by_one(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path / f"{name}.png", name.encode())
    listed = entries(tmp_path)
    (tmp_path / "b.png").unlink()
    first, second, third = read_entries(listed, str(tmp_path))
    assert (first, third) == (b"a", b"c")
    assert isinstance(second, FileNotFoundError)


def test_other_filesystems_serve_as_well() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/pictures/cats/a.png": b"1", "/pictures/dogs/b.jpg": b"2"})
    listing = list_source("memory://pictures")
    assert listing.classes() == ["cats", "dogs"]
    assert list(read_entries(listing.slice(0, 2), "memory://pictures")) == [b"1", b"2"]
    assert list_source("memory://pictures").fingerprint == listing.fingerprint
