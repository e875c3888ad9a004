"""Searches through an index, and among the few rows that fulfil a condition."""

from __future__ import annotations

import numpy as np
import pytest

from storage.errors import Refused
from storage.tables import bank_index, bank_nearest, bank_search
from storage.tables.bank import Bank
from storage.tables.bank_nearest import true_nearest

from .conftest import DIM, ENCODER, snippets

ROWS = 2_000
RARE = "class = 'rare'"


@pytest.fixture
def large(artifact: str, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """2,000 rows, of which up to 200 are few; 50 of class rare, 300 held out."""
    for name in ("EXHAUSTIVE", "OF_A_CONDITION"):
        monkeypatch.setattr(bank_index, name, 200 * DIM)
    monkeypatch.setattr(bank_index, "EFFORTS", ((64, 16),))
    bank = Bank.create(artifact, DIM, ENCODER)
    bank.append(
        snippets(0, ROWS),
        "external",
        ENCODER,
        keys=[f"k{n}" for n in range(ROWS)],
        classes=["rare" if n % 40 == 0 else "common" for n in range(ROWS)],
        splits=["held_out" if n % 20 < 3 else "train" for n in range(ROWS)],
    )
    bank.build_index("IVF_PQ")
    return bank


def exact(bank: Bank, query: np.ndarray, where: str) -> list[int]:
    """By single precision; Lance's half may take two rows that are equally near for each other."""
    (true,) = true_nearest(bank, query[None], 10, [bank.matching(where)])
    return true.ids[0].tolist()


def test_among_few_rows_nothing_is_overlooked(large: Bank) -> None:
    for query in snippets(7, 5):
        for where in (RARE, "key LIKE '%99'", f"{RARE} AND split = 'train'"):
            found = large.search(query, 10, where)
            assert found["id"].to_pylist() == exact(large, query, where)
            assert found["_distance"].to_pylist() == sorted(found["_distance"].to_pylist())
    true = large.search(snippets(7, 1)[0], 10, RARE, exact=True)
    found = large.search(snippets(7, 1)[0], 10, RARE)
    np.testing.assert_allclose(found["_distance"].to_numpy(), true["_distance"].to_numpy(), atol=1e-3)
    assert found.schema.names == true.schema.names
    assert len(large.search(snippets(7, 1)[0], 10, "class = 'nobody'")) == 0
    assert large.recall(where=RARE) == 1


@pytest.mark.parametrize("where", [None, RARE, "split = 'held_out'"])
def test_what_is_told_of_a_row_can_be_chosen(large: Bank, where: str | None) -> None:
    query = snippets(7, 1)[0]
    told = large.search(query, 3, where)
    assert told.column_names == [*bank_search.FOUND, "_distance"]
    more = large.search(query, 3, where, columns=["thumbnail", "key"])
    assert more.column_names[:2] == ["thumbnail", "key"] and more["key"] == told["key"]
    with pytest.raises(Refused, match="no column 'colour'; its columns are id, key"):
        large.search(query, 3, where, columns=["colour"])


def test_few_rows_are_read_once_and_anew_when_the_bank_has_changed(large: Bank) -> None:
    query = snippets(7, 1)[0]
    first, second = exact(large, query, RARE)[:2]
    assert large.search(query, 1, RARE)["id"].to_pylist() == [first]
    read = dict(large.left)
    assert large.search(query, 1, RARE)["id"].to_pylist() == [first] and large.left == read
    large.withdraw("asked for", [first])
    assert large.search(query, 1, RARE)["id"].to_pylist() == [second]
    for number in range(9):
        large.search(query, 1, f"key = 'k{number}'")
    assert len(large.left) == bank_search.KEPT
    for some in ("id % 20 = 0", "id % 20 = 1", RARE):
        large.search(query, 1, some)
    kept = [len(few.ids) for few in large.left.values() if isinstance(few, bank_search.Few)]
    assert sum(kept) == 149, "of two conditions of 100 rows there is one left"


def test_a_condition_of_many_rows_goes_through_the_index(large: Bank) -> None:
    query = snippets(7, 1)[0]
    large.left.clear()
    large.search(query, 10, "split = 'held_out'")
    (marked,) = large.left.values()
    assert isinstance(marked, bank_search.Marked) and marked.rows == 300
    assert large.recall(where="split = 'held_out'") >= 0.9
    with pytest.raises(Refused, match="cannot be applied"):
        large.search(query, 10, "colour = 3")


def test_rows_are_marked_by_fragment_and_place() -> None:
    places = np.array([0, 9, 2 << 32, (2 << 32) + 8, (5 << 32) + 1], np.uint64)
    others = np.array([1, 8, 10, 1 << 32, (2 << 32) + 9, 5 << 32, (5 << 32) + 2, 6 << 32, 9 << 32], np.uint64)
    marked = bank_search.Marked.of(places)
    assert marked.rows == 5 and marked.has(places).all() and not marked.has(others).any()
    nothing = bank_search.Marked.of(places[:0])
    assert nothing.rows == 0 and not nothing.has(places).any()


@pytest.mark.parametrize("kind", ["IVF_HNSW_SQ", "IVF_FLAT"])
def test_what_is_found_is_told_by_exact_distance_and_in_order(large: Bank, kind: str) -> None:
    large.build_index(kind)
    large.append(snippets(9, 40), "external", ENCODER)  # a second fragment, which the index does not know
    for where in (None, "split = 'train'", "origin = 'external'"):
        query = snippets(9, 1)[0]
        found = large.search(query, 10, where, effort=(400, 8), columns=["id"])
        (true,) = true_nearest(large, query[None], 10, [None if where is None else large.matching(where)])
        assert found["id"].to_pylist() == true.ids[0].tolist()
        assert np.allclose(found["_distance"].to_numpy(), 1 - true.similarity[0], atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 200])
