"""Headers that announce what is not there: bounded, and never backwards."""

from __future__ import annotations

import io
import tarfile

import pytest

from storage.images.sources.tar_headers import MAX_EXTENSION, BrokenTar, Member, members


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


class Measured(io.BytesIO):
    """Knows the largest piece that was asked for."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        self.largest = max(self.largest, size or 0)
        return super().read(size)


def read(data: bytes) -> tuple[list[Member], str]:
    handle, found = Measured(data), []
    try:
        found.extend(members(handle, len(data)))
    except BrokenTar as broken:
        return found, str(broken)
    finally:
        assert handle.largest <= 1 << 20
    return found, ""


GOOD = header("good.png", 3) + padded(b"abc")
END = bytes(1024)
TERABYTE = b"\x80" + (1 << 40).to_bytes(11, "big")


def test_members_are_those_of_tarfile() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size in (("a.png", 0), ("d/" * 80 + "b.png", 700), ("ä.png", 512)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    found, problem = read(buffer.getvalue())
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert [(m.name, m.offset, m.size) for m in found] == [(i.name, i.offset_data, i.size) for i in tar]
    assert problem == ""


@pytest.mark.parametrize(
    "data",
    [
        header("x", 7 << 30, b"x"),
        header("x", MAX_EXTENSION + 1, b"L") + padded(bytes(MAX_EXTENSION + 1)),
        header("x", b"\xff" * 12),
        header("x", b"\x80" + b"\xff" * 11),
        header("x", b"words here!!"),
        header("x", 30, b"x") + padded(b"17 size=-1000000\n"),
        header("x", 30, b"x") + padded(b"99999999999999999999 size=1\n"),
        header("x", 30, b"x") + padded(b"30 size=100000000000000000000\n") + GOOD,
        header("x", TERABYTE, b"K"),
        header("x", b"-0000000001\0"),
        header("x", 10, b"L") + padded(b"name"),
    ],
    ids=[
        "pax of GB",
        "long name of MB",
        "negative",
        "beyond",
        "words",
        "pax negative",
        "pax length",
        "pax 1e20",
        "link of TB",
        "minus",
        "cut",
    ],
)
def test_sizes_that_cannot_be(data: bytes) -> None:
    found, problem = read(GOOD + data)
    assert [member.name for member in found] == ["good.png"]
    assert "tar" in problem


def test_headers_that_nest() -> None:
    long_name = header("././@LongLink", 4, b"L") + padded(b"name")
    found, problem = read(GOOD + long_name * 5000 + GOOD + END)
    assert len(found) == 1 and problem.startswith("broken tar: a header at byte")
    assert len(read((long_name + header("x", 0)) * 40 + END)[0]) == 40


def test_a_link_that_announces_a_terabyte_hides_nothing() -> None:
    found, problem = read(header("x", TERABYTE, b"2") + GOOD + END)
    assert [(member.name, member.size) for member in found] == [("x", 0), ("good.png", 3)] and problem == ""


@pytest.mark.timeout(30)
def test_records_without_number_take_no_time() -> None:
    """Each member states more for all that follow: copying it for each would take hours."""
    records = b"".join(b"%d k%06d=1\n" % (13, number) for number in range(80_000))
    shared = header("x", len(records), b"g") + padded(records)
    found, problem = read(shared * 2 + GOOD * 3000 + END)
    assert len(found) == 3000 and problem == ""


def test_sparse_files_are_known() -> None:
    records = b"22 GNU.sparse.major=1\n"
    found, _ = read(header("x", len(records), b"x") + padded(records) + GOOD + header("s", 0, b"S") + GOOD + END)
    assert [member.is_sparse for member in found] == [True, True, False]


def test_zeros_without_end() -> None:
    found, problem = read(GOOD + bytes(20 << 20) + GOOD)
    assert len(found) == 1 and "zeros" in problem
    found, problem = read(GOOD + bytes(1 << 20) + GOOD + END)
    assert len(found) == 2 and problem == ""
