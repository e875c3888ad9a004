from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from storage.ids import FIRST_FOREIGN_ID
from storage.tables import bank_index, bank_search
from storage.tables.bank import Bank
from storage.tables.bank_commits import update_metadata
from storage.tables.bank_rows import make_rows, table_uri, write_fragments
from storage.tables.bank_writer import BankWriter

from .conftest import DIM, ENCODER, snippets


def test_columns_are_those_of_the_contract(bank: Bank) -> None:
    assert bank.table.schema.names == [
        "id", "key", "flipped", "label", "split", "shard", "origin", "parents", "snippet", "thumbnail", "class", "caption",
    ]  # fmt: skip
    assert bank.table.schema.field("snippet").type == pa.list_(pa.float16(), DIM)
    assert bank.table.schema.field("parents").type == pa.list_(pa.int64())


def test_rows_come_in_the_order_asked_for(bank: Bank) -> None:
    rows = bank.rows([7, 3, 3, 58])
    assert rows["id"].to_pylist() == [7, 3, 3, 58]
    assert rows["key"].to_pylist() == ["k3", "k1", "k1", "k29"]
    assert rows["flipped"].to_pylist() == [True, True, True, False]
    with pytest.raises(ValueError, match="no row 999"):
        bank.rows([1, 999])
    expected = np.concatenate([snippets(n, 20) for n in range(3)]).astype(np.float16)
    assert np.array_equal(bank.snippets([41, 0]).numpy(), expected[[41, 0]])


def test_search_is_by_cosine_and_filters_first(bank: Bank) -> None:
    every = np.concatenate([snippets(n, 20) for n in range(3)])
    query = 7.5 * every[33]  # length does not matter
    unit = every / np.linalg.norm(every, axis=1, keepdims=True)
    order = np.argsort(1 - unit @ unit[33])
    found = bank.search(query, k=4)
    assert found["id"].to_pylist() == order[:4].tolist()
    assert found["_distance"][0].as_py() == pytest.approx(0, abs=1e-3)
    assert "snippet" not in found.column_names
    assert bank.search(np.int64(33), k=4)["id"].to_pylist() == order[:4].tolist()
    held_out = bank.search(query, k=60, where="split = 'held_out' AND NOT flipped")
    assert held_out["id"].to_pylist() == [i for i in order if i % 10 == 0]
    with pytest.raises(ValueError, match="cannot be applied"):
        bank.search(query, where="colour = 3")
    with pytest.raises(ValueError, match="13 numbers"):
        bank.search(np.ones(13))


def test_append_gives_new_ids_and_raises_the_revision(bank: Bank, artifact: str) -> None:
    first = bank.append(snippets(9, 3), "external", ENCODER, keys=["a", "b", "c"])
    second = bank.append(snippets(10, 1), "mixed", ENCODER, parents=[[4, 6]])
    assert first.tolist() == [FIRST_FOREIGN_ID + i for i in range(3)]
    assert second.tolist() == [FIRST_FOREIGN_ID + 3]
    assert bank.rows(second)["parents"].to_pylist() == [[4, 6]]
    info = Bank(artifact).info()
    assert info.by_origin == {"dataset": 60, "external": 3, "mixed": 1}
    assert info.content_revision == 3
    assert bank.table.schema.metadata[b"content_revision"] == b"3"


def test_ids_are_never_reused(bank: Bank) -> None:
    ids = bank.append(snippets(9, 2), "external", ENCODER)
    before = bank.version
    bank.append(snippets(9, 2), "external", ENCODER)
    bank.table.delete(f"id >= {ids[0]}")
    bank.table.checkout(before)
    bank.table.restore()
    bank.refresh()
    assert bank.append(snippets(9, 1), "external", ENCODER).tolist() == [FIRST_FOREIGN_ID + 4]


def test_ids_of_an_imported_bank_are_never_reused(artifact: str) -> None:
    ids = np.arange(FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 20)
    writer = BankWriter(artifact, DIM, ENCODER, lease=1)
    writer.commit([write_fragments(artifact, "import", make_rows(ids, snippets(0, 20), "imported", shard="import"))])
    writer.finish_bank(ids)
    bank = Bank(artifact)
    bank.table.delete(f"id >= {ids[-5]}")
    bank.refresh()
    assert bank.append(snippets(9, 1), "external", ENCODER).tolist() == [ids[-1] + 1]


def test_revision_follows_rows_and_not_maintenance(bank: Bank) -> None:
    bank.append(snippets(1, 2), "external", ENCODER)
    assert bank.content_revision == 2
    bank.table.optimize()
    bank.refresh()
    assert bank.content_revision == 2
    bank.table.delete("id = 5")  # by another's hand
    assert bank.content_revision == 3
    at_three = bank.version
    bank.table.add(bank.rows([7]).set_column(0, pa.field("id", pa.int64(), nullable=False), pa.array([2**50])))
    assert bank.content_revision == 4
    bank.append(snippets(1, 2), "external", ENCODER)
    assert bank.content_revision == 5
    bank.table.checkout(at_three)
    assert bank.content_revision == 3
    bank.table.restore()
    bank.refresh()
    assert bank.content_revision > 5, "an old content under a new version must not look like what came between"


