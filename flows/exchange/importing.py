"""Brings published networks and tokenizers into a store, where they are artifacts with a manifest and an MLflow run."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from time import monotonic
from typing import Any

from gmem.published import (
    STATISTICS_FILE,
    Mismatch,
    PublishedNetwork,
    read_latent_statistics,
    read_network,
    read_tokenizer,
)
from gmem.weights import content_sha256, file_sha256, weights_hash
from storage.checkpoints import CheckpointManifest, save
from storage.errors import Refused
from storage.store import Artifact, Store, fingerprint
from storage.tables.latents import Latents
from storage.tracking.tracking import Run, Tracking

VERSION = 1  # raised when an import makes something else of the same file
EXPERIMENT = "imports"

Details = dict[str, Any]
Made = tuple[dict[str, int], Details]
"""Counts and details for the manifest of what was made."""


@dataclass(frozen=True)
class Imported:
    """What was imported: `uri` is what other commands and recipes name; `fresh` is False if it was there already."""

    uri: str
    artifact: str
    fresh: bool
    counts: dict[str, int]
    details: Details


# --- networks --------------------------------------------------------------------------------------------------------


def statistics_beside(path: Path) -> str | None:
    """The latent statistics that lie in a folder with the network, as `gmem export network` writes them."""
    file = path / STATISTICS_FILE
    return str(file) if file.is_file() else None


def import_network(path: Path, store: Store, name: str | None = None, latent_stats: str | None = None) -> Imported:
    """A network's weights, in the type they have, as a checkpoint to sample and to start from, registered in MLflow.

    Args:
        path: a published checkpoint, a bare state dict, or a folder as `gmem export network` writes it.
        latent_stats: a published `latents_stats.pt`, or URI of a latents artifact; without it nothing can be decoded.

    Raises InputError for any other file; all mismatched tensors are listed in a temporary file.
    """
    found = _told_in_full(path, lambda: read_network(path))
    trained, note = _trained(path, found)
    about = CheckpointManifest(
        step=0,
        network=asdict(found.config),
        **_latent_statistics(latent_stats, store, found.config.latent_channels),
        code_version=installed("gmem-pipeline"),
        details={"source": path.name, "part": found.part, "size": found.size} | note,
    )
    said = about.model_dump(include={"tokenizer", "latent_mean", "latent_std"}) | {"sha256": content_hash(path)}
    artifact = artifact_of(store, "weights", name or named_after(path), "network", said)

    def make(lease: int, run: Run) -> Made:
        tensors = {f"ema.{key}": value for key, value in found.tensors.items()}
        if trained is not None:
            tensors |= {f"network.{key}": value for key, value in trained.tensors.items()}
        manifest = about.model_copy(update={"lease": lease, "mlflow_run": run.id})
        checkpoint = save(artifact, 0, tensors, {}, manifest)
        model = f"gmem-{artifact.name}"
        registered = {"model": model, "model_version": run.register(model, checkpoint, store)}
        count = sum(value.numel() for value in found.tensors.values())
        return {"tensors": len(found.tensors), "parameters": count}, about.details | registered

    return imported_once(artifact, "network", said, make, "checkpoints/step-00000000")


def _trained(path: Path, found: PublishedNetwork) -> tuple[PublishedNetwork | None, Details]:
    """The weights that were trained, which lie beside their average in a whole checkpoint; only export needs them."""
    if found.part != "ema":
        return None, {}
    try:
        trained = read_network(path, "model")
    except Mismatch as error:
        return None, {"left_out": f"the trained weights, of which only the average is imported: {error}"}
    return (trained if trained.part == "model" else None), {}


def _latent_statistics(source: str | None, store: Store, channels: int) -> Details:
    """Fields of the checkpoint's manifest: from a file, or from a latents table, which knows its tokenizer too."""
    if source is None:
        return {}
    uri = source.rstrip("/").removesuffix("/latents.lance")
    uri = f"{store.root}/{uri}" if uri.startswith("latents/") else uri
    if "://" not in uri and not Path(uri).is_dir():
        mean, std = (values.tolist() for values in read_latent_statistics(source, channels))
        return {"latent_mean": mean, "latent_std": std}
    latents = Latents.open(uri)
    if len(latents.mean) != channels:
        raise Refused(
            f"the latents in {uri} have {len(latents.mean)} channels, but the network takes {channels}; "
            "give the statistics of the tokenizer it was trained with"
        )
    return {"latent_mean": list(latents.mean), "latent_std": list(latents.std), "tokenizer": latents.tokenizer}


