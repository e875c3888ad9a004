"""Writes networks, samples and statistics in the layouts that others read: the published checkpoint, a hub's folder, and
the files of the ADM suite."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.models.resolve import artifact_at, open_network
from flows.stages.evaluate.detectors import INCEPTION
from gmem.metrics import read_sums, write_adm_samples, write_adm_statistics
from gmem.network import Network
from gmem.published import STATISTICS_FILE, write_folder, write_latent_statistics, write_network
from gmem.settings import NetworkConfig
from storage.checkpoints import load
from storage.errors import Refused
from storage.files.local import whole_file
from storage.images.shards import TRAIN
from storage.samples import read_samples
from storage.store import Artifact, Store

PUBLISHED = "checkpoint.pt"
SUFFIXES = (".pt", ".pth")


BATCH = 256


def export_network(uri: str, store: Store, out: Path) -> list[Path]:
    """Writes a checkpoint's averaged weights, and the trained ones if it has them; returns the files.

    An `out` that ends in .pt or .pth becomes the published layout alone. Any other is a folder with the published
    layout, the averaged weights as safetensors with their config.json, and the latents' statistics if they are known.
    Names, types and bits of the tensors stay as they are. Refused when there is something at `out` already.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise Refused(f"{out} is there already; name a new file or an empty folder")
    checkpoint = open_network(uri, store)
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
        mean, std = torch.tensor(about.latent_mean), torch.tensor(about.latent_std)
        write_latent_statistics(out / STATISTICS_FILE, mean, std)
    return sorted(out.iterdir())


def _group(tensors: dict[str, Tensor], group: str, config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors of a group under their published names, in the published order; none if there is no such group."""
    with torch.device("meta"):
        names = list(Network(config).state_dict())
    return {name: tensors[f"{group}.{name}"] for name in names if f"{group}.{name}" in tensors}


def _write_published(path: Path, ema: dict[str, Tensor], trained: dict[str, Tensor], config: NetworkConfig) -> None:
    with whole_file(path) as part:
        write_network(part, ema, config, trained or None)


# --- samples and statistics ------------------------------------------------------------------------------------------


def export_samples(uri: str, store: Store, out: Path, split: str = TRAIN, count: int | None = None) -> int:
    """Writes the kept samples of a split, or all that stage sample made, as `arr_0`, in the order of their numbers; returns
    how many.

    Refused when there are none, or fewer than `count`.
    """
    artifact = artifact_at(uri, store)
    if not (manifest := artifact.manifest()) or artifact.kind not in ("samples", "generated"):
        raise Refused(
            f"{artifact.uri} holds no finished samples; name those of a 'gmem evaluate', 'gmem run' or 'gmem stage sample'"
        )
    if artifact.kind == "generated":  # of which a selection says whose they are, and no split
        split = "samples"
    there = manifest.counts.get("rows" if artifact.kind == "generated" else split, 0)
    wanted = there if count is None else count
    if not 0 < wanted <= there:
        raise Refused(f"{artifact.uri} holds {there} samples of split {split}, not {wanted}; evaluate with more first")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_adm_samples(out, _batches(islice(_images(artifact, split), wanted)), wanted)
    return wanted


def _images(artifact: Artifact, split: str) -> Iterator[NDArray[np.uint8]]:
    names = artifact.store.files.names(artifact.uri)
    for name in sorted(name for name in names if name.startswith(f"{split}-") and name.endswith(".tar")):
        yield from (row.image for row in read_samples(artifact.store, artifact.path(name)))


def _batches(images: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    while batch := list(islice(images, BATCH)):
        yield np.stack(batch)


def export_statistics(uri: str, store: Store, out: Path, split: str = TRAIN) -> int:
    """Writes mean and covariance of the Inception features of a split's pictures; returns how many pictures those are.

    Refused when the evaluation was without the Inception network.
    """
    artifact = artifact_at(uri, store)
    path = artifact.path(f"{split}.npz")
    sums = read_sums(artifact.store.read_bytes(path)).get(INCEPTION) if artifact.store.files.exists(path) else None
    if sums is None:
        raise Refused(
            f"{artifact.uri} holds no Inception statistics of split {split}; evaluate with evaluate.inception set"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_adm_statistics(out, *(sums.statistics[stream].gaussian() for stream in ("pool", "spatial")))
    return sums.count
