"""Bytes in a folder or in an S3 bucket: the few operations everything that lasts is built from.

Both kinds give the same promises: a write is seen whole or not at all, and of several who create one path at the
same time exactly one succeeds. Paths are absolute: `/data/runs/…` or `s3://bucket/…`. Failures of the disk, the
network or the permissions come out as `StoreError`, those that may be over by the next time as `StoreUnreachable`; an
absent file as `FileNotFoundError`.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import fsspec

from storage.errors import StoreError, StoreUnreachable


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

    def local_copy(self, path: str) -> Any:
        """Context manager giving a local `Path` with that content (the file itself where it is local)."""


def open_files(root: str) -> Files:
    """The place a root URI lies in: a folder, or `s3://…`."""
    if root.startswith("s3://"):
        return ObjectFiles()
    if "://" in root:
        raise ValueError(f"The store {root} is neither a folder nor s3://…: give one of these.")
    return LocalFiles()


FAILING = ("botocore", "aiobotocore", "aiohttp", "safetensors")
"""Libraries whose own errors, while they read or write, are the disk's or the network's."""

_PASSING = {
    errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENOTCONN, errno.ENOBUFS,
}  # fmt: skip
"""What the system says of a disk or a server that is away; `ConnectionError` and `TimeoutError` say more of it."""

_UNDER_WAY = (0.2, 0.5, 1.0, 2.0)
"""Seconds to wait when a bucket says that another one's creation of the same object has not ended yet."""


@contextmanager
def told(doing: str, path: str) -> Iterator[None]:
    """Turns what the system or the network says into one sentence; that a file to be read is absent passes as it is."""
    try:
        yield
    except StoreError:
        raise
    except Exception as problem:
        if isinstance(problem, FileNotFoundError) and doing != "written":
            raise
        if not isinstance(problem, OSError) and not type(problem).__module__.startswith(FAILING):
            raise
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        kind = StoreUnreachable if _may_pass(problem) else StoreError
        raise kind(
            f"{path} cannot be {doing} ({reason}): check the store's address, its free space and your permissions."
        ) from problem


def _may_pass(problem: Exception) -> bool:
    """Whether the same may succeed later: not where rights, room or the thing itself are missing."""
    if (status := _answer(problem)[0]) is not None:
        return status >= 500 or status in (408, 409, 429)
    if isinstance(problem, OSError):
        return isinstance(problem, ConnectionError | TimeoutError) or problem.errno in _PASSING
    from botocore import exceptions as botocore  # a quarter of a second, which a folder does without

    lost = botocore.ConnectionError, botocore.HTTPClientError, botocore.IncompleteReadError
    return isinstance(problem, lost) or type(problem).__module__.startswith("aiohttp")


def _answer(problem: Exception) -> tuple[int | None, str]:
    """Status and code of a server's answer; s3fs keeps it as the cause of an OSError."""
    for error in (problem, problem.__cause__):
        if isinstance(said := getattr(error, "response", None), dict):
            return said.get("ResponseMetadata", {}).get("HTTPStatusCode"), said.get("Error", {}).get("Code", "")
    return None, ""


class LocalFiles:
    """A folder: temporary file, fsync, rename."""

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("file", auto_mkdir=True)

    def read(self, path: str) -> bytes:
        with told("read", path):
            return Path(path).read_bytes()

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        with told("written", path), self._beside(path) as temporary:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                _sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> bool:
        with told("written", path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            try:
                with open(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                os.unlink(path)
                raise
            return True

    def names(self, folder: str) -> list[str]:
        with told("read", folder), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def exists(self, path: str) -> bool:
        with told("read", path), suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
            return True
        return False

    def size(self, path: str) -> int:
        with told("read", path), suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISDIR((about := os.stat(path)).st_mode):
                return about.st_size
        total = 0
        for folder, _, names in os.walk(path):
            for name in names:
                with suppress(FileNotFoundError):  # somebody may be compacting or cleaning meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def walk(self, folder: str) -> dict[str, int]:
        found = {}
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                with suppress(FileNotFoundError):
                    about = os.lstat(path)
                    if stat.S_ISREG(about.st_mode):
                        found[os.path.relpath(path, folder)] = about.st_size
        return found

    def inside(self, root: str, path: str) -> bool:
        return os.path.realpath(path) == os.path.join(os.path.realpath(root), os.path.relpath(path, root))

    def remove(self, path: str) -> None:
        with told("removed", path), suppress(FileNotFoundError, NotADirectoryError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def upload(self, local: Path, path: str, move: bool = False) -> None:
        with told("written", path), self._beside(path) as temporary:
            if move:
                shutil.move(local, temporary)  # a rename, on the same disk
            else:
                shutil.copyfile(local, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(os.path.dirname(path))

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        yield Path(path)

    @contextmanager
    def _beside(self, path: str) -> Iterator[str]:
        """A temporary name in the target's folder, which exists from then on; nothing is left behind on failure."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            yield temporary
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def _sync_folder(folder: str) -> None:
    """Makes a rename survive a power cut; some network file systems cannot, and then it is as good as they are."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class ObjectFiles:
    """An S3 bucket: single puts are atomic, `If-None-Match: *` makes creation exclusive."""

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        # Listings are never cached: other processes write too, and a lease is only as good as what we see of it.
        return fsspec.filesystem("s3", endpoint_url=s3_endpoint(), use_listings_cache=False)

    def read(self, path: str) -> bytes:
        with told("read", path):
            return bytes(self.filesystem.cat_file(path))

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        with told("written", path):
            self.filesystem.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        with told("written", path):
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
                status, code = _answer(problem)
                if isinstance(problem, FileExistsError) or status == 412 or code == "PreconditionFailed":
                    return False
                if status != 409 or pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError

    def names(self, folder: str) -> list[str]:
        with told("read", folder), suppress(FileNotFoundError):
            found = self.filesystem.ls(folder, detail=False)
            return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)
        return []

    def exists(self, path: str) -> bool:
        with told("read", path):
            return bool(self.filesystem.exists(path))

    def size(self, path: str) -> int:
        with told("read", path), suppress(FileNotFoundError):
            about = self.filesystem.info(path)
            return int(about["size"] if about["type"] == "file" else self.filesystem.du(path))
        return 0

    def walk(self, folder: str) -> dict[str, int]:
        with told("read", folder), suppress(FileNotFoundError):
            start = len(self.filesystem._strip_protocol(folder)) + 1
            found = self.filesystem.find(folder, detail=True)
            return {key[start:]: int(about["size"]) for key, about in found.items() if key[start:]}
        return {}

    def inside(self, root: str, path: str) -> bool:
        return path.startswith(f"{root}/")

    def remove(self, path: str) -> None:
        with told("removed", path), suppress(FileNotFoundError):
            self.filesystem.rm(path, recursive=True)

    def upload(self, local: Path, path: str, move: bool = False) -> None:
        with told("written", path):
            self.filesystem.put_file(str(local), path)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            local = Path(folder) / path.rsplit("/", 1)[-1]
            with told("read", path):
                self.filesystem.get_file(path, str(local))
            yield local


PATIENCE = "60"
"""Attempts of Lance's at one request, which come to half a minute: its own 3 are over after 0.4 s without network."""


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
