"""A store: one root, a folder or s3://…, which holds everything of a project.

An artifact lies at `<root>/<kind>/<name>-<fingerprint>`. Its `manifest.json` comes last and makes it usable; the
lease beside it keeps two runs from building it at once.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import fsspec

from storage import lease as leases
from storage.documents import read_json
from storage.errors import Damaged, LeaseHeld, LeaseLost, Refused, StoreError, StoreRefused
from storage.files import Files, open_files
from storage.lease import Lease, LeaseState
from storage.manifest import Input, Manifest, fingerprint, parse

__all__ = ["KINDS", "Artifact", "Input", "Lease", "LeaseHeld", "LeaseLost", "Manifest", "Store", "StoreError",
           "fingerprint"]  # fmt: skip

KINDS = ("images", "latents", "bank", "patches", "memory", "prior", "weights", "training", "statistics", "samples",
         "report", "generated")  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FOLDER = re.compile(r"(?P<name>.+)-(?P<fingerprint>[0-9a-f]{12})")


@dataclass(frozen=True)
class Store:
    """A root and what lies below it. Cheap to make, can be pickled to workers, holds no credentials."""

    root: str

    def __post_init__(self) -> None:
        root = self.root.removeprefix("file://").rstrip("/") or "/"
        if "://" not in root:  # workers run in other folders than we do
            root = os.path.abspath(os.path.expanduser(root))
        object.__setattr__(self, "root", root)
        open_files(root)  # refuses what it does not know

    @cached_property
    def files(self) -> Files:
        return open_files(self.root)

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The fsspec file system the root lies in."""
        return self.files.filesystem

    def artifact(self, kind: str, name: str, fingerprint: str) -> Artifact:
        """The artifact of this kind, name and fingerprint, whether it exists or not."""
        return Artifact(self, kind, name, fingerprint)

    def relative(self, uri: str) -> str:
        """A URI below the root without it, so that what names it stays true when the store is moved; others as is."""
        return uri.removeprefix(f"{self.root}/")

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Everything that is there, finished or not, by kind and name."""
        found = []
        for each in KINDS if kind is None else (kind,):
            for folder in self.files.names(f"{self.root}/{each}"):
                if match := _FOLDER.fullmatch(folder):
                    found.append(Artifact(self, each, match["name"], match["fingerprint"]))
        return found

    def at(self, uri: str) -> Artifact:
        """The artifact a manifest's input names: `<kind>/<name>-<fingerprint>`, relative or below this root."""
        parts = uri.removeprefix(f"{self.root}/").strip("/").split("/")
        match = _FOLDER.fullmatch(parts[-1])
        if len(parts) != 2 or not match:
            raise StoreRefused(f"{uri} is no artifact of the store {self.root}: give <kind>/<name>-<fingerprint>.")
        return Artifact(self, parts[0], match["name"], match["fingerprint"])

    def require_writable(self) -> None:
        """Raises StoreError now rather than after an hour if nothing can be written here."""
        path = f"{self.root}/.writable-{os.getpid()}"
        self.files.write(path, b"ok", durable=False)
        self.files.remove(path)

    def read_bytes(self, path: str) -> bytes:
        return self.files.read(path)

    def write_bytes(self, path: str, data: bytes) -> None:
        self.files.write(path, data)

    def read_json(self, path: str) -> Any:
        """Damaged if the file is not whole."""
        return read_json(self.files.read(path), path, object, "remove it and run again.")

    def write_json(self, path: str, value: Any) -> None:
        self.files.write(path, json.dumps(value, indent=2, allow_nan=False).encode())