def test_revision_outlives_the_versions_it_was_counted_from(bank: Bank) -> None:
    bank.tag("early")
    bank.append(snippets(1, 2000), "external", ENCODER)
    bank.table.delete("id = 5")  # by another's hand
    bank.build_index("IVF_PQ")
    bank.build_index("IVF_PQ")
    assert bank.content_revision == 3
    bank.dataset.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    bank.refresh()
    assert bank.content_revision == 3
    bank.table.delete("id = 6")
    assert bank.content_revision == 4


def test_a_finished_bank_is_known_by_its_rows_once_its_history_is_gone(bank: Bank, artifact: str) -> None:
    bank.append(snippets(1, 5), "external", ENCODER)
    bank.dataset.cleanup_old_versions(older_than=timedelta(0))
    writer = BankWriter(artifact, DIM, ENCODER, lease=2)
    assert {name: shard["rows"] for name, shard in writer.done.items()} == {f"shard-{n}": 20 for n in range(3)}
    writer.finish_bank(np.arange(60))
    assert Bank(artifact).content_revision == 2


def test_another_encoder_is_refused(bank: Bank) -> None:
    other = ENCODER | {"sha256": "cd" * 32}
    with pytest.raises(ValueError, match=r"made by the encoder vit \(abababababab\), not by vit \(cdcdcdcdcdcd\)"):
        bank.append(snippets(0, 1), "external", other)
    bank.require_encoder(dict(reversed(ENCODER.items())))


@pytest.mark.parametrize("bad", [np.zeros((1, DIM)), np.full((1, DIM), np.nan), np.full((1, DIM), 1e6)])
def test_unusable_snippets_are_refused(bank: Bank, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"finite|zero"):
        bank.append(bad, "external", ENCODER)
    with pytest.raises(ValueError, match="origin"):
        bank.append(snippets(0, 1), "elsewhere", ENCODER)


def test_a_tag_keeps_its_version(bank: Bank, artifact: str) -> None:
    version = bank.tag("trained-abc")
    assert bank.tag("trained-abc") == version
    bank.append(snippets(1, 2), "external", ENCODER)
    with pytest.raises(ValueError, match="names version"):
        bank.tag("trained-abc")
    assert bank.info().tags == {"trained-abc": version}
    pinned = Bank(artifact, version="trained-abc")
    assert (len(pinned), pinned.version, pinned.content_revision) == (60, version, 1)
    with pytest.raises(ValueError, match="version 999"):
        Bank(artifact, version=999)


def test_an_imported_bank_knows_little_of_its_rows(artifact: str) -> None:
    bank = Bank.create(artifact, DIM, ENCODER)
    ids = bank.append(snippets(0, 20), "imported", ENCODER)
    info = bank.info()
    assert info.by_split == {"None": 20} and info.by_label == {"None": 20} and info.content_revision == 2
    assert set(bank.sample(20, 0)) == set(ids)
    with pytest.raises(ValueError, match="already"):
        Bank.create(artifact, DIM, ENCODER)


def test_the_index_finds_what_an_exhaustive_search_finds(artifact: str) -> None:
    bank = Bank.create(artifact, DIM, ENCODER)
    bank.append(snippets(0, 2000), "imported", ENCODER)
    assert bank.build_index() is None
    assert bank.build_index("IVF_HNSW_SQ") == "IVF_HNSW_SQ"
    bank.append(snippets(1, 10), "imported", ENCODER)
    assert (bank.info().index, bank.info().unindexed, bank.content_revision) == ("IvfHnswSq", 10, 3)
    assert bank.recall(k=10, queries=20) >= 0.9
    bank.build_index("IVF_HNSW_SQ")
    assert (bank.info().unindexed, bank.content_revision) == (0, 3)


def test_appends_at_the_same_time_all_arrive(bank: Bank, artifact: str) -> None:
    def append_three(seed: int) -> list[int]:
        own = Bank(artifact)
        return [i for step in range(3) for i in own.append(snippets(seed + step, 2), "external", ENCODER)]

    with ThreadPoolExecutor(3) as pool:
        given = [i for ids in pool.map(append_three, (100, 200, 300)) for i in ids]
    bank.refresh()
    ids = bank.dataset.to_table(columns=["id"], filter=f"id >= {FIRST_FOREIGN_ID}")["id"].to_pylist()
    assert sorted(ids) == sorted(given) == list(range(FIRST_FOREIGN_ID, FIRST_FOREIGN_ID + 18))
    assert bank.content_revision == 10


