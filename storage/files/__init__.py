"""Bytes in a folder or in an S3 bucket: the few operations everything that lasts is built from.

Both kinds give the same promises: a write is seen whole or not at all, and of several who create one path at the
same time exactly one succeeds. Paths are absolute: `/data/runs/…` or `s3://bucket/…`. Failures of the disk, the
network or the permissions come out as `StoreError`, those that may be over by the next time as `StoreUnreachable`; an
absent file as `FileNotFoundError`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import fsspec

from storage.errors import Refused
from storage.files.local import LocalFiles
from storage.files.s3 import ObjectFiles


class Files(Protocol):
    """What a place for bytes can do."""

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem: ...

    def read(self, path: str) -> bytes:
        """The whole content; FileNotFoundError if there is none."""

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        """Replaces the content in one go; `durable` also waits for the disk."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes only if nothing is there yet; whether it was us who did."""

    def names(self, folder: str) -> list[str]:
        """Names directly below, sorted; none if the folder is absent."""

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int:
        """Bytes of a file, or of everything below a folder; 0 if absent."""

    def walk(self, folder: str) -> dict[str, int]:
        """Bytes of every file below, by its path relative to the folder; links are neither followed nor listed."""

    def inside(self, root: str, path: str) -> bool:
        """Whether a path below `root` really lies there: no link on the way leads elsewhere."""

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder; nothing happens if it is absent."""

    def upload(self, local: Path, path: str, move: bool = False) -> None:
        """Puts a local file there, as one atomic write; with `move` the local one may be gone afterwards."""

    def local_copy(self, path: str) -> AbstractContextManager[Path]:
        """A local path with that content: the file itself where it is local."""


def open_files(root: str) -> Files:
    """The place a root URI lies in: a folder, or `s3://…`."""
    if root.startswith("s3://"):
        return ObjectFiles()
    if "://" in root:
        raise Refused(f"The store {root} is neither a folder nor s3://…: give one of these.")
    return LocalFiles()
