"""What was made with a bank: on which of its versions, and from which of its rows."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.documents import read_json
from storage.errors import Damaged
from storage.ids import FIRST_FOREIGN_ID
from storage.retention.inventory import Entry
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_rows import table_uri
from storage.tables.fragments import open_table

GONE = "gone"
"""A version that has been cleaned up: nobody can say what it held."""


@dataclass(frozen=True)
class Use:
    """An artifact that was made with a bank."""

    folder: str
    kind: str
    versions: tuple[int, ...]
    """Of the bank, each that the artifact or one of its checkpoints names."""


def uses(entries: dict[str, Entry], bank: str) -> list[Use]:
    """Artifacts that name the bank in this folder, and a version of it."""
    found = []
    for entry in entries.values():
        named = {each.version for each in entry.inputs if each.uri == bank} | {_drawn_version(entry, bank)}
        versions = tuple(sorted(version for version in named if isinstance(version, int)))
        if versions:
            found.append(Use(entry.folder, entry.artifact.kind, versions))
    return found


def _drawn_version(entry: Entry, bank: str) -> Any:
    """Of a bank that samples were drawn from by its address."""
    details = entry.manifest.details if entry.manifest else {}
    named = (details.get("used") or {}).get("bank")
    return details.get("bank", {}).get("version") if named == bank else None


def held(bank: Bank, version: int, ids: NDArray[np.int64]) -> int | str:
    """How many of these rows a version had; `GONE` where it has been cleaned up."""
    try:
        dataset = open_table(table_uri(bank.artifact), version)
    except FileNotFoundError:
        return GONE
    return int(np.isin(dataset.to_table(columns=["id"])["id"].to_numpy(), ids).sum())


def made_of(entries: dict[str, Entry], bank: str, ids: NDArray[np.int64]) -> dict[str, int]:
    """Other banks that name this one, such as rank-reduced ones, with how many of these rows they have."""
    others = [e for e in entries.values() if e.artifact.kind == "bank" and e.state == "complete" and bank in e.names]
    counts = {entry.folder: int(np.isin(Bank(entry.artifact.uri).matching(), ids).sum()) for entry in others}
    return {folder: count for folder, count in counts.items() if count}


def drawn_from(entries: dict[str, Entry], bank: str, ids: NDArray[np.int64]) -> dict[str, list[int]]:
    """Folders of artifacts with samples drawn from these rows, and the numbers of those samples."""
    wanted, found = set(ids.tolist()), dict[str, list[int]]()
    for entry in entries.values():
        if entry.artifact.kind == "images" or not _rests_on(entry, bank, entries):
            continue
        tars = sorted(path for path in entry.files if path.endswith(".tar"))
        samples = (each for path in tars for each in snippets_of(entry.artifact.store, entry.artifact.path(path)))
        if numbers := sorted({number for number, snippet in samples if snippet in wanted}):
            found[entry.folder] = numbers
    return found


def _rests_on(entry: Entry, bank: str, entries: dict[str, Entry]) -> bool:
    """Whether it names the bank, or something that does."""
    return bank in entry.names or any(bank in entries[name].names for name in entry.names & entries.keys())


def snippets_of(store: Store, path: str) -> Iterator[tuple[int, int]]:
    """Number of each sample of a shard, and the id of its snippet and of what that was mixed with; nothing of tars of
    another kind, nor of damaged ones, from which nobody has samples."""
    with (
        suppress(tarfile.TarError, Damaged),
        store.filesystem.open(path, "rb") as stream,
        tarfile.open(fileobj=stream) as tar,
    ):
        for member in tar:
            if not member.name.endswith(".json"):
                continue
            content = tar.extractfile(member)
            about = read_json(content.read() if content else b"", member.name, dict[str, Any], "")
            for role in ("snippet", "mixed_with"):
                if role in about and "index" in about:
                    yield about["index"], about[role]


def rest_on(entries: dict[str, Entry], folders: Collection[str], kind: str) -> list[str]:
    """Folders of artifacts of a kind that name one of these."""
    return [e.folder for e in entries.values() if e.artifact.kind == kind and not e.names.isdisjoint(folders)]


def sources(entries: dict[str, Entry], bank: str, ids: NDArray[np.int64]) -> list[str]:
    """Folders in which pictures of these rows lie themselves, or what was made of them beside the bank."""
    own = entries.get(bank)
    if own is None or not (ids < FIRST_FOREIGN_ID).any():
        return []
    images = {name for name in own.names if name in entries and entries[name].artifact.kind == "images"}
    made = [folder for kind in ("latents", "patches") for folder in rest_on(entries, images, kind)]
    return [*sorted(images), *made]