@pytest.mark.parametrize("just_before", ["UpdateConfig", "Merge"])
def test_a_row_appended_while_a_lost_manifest_is_made_up_for_stays(
    bank: Bank, artifact: str, just_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = BankWriter._committed

    def late(self: BankWriter, operation: Any, dataset: Any, about: dict[str, str]) -> Any:
        if type(operation).__name__ == just_before:
            monkeypatch.undo()
            bank.append(snippets(9, 2), "external", ENCODER)
        return committed(self, operation, dataset, about)

    monkeypatch.setattr(BankWriter, "_committed", late)
    BankWriter(artifact, DIM, ENCODER, lease=2).finish_bank(np.arange(60))
    assert Bank(artifact).info().by_origin == {"dataset": 60, "external": 2}
    assert Bank(artifact).content_revision == 2, "a writer that takes over changes no row"


def test_it_is_an_ordinary_lancedb_table(bank: Bank, artifact: str) -> None:
    table = lancedb.connect(artifact).open_table("bank")
    assert table.uri.rstrip("/").endswith(table_uri(artifact).rsplit("/", 1)[-1])
    near = table.search(snippets(0, 1)[0], vector_column_name="snippet").distance_type("cosine").limit(1).to_list()
    assert near[0]["id"] == 0 and near[0]["thumbnail"][8:12] == b"WEBP"


def test_the_effort_of_a_search_is_measured_on_the_bank_itself(artifact: str) -> None:
    bank = Bank.create(artifact, DIM, ENCODER)
    bank.append(snippets(0, 2000), "imported", ENCODER)
    assert bank.info().search is None
    bank.build_index("IVF_HNSW_SQ")
    measured = bank_index.search_of(bank)
    assert measured is not None and (measured.plain.probes, measured.plain.refine) in bank_index.EFFORTS_OF_A_GRAPH
    assert measured.plain.recall >= bank_index.WANTED and measured.rows == 2000
    assert measured.filtered is None and not measured.wide, "the rows that any condition leaves are compared"
    assert Bank(artifact).info().search == asdict(measured)
    assert bank_search._effort(Bank(artifact), 0.9) == (measured.plain.probes, measured.plain.refine)


def test_where_one_kind_of_index_finds_too_little_the_next_is_tried(
    artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_index, "EXHAUSTIVE", 0)
    monkeypatch.setattr(bank_index, "WANTED", 1.1)
    bank = Bank.create(artifact, DIM, ENCODER)
    bank.append(snippets(0, 2000), "imported", ENCODER)
    assert bank.build_index() == "IVF_PQ"
    assert bank.info().index == "IvfPq"
    measured = bank_index.search_of(bank)
    assert measured is not None and (measured.plain.probes, measured.plain.refine) == bank_index.EFFORTS[-1]
    monkeypatch.setattr(bank_index, "WANTED", 0.0)
    assert bank.build_index() == "IVF_PQ", "what is there and good enough stays"


@pytest.fixture
def large(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """As if it had so many rows that conditions leave more than are compared one and all."""
    for name in ("EXHAUSTIVE", "OF_A_CONDITION"):
        monkeypatch.setattr(bank_index, name, 100 * DIM)
    return bank


def test_a_condition_is_measured_too(large: Bank) -> None:
    large.append(snippets(1, 900), "external", ENCODER, splits=["train"] * 900)
    large.build_index("IVF_PQ")
    measured = bank_index.search_of(large)
    assert measured is not None and measured.filtered is not None
    assert [effort.share for effort in measured.wide] == [*bank_index.WIDE]
    for share, effort in zip(
        (0.95, 0.6, 0.5, 0.4, 0.05), (*(measured.wide[at] for at in (0, 1, 1, 2)), measured.filtered), strict=True
    ):
        assert bank_search._effort(large, share) == (effort.probes, effort.refine)


def test_a_bank_of_before_wide_conditions_were_measured_is_searched(bank: Bank) -> None:
    bank.append(snippets(1, 900), "external", ENCODER)
    bank.build_index("IVF_PQ")
    hard = bank_index.Effort(64, 16, 0.96)
    before = asdict(bank_index.Search(bank_index.Effort(8, 4, 0.97), hard, len(bank), "2026-01-01"))
    del before["wide"]
    update_metadata(bank.artifact, lambda _: {bank_index.SEARCH: json.dumps(before)}, remembered=())
    assert bank_search._effort(Bank(bank.artifact), 0.9) == (64, 16)
    assert bank_search._effort(Bank(bank.artifact), None) == (8, 4)


def test_the_stored_width_says_what_can_be_packed(artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_index, "EXHAUSTIVE", 0)
    bank = Bank.create(artifact, 16, ENCODER)
    bank.append(np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32), "imported", ENCODER)
    assert bank_index._suited(bank)[:2] == ["IVF_HNSW_SQ", "IVF_RQ"]
    monkeypatch.setattr(bank_index, "HNSW_UNTIL", 599)
    assert bank_index._suited(bank) == ["IVF_RQ", "IVF_PQ"]
    reduced = Bank.create(f"{artifact}-odd", 17, ENCODER)
    reduced.append(np.random.default_rng(0).normal(size=(600, 17)).astype(np.float32), "imported", ENCODER)
    assert "IVF_RQ" not in bank_index._suited(reduced)
