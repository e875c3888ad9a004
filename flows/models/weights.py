"""What identifies weights named in a recipe: their content where they are at hand, else their name."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from gmem.shipped import ROOT

BOOKKEEPING = {"provenance.json"}  # says how the weights came about, and does not change what they compute


def identity(source: str) -> str:
    """A short name of the weights that `source` means (shipped:NAME, folder, timm:MODEL@FILE, hub id).

    Files at hand count by content, so a retrained tokenizer redoes the latents; a hub id counts by its name.
    """
    kind, _, name = source.partition(":")
    if kind == "shipped":
        return _content(ROOT / name, source)
    model, _, file = source.partition("@")
    if file:
        return f"{model}@{_content(Path(file), source)}"
    return _content(Path(source), source) if Path(source).exists() else source


def _content(path: Path, source: str) -> str:
    if not path.exists():
        raise ValueError(
            f"weights '{source}' are not there ({path.name} is missing); name an existing folder or file in the recipe"
        )
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name not in BOOKKEEPING)
    )
    total = hashlib.sha256()
    for file in files:
        about = file.stat()
        total.update(f"{file.name}:{_file(str(file), about.st_size, about.st_mtime_ns)}".encode())
    return total.hexdigest()[:16]


@lru_cache
def _file(path: str, _size: int, _modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
