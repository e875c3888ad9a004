"""What a store holds: the state and size of every artifact, and what is used by what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage.checkpoints import Checkpoint, all_checkpoints
from storage.errors import Damaged
from storage.lease import LeaseState
from storage.manifest import Input, Manifest
from storage.store import KINDS, Artifact, Store

READERS = 8

_NAMED = re.compile(rf"(?:{'|'.join(KINDS)})/[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{{12}}(?![0-9a-f])")


@dataclass(frozen=True)
class Entry:
    """An artifact as it was found."""

    artifact: Artifact
    state: str
    """complete, building, unfinished, damaged (its manifest), or elsewhere: a link leads out of the store."""
    files: dict[str, int]
    """Bytes of each file by its path inside, without the lease's."""
    manifest: Manifest | None
    checkpoints: list[Checkpoint]
    holder: LeaseState | None
    names: frozenset[str]
    """Folders of the artifacts that its manifest or its checkpoints name anywhere."""

    @classmethod
    def of(cls, artifact: Artifact) -> Entry | None:
        """None where nothing lies but the lease of what has been removed."""
        if not artifact.store.files.inside(artifact.store.root, artifact.uri):
            return cls(artifact, "elsewhere", {}, None, [], None, frozenset())
        files = {path: size for path, size in artifact.store.files.walk(artifact.uri).items() if path[:6] != "lease/"}
        holder = artifact.holder()
        if not files and holder is None:
            return None
        manifest, state = _manifest(artifact, holder)
        checkpoints = all_checkpoints(artifact) if any(path.startswith("checkpoints/") for path in files) else []
        names = _named(artifact, manifest, state == "damaged", checkpoints) - {artifact.folder}
        return cls(artifact, state, files, manifest, checkpoints, holder, names)

    @property
    def folder(self) -> str:
        return self.artifact.folder

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def created(self) -> datetime | None:
        """When it, or its newest checkpoint, was finished; None where nothing ever was."""
        if self.manifest:
            return self.manifest.created
        return self.checkpoints[-1].manifest.created if self.checkpoints else None

    @property
    def inputs(self) -> Iterable[Input]:
        """What it and its checkpoints were made of, at which version."""
        yield from self.manifest.inputs.values() if self.manifest else ()
        for checkpoint in self.checkpoints:
            found = (checkpoint.manifest.latents, checkpoint.manifest.bank, checkpoint.manifest.patches)
            yield from (each for each in found if each is not None)


def survey(store: Store) -> dict[str, Entry]:
    """Everything that is there, by folder."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(Entry.of, store.artifacts())
        return {entry.folder: entry for entry in found if entry}


def used_by(entries: dict[str, Entry]) -> dict[str, list[str]]:
    """For each folder the artifacts that name it."""
    return {folder: [e.folder for e in entries.values() if folder in e.names] for folder in entries}


def usage(store: Store) -> list[dict[str, Any]]:
    """A row for each artifact: artifact, state, bytes, age_s, used_by, holder; then what else lies in the root."""
    entries, now = survey(store), datetime.now(UTC)
    users = used_by(entries)
    rows = [
        {
            "artifact": folder,
            "state": entry.state,
            "bytes": entry.bytes,
            "age_s": (now - entry.created).total_seconds() if entry.created else None,
            "used_by": users[folder],
            "holder": entry.holder.holder if entry.holder else None,
        }
        for folder, entry in entries.items()
    ]
    return rows + [_other(store, name) for name in store.files.names(store.root) if name not in KINDS]


def _other(store: Store, name: str) -> dict[str, Any]:
    """What is not ours to judge, such as MLflow's records."""
    path = f"{store.root}/{name}"
    state, size = ("other", store.files.size(path)) if store.files.inside(store.root, path) else ("elsewhere", 0)
    return {"artifact": name, "state": state, "bytes": size, "age_s": None, "used_by": [], "holder": None}


def _manifest(artifact: Artifact, holder: LeaseState | None) -> tuple[Manifest | None, str]:
    try:
        manifest = artifact.manifest()
    except Damaged:
        return None, "damaged"
    if manifest:
        return manifest, "complete"
    return None, "building" if holder else "unfinished"


def _named(
    artifact: Artifact, manifest: Manifest | None, damaged: bool, checkpoints: list[Checkpoint]
) -> frozenset[str]:
    """Read from the text, so that nothing is overlooked in a parameter, a detail or a damaged manifest."""
    texts = [each.manifest.model_dump_json() for each in checkpoints]
    if manifest:  # the pictures of a run are told to all it made, and lie in one of them
        details = {name: value for name, value in manifest.details.items() if name != "pictures"}
        texts.append(manifest.model_copy(update={"details": details}).model_dump_json())
    elif damaged:
        texts.append(artifact.store.files.read(artifact.path("manifest.json")).decode(errors="replace"))
    return frozenset(folder for text in texts for folder in _NAMED.findall(text))
