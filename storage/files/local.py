"""A folder on a disk or a mounted file system."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import fsspec

from storage.files.faults import translate_errors


class LocalFiles:
    """A folder: temporary file, fsync, rename."""

    @cached_property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("file", auto_mkdir=True)

    def read(self, path: str) -> bytes:
        with translate_errors("read", path):
            return Path(path).read_bytes()

    def write(self, path: str, data: bytes, durable: bool = True) -> None:
        with translate_errors("written", path), self._beside(path) as temporary:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                _sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> bool:
        with translate_errors("written", path):
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
        with translate_errors("read", folder), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(folder))
        return []

    def exists(self, path: str) -> bool:
        with translate_errors("read", path), suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
            return True
        return False

    def size(self, path: str) -> int:
        with translate_errors("read", path), suppress(FileNotFoundError, NotADirectoryError):
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
        with translate_errors("removed", path), suppress(FileNotFoundError, NotADirectoryError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def upload(self, local: Path, path: str, move: bool = False) -> None:
        with translate_errors("written", path), self._beside(path) as temporary:
            open(temporary, "wb").close()
            mode = os.stat(temporary).st_mode  # by umask, which a library's private temporary file is not
            if move:
                shutil.move(local, temporary)  # a rename, on the same disk
            else:
                shutil.copyfile(local, temporary)
            os.chmod(temporary, mode)
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name for a person's file to be written to, so that one cut short is never taken for whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: str) -> None:
    """Makes a rename survive a power cut; some network file systems cannot, and then it is as good as they are."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
