"""Names of weights, and what identifies them: their content where they are at hand, else their name. Needs no torch.

shipped:NAME         comes with the package, in gmem/assets
timm:MODEL           timm's own from its hub; timm:MODEL@FILE: the same network with the weights of a file
onnx:FILE            a network that measures; onnx:FILE?NAME=VALUE&...: with settings (gmem/onnx.py)
FOLDER               whatever its path holds, '@', '#', ':' or a blank
ORGANISATION/NAME    anything else: a hub id
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gmem.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
BOOKKEEPING = {"provenance.json"}  # says how the weights came about, and does not change what they compute


@dataclass(frozen=True)
class WeightsRef:
    """Weights as somebody names them. `str` gives the text back that `parse` takes."""

    kind: Literal["shipped", "timm", "onnx", "folder", "hub"]
    name: str
    """NAME, MODEL, the ONNX file's or the folder's path, or the hub id."""
    file: str = ""
    """Path of the file whose weights a timm network is given; empty: timm's own."""
    settings: str = ""
    """What stands behind the question mark of an ONNX file."""

    @classmethod
    def parse(cls, text: str) -> WeightsRef:
        """Whether a path is a folder's or a hub id is told by what is there, or by how it begins."""
        prefix, _, rest = text.partition(":")
        if prefix == "shipped":
            return cls("shipped", rest)
        if prefix == "timm":
            model, _, file = rest.partition("@")
            return cls("timm", model, file)
        if prefix == "onnx":
            path, _, settings = rest.rpartition("?")
            return cls("onnx", path, settings=settings) if path and "=" in settings else cls("onnx", rest)
        local = text.startswith(("/", ".", "~")) or (text and Path(text).exists())
        return cls("folder" if local else "hub", text)

    def __str__(self) -> str:
        if self.settings:
            return f"{self.network}?{self.settings}"
        return f"{self.network}@{self.file}" if self.file else self.network

    @property
    def network(self) -> str:
        """The same without a timm network's file and an ONNX network's settings."""
        return self.name if self.kind in ("folder", "hub") else f"{self.kind}:{self.name}"

    @property
    def label(self) -> str:
        """A short name for metrics and figures: the last part, in characters that MLflow takes."""
        last = re.split("[/:]", self.name.rstrip("/"))[-1]
        if self.kind == "onnx":
            last = last.removesuffix(".onnx")
        return re.sub(r"[^\w .-]", "-", last)

    def absolute(self) -> WeightsRef:
        """The same from whatever folder."""
        if self.kind in ("folder", "onnx"):
            return replace(self, name=absolute(self.name))
        return replace(self, file=absolute(self.file)) if self.file else self

    def folder(self) -> Path:
        """Where the weights of kinds "shipped" and "folder" lie; ValueError names what is shipped where NAME is not."""
        if self.kind != "shipped":
            return Path(self.name).expanduser()
        shipped = sorted(path.parent.name for path in ASSETS.glob("*/provenance.json"))
        if self.name not in shipped:
            raise InputError(
                f"no weights named '{self.name[:80]}' are shipped (there are: {', '.join(shipped) or 'none'}); "
                "use 'shipped:NAME' with one of them"
            )
        return ASSETS / self.name

    def identity(self) -> str:
        """What fingerprints take of these weights: content where it is at hand, so that retrained weights count as others.

        Of a hub id, and of a folder that is not there, it is the name. ValueError where a file or NAME is missing.
        """
        if self.file:
            return f"{self.network}@{content_identity(self.file)}"
        if self.kind == "onnx":
            return str(replace(self, name=content_identity(self.name)))
        if self.kind == "shipped":
            return content_identity(self.folder())
        return str(self) if self.kind == "timm" else identity(self.name)


def identity(named: str) -> str:
    """Of a file or folder at hand its content; of anything else, such as a URL, its name."""
    path = Path(named).expanduser()
    return content_identity(path) if named and path.exists() else named


def absolute(path: str) -> str:
    """A path of something that exists, in full; URIs, names and the empty path stay as they are."""
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if path and "://" not in path and os.path.exists(expanded) else path


def content_identity(path: Path | str) -> str:
    """The first 16 digits of `content_sha256`; ValueError where nothing is."""
    if not Path(path).exists():
        raise InputError(f"weights '{path}' are not there; name an existing folder or file")
    return content_sha256(path)[:16]


def content_sha256(path: Path | str) -> str:
    """SHA-256 over names and contents of a file, or of all files in a folder and below; bookkeeping does not count."""
    path = Path(path)
    below = sorted(file for file in path.rglob("*") if file.is_file() and file.name not in BOOKKEEPING)
    total = hashlib.sha256()
    for file in below if path.is_dir() else [path]:
        total.update(f"{file.name}:{file_sha256(file)}".encode())
    return total.hexdigest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's content, in hexadecimal; read again only when its size or time has changed."""
    about = os.stat(path)
    return _file_sha256(str(path), about.st_size, about.st_mtime_ns)


@lru_cache
def _file_sha256(path: str, _size: int, _modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values (as float32) of a state dict, in the order of the names.

    The same weights give the same hash whether they came from one file or several, in half or full storage.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
