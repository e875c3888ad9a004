"""Weights that come with the package, and a name for any weights that does not depend on how a file is laid out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names and hashes of files need no torch
    from torch import Tensor

ROOT = Path(__file__).parent / "weights"


def shipped_folder(name: str) -> Path:
    """The folder `gmem/weights/<name>`; raises ValueError naming what there is when it does not exist."""
    folder = ROOT / name
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.parent.name for path in ROOT.glob("*/config.json"))) or "none"
        raise ValueError(
            f"no weights named '{name}' are shipped (there are: {there}); use 'shipped:NAME' with one of them"
        )
    return folder


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
