"""Image shards in and out: WebDataset tars of square pictures, and the index that accounts for every input.

A worker writes one shard from one slice of the listing, the tar first, then a part of the index beside it; the part
makes the shard count. When all are there the kept pictures are numbered (index.py). An artifact's folder:

    shard-000000.tar    <key>.<webp|png|jpg> and <key>.json for each kept picture
    parts/shard-000000.parquet
    index.parquet/      every input in the order of the listing, a part a shard
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from storage.errors import Refused, StoreError, StoreRefused
from storage.files import open_files
from storage.images.decoding import MAX_PIXELS, WHITE, Decoded, Rejected, centre_crop, decode, lossless_webp
from storage.images.index import Counts, Spread, done_shards, number_parts, read_index, shard_name, write_part
from storage.images.isolation import Care, Crashed, Isolated, Watched
from storage.images.sources import Entry, read_entries, require_usable

TRAIN, HELD_OUT = "train", "held_out"

GUARDS: dict[Care, Callable[..., Any]] = {"none": nullcontext, "watched": Watched, "isolated": Isolated}


@dataclass(frozen=True)
class ShardPlan:
    """What decides a shard's bytes besides its slice of the listing."""

    source: str
    size: int
    held_out: float
    classes: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    background: str = WHITE


class ShardResult(NamedTuple):
    kept: int
    rejected: int


class Picture(NamedTuple):
    """One picture read back; `image` is uint8 [H,W,3]."""

    sample: int
    key: str
    label: int | None
    split: str
    image: NDArray[np.uint8]
    class_name: str | None = None
    caption: str | None = None


