"""A bank as a file: what other programs read of it, and what of it comes back."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_export import BESIDE, export_bank


def test_parquet_has_every_column_and_snippets_that_all_can_read(bank: Bank, tmp_path: Path) -> None:
    assert export_bank(bank, tmp_path / "new" / "bank.parquet") == len(bank)
    rows = pq.read_table(tmp_path / "new" / "bank.parquet").sort_by("id")
    assert set(rows.column_names) == set(bank.columns) and str(rows.schema.field("snippet").type.value_type) == "float"
    assert np.array_equal(np.array(rows["snippet"].to_pylist()), bank.snippets(rows["id"].to_pylist()).float().numpy())
    assert not list(tmp_path.rglob("*.part"))


def test_a_matrix_lies_beside_the_table_of_whose_rows_they_are(bank: Bank, tmp_path: Path) -> None:
    wanted = "id < 20 AND NOT flipped"
    assert export_bank(bank, tmp_path / "bank.npy", wanted) == len(bank.matching(wanted))
    matrix = np.load(tmp_path / "bank.npy")
    with (tmp_path / "bank.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == BESIDE and [int(row["id"]) for row in rows] == bank.matching(wanted).tolist()
    assert matrix.dtype == np.float16
    assert np.array_equal(matrix, bank.snippets([int(row["id"]) for row in rows]).numpy())


def test_nothing_is_written_over_or_half(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    for name, where, words in (
        ("bank.pkl", None, "ends in none of"),
        ("there.npy", None, "there.csv is there already"),
        ("bank.npy", "id < 0", "nothing was written"),
        ("bank.parquet", "no column = 1", "condition"),
    ):
        with pytest.raises(Refused, match=words):
            export_bank(bank, tmp_path / name, where)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["there.csv"]
