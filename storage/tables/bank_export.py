"""A bank's rows as one file for other programs: Parquet, or a matrix of snippets with a table beside it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import Refused
from storage.files.local import whole_file

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader

FORMATS = (".parquet", ".npy")
BESIDE = ("id", "key", "flipped", "label", "class", "caption", "split", "origin")
"""Columns of the table beside a matrix."""


def export_bank(bank: BankReader, path: Path, where: str | None = None) -> int:
    """Writes the rows that a condition on columns holds for (none: all), a part at a time; returns how many.

    Args:
        bank: at the version that is opened.
        path: a new file. Parquet gets all columns, snippets as lists of float32, which every reader knows, in the order of
            the table. A `.npy` gets the snippets float16 [N, D] in the order of ids, which `gmem import bank` takes, and
            beside it a `.csv` of as many lines says whose they are.
        where: SQL.

    Raises:
        Refused: another ending, a file that is there, a wrong condition or one that nothing fulfils.
    """
    if path.suffix not in FORMATS:
        raise Refused(f"{path} ends in none of {', '.join(FORMATS)}; name a file of one of these kinds")
    beside = path.with_suffix(".csv")
    for file in (path, beside) if path.suffix == ".npy" else (path,):
        if file.exists():
            raise Refused(f"{file} is there already; name a new file")
    ids = bank.matching(where)
    if not len(ids):
        raise Refused(f"no row of {bank.artifact} fulfils the condition; nothing was written")
    if path.suffix == ".parquet":
        with whole_file(path) as part:
            _write_parquet(bank, part, where)
        return len(ids)
    with whole_file(path) as part, whole_file(beside) as table:
        _write_csv(bank.scan(list(BESIDE), where), table)
        matrix = np.lib.format.open_memmap(part, "w+", np.float16, (len(ids), bank.dim))
        for rows in bank.batches(["snippet"], where):
            matrix[np.searchsorted(ids, rows["id"].to_numpy())] = bank.full(rows["snippet"])
        matrix.flush()
    return len(ids)


def _write_parquet(bank: BankReader, path: Path, where: str | None) -> None:
    floats = pa.list_(pa.float32(), bank.dim)
    writer: pq.ParquetWriter | None = None
    try:
        for rows in bank.batches(bank.columns, where):
            flat = pa.array(bank.full(rows["snippet"]).astype(np.float32).ravel())
            snippets = pa.FixedSizeListArray.from_arrays(flat, type=floats)
            rows = rows.set_column(rows.column_names.index("snippet"), "snippet", snippets)
            writer = writer or pq.ParquetWriter(path, rows.schema)
            writer.write_table(rows)
    finally:
        if writer:
            writer.close()


def _write_csv(rows: pa.Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(BESIDE)
        for batch in rows.select(list(BESIDE)).to_batches(max_chunksize=65_536):
            lines.writerows(zip(*(batch[name].to_pylist() for name in BESIDE), strict=True))