def split_of(group: str, held_out: float) -> str:
    """'held_out' for a share `held_out` of the groups, by the first 64 bits of the group's SHA-256; else 'train'."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return HELD_OUT if place < held_out else TRAIN


def write_shard(root: str, number: int, entries: list[Entry], plan: ShardPlan, care: Care = "none") -> ShardResult:
    """Writes shard `number` of the artifact at `root` from its slice of the listing, whole or not at all.

    The same slice gives the same bytes. A slice without a usable picture leaves no tar, only its part of the index.
    With care "watched" this process ends where a picture takes minutes, with "isolated" pictures are decoded in a process
    of its own: one that kills it, or takes minutes, is listed with that reason.
    """
    files, shard = open_files(root), shard_name(number)
    numbers = {name: place for place, name in enumerate(plan.classes)}
    rows: list[dict[str, Any]] = []
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar,
        GUARDS[care](_prepare) as prepare,
    ):
        for entry, data in zip(entries, _contents(entries, plan), strict=True):
            picture = _prepared(prepare, entry, data, plan)
            row = _row(entry, picture, plan, shard, numbers)
            rows.append(row)
            if isinstance(picture, _Stored):
                _add(tar, f"{entry.key}.{picture.suffix}", picture.data)
                _add(tar, f"{entry.key}.json", _about(entry, row))
    kept = sum(row["kept"] for row in rows)
    if kept:
        files.write(f"{root}/{shard}.tar", buffer.getvalue())
    write_part(root, number, rows)
    return ShardResult(kept, len(rows) - kept)


def write_index(root: str, shards: int, plan: ShardPlan, spread: Spread[Any] = map) -> Counts:
    """Numbers the kept pictures of shards 0 to `shards` - 1 in order and writes `index.parquet`; says what is in it.

    Refused when nothing was kept, or a shard is missing.
    """
    missing = set(range(shards)) - done_shards(root)
    if missing:
        raise Refused(f"shards {sorted(missing)[:5]} are not written yet; run ingest again")
    about = {"classes": json.dumps(plan.classes), "size": str(plan.size)}
    counts = number_parts(root, shards, about, spread)
    if not counts.kept:
        require_usable(plan.source, pa.array(counts.reasons.elements(), pa.string()))
    return counts


def read_pictures(root: str, samples: Sequence[int]) -> NDArray[np.uint8]:
    """Pictures uint8 [N, H, W, 3] by their sample numbers, in the order of these; of each shard no other is decoded."""
    index = read_index(root, columns=["sample", "shard"])
    place = dict(zip(index["sample"].to_pylist(), index["shard"].to_pylist(), strict=True))
    found: dict[int, NDArray[np.uint8]] = {}
    for shard in {place[sample] for sample in samples}:
        found |= {picture.sample: picture.image for picture in read_shard(root, shard, samples)}
    return np.stack([found[sample] for sample in samples])


def read_shard(root: str, shard: str, wanted: Collection[int] | None = None) -> Iterator[Picture]:
    """Yields the pictures of one shard in the order of their sample numbers. StoreError where it is not whole.

    Of the sample numbers `wanted`, when given: the others are passed over, and not decoded.
    """
    rows, seen, path = {row["key"]: row for row in read_index(root, shard).to_pylist()}, 0, f"{root}/{shard}.tar"
    chosen = None if wanted is None else set(wanted)
    try:
        with open_files(root).filesystem.open(path, "rb") as handle, tarfile.open(fileobj=handle, mode="r|") as tar:
            for info in tar:
                key, _, suffix = info.name.rpartition(".")
                if suffix == "json":
                    continue
                row = rows[key]
                seen += 1
                if chosen is not None and row["sample"] not in chosen:
                    continue
                picture = tar.extractfile(info)
                assert picture is not None, info.name
                with Image.open(io.BytesIO(picture.read())) as image:
                    pixels = np.asarray(image.convert("RGB"))
                yield Picture(row["sample"], key, row["label"], row["split"], pixels, row["class"], row["caption"])
    except (tarfile.TarError, FileNotFoundError, Image.UnidentifiedImageError, SyntaxError, KeyError) as error:
        raise _damaged(root, shard, f"{type(error).__name__}: {error}") from error
    if seen != len(rows):
        raise _damaged(root, shard, f"{seen} of {len(rows)} pictures")


def _damaged(root: str, shard: str, reason: str) -> StoreError:
    return StoreRefused(
        f"{root}/{shard}.tar is damaged ({reason}): remove {root}/parts/{shard}.parquet and {root}/manifest.json and "
        "run again; ingest then writes this shard anew, and no other."
    )


# --- one picture -----------------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    data: bytes
    suffix: str
    width: int
    height: int


def _contents(entries: list[Entry], plan: ShardPlan) -> Iterator[bytes | OSError | None]:
    """The bytes of each entry in turn; None for those the listing has refused already."""
    usable = read_entries([entry for entry in entries if entry.reason is None], plan.source)
    for entry in entries:
        yield None if entry.reason else next(usable)


def _prepared(
    prepare: Callable[..., _Stored | Rejected], entry: Entry, data: bytes | OSError | None, plan: ShardPlan
) -> _Stored | Rejected:
    try:
        return prepare(entry, data, plan)
    except Crashed as crash:
        return Rejected(f"the decoder {crash}")


def _prepare(entry: Entry, data: bytes | OSError | None, plan: ShardPlan) -> _Stored | Rejected:
    if entry.reason or data is None:
        return Rejected(entry.reason or "unreadable")
    if isinstance(data, OSError):
        return Rejected(f"unreadable: {data.strerror or data}")
    decoded = decode(data, plan.max_pixels, plan.background)
    if isinstance(decoded, Rejected):
        return decoded
    return _fit(decoded, data, plan)


def _fit(decoded: Decoded, data: bytes, plan: ShardPlan) -> _Stored | Rejected:
    """The original bytes when the picture is as wanted already, else the cropped one as lossless WebP."""
    if decoded.suffix and decoded.image.size == (plan.size, plan.size):
        return _Stored(data, decoded.suffix, decoded.width, decoded.height)
    try:
        square = centre_crop(decoded.image, plan.size, plan.max_pixels)
    except ValueError as error:
        return Rejected(str(error))
    return _Stored(lossless_webp(square), "webp", decoded.width, decoded.height)


def _row(
    entry: Entry, picture: _Stored | Rejected, plan: ShardPlan, shard: str, numbers: dict[str, int]
) -> dict[str, Any]:
    row: dict[str, Any] = {"path": entry.path, "source": plan.source, "key": entry.key or None, "kept": False}
    if isinstance(picture, Rejected):
        return row | {"reason": picture.reason}
    return row | {
        "label": numbers.get(entry.label) if entry.label is not None else None,
        "label_name": entry.label,
        "class": entry.class_name or entry.label,
        "caption": entry.caption,
        "group": entry.group,
        "split": split_of(entry.group, plan.held_out),
        "shard": shard,
        "width": picture.width,
        "height": picture.height,
        "kept": True,
    }


def _about(entry: Entry, row: dict[str, Any]) -> bytes:
    about = {name: row[name] for name in ("label", "label_name", "width", "height", "group")} | {"source": entry.path}
    if entry.caption is not None:
        about["text"] = entry.caption
    return json.dumps(about, sort_keys=True).encode()


# --- files -----------------------------------------------------------------------------------------------------------


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and mode stay at fixed values: equal content gives equal bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
