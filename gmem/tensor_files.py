"""Files of tensors that come from elsewhere: opened without running what is in them, mapped where that is possible."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIXES = ("module.", "_orig_mod.")  # what data parallelism and compilation put before a name

Tensors = dict[str, Tensor]


class Mismatch(ValueError):
    """A file's tensors are not those expected. The message counts them and names three; `report` names all."""

    def __init__(self, what: str, missing: list[str], surplus: list[str], misshapen: list[str]) -> None:
        groups = {"missing": missing, "surplus": surplus, "of another shape": misshapen}
        self.report = [f"{kind}: {name}" for kind, names in groups.items() for name in names]
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in groups.items() if names)
        rest = "; …" if len(self.report) > 3 else ""
        super().__init__(
            f"{what}: {counts} tensors ({'; '.join(self.report[:3])}{rest}); give the file it was made for"
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, with the rights that the user's files have (the library's own are for nobody else)."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, dict(metadata or {}) or None)
    path.chmod(mode)


def check(what: str, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Raises `Mismatch` unless names and shapes are the expected ones, ValueError for NaN or mixed types."""
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or surplus or misshapen:
        raise Mismatch(what, missing, surplus, misshapen)
    broken = [name for name, value in tensors.items() if not value.is_floating_point() or not value.isfinite().all()]
    if broken:
        raise ValueError(f"{what}: {len(broken)} tensors hold NaN or infinity ({', '.join(broken[:3])}); get it again")


def read_file(path: str | Path) -> Any:
    """What a .safetensors, .npy or torch file holds, mapped if possible; ValueError if it is broken or holds code."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        return _torch_load(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values ({_culprit(error)}), so it is not opened; "
            "save its state dict alone"
        ) from error
    except (RuntimeError, SafetensorError, ValueError, EOFError, OSError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no file of tensors; get it again") from error


def _torch_load(path: Path) -> Any:
    with path.open("rb") as file:
        mappable = file.read(4) == b"PK\x03\x04"  # files from before torch 1.6 are no zip archives
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)


def _culprit(error: Exception) -> str:
    """The class that the restricted unpickler refused, from its message."""
    words = str(error).split("GLOBAL ")
    return words[1].split()[0] if len(words) > 1 else "an object of unknown type"


def bare_names(tensors: Mapping[str, Any]) -> Tensors:
    """The tensors among the entries, names without the prefixes that wrappers put before them."""
    found: Tensors = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            for prefix in PREFIXES:
                name = name.removeprefix(prefix)
            found[name] = value.detach()
    return found


def kind(content: Any) -> str:
    """What a file holds, in words."""
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(map(str, list(content)[:3])) or 'nothing'}"
    return f"one tensor {list(content.shape)}" if isinstance(content, Tensor) else f"a {type(content).__name__}"