@dataclass(frozen=True)
class Artifact:
    """One artifact: where it lies, whether it is finished, who is building it."""

    store: Store
    kind: str
    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Refused(f"There is no kind of artifact called {self.kind!r}: one of {', '.join(KINDS)}.")
        if not _NAME.fullmatch(self.name):
            raise Refused(f"{self.name!r} cannot name an artifact: use letters, digits, dots, dashes, underscores.")
        if not re.fullmatch(r"[0-9a-f]{12}", self.fingerprint):
            raise Refused(f"{self.fingerprint!r} is no fingerprint: twelve hexadecimal digits are.")

    @property
    def folder(self) -> str:
        """Where it lies, relative to the root."""
        return f"{self.kind}/{self.name}-{self.fingerprint}"

    @property
    def uri(self) -> str:
        return f"{self.store.root}/{self.folder}"

    def path(self, *parts: str) -> str:
        """URI of something inside."""
        return "/".join((self.uri, *parts))

    def manifest(self) -> Manifest | None:
        """What it says of itself, or None while it is unfinished. Damaged if it is not whole or of another format."""
        path = self.path("manifest.json")
        try:
            data = self.store.files.read(path)
        except FileNotFoundError:
            return None
        return parse(Manifest, data, path, "remove this file and run again; what is already committed is kept.")

    @property
    def complete(self) -> bool:
        return self.manifest() is not None

    def lease(self, holder: str, wait: float | None = None, ttl: float = leases.TTL) -> AbstractContextManager[Lease]:
        """Holds the right to build this artifact while the block runs; see `storage.lease.held`."""
        return leases.held(self.store.files, self.uri, holder, wait, ttl)

    def holder(self) -> LeaseState | None:
        """Who is building it, or did so last without letting go."""
        state = leases.current(self.store.files, self.uri)
        return None if state is None or state.released else state

    def require_lease(self, number: int) -> None:
        """Raises LeaseLost unless this number is the lease in force; for processes that were only told the number."""
        leases.require(self.store.files, self.uri, number)

    def describe(self, lease: Lease | int, **fields: Any) -> Manifest:
        """A manifest of this artifact, to be committed under this lease; `fields` as in `Manifest`."""
        number = lease if isinstance(lease, int) else lease.number
        return Manifest(kind=self.kind, name=self.name, fingerprint=self.fingerprint, lease=number, **fields)

    def commit(self, manifest: Manifest) -> None:
        """Makes the artifact usable. LeaseLost if the lease named in the manifest is not in force any more.

        Between the question and the write a lease could still change hands, if the holder stood still for its whole
        ttl just there. What the manifest claims was true by then, and the next holder's commit replaces it.
        """
        if (manifest.kind, manifest.name, manifest.fingerprint) != (self.kind, self.name, self.fingerprint):
            raise ValueError(f"This manifest is not of {self.folder}: make it with describe().")
        self.require_lease(manifest.lease)
        self.store.files.write(self.path("manifest.json"), manifest.model_dump_json(indent=2).encode())

    def reference(self, version: int | str | None = None) -> Input:
        """How a manifest names this artifact as an input."""
        return Input(uri=self.folder, fingerprint=self.fingerprint, version=version)

    def summary(self) -> dict[str, Any]:
        """For a table: state, age in seconds, bytes, counts, holder.

        The state is `complete`, `building`, `unfinished` (begun, and nobody is at work on it), `absent` or `damaged`.
        """
        try:
            manifest, state = self.manifest(), "complete"
        except Damaged:
            manifest, state = None, "damaged"
        holder, size = self.holder(), self.store.files.size(self.uri) - self.store.files.size(self.path("lease"))
        if manifest is None and state == "complete":
            state = "building" if holder else "unfinished" if size else "absent"
        age = (datetime.now(UTC) - manifest.created).total_seconds() if manifest else None
        return {"artifact": self.folder, "state": state, "age_s": age, "bytes": size,
                "counts": dict(manifest.counts) if manifest else {}, "holder": holder.holder if holder else None}  # fmt: skip

    def remove(self) -> None:
        """Removes it for good: first the manifest, so that a half removed one is never taken for whole.

        The lease's number stays, so that a run that was thought dead cannot commit into what may come after.
        """
        self.store.files.remove(self.path("manifest.json"))
        for name in self.store.files.names(self.uri):
            if name != "lease":
                self.store.files.remove(self.path(name))
