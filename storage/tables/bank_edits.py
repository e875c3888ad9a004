"""Edits of a bank: pictures from elsewhere, mixtures, withdrawals. Each is one commit and raises the content's revision."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import Refused
from storage.ids import FIRST_FOREIGN_ID
from storage.tables import bank_mixing
from storage.tables.bank_commits import (
    WITHDRAWN,
    Edit,
    Tombstone,
    append_rows,
    delete_rows,
    note_checked,
    packed,
    reserve_ids,
    withdrawn,
)
from storage.tables.bank_rows import make_rows, table_uri
from storage.tables.fragments import open_table

if TYPE_CHECKING:
    from storage.tables.bank import Bank

SAME = 1e-5
"""Of 1 - cosine; a picture encoded twice differs by the rounding of its snippet, a tenth of this."""
LONGEST_NAME = 80


@dataclass(frozen=True)
class Pictures:
    """Pictures from elsewhere, in one order."""

    snippets: NDArray[np.floating]
    """[N, D], as the bank's encoder gives them."""
    keys: Sequence[str]
    thumbnails: Sequence[bytes]
    classes: Sequence[str | None]
    captions: Sequence[str | None]


@dataclass(frozen=True)
class Added:
    """What became of pictures."""

    ids: list[int]
    """Of the new rows, in the order of the pictures."""
    duplicates: dict[str, str]
    """Key of a picture that was not added: key or id of the one that is there."""
    withdrawn: dict[str, str]
    """Key of a picture that was not added: why it was withdrawn earlier."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Withdrawal:
    """Ids that have left the bank."""

    asked: list[int]
    mirrored: list[int]
    descended: list[int]
    """Mixtures of the others, of mixtures of the others, and so on."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def append(
    bank: Bank, snippets: NDArray[np.floating], origin: str, encoder: dict[str, Any], edit: Edit, **columns: Any
) -> NDArray[np.int64]:
    """As `Bank.append`."""
    bank.require_encoder(encoder)
    if np.shape(snippets)[1] != bank.dim:
        raise Refused(f"snippets of {np.shape(snippets)[1]} numbers do not fit a bank of {bank.dim}")
    stored = bank.basis.project(snippets) if bank.basis else snippets
    rows = make_rows(np.zeros(len(snippets), np.int64), stored, origin, **columns)
    note_checked(bank.artifact)
    ids = reserve_ids(bank.artifact, len(rows))
    append_rows(bank.artifact, rows.set_column(0, rows.schema.field("id"), pa.array(ids)), edit)
    bank.refresh()
    return ids


def require_batch(name: str) -> None:
    """Refused unless keys can begin with it."""
    if not name.strip() or "/" in name or len(name) > LONGEST_NAME:
        raise Refused(f"the batch name {name[:80]!r} cannot be used; give 1 to {LONGEST_NAME} characters without '/'")


def add(bank: Bank, pictures: Pictures, batch: str, encoder: dict[str, Any], reason: str | None) -> Added:
    """As `Bank.add`."""
    require_batch(batch)
    bank.require_encoder(encoder)
    refused = {stone["picture"]: stone["reason"] for stone in withdrawn(bank.dataset) if stone["picture"]}
    gone, doubled, new, seen = dict[str, str](), dict[str, str](), list[int](), dict[str, str]()
    for place, (key, thumbnail) in enumerate(zip(pictures.keys, pictures.thumbnails, strict=True)):
        picture = hash_of(thumbnail)
        if picture in refused:
            gone[key] = refused[picture]
        elif same := seen.get(picture) or _already_there(bank, pictures.snippets[place]):
            doubled[key] = same
        else:
            new.append(place)
            seen[picture] = key
    if not new:
        return Added([], doubled, gone)

    labels, classes = bank.labels(), [pictures.classes[place] for place in new]
    ids = append(
        bank,
        pictures.snippets[new],
        "external",
        encoder,
        Edit("append", reason, {"batch": batch, "rows": len(new)}),
        keys=[f"{batch}/{pictures.keys[place]}" for place in new],
        labels=[labels.get(name) if name else None for name in classes],
        classes=classes,
        captions=[pictures.captions[place] for place in new],
        thumbnails=[pictures.thumbnails[place] for place in new],
    )
    return Added(ids.tolist(), doubled, gone)


def _already_there(bank: Bank, snippet: NDArray[np.floating]) -> str | None:
    """Key or id of a row with this snippet, as the bank would store it."""
    if bank.basis:
        snippet = bank.basis.full(bank.basis.project(snippet[None]))[0]
    nearest = bank.search(snippet, 1)
    if not len(nearest) or nearest["_distance"][0].as_py() > SAME:
        return None
    return nearest["key"][0].as_py() or str(nearest["id"][0].as_py())


def hash_of(thumbnail: bytes) -> str:
    """By which a picture is known again in another table: its thumbnail's SHA-256, 32 hex digits."""
    return hashlib.sha256(thumbnail).hexdigest()[:32]


