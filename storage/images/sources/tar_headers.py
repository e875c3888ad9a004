"""The members of a tar, from its headers alone: in bounded memory, and always forwards, whatever the headers say.

Python's own `tarfile` believes a header: one that announces gigabytes is read into memory, a negative size leads back
to where the reader was. Here every header lies behind the one before, and there are at most so many; no clock is asked,
so that the same archive always gives the same listing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
MAX_HEADERS = 10_000_000
MAX_SIZE = 10**18
MAX_EXTENSION = 1 << 20
"""Bytes of a header that extends the next one: a long name, PAX's records."""
MAX_EXTENSIONS = 16
"""Headers that extend one member; archivers write two or three."""
MAX_PADDING = 16 << 20
"""Zeros between archives that were put one behind the other, and at the end."""
EMPTY = bytes(BLOCK)

FILE, LINKS, FOLDER = b"0\x007", b"12", b"5"
HAS_NO_DATA = b"123456"
KEYS, SPARSE = (b"path", b"size"), b"GNU.sparse"
"""Of PAX's records."""
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}


class BrokenTar(ValueError):
    """From here on the archive cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Member:
    """`name` as it is written, undecodable bytes as lone surrogates; `kind` is the header's type, one byte."""

    name: str
    kind: bytes
    offset: int
    size: int
    is_sparse: bool = False


def members(handle: IO[bytes], length: int) -> Iterator[Member]:
    """Yields every member of an uncompressed tar of `length` bytes, also of several put one behind the other.

    BrokenTar, after what is whole, where the rest cannot be read. The last member may end beyond `length`.
    """
    _refuse_compressed(handle)
    place, ended = 0, False
    common: dict[str, bytes] = {}
    pending: dict[str, bytes] = {}
    extensions = 0
    for _ in range(MAX_HEADERS):
        block = _read(handle, place, BLOCK)
        if block == EMPTY:
            place, ended = _behind_zeros(handle, place, length), True
            common, pending = {}, {}
            if place >= length:
                return
            continue
        kind, size = _header(block, place, ended)
        data = place + BLOCK
        if kind in b"xgLKX":
            extensions += 1
            if extensions > MAX_EXTENSIONS or size > MAX_EXTENSION:
                raise BrokenTar(f"broken tar: a header at byte {place} is larger than any archiver's")
            body = _read(handle, data, size)
            _extend(common if kind == b"g" else pending, kind, body)
            place = data + -(-size // BLOCK) * BLOCK
            continue
        member = _member(block, kind, data, size, common | pending)
        yield member
        place = data + -(-member.size // BLOCK) * BLOCK
        pending, extensions, ended = {}, 0, False
        if data + member.size > length:
            return
    raise BrokenTar(f"a tar of more than {MAX_HEADERS:,} members: split it")


def _refuse_compressed(handle: IO[bytes]) -> None:
    handle.seek(0)
    start = handle.read(8)
    for beginning, remedy in COMPRESSED.items():
        if start.startswith(beginning):
            raise BrokenTar(f"a compressed tar, which cannot be read at random: '{remedy}' it first")


def _read(handle: IO[bytes], place: int, size: int) -> bytes:
    handle.seek(place)
    data = handle.read(size)
    if len(data) < size:
        raise BrokenTar("truncated or broken tar: what follows the last member cannot be read")
    return data


def _behind_zeros(handle: IO[bytes], place: int, length: int) -> int:
    """Where the first block lies that is not empty; `length` when there is none."""
    start = place
    while place < length:
        handle.seek(place)
        chunk = handle.read(1 << 20)
        rest = chunk.lstrip(b"\0")
        if rest or not chunk:
            return place + (len(chunk) - len(rest)) // BLOCK * BLOCK if rest else length
        place += len(chunk)
        if place - start > MAX_PADDING and place < length:
            raise BrokenTar("what lies behind 16 MiB of zeros in the tar is not read")
    return length


def _header(block: bytes, place: int, ended: bool) -> tuple[bytes, int]:
    """Type and size; BrokenTar where it is no header."""
    without_sum = block[:148] + b" " * 8 + block[156:]
    stated = _number(block[148:156])
    signed = sum(byte - 256 if byte > 127 else byte for byte in without_sum) if max(without_sum) > 127 else None
    if stated is None or stated not in (sum(without_sum), signed):
        where = "behind the archive's end lies something that is no tar" if ended else f"no header at byte {place}"
        raise BrokenTar(f"truncated or broken tar: {where}")
    size = _number(block[124:136])
    if size is None or size > MAX_SIZE:
        raise BrokenTar(f"truncated or broken tar: the header at byte {place} states no size")
    return block[156:157], size


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's 256-based number; None where it is neither, or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        digits = field.partition(b"\0")[0].strip()
        number = int(digits or b"0", 8)
    except ValueError:
        return None
    return number if number >= 0 else None


def _extend(known: dict[str, bytes], kind: bytes, body: bytes) -> None:
    """Takes the name and size that a header states of the next one, and whether that is sparse."""
    if kind in b"LK":
        if kind == b"L":
            known["path"] = body.partition(b"\0")[0]
        return
    place = 0
    while place < len(body):
        space = body.find(b" ", place, place + 8)
        digits = body[place:space] if space > place else b""
        end = place + int(digits) if digits.isdigit() else 0
        if end <= space + 1 or end > len(body) or body[end - 1 : end] != b"\n":
            return  # padding, or no records
        key, _, value = body[space + 1 : end - 1].partition(b"=")
        if key in KEYS:  # nothing else is kept: an archive may state any number of things for all its members
            known[key.decode()] = value
        elif key.startswith(SPARSE):
            known[SPARSE.decode()] = b""
        place = end


def _member(block: bytes, kind: bytes, data: int, size: int, known: dict[str, bytes]) -> Member:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    path = known.get("path", prefix + b"/" + name if prefix else name)
    if "size" in known:
        stated = known["size"]
        if not stated.isdigit() or len(stated) > 18:
            raise BrokenTar(f"truncated or broken tar: the header before byte {data} states no size")
        size = int(stated)
    if kind in HAS_NO_DATA:
        size = 0
    if kind == b"\0" and path.endswith(b"/"):
        kind = FOLDER
    sparse = kind == b"S" or SPARSE.decode() in known
    return Member(path.decode("utf-8", "surrogateescape"), kind, data, size, sparse)
