"""A rank-reduced bank beside the one it was made of: the same questions, nearly the same answers, fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.exchange import factorising
from flows.exchange.factorising import factorise
from flows.exchange.importing_bank import import_bank
from storage.errors import Refused
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter

CASE = Path(__file__).parents[4] / "shared" / "cases" / "checkpoints" / "svd-bank.pth"
DIM, RANK, ROWS = 24, 6, 90
ENCODER = {"name": "vit", "sha256": "ab", "dim": DIM}


def snippets() -> np.ndarray:
    """Around a mean, along six directions and a little beside them."""
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(DIM, RANK)))[0].T
    return 3 + 4 * random.normal(size=(ROWS, RANK)) @ directions + 0.05 * random.normal(size=(ROWS, DIM))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Store(str(tmp_path / "store"))


@pytest.fixture
def bank(store: Store) -> Bank:
    artifact = store.artifact("bank", "whole", "0" * 12)
    writer = BankWriter(artifact.uri, DIM, ENCODER)
    ids = 2 * np.arange(ROWS)
    rows = make_rows(
        ids,
        snippets(),
        "dataset",
        keys=[f"k{i}" for i in ids],
        labels=[int(i) % 3 for i in ids],
        classes=["abc"[int(i) % 3] for i in ids],
        splits=["held_out" if i % 10 == 0 else "train" for i in ids],
        shard="s",
        thumbnails=[b"picture %d" % i for i in ids],
    )
    writer.commit([write_fragments(artifact.uri, "s", rows)])
    writer.finish_bank(ids)
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    return Bank(artifact.uri)


def test_it_answers_the_same_questions(store: Store, bank: Bank) -> None:
    made = factorise(store, bank, RANK, "small")
    small = Bank(made.artifact)
    assert made.details["energy"] > 0.99 and made.details["error"] < 0.03
    assert (small.dim, small.info().rank, len(small)) == (DIM, RANK, ROWS) and small.encoder == bank.encoder
    ids = bank.sample(20, seed=1, where="split = 'train'")
    assert small.sample(20, seed=1, where="split = 'train'").tolist() == ids.tolist()
    whole, reduced = bank.snippets(ids).float(), small.snippets(ids).float()
    assert (whole - reduced).norm(dim=1).max() < 0.05 * whole.norm(dim=1).min()
    names = ["key", "label", "class", "split", "origin", "thumbnail"]
    assert small.rows(ids, names) == bank.rows(ids, names)
    for query in (int(ids[0]), snippets()[3]):
        ours, theirs = (each.search(query, k=5, where="class = 'a'") for each in (small, bank))
        assert ours["id"].to_pylist()[0] == theirs["id"].to_pylist()[0]
        np.testing.assert_allclose(ours["_distance"].to_numpy(), theirs["_distance"].to_numpy(), atol=3e-3)
    assert not factorise(store, bank, RANK, "small").fresh


def test_it_is_edited_as_any_bank(store: Store, bank: Bank) -> None:
    bank.withdraw(reason="asked for", ids=[4])
    small = Bank(factorise(store, bank, RANK, "small").artifact)
    assert 4 not in small.matching()
    new = small.append(snippets()[:1] + 0.5, "external", ENCODER)
    shown = small.snippets(new)[0].float()
    assert (shown - torch.from_numpy(snippets()[0] + 0.5)).norm() < 0.2 * shown.norm()
    mixed = small.mix([0, 2])
    assert small.search(mixed, 1)["id"].to_pylist() == [mixed]
    small.withdraw(reason="a test", where="class = 'b'")
    assert set(small.scan(["class"])["class"].to_pylist()) <= {"a", "c", None}
    assert small.append(snippets()[:1], "external", ENCODER)[0] > new[0]


def test_an_interrupted_one_goes_on_with_the_same_rows(
    store: Store, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factorising, "CHUNK", 20)
    commit, commits = BankWriter.commit, []

    def failing(self: BankWriter, shards: Any) -> int:
        if len(commits) == 2:
            raise KeyboardInterrupt
        commits.append(1)
        return commit(self, shards)

    monkeypatch.setattr(BankWriter, "commit", failing)
    with pytest.raises(KeyboardInterrupt):
        factorise(store, bank, RANK, "small")
    monkeypatch.setattr(BankWriter, "commit", commit)
    made = factorise(store, bank, RANK, "small")
    assert made.fresh and Bank(made.artifact).matching().tolist() == bank.matching().tolist()


def test_what_cannot_be_factorised_is_refused(store: Store, bank: Bank) -> None:
    for rank in (0, DIM):
        with pytest.raises(Refused, match=f"rank {rank} is impossible for snippets of 24 numbers; give 1 to 23"):
            factorise(store, bank, rank, "small")
    small = Bank(factorise(store, bank, RANK, "small").artifact)
    with pytest.raises(Refused, match="rank-reduced already"):
        factorise(store, small, 2, "smaller")


def test_the_published_factorised_form_is_imported_as_one(store: Store, tmp_path: Path) -> None:
    whole = torch.from_numpy(snippets()).float()
    mean = whole.mean(0)
    left, values, right = torch.linalg.svd(whole - mean, full_matrices=False)
    file = {"C": left[:, :RANK] * values[:RANK], "M": right[:RANK].T.contiguous(), "S": values[:RANK], "mean": mean}
    torch.save(file | {"latent_dim": RANK, "feature_dim": DIM}, tmp_path / "svd.pth")
    bank = Bank(import_bank(tmp_path / "svd.pth", store).artifact)
    assert (len(bank), bank.dim, bank.info().rank) == (ROWS, DIM, RANK)
    assert (bank.snippets(bank.matching()).float() - whole).abs().max() < 0.3

    for name, wrong, words in (
        ("M", right[:RANK], "are no factorised bank"),
        ("M", 2 * right[:RANK].T, "are not orthonormal"),
        ("mean", mean * torch.nan, "hold NaN or infinity"),
    ):
        torch.save(file | {name: wrong.contiguous()}, tmp_path / "wrong.pth")
        with pytest.raises(ValueError, match=words):
            import_bank(tmp_path / "wrong.pth", store)


@pytest.mark.skipif(not CASE.exists(), reason=f"no case at {CASE}")
def test_a_published_file_as_people_have_it(store: Store) -> None:
    file = torch.load(CASE, weights_only=True)
    bank = Bank(import_bank(CASE, store).artifact)
    expected = file["mean"] + file["C"] @ file["M"].T
    made = bank.snippets(bank.matching()).float()
    assert made.shape == (300, 32)
    torch.testing.assert_close(made, expected, rtol=5e-3, atol=5e-3 * float(expected.abs().max()))
