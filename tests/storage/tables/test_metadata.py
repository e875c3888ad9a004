"""Tables whose metadata or commits are not what this project writes: each reader ends in one sentence."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lance.dataset import LanceDataset, LanceOperation, Transaction

from storage.errors import Damaged
from storage.tables import bank_commits, latents, patches
from storage.tables.bank import Bank
from storage.tables.bank_commits import EDIT, PURGED, REVISION, WITHDRAWN, content_revision, withdrawn
from storage.tables.bank_history import changes
from storage.tables.bank_index import search_of
from storage.tables.bank_purge import purged
from storage.tables.bank_rows import table_uri
from storage.tables.fragments import LEASE, SHARDS, open_table
from storage.tables.latents import Latents, LatentsWriter
from storage.tables.patches import Patches, PatchesWriter

from .conftest import ENCODER

BAD = {
    "deep": "[" * 10_000 + "]" * 10_000,
    "text": "nothing of ours",
    "digits": "9" * 5000,
    "type": '"x"',
}
every_bad = pytest.mark.parametrize("value", BAD.values(), ids=BAD)


def overwrite(uri: str, name: str, value: str, in_commit: bool = False) -> LanceDataset:
    """Puts an entry into a table's metadata, or into a commit that changes nothing else."""
    dataset = open_table(uri)
    entries = {"other": "1"} if in_commit else {name: value}
    update = LanceOperation.UpdateMap(updates=entries, replace=False)
    operation = LanceOperation.UpdateConfig(schema_metadata_updates=update)
    about = {name: value} if in_commit else {}
    return LanceDataset.commit(uri, Transaction(dataset.version, operation, transaction_properties=about))


def refused(read: Callable[[], Any], entry: str) -> None:
    with pytest.raises(Damaged, match=rf"^{entry} of .* is damaged \(.*\): go back") as error:
        read()
    assert len(str(error.value)) < 500


@every_bad
def test_a_bank_with_entries_of_others(bank: Bank, value: str) -> None:
    uri = table_uri(bank.artifact)
    overwrite(uri, "search", value)
    refused(lambda: search_of(Bank(bank.artifact)), "search")
    overwrite(uri, "encoder", value)
    refused(lambda: Bank(bank.artifact).encoder, "encoder")
    refused(lambda: content_revision(overwrite(uri, REVISION, value)), REVISION)
    refused(lambda: purged(overwrite(uri, PURGED, value)), PURGED)


@every_bad
def test_a_bank_with_commits_of_others(bank: Bank, value: str) -> None:
    uri = table_uri(bank.artifact)
    refused(lambda: withdrawn(overwrite(uri, WITHDRAWN, value, in_commit=True)), WITHDRAWN)
    dataset = open_table(uri).checkout_version(bank.version)
    dataset.restore()
    operation = LanceOperation.Append([])
    about = {EDIT: value, LEASE: "1"}
    dataset = LanceDataset.commit(uri, Transaction(open_table(uri).version, operation, transaction_properties=about))
    refused(lambda: changes(dataset), EDIT)


def test_tombstones_are_unpacked_within_bounds(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = table_uri(bank.artifact)
    text = base64.b85encode(zlib.compress(b"[" + b" " * 1_000_000 + b"]")).decode()
    assert withdrawn(overwrite(uri, WITHDRAWN, text)) == []
    monkeypatch.setattr("storage.documents.LARGEST", 1000)
    monkeypatch.setattr(bank_commits, "LARGEST", 1000)
    refused(lambda: withdrawn(open_table(uri)), WITHDRAWN)
    text = base64.b85encode(zlib.compress(b'[{"id": 1}]')).decode()
    refused(lambda: withdrawn(overwrite(uri, WITHDRAWN, text)), WITHDRAWN)


@every_bad
def test_latents_with_entries_of_others(tmp_path: Path, value: str) -> None:
    artifact = str(tmp_path / "latents")
    writer = LatentsWriter(artifact, (1, 1, 2), {"name": "vae"})
    values = np.arange(4, dtype=np.float32).reshape(2, 1, 1, 2)
    writer.commit([latents.write_fragments(artifact, "s", np.arange(2), [None, None], values)])
    writer.finish_latents(np.arange(2))
    for entry in ("shape", "mean", "std", "tokenizer"):
        good = (open_table(writer.uri).schema.metadata or {})[entry.encode()].decode()
        overwrite(writer.uri, entry, value)
        refused(lambda: Latents.open(artifact), entry)
        overwrite(writer.uri, entry, good)
    assert Latents.open(artifact).shape == (1, 1, 2)

    def again() -> LatentsWriter:
        return LatentsWriter(artifact, (1, 1, 2), {"name": "vae"})

    overwrite(writer.uri, SHARDS, value, in_commit=True)
    refused(again, SHARDS)
    overwrite(writer.uri, LEASE, value, in_commit=True)
    refused(again, LEASE)


@every_bad
def test_tokens_with_entries_of_others(tmp_path: Path, value: str) -> None:
    artifact = str(tmp_path / "patches")
    writer = PatchesWriter(artifact, 4, torch.eye(3, 8), torch.zeros(8), ENCODER)
    for entry in ("tokens", "encoder", "basis"):
        good = (open_table(writer.uri).schema.metadata or {})[entry.encode()].decode()
        overwrite(writer.uri, entry, value)
        refused(lambda: Patches.open(artifact), entry)
        overwrite(writer.uri, entry, good)
    assert patches.stored_basis(artifact) is not None
