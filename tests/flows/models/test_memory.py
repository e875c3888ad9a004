"""What a recipe keeps of a bank, while the bank is edited."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from flows.models.memory import open_memory
from storage.errors import Refused
from storage.store import Artifact, Store
from storage.tables.bank import Bank
from storage.tables.bank_basis import Basis
from storage.tables.bank_mixing import mix, near_mixtures
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter
from storage.tables.memory import Memory

ENCODER = {"name": "vit", "sha256": "ab"}
ANGLES = np.radians([0, 10, 20, 90, 100, 110, 55])
"""Of the snippets of seven training pictures; a held-out one follows."""
KEPT = np.array([1, 1, 1, 4, 4, 4, 4])


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    angles = np.append(ANGLES, np.radians(57))
    flat = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ids = np.arange(16)
    snippets = np.concatenate([np.repeat(flat, 2, axis=0), np.tile([[0.0], [0.1]], (8, 1))], axis=1)
    splits: list[str | None] = ["train" if i < 14 else "held_out" for i in ids]
    writer = BankWriter(str(tmp_path / "bank"), 3, ENCODER)
    rows = make_rows(ids, snippets, "dataset", splits=splits, shard="a", flipped=[bool(i % 2) for i in ids])
    writer.commit([write_fragments(str(tmp_path / "bank"), "a", rows)])
    writer.finish_bank(ids)
    return Bank(str(tmp_path / "bank"))


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    artifact = Store(str(tmp_path)).artifact("memory", "tiny", "0" * 12)
    Memory(np.arange(7), KEPT).write(artifact.uri)
    return artifact


def test_as_long_as_nothing_is_edited_it_is_what_was_chosen(artifact: Artifact, bank: Bank) -> None:
    memory = open_memory(artifact, bank)
    assert memory.pictures.tolist() == list(range(7)) and memory.kept.tolist() == KEPT.tolist()


def test_what_is_withdrawn_conditions_nobody_any_more(artifact: Artifact, bank: Bank) -> None:
    version = bank.version
    bank.withdraw("asked for", ids=[8])
    memory = open_memory(artifact, bank)
    assert memory.pictures.tolist() == [0, 1, 2, 3, 5, 6] and memory.kept.tolist() == [1] * 6
    before = open_memory(artifact, Bank(bank.artifact, version))
    assert before.kept.tolist() == KEPT.tolist(), "a training goes on with the version that it began with"
    bank.restore(version)
    assert open_memory(artifact, bank).kept.tolist() == KEPT.tolist()


def test_whose_snippet_was_lost_has_the_nearest_that_remains(tmp_path: Path, bank: Bank) -> None:
    artifact = Store(str(tmp_path)).artifact("memory", "tiny", "1" * 12)
    Memory(np.arange(7), np.array([1, 1, 1, 4, 4, 4, 6])).write(artifact.uri)
    bank.withdraw("asked for", ids=[2])
    assert open_memory(artifact, bank).kept.tolist() == [6, 6, 4, 4, 4, 6]


def test_when_nothing_that_was_kept_remains_it_says_so(artifact: Artifact, bank: Bank) -> None:
    bank.withdraw("asked for", ids=[2, 8])
    with pytest.raises(Refused, match=r"every snippet that memory/tiny-0+ keeps was withdrawn"):
        open_memory(artifact, bank)


def test_samples_are_drawn_from_what_is_kept_and_conditioned_by_it(artifact: Artifact, bank: Bank) -> None:
    assert set(Bank(bank.artifact).sample(14, 0, "split = 'train'")) == set(range(0, 14, 2))
    bank.kept_by = partial(open_memory, artifact)
    drawn = bank.sample(5, 0, "split = 'train'")
    assert set(drawn) == {2, 8} and sorted(np.unique(drawn, return_counts=True)[1]) == [2, 3]
    assert bank.sample(1, 0, "split = 'held_out'").tolist() == [14]
    own = bank.snippets([2, 8, 3, 14]).tolist()
    assert bank.conditions([4, 12, 5, 14]).tolist() == own
    assert bank.search(4, 1)["id"].to_pylist() == [4], "a search is of all rows"
    with pytest.raises(Refused, match="no such rows"):
        bank.sample(1, 0, "id = 4")
    bank.withdraw("asked for", ids=[2])
    assert set(bank.sample(5, 0, "split = 'train'")) == {8}, "also of a bank that was open"


def test_rank_reduced_conditions_are_those_that_a_training_sees(artifact: Artifact, bank: Bank) -> None:
    basis = Basis(np.array([[0, 1, 0]], np.float32), np.array([0.5, 0, 0], np.float32))
    Memory(np.zeros(0, np.int64), np.zeros(0, np.int64), basis).write(artifact.uri)
    bank.kept_by = partial(open_memory, artifact)
    expected = np.array([[0.5, np.sin(angle), 0] for angle in ANGLES])
    assert np.allclose(bank.conditions(list(range(0, 14, 2))).numpy(), expected, atol=2e-3)
    assert len(bank.sample(7, 0, "split = 'train'")) == 7


def test_mixtures_to_generate_from_are_of_what_is_kept(artifact: Artifact, bank: Bank) -> None:
    own = bank.matrix([2, 8]).astype(np.float32)
    bank.kept_by = partial(open_memory, artifact)
    assert np.allclose(bank.mixture([0, 10], "linear", [3, 1]), mix(own, "linear", [3, 1]))
    mixed, partners = near_mixtures(bank, [4, 5], 1, seed=0, where="split = 'train'")
    assert partners.tolist() == [8, 9], "each the nearest of another picture that is kept, in its own orientation"
    expected = [mix(bank.matrix(pair).astype(np.float32), "spherical") for pair in ([2, 8], [3, 9])]
    assert np.allclose(mixed, expected)
    assert near_mixtures(bank, [14], 1, seed=0).partners.tolist() == [8], "a held-out picture has its own"
    added = bank.mix([0, 10], "linear")
    whole = mix(Bank(bank.artifact).matrix([0, 10]).astype(np.float32), "linear")
    assert np.allclose(bank.matrix([added])[0], whole, atol=2e-3), "what is added is of the bank's own rows"


def test_mixtures_of_rank_reduced_snippets_are_of_what_is_left_of_them(artifact: Artifact, bank: Bank) -> None:
    basis = Basis(np.array([[0, 1, 0]], np.float32), np.array([0.5, 0, 0], np.float32))
    Memory(np.zeros(0, np.int64), np.zeros(0, np.int64), basis).write(artifact.uri)
    bank.kept_by = partial(open_memory, artifact)
    assert np.allclose(bank.mixture([0, 12]), mix(bank.conditions([0, 12]).float().numpy(), "spherical"))
    assert not np.allclose(bank.mixture([0, 12]), Bank(bank.artifact).mixture([0, 12]), atol=0.1)
