"""Brings a published bank into a store: one tensor of snippets becomes a table that can be searched and sampled from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.engine.progress import Progress
from flows.exchange.importing import Details, Imported, Made, artifact_of, content_hash, imported_once, named_after
from gmem.published import PublishedBank, read_bank
from storage.errors import Refused
from storage.ids import FIRST_FOREIGN_ID
from storage.store import Artifact, Store
from storage.tables.bank import Bank
from storage.tables.bank_basis import Basis
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tracking.tracking import Run

CHUNK = 16384  # rows in memory at a time
LABELS = range(2**31)


def import_bank(
    path: Path,
    store: Store,
    labels: Path | None = None,
    keys: Path | None = None,
    name: str | None = None,
    index: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """A file of snippets [N, D], or of factorised ones, as a bank, read and committed a part at a time; an interrupted
    import goes on.

    Rows get ids from 2^40 in the file's order, origin "imported" and split "train": the published banks are of the
    training pictures. `labels` and `keys` are text files of one a row; an empty line means unknown.
    """
    bank = read_bank(path)
    files = {"labels": labels, "keys": keys}
    said = {"sha256": content_hash(path)} | {what: content_hash(file) for what, file in files.items() if file}
    for file in filter(None, files.values()):
        _require_rows(file, bank.rows)
    artifact = artifact_of(store, "bank", name or named_after(path), "bank", said)
    encoder = {"name": f"imported:{path.name}", "sha256": said["sha256"], "dim": bank.dim}

    def make(lease: int, run: Run) -> Made:
        _fill(artifact, lease, bank, encoder, files, progress)
        version = Bank(artifact.uri).version
        run.dataset(artifact.name, artifact.folder, artifact.fingerprint, version, "import", bank.rows)
        return {"rows": bank.rows}, {"version": version, "encoder": encoder, "source": path.name}

    imported = imported_once(artifact, "bank", said, make)
    if index:
        Bank(artifact.uri).build_index()
    return imported


def _fill(
    artifact: Artifact,
    lease: int,
    bank: PublishedBank,
    encoder: Details,
    files: dict[str, Path | None],
    progress: Progress | None,
) -> None:
    basis = Basis(bank.components.basis.numpy(), bank.components.mean.numpy()) if bank.components else None
    writer = BankWriter(artifact.uri, bank.dim, encoder, lease, basis)
    ids = np.arange(FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + bank.rows)
    columns = {what: _column(file, what) for what, file in files.items() if file}
    if progress:
        progress.total(bank.rows, sum(shard["rows"] for shard in writer.done.values()))
    for number, chunk in enumerate(bank.chunks(CHUNK)):
        told: Any = {what: list(islice(values, len(chunk))) for what, values in columns.items()}
        shard, start = f"import-{number:06d}", number * CHUNK
        if shard in writer.done:
            continue
        snippets = basis.of_codes(chunk.float().numpy()) if basis else chunk.to(torch.float16).numpy()
        rows = make_rows(
            ids[start : start + len(chunk)], snippets, "imported", splits=["train"] * len(chunk), shard=shard, **told
        )
        added = writer.commit([write_fragments(artifact.uri, shard, rows)])
        if progress:
            progress.advance(added)
    writer.finish_bank(ids)


def _column(path: Path, what: str) -> Iterator[str | int | None]:
    """The entries of a text file, one a line, in order; labels as numbers."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            yield None if not text else _label(text, path, number) if what == "labels" else text


def _label(text: str, path: Path, line: int) -> int:
    if not text.isdecimal() or int(text) not in LABELS:
        raise Refused(f"{path} has {text[:40]!r} in line {line}; a label is a whole number from 0, one a line")
    return int(text)


def _require_rows(path: Path, rows: int) -> None:
    """Refused unless it is a text file of as many lines; before anything is written."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = sum(1 for _ in file)
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is no text file; give one entry a line") from error
    if lines != rows:
        raise Refused(f"{path} has {lines} lines, but the bank has {rows} rows; give one line for each row")
