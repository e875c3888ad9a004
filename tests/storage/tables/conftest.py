"""A small finished bank: three shards of ten pictures in both orientations, of three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.images.decoding import thumbnail
from storage.tables import bank_index
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter

ENCODER = {"name": "vit", "sha256": "ab" * 32, "preprocessing": {"size": 64}, "dim": 12}
DIM = 12


def snippets(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of an index asks 256 times under each condition, by far the most of what these tests would take."""
    monkeypatch.setattr(bank_index, "QUERIES", 16)


def shard_rows(number: int, pictures: int = 10) -> pa.Table:
    """Both orientations of `pictures` pictures; every fifth is held out."""
    samples = np.repeat(np.arange(number * pictures, (number + 1) * pictures), 2)
    flipped = np.tile([0, 1], pictures)
    return make_rows(
        2 * samples + flipped,
        snippets(number, 2 * pictures),
        "dataset",
        keys=[f"k{s}" for s in samples],
        flipped=[bool(f) for f in flipped],
        labels=[int(s) % 3 for s in samples],
        splits=["held_out" if s % 5 == 0 else "train" for s in samples],
        shard=f"shard-{number}",
        classes=[("flags", "food", "faces")[s % 3] for s in samples],
        captions=[f"picture number {s}" if s % 2 else None for s in samples],
        thumbnails=[
            thumbnail(np.full((80, 100, 3), 2 * s + f, np.uint8)) for s, f in zip(samples, flipped, strict=True)
        ],
    )


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    return str(tmp_path / "bank")


@pytest.fixture
def bank(artifact: str) -> Bank:
    writer = BankWriter(artifact, DIM, ENCODER, lease=1)
    writer.commit([write_fragments(artifact, f"shard-{n}", shard_rows(n)) for n in range(3)])
    writer.finish_bank(np.arange(60))
    return Bank(artifact)
