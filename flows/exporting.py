"""Writes a network of this project in the layouts that others read: the published checkpoint, and a hub's folder."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from gmem.network import Network, NetworkConfig
from gmem.published import write_folder, write_network
from storage.checkpoints import load, open_checkpoint

PUBLISHED, STATISTICS = "checkpoint.pt", "latents_stats.pt"
SUFFIXES = (".pt", ".pth")


def export_network(uri: str, out: Path) -> list[Path]:
    """Writes a checkpoint's averaged weights, and the trained ones if it has them; returns the files.

    An `out` that ends in .pt or .pth becomes the published layout alone. Any other is a folder with the published
    layout, the averaged weights as safetensors with their config.json, and the latents' statistics if they are known.
    Names, types and bits of the tensors stay as they are. ValueError when there is something at `out` already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a new file or an empty folder")
    checkpoint = open_checkpoint(uri)
    config = NetworkConfig(**checkpoint.manifest.network)
    groups = [g for g in ("ema", "network") if g == "ema" or f"{g}.safetensors" in checkpoint.manifest.files]
    tensors, _ = load(checkpoint, groups)
    ema, trained = _group(tensors, "ema", config), _group(tensors, "network", config)
    if out.suffix in SUFFIXES:
        _write_published(out, ema, trained, config)
        return [out]
    write_folder(out, ema, config)
    _write_published(out / PUBLISHED, ema, trained, config)
    if checkpoint.manifest.latent_mean:
        about = checkpoint.manifest
        statistics = {"mean": about.latent_mean, "std": about.latent_std}
        torch.save({name: torch.tensor(v).view(1, -1, 1, 1) for name, v in statistics.items()}, out / STATISTICS)
    return sorted(out.iterdir())


def _group(tensors: dict[str, Tensor], group: str, config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors of a group under their published names, in the published order; none if there is no such group."""
    with torch.device("meta"):
        names = list(Network(config).state_dict())
    return {name: tensors[f"{group}.{name}"] for name in names if f"{group}.{name}" in tensors}


def _write_published(path: Path, ema: dict[str, Tensor], trained: dict[str, Tensor], config: NetworkConfig) -> None:
    """Under another name first, so that a file cut short is never taken for whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        write_network(part, ema, config, trained or None)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