def mix(
    bank: Bank, ids: Sequence[int], method: str, weights: Sequence[float] | None, seed: int, reason: str | None
) -> int:
    """As `Bank.mix`."""
    parents = [int(i) for i in ids]
    if len(set(parents)) < len(parents):
        raise Refused("a parent is named twice; give it a larger weight instead")
    rows = bank.rows(parents, ["class", "label", "snippet"])
    mixed = bank_mixing.mix(bank.full(rows["snippet"]).astype(np.float32), method, weights, seed)
    classes, labels = set(rows["class"].to_pylist()), set(rows["label"].to_pylist())
    details = {"parents": parents, "method": method, "weights": weights and [*weights], "seed": seed}
    (made,) = append(
        bank,
        mixed[None],
        "mixed",
        bank.encoder,
        Edit("append", reason, details),
        parents=[parents],
        classes=[classes.pop() if len(classes) == 1 else None],
        labels=[labels.pop() if len(labels) == 1 else None],
    ).tolist()
    _require_parents(bank, made, parents)
    return made


def _require_parents(bank: Bank, made: int, parents: list[int]) -> None:
    """A parent may have been withdrawn while its snippet was mixed."""
    there = set(bank.matching(f"id IN ({','.join(map(str, parents))})").tolist())
    if missing := set(parents) - there:
        withdraw(bank, np.array([made]), f"row {min(missing)}, a parent, was withdrawn meanwhile")
        raise Refused(f"row {min(missing)} was withdrawn while it was mixed; choose other parents")


# --- withdrawing -----------------------------------------------------------------------------------------------------


def withdraw(bank: Bank, ids: NDArray[np.int64], reason: str) -> Withdrawal:
    """As `Bank.withdraw`, of rows that are there."""
    if not reason.strip():
        raise Refused("give the reason for the withdrawal; it stays in the bank's history")
    if not len(ids):
        raise Refused("no row fits, so nothing was withdrawn; name rows that are there")
    note_checked(bank.artifact)
    bank.refresh()
    leaving = _leaving(bank, ids)
    everything = leaving.asked + leaving.mirrored + leaving.descended
    if len(everything) >= len(bank):
        raise Refused(f"this would withdraw all {len(bank)} rows of the bank; delete its artifact instead")
    _delete(bank, np.array(everything), reason.strip())
    later = _leaving(bank, np.array(everything)).descended  # mixed while we were at it
    if later:
        _delete(bank, np.array(later), reason.strip())
    return Withdrawal(leaving.asked, leaving.mirrored, leaving.descended + later)


def _leaving(bank: Bank, ids: NDArray[np.int64]) -> Withdrawal:
    """The rows, mirror images of the same pictures, and whatever descends from one of them."""
    there = bank.matching()
    own = ids[ids < FIRST_FOREIGN_ID]
    mirrored = np.setdiff1d(np.intersect1d(own ^ 1, there), ids)
    gone = set(np.concatenate([ids, mirrored]).tolist())
    children = bank.dataset.to_table(columns=["id", "parents"], filter="parents IS NOT NULL").to_pylist()
    descended = list[int]()
    while found := [c["id"] for c in children if c["id"] not in gone and gone & set(c["parents"])]:
        gone.update(found)
        descended += found
    return Withdrawal(sorted(map(int, np.intersect1d(ids, there))), sorted(mirrored.tolist()), sorted(descended))


def _delete(bank: Bank, ids: NDArray[np.int64], reason: str) -> None:
    edit = Edit("withdraw", reason, {"rows": len(ids)})
    stones = [
        Tombstone(
            id=row["id"],
            key=row["key"],
            shard=row["shard"],
            picture=_picture(row),
            reason=reason,
            author=edit.author,
            time=edit.time,
        )
        for row in bank.rows(ids.tolist(), ["id", "key", "shard", "thumbnail"]).to_pylist()
    ]
    delete_rows(bank.artifact, ids, edit.properties() | {WITHDRAWN: packed(stones)})
    bank.refresh()


def _picture(row: dict[str, Any]) -> str | None:
    return hash_of(row["thumbnail"]) if row["thumbnail"] else None


def withdrawn_from(bank: Bank, other: str) -> dict[str, list[int]]:
    """As `Bank.withdrawn_from`."""
    stones = withdrawn(open_table(table_uri(other)))
    keys = {stone["key"]: stone["reason"] for stone in stones if stone["key"]}
    pictures = {stone["picture"]: stone["reason"] for stone in stones if stone["picture"]}
    found = dict[str, list[int]]()
    if not stones:
        return found
    for batch in bank.dataset.to_batches(columns=["id", "key", "thumbnail"]):
        for row in batch.to_pylist():
            reason = keys.get(row["key"]) or pictures.get(_picture(row) or "")
            if reason:
                found.setdefault(reason, []).append(row["id"])
    return found
