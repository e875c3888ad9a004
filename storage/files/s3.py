"""An S3 bucket, and what Lance needs to reach the tables in it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import fsspec

from storage.files.faults import answer, translate_errors

_UNDER_WAY = (0.2, 0.5, 1.0, 2.0)
"""Seconds to wait when a bucket says that another one's creation of the same object has not ended yet."""

PATIENCE = "60"
"""Attempts of Lance's at one request, which come to half a minute: its own 3 are over after 0.4 s without network."""


class ObjectFiles:
    """An S3 bucket: single puts are atomic, `If-None-Match: *` makes creation exclusive.

    By s3fs, which sources are read with too. obstore, which Lance stands on, takes the answer 409, that another creation
    has not ended yet, for "exists already", so that a lease might be nobody's; and it has one error for all that may pass
    and much that may not.
    """

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        # Listings are never cached: other processes write too, and a lease is only as good as what we see of it.
        return fsspec.filesystem("s3", endpoint_url=s3_endpoint(), use_listings_cache=False)

    def read(self, path: str) -> bytes:
        with translate_errors("read", path):
            return bytes(self.filesystem.cat_file(path))

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        with translate_errors("written", path):
            self.filesystem.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        with translate_errors("written", path):
            if self._created(path, data):
                return True
            # A put whose answer got lost is repeated by the client and then refused: look whose content it is.
            try:
                return self.read(path) == data
            except FileNotFoundError:
                return False

    def _created(self, path: str, data: bytes) -> bool:
        """Whether the server took it as the first; s3fs knows only Amazon's own words for a refusal."""
        for pause in (*_UNDER_WAY, None):
            try:
                self.filesystem.pipe_file(path, data, mode="create")
                return True
            except OSError as problem:
                status, code = answer(problem)
                if isinstance(problem, FileExistsError) or status == 412 or code == "PreconditionFailed":
                    return False
                if status != 409 or pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError

    def names(self, folder: str) -> list[str]:
        with translate_errors("read", folder), suppress(FileNotFoundError):
            found = self.filesystem.ls(folder, detail=False)
            return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)
        return []

    def exists(self, path: str) -> bool:
        with translate_errors("read", path):
            return bool(self.filesystem.exists(path))

    def size(self, path: str) -> int:
        with translate_errors("read", path), suppress(FileNotFoundError):
            about = self.filesystem.info(path)
            return int(about["size"] if about["type"] == "file" else self.filesystem.du(path))
        return 0

    def walk(self, folder: str) -> dict[str, int]:
        with translate_errors("read", folder), suppress(FileNotFoundError):
            start = len(self.filesystem._strip_protocol(folder)) + 1
            found = self.filesystem.find(folder, detail=True)
            return {key[start:]: int(about["size"]) for key, about in found.items() if key[start:]}
        return {}

    def inside(self, root: str, path: str) -> bool:
        return path.startswith(f"{root}/")

    def remove(self, path: str) -> None:
        with translate_errors("removed", path), suppress(FileNotFoundError):
            self.filesystem.rm(path, recursive=True)

    def upload(self, local: Path, path: str, move: bool = False) -> None:
        with translate_errors("written", path):
            self.filesystem.put_file(str(local), path)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            local = Path(folder) / path.rsplit("/", 1)[-1]
            with translate_errors("read", path):
                self.filesystem.get_file(path, str(local))
            yield local


def s3_endpoint() -> str | None:
    """The S3 server's address where it is not Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def lance_options(root: str) -> dict[str, str]:
    """Storage options with which Lance and LanceDB open tables below this root; credentials stay in the environment."""
    if not root.startswith("s3://"):
        return {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    options = {"region": region, "client_max_retries": PATIENCE}
    if endpoint := s3_endpoint():
        options |= {"endpoint": endpoint, "virtual_hosted_style_request": "false"}
        if endpoint.startswith("http://"):
            options["allow_http"] = "true"
    return options
