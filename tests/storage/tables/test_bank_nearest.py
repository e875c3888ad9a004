"""The true nearest rows, in one pass, beside what numpy says of all snippets at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.tables import bank_nearest
from storage.tables.bank import Bank
from storage.tables.bank_basis import Basis
from storage.tables.bank_nearest import near_to, true_nearest
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter

from .conftest import DIM, ENCODER, snippets


def units() -> np.ndarray:
    every = np.concatenate([snippets(n, 20) for n in range(3)]).astype(np.float16).astype(np.float32)
    return every / np.linalg.norm(every, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 8_192])
def test_all_questions_are_answered_in_one_pass(bank: Bank, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_nearest, "BLOCK", block)
    queries, held_out = 3 * snippets(9, 4), np.arange(0, 60, 10)
    everywhere, few = true_nearest(bank, queries, 8, [None, held_out])
    cosines = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ units().T
    order = np.argsort(-cosines, axis=1)[:, :8]
    assert np.array_equal(everywhere.ids, order)
    np.testing.assert_allclose(everywhere.similarity, np.take_along_axis(cosines, order, axis=1), atol=1e-5)
    assert few.ids.shape == (4, 6), "there are no more"
    assert np.array_equal(few.ids, held_out[np.argsort(-cosines[:, held_out], axis=1)])


def test_rows_as_near_as_asked_for(bank: Bank) -> None:
    query = snippets(1, 3)[2]
    cosines = units() @ (query / np.linalg.norm(query))
    assert near_to(bank, query, 0.999).tolist() == [22]
    assert near_to(bank, query, 0.3).tolist() == np.flatnonzero(cosines >= 0.3).tolist()
    assert len(near_to(bank, query, 1.1)) == 0


def test_a_rank_reduced_bank_says_the_same_by_its_coefficients(bank: Bank, tmp_path: Path) -> None:
    basis = Basis(np.eye(DIM, dtype=np.float32), snippets(5, 1)[0])  # all directions, so that nothing is lost
    artifact = str(tmp_path / "reduced")
    writer = BankWriter(artifact, DIM, ENCODER, basis=basis)
    whole = np.concatenate([snippets(n, 20) for n in range(3)])
    rows = make_rows(np.arange(60), basis.project(whole), "dataset", shard="s")
    writer.commit([write_fragments(artifact, "s", rows)])
    writer.finish_bank(np.arange(60))
    (there,) = true_nearest(Bank(artifact), snippets(9, 4), 5)
    (here,) = true_nearest(bank, snippets(9, 4), 5)
    np.testing.assert_allclose(there.similarity, here.similarity, atol=3e-3)
