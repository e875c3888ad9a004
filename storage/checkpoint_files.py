"""The files of a checkpoint: put together beside the store, and never used before they agree with their hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from storage.errors import Damaged
from storage.files import open_files
from storage.files.faults import translate_errors

if TYPE_CHECKING:
    import torch

REMEDY = "remove this checkpoint's folder; training then continues from the one before."


class FileRecord(BaseModel):
    sha256: str
    bytes: int


def grouped(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors named `<group>.<name>` by group, each ready to be written."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        if not name or not re.fullmatch(r"[a-z][a-z0-9_]*", group):
            raise ValueError(f"The tensor {key!r} belongs to no group: name it <group>.<name>.")
        groups.setdefault(group, {})[name] = _alone(tensor)
    return groups


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, contiguous, and not a part of a larger storage, which would be refused."""
    tensor = tensor.detach().to("cpu").contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def scratch_of(uri: str) -> str | None:
    """Where the files are put together: on the store's own disk, which was sized for them, if it has one."""
    if uri.startswith("s3://"):
        return None
    Path(uri).mkdir(parents=True, exist_ok=True)
    return uri


def record_of(local: Path) -> FileRecord:
    with open(local, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileRecord(sha256=digest.hexdigest(), bytes=local.stat().st_size)


@contextmanager
def verified(path: str, record: FileRecord) -> Iterator[Path]:
    """A local file with the content of this one, which has been compared with its hash; Damaged where it differs."""
    try:
        with translate_errors("read", path), open_files(path).local_copy(path) as local:
            if record_of(local) != record:
                raise Damaged(f"{path} is damaged (its hash differs from the manifest's): {REMEDY}")
            yield local
    except FileNotFoundError as problem:
        raise Damaged(f"{path} is missing: {REMEDY}") from problem
