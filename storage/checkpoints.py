"""Checkpoints of a training, each a folder which can be resumed from and sampled from by itself.

    <training>/checkpoints/step-00002000/
        network.safetensors  ema.safetensors  optimiser.safetensors     one file for each group of tensors
        ema_999.safetensors …                                           further averages, by their decays
        progress.json                                                   what else exact resume needs
        manifest.json                                                   last: what belongs to it, with hashes
        pinned/…                                                        why it is kept: storage/retention/checkpoints.py

A folder without a manifest was not finished: it is ignored, and replaced or pruned later. Everything works for a
folder and for s3://.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, Field

from storage.checkpoint_files import REMEDY, FileRecord, grouped, record_of, scratch_of, verified
from storage.documents import read_json
from storage.errors import Damaged, StoreRefused
from storage.files import open_files
from storage.files.faults import translate_errors
from storage.manifest import Input, Versioned, parse
from storage.store import Artifact

if TYPE_CHECKING:  # plans and tables read manifests alone, which needs no torch
    import torch

log = logging.getLogger(__name__)

_sound: dict[tuple[str, datetime], bool] = {}
"""Whether what this process saved or compared with its hashes was whole: to read it again may take minutes."""

EMA, AVERAGES = "ema", "averages"
"""The group of the average that every network has, and where a manifest's details say what averages there are."""

_STEP = re.compile(r"step-(\d{8,})")


class CheckpointManifest(Versioned):
    """What a checkpoint is: enough to build the network, to decode its samples, and to know what it was made of."""

    step: int
    network: dict[str, Any]  # NetworkConfig's fields
    latents: Input | None = None  # exact versions; None for imported weights
    bank: Input | None = None
    patches: Input | None = None
    tokenizer: dict[str, Any] = Field(default_factory=dict)  # identities
    encoder: dict[str, Any] = Field(default_factory=dict)
    latent_mean: list[float] = Field(default_factory=list)  # per channel, to undo the standardisation
    latent_std: list[float] = Field(default_factory=list)
    held_out_loss: float | None = None
    training: str = ""  # fingerprint of the training
    code_version: str = ""
    mlflow_run: str = ""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    lease: int = 0
    files: dict[str, FileRecord] = Field(default_factory=dict)  # filled in by `save`
    details: dict[str, Any] = Field(default_factory=dict)  # AVERAGES: the decay of each average, by its group


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: its folder and what it says of itself."""

    uri: str
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def key(self) -> tuple[str, datetime]:
        """Tells it from another one that was there before it."""
        return self.uri, self.manifest.created

    @property
    def averages(self) -> dict[str, float]:
        """The decay of each average, by its group; of imported and of older ones nothing is known."""
        return dict(self.manifest.details.get(AVERAGES, {}))

    def weights(self, group: str = EMA) -> FileRecord:
        """The file of an average; StoreError where there is none."""
        record = self.manifest.files.get(f"{group}.safetensors")
        if record is None:
            raise StoreRefused(f"{self.uri} has no averaged weights ({group}.safetensors): name a checkpoint that has.")
        return record


def save(
    where: Artifact | str,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    progress: Mapping[str, Any],
    manifest: CheckpointManifest,
) -> Checkpoint:
    """Writes a checkpoint. If the same is there already it stays; what else was there of this step is replaced.

    The same means whole and with the same progress, of which the rest is a function. Another progress is that of a way
    that was given up: whoever saves has come here from an earlier checkpoint or from the start, and loses nothing.

    Args:
        where: the training's artifact, or the URI of its folder.
        step: optimisation steps done.
        tensors: names are `<group>.<name>`; each group (network, ema, optimiser) becomes a file of its own.
        progress: JSON values.
        manifest: what it is; `files` is filled in here. With a `lease` number and an artifact, LeaseLost is raised
            instead of finishing a checkpoint for a training that somebody else has taken over.
    """
    from safetensors.torch import save_file

    uri = f"{_folder(where)}/{_name(step)}"
    files = open_files(uri)
    if isinstance(where, Artifact) and manifest.lease:
        where.require_lease(manifest.lease)
    text = json.dumps(dict(progress)).encode()
    records = {"progress.json": FileRecord(sha256=hashlib.sha256(text).hexdigest(), bytes=len(text))}
    if there := _same(uri, records):
        return there
    remove(uri)
    with translate_errors("written", uri), tempfile.TemporaryDirectory(prefix="gmem-", dir=scratch_of(uri)) as scratch:
        for group, content in grouped(tensors).items():
            local = Path(scratch) / f"{group}.safetensors"
            save_file(content, local, metadata={"step": str(step)})
            records[local.name] = record_of(local)
            files.upload(local, f"{uri}/{local.name}", move=True)
    files.write(f"{uri}/progress.json", text)
    done = manifest.model_copy(update={"step": step, "files": records})
    if isinstance(where, Artifact) and manifest.lease:
        where.require_lease(manifest.lease)
    files.write(f"{uri}/manifest.json", done.model_dump_json(indent=2).encode())
    saved = Checkpoint(uri, done)
    _sound[saved.key] = True
    return saved


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint (or exported weights) in this folder; StoreError if there is none, Damaged if it is not whole."""
    uri = uri.rstrip("/")
    if found := _open(uri):
        return found
    raise StoreRefused(f"{uri} holds no finished checkpoint (no manifest.json): name another one.")