# --- tokenizers ------------------------------------------------------------------------------------------------------


def import_tokenizer(path: Path, store: Store, name: str | None = None) -> Imported:
    """A latent-diffusion autoencoder's file as a diffusers folder; `uri` is what a recipe's tokenizer.source names."""
    model = _told_in_full(path, lambda: read_tokenizer(path))
    said = {"sha256": content_hash(path)}
    artifact = artifact_of(store, "weights", name or named_after(path), "tokenizer", said)

    def make(_lease: int, _run: Run) -> Made:
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            model.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                store.files.upload(file, artifact.path("tokenizer", file.name))
        state, settings = model.state_dict(), model.config
        count = sum(value.numel() for value in state.values())
        about = {"factor": 2 ** (len(settings.block_out_channels) - 1), "channels": settings.latent_channels}
        identity = {"source": path.name, "sha256": weights_hash(state)}
        return {"tensors": len(state), "parameters": count}, identity | about

    return imported_once(artifact, "tokenizer", said, make, "tokenizer")


# --- what all have in common -----------------------------------------------------------------------------------------


def imported_once(
    artifact: Artifact, what: str, said: Details, make: Callable[[int, Run], Made], below: str = ""
) -> Imported:
    """Makes the artifact under its lease and in a run of its own, unless it is there already."""
    uri = artifact.path(below) if below else artifact.uri
    if there := artifact.manifest():
        return Imported(uri, artifact.uri, False, there.counts, there.details)
    artifact.store.require_writable()
    tracking, start = Tracking.open(None, artifact.store, EXPERIMENT), monotonic()
    with artifact.lease(f"gmem import {what}") as lease:
        if there := artifact.manifest():  # whoever held the lease before us made it
            return Imported(uri, artifact.uri, False, there.counts, there.details)
        with tracking.stage_run(f"import {what}", None, {"name": artifact.name} | said) as run:
            counts, details = make(lease.number, run)
            seconds = monotonic() - start
            manifest = artifact.describe(
                lease,
                parameters=said,
                counts=counts,
                times={"seconds": seconds},
                code_version=installed("gmem-pipeline"),
                mlflow_run=run.id,
                details=details,
            )
            artifact.commit(manifest)
            run.metrics({**counts, "seconds": seconds})
    return Imported(uri, artifact.uri, True, counts, details)


def artifact_of(store: Store, kind: str, name: str, what: str, said: Details) -> Artifact:
    return store.artifact(kind, name, fingerprint(f"import {what}", VERSION, said, {}))


def named_after(path: Path) -> str:
    """The file's name as an artifact's: what cannot be in one becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "imported"


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, or of a folder's files with their names."""
    if not path.exists():
        raise Refused(f"there is no file {path}; name an existing one")
    return content_sha256(path) if path.is_dir() else file_sha256(path)


def _told_in_full(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; when too many tensors mismatch for a sentence, they are listed in a temporary file."""
    try:
        return read()
    except Mismatch as error:
        if len(error.report) <= 3:
            raise
        with tempfile.NamedTemporaryFile("w", prefix="gmem-", suffix=".mismatch.txt", delete=False) as report:
            report.write("\n".join([str(path), *error.report]) + "\n")
        raise Refused(f"{error}; all {len(error.report)} are listed in {report.name}") from error
