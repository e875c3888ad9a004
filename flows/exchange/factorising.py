"""A bank in a fraction of its bytes: every snippet as a few coefficients on the directions along which snippets vary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from flows.engine.progress import Progress
from flows.exchange.importing import Imported, Made, artifact_of, imported_once
from gmem.memory import Covariance
from storage.errors import Refused
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_basis import Basis
from storage.tables.bank_commits import withdrawn
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.fragments import to_matrix
from storage.tracking.tracking import Run

CHUNK = 16_384
"""Rows in memory at a time."""


class Loss(NamedTuple):
    """What is lost by keeping a few numbers of each snippet."""

    energy: float
    """Share of the snippets' variance about their mean that is kept."""
    error: float
    """Mean of |x - x̂| / |x|."""


def factorise(store: Store, bank: Bank, rank: int, name: str, progress: Progress | None = None) -> Imported:
    """The bank with `rank` numbers in place of each snippet's, as a bank of its own that answers the same questions.

    Ids and everything else of a row stay, and what was withdrawn stays withdrawn. Two passes over the rows, of which only
    sums [D, D] and a part of the rows are in memory. The centred truncated decomposition has the least error possible at
    this rank (Eckart and Young, 1936).

    Raises:
        Refused: an impossible rank, or a bank that is rank-reduced already.
    """
    if bank.basis:
        raise Refused(f"the bank in {bank.artifact} is rank-reduced already; factorise the one that it was made of")
    if not 1 <= rank < bank.dim:
        raise Refused(f"rank {rank} is impossible for snippets of {bank.dim} numbers; give 1 to {bank.dim - 1}")
    of = store.at(bank.artifact)
    said = {"of": of.fingerprint, "revision": bank.content_revision, "rank": rank}
    artifact = artifact_of(store, "bank", name, "factorised bank", said)

    def make(lease: int, run: Run) -> Made:
        ids = bank.matching()
        if progress:
            progress.total(2 * len(ids))
        total = _covariance(bank, progress)
        components = total.principal_components(rank)
        basis = Basis(components.basis.numpy(), components.mean.numpy())
        writer = BankWriter(artifact.uri, bank.dim, bank.encoder, lease, basis)
        errors = [_written(bank, writer, number, basis, progress) for number in _parts(ids)]
        writer.finish_bank(ids, withdrawn(bank.dataset))
        made = Bank(artifact.uri)
        made.build_index()
        loss = Loss(total.energy(components), float(np.average(errors)))
        run.metrics(loss._asdict())
        counts = {"rows": len(ids), "bytes": made.info().bytes, "bytes_before": bank.info().bytes}
        details = {"version": made.version, "encoder": bank.encoder, "of": of.folder} | loss._asdict()
        return counts, details

    return imported_once(artifact, "factorised bank", said, make)


def _parts(ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Neighbouring ids, whatever the files they lie in: an interrupted work goes on with the same parts."""
    return [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]


def _covariance(bank: Bank, progress: Progress | None) -> Covariance:
    total = Covariance(bank.dim)
    for batch in bank.dataset.to_batches(columns=["snippet"]):
        total.update(torch.from_numpy(to_matrix(batch["snippet"]).copy()))
        if progress:
            progress.advance(len(batch))
    return total


def _written(bank: Bank, writer: BankWriter, ids: NDArray[np.int64], basis: Basis, progress: Progress | None) -> float:
    """Commits the rows of these ids, unless an earlier attempt did; their mean relative error."""
    shard = f"rows-{ids[0]}"
    rows = bank.scan(bank.columns, f"id >= {ids[0]} AND id <= {ids[-1]}")
    snippets = to_matrix(rows["snippet"]).astype(np.float32)
    stored = basis.project(snippets)
    columns = {name: rows[name].to_pylist() for name in rows.column_names if name not in ("id", "snippet", "shard")}
    if shard not in writer.done:
        made = make_rows(
            ids,
            stored,
            "dataset",
            keys=columns["key"],
            flipped=columns["flipped"],
            labels=columns["label"],
            classes=columns["class"],
            captions=columns["caption"],
            splits=columns["split"],
            shard=shard,
            parents=columns["parents"],
            thumbnails=columns["thumbnail"],
        )
        made = made.set_column(made.column_names.index("origin"), made.schema.field("origin"), rows["origin"])
        writer.commit([write_fragments(writer.artifact, shard, made)])
    if progress:
        progress.advance(len(ids))
    lost = np.linalg.norm(snippets - basis.full(stored), axis=1) / np.linalg.norm(snippets, axis=1)
    return float(lost.mean())