def at(where: Artifact | str, step: int) -> Checkpoint:
    """The finished checkpoint of this step; StoreError if there is none."""
    return open_checkpoint(f"{_folder(where)}/{_name(step)}")


def all_checkpoints(where: Artifact | str) -> list[Checkpoint]:
    """Every finished checkpoint, oldest first; damaged ones are left out with a warning, what cannot be read is not."""
    found = []
    for _, uri in sorted(folders(where)):
        try:
            found.append(_open(uri))
        except Damaged as problem:
            log.warning("%s", problem)
    return [each for each in found if each]


def latest(where: Artifact | str) -> Checkpoint | None:
    """The newest whose files are all there in their full length; their content is checked by `load`."""
    return next(iter(all_checkpoints(where)[::-1]), None)


def best(where: Artifact | str) -> Checkpoint | None:
    """The one with the smallest held-out loss; the newest where no loss was recorded."""
    return best_of(all_checkpoints(where))


def best_of(there: list[Checkpoint]) -> Checkpoint | None:
    """The one with the smallest held-out loss; the last where no loss was recorded."""
    measured = [(loss, each) for each in there if (loss := each.manifest.held_out_loss) is not None]
    if measured:
        return min(measured, key=lambda pair: pair[0])[1]
    return there[-1] if there else None


