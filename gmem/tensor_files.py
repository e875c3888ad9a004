"""Files of tensors that come from elsewhere: opened without running what is in them, mapped where that is possible."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gmem.errors import InputError

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
"""Parts of a name that data parallelism and compilation put in."""
HOLDERS = ("ema.", "ema_model.", "model.", "network.")
"""What a name begins with where weights were saved with the object that held them."""
BOOKKEEPING: list[Any] = [argparse.Namespace]
"""Classes that trainers save beside weights; making one of them runs nothing of the file."""

Tensors = dict[str, Tensor]


class Mismatch(InputError):
    """A file's tensors are not those expected. The message counts them and names three; `report` names all."""

    def __init__(self, what: str, missing: list[str], surplus: list[str], misshapen: list[str]) -> None:
        groups = {"missing": missing, "surplus": surplus, "of another shape": misshapen}
        self.report = [f"{kind}: {name}" for kind, names in groups.items() for name in names]
        shown = "; ".join(line[:80] for line in self.report[:3])
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in groups.items() if names)
        rest = "; …" if len(self.report) > 3 else ""
        super().__init__(f"{what}: {counts} tensors ({shown}{rest}); give the file it was made for")


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
        shown = ", ".join(name[:80] for name in broken[:3])
        raise InputError(f"{what}: {len(broken)} tensors hold NaN or infinity ({shown}); get it again")


def read_file(path: str | Path) -> Any:
    """What a .safetensors, .npy or torch file holds, mapped if possible; ValueError if it is broken or holds code."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        return _torch_load(path)
    except _Damaged as error:
        raise InputError(f"{path} {error}") from None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors and plain values ({_culprit(error)}), so it is not opened; if you trust it, "
            f"save its weights alone: torch.save(torch.load({path.name!r}, weights_only=False)['ema'], 'ema.pt')"
        ) from error
    except PermissionError:
        raise
    except Exception as error:  # parsers fail on damaged bytes in every way there is
        raise InputError(f"{path} is truncated or no file of tensors; get it again") from error


class _Damaged(ValueError):
    """What is wrong with a file, and what to do, without its name."""


def _torch_load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # files from before torch 1.6 are no zip archives
    if zipped:
        _check_archive(path)
    with torch.serialization.safe_globals(BOOKKEEPING), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols: whether it is read is told by the outcome
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_archive(path: Path) -> None:
    """Torch itself compares no checksum, and would give whatever a damaged file holds as weights."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        stored = sum(part.file_size for part in parts)
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or stored > path.stat().st_size:
            raise _Damaged("is a compressed archive, and torch writes none; unpack it, or get it again")
        if damaged := archive.testzip():
            raise _Damaged(f"is damaged: the checksum of its part {damaged[:80]!r} does not fit; get it again")


def _culprit(error: Exception) -> str:
    """The class that the restricted unpickler refused, from its message."""
    words = str(error).split("GLOBAL ")
    return words[1].split()[0][:80] if len(words) > 1 else "an object of unknown type"


def bare_names(path: str | Path, tensors: Mapping[Any, Any]) -> Tensors:
    """The tensors among the entries, under names without what wrappers put before and between.

    ValueError where a name is no text, a tensor no plain one, or two become one.
    """
    found: Tensors = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(name, str):
            raise InputError(
                f"{path} holds a tensor under a {type(name).__name__} instead of a name; save a state dict"
            )
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in found:
            raise InputError(f"{path} holds two tensors {bare[:80]!r}, but for {', '.join(WRAPPERS)}; save one of them")
        found[bare] = require_plain(path, name, value)
    return _without_holder(found)


def _without_holder(tensors: Tensors) -> Tensors:
    """The same without the name of an object that holds all of them, such as `ema.`."""
    for holder in HOLDERS:
        if tensors and all(name.startswith(holder) for name in tensors):
            return _without_holder({name.removeprefix(holder): value for name, value in tensors.items()})
    return tensors


def require_plain(path: str | Path, name: str, value: Tensor) -> Tensor:
    """The tensor, apart from any graph. ValueError where its numbers do not all lie in memory, one by one."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested or value.is_complex():
        raise InputError(f"{path}: {name[:80]} is no plain tensor; save it dense, as real numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(f"{path}: {name[:80]} states more numbers than it holds; save it contiguous")
    return value.detach()


def kind(content: Any) -> str:
    """What a file holds, in words."""
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(str(key)[:25] for key in list(content)[:3]) or 'nothing'}"
    return f"one tensor {list(content.shape)}" if isinstance(content, Tensor) else f"a {type(content).__name__}"