@pytest.mark.parametrize("where", ["split = 'train'", "id % 3 = 0", "split = 'held_out'"])
def test_a_wide_condition_is_put_to_what_was_found(large: Bank, where: str, k: int) -> None:
    large.build_index("IVF_FLAT")
    matching = large.matching(where)
    assert len(matching) >= max(k, min(bank_index.WIDE) * len(large))
    for query in snippets(7, 3):
        found = large.search(query, k, where, effort=(256, 64))
        (true,) = true_nearest(large, query[None], k, [matching])
        assert len(set(found["id"].to_pylist()) & set(true.ids[0].tolist())) >= 0.99 * k  # in half precision


def test_where_what_was_found_does_not_fulfil_a_wide_condition_the_search_goes_on(large: Bank) -> None:
    query = snippets(6, 1)[0]
    large.append(query + 0.01 * snippets(8, 300), "external", ENCODER, splits=["held_out"] * 300)
    large.build_index("IVF_PQ")
    found = large.search(query, 10, "split = 'train'", effort=(256, 64))
    assert found["split"].to_pylist() == ["train"] * 10
    assert found["id"].to_pylist() == exact(large, query, "split = 'train'")


def test_values_are_indexed_beside_words(large: Bank) -> None:
    known = {(index.name, index.index_type) for index in large.table.list_indices()}
    assert {("class_values", "Bitmap"), ("split_values", "Bitmap"), ("class_idx", "FTS"), ("id_idx", "BTree")} <= known
    assert set(large.search("rare", 60)["class"].to_pylist()) == {"rare"}
    large.append(snippets(3, 1), "external", ENCODER, classes=["rare"])
    assert len(large.matching(RARE)) == 51
    large.build_index("IVF_PQ")
    assert {(index.name, index.index_type) for index in large.table.list_indices()} == known
    assert len(large.matching(RARE)) == 51 and len(large.search("rare", 60)) == 51


def test_the_truth_of_a_trial_is_read_once(large: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    blocks = bank_nearest._blocks

    def counted(bank: Bank) -> object:
        passes.append(bank)
        return blocks(bank)

    monkeypatch.setattr(bank_nearest, "_blocks", counted)
    monkeypatch.setattr(bank_index, "WANTED", 1.1)
    assert large.build_index() == "IVF_FLAT", "two kinds are tried"
    assert len(passes) == 1
    measured = bank_index.search_of(large)
    assert measured is not None and measured.filtered is not None


@pytest.mark.parametrize("needed", [0, 5, 11, 12])
def test_the_least_effort_that_finds_enough_is_found_in_few_trials(
    large: Bank, monkeypatch: pytest.MonkeyPatch, needed: int
) -> None:
    efforts, tried = [(probes, 4) for probes in range(1, 14)], []

    def found(*asked: object) -> float:
        tried.append(asked[-1])
        return (efforts.index(asked[-1]) + 1) / (needed + 1) * bank_index.WANTED  # type: ignore[arg-type]

    monkeypatch.setattr(bank_index, "EFFORTS", tuple(efforts))
    monkeypatch.setattr(bank_index, "_found", found)
    trial = bank_index.Trial.of(large)
    plain = trial.measured(large).plain
    assert (plain.probes, plain.refine) == efforts[needed] and plain.recall == bank_index.WANTED
    assert len(tried) <= 4 * len(trial.true), "of thirteen efforts four"