def load(
    checkpoint: Checkpoint, groups: Collection[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors (`<group>.<name>`) and progress that were saved, after comparing every file with its hash.

    Args:
        groups: read only these, for instance `["ema"]` to sample; all by default.
    """
    from safetensors.torch import load_file

    there = [name.removesuffix(".safetensors") for name in checkpoint.manifest.files if name.endswith(".safetensors")]
    if absent := set(groups or ()) - set(there):
        raise StoreRefused(f"{checkpoint.uri} has no {', '.join(sorted(absent))}: name a checkpoint that has.")
    tensors: dict[str, torch.Tensor] = {}
    for group in there if groups is None else groups:
        with _verified(checkpoint, f"{group}.safetensors") as local:
            tensors |= {f"{group}.{name}": value for name, value in load_file(local, device=str(device)).items()}
    progress: dict[str, Any] = {}
    if "progress.json" in checkpoint.manifest.files:  # exported weights have none
        with _verified(checkpoint, "progress.json") as local:
            progress = read_json(local.read_bytes(), f"{checkpoint.uri}/progress.json", dict[str, Any], REMEDY)
    if groups is None:
        _sound[checkpoint.key] = True
    return tensors, progress


def load_latest(
    where: Artifact | str, device: str | torch.device = "cpu"
) -> tuple[Checkpoint, dict[str, torch.Tensor], dict[str, Any]] | None:
    """The newest that loads and whose hashes agree, passing over damaged ones with a warning; None without any.

    StoreError where one cannot be read just now: an older one in its place would undo work that is there.
    """
    for checkpoint in reversed(all_checkpoints(where)):
        try:
            return checkpoint, *load(checkpoint, device=device)
        except Damaged as problem:
            log.warning("%s", problem)
    return None


def export(checkpoint: Checkpoint, uri: str, group: str = EMA) -> Checkpoint:
    """Writes an average's weights and the manifest into a folder of their own, which opens and loads like a checkpoint
    with that average alone."""
    target, name, record = open_files(uri), f"{EMA}.safetensors", checkpoint.weights(group)
    with _verified(checkpoint, f"{group}.safetensors") as local:
        target.upload(local, f"{uri}/{name}")
    details = checkpoint.manifest.details
    if group in checkpoint.averages:
        details = details | {AVERAGES: {EMA: checkpoint.averages[group]}}
    manifest = checkpoint.manifest.model_copy(update={"files": {name: record}, "lease": 0, "details": details})
    target.write(f"{uri}/manifest.json", manifest.model_dump_json(indent=2).encode())
    return Checkpoint(uri, manifest)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _folder(where: Artifact | str) -> str:
    return f"{where.uri if isinstance(where, Artifact) else where.rstrip('/')}/checkpoints"


def folders(where: Artifact | str) -> list[tuple[int, str]]:
    """Step and URI of every checkpoint's folder, finished or not."""
    folder = _folder(where)
    matches = [_STEP.fullmatch(name) for name in open_files(folder).names(folder)]
    return [(int(match[1]), f"{folder}/{match[0]}") for match in matches if match]


def remove(uri: str) -> None:
    """A checkpoint's folder, finished or not, for good: for the holder of the training's lease only.

    The manifest goes first, so that what is half removed is never taken for whole.
    """
    files = open_files(uri)
    files.remove(f"{uri}/manifest.json")
    files.remove(uri)


def _open(uri: str) -> Checkpoint | None:
    """None where none was finished; Damaged if it is not whole."""
    files, path = open_files(uri), f"{uri}/manifest.json"
    try:
        manifest = parse(CheckpointManifest, files.read(path), path, REMEDY)
    except FileNotFoundError:
        return None
    for name, record in manifest.files.items():
        if files.size(f"{uri}/{name}") != record.bytes:
            raise Damaged(f"{uri}/{name} is truncated or missing: {REMEDY}")
    return Checkpoint(uri, manifest)


def _same(uri: str, progress: Mapping[str, FileRecord]) -> Checkpoint | None:
    """The checkpoint there if it is whole and has this progress."""
    try:
        there = _open(uri)
    except Damaged:
        return None
    return there if there and progress.items() <= there.manifest.files.items() and is_sound(there) else None


def is_sound(checkpoint: Checkpoint) -> bool:
    """Whether every file agrees with its hash, by reading them all unless this process has done so before."""
    if checkpoint.key not in _sound:
        try:
            for name in checkpoint.manifest.files:
                with _verified(checkpoint, name):
                    pass
            _sound[checkpoint.key] = True
        except Damaged as problem:
            log.warning("%s", problem)
    return _sound[checkpoint.key]


@contextmanager
def _verified(checkpoint: Checkpoint, name: str) -> Iterator[Path]:
    """As `verified`; that the checkpoint is damaged is remembered."""
    try:
        with verified(f"{checkpoint.uri}/{name}", checkpoint.manifest.files[name]) as local:
            yield local
    except Damaged:
        _sound[checkpoint.key] = False
        raise
