"""What a bank is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_writer import BankWriter

from .conftest import DIM

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bank of a store that release 0.1 made, which knew neither class nor caption."""
    root = tmp_path_factory.mktemp("store")
    shutil.unpack_archive(DATA / "store-0.1.tar.xz", root)
    return str(next(root.glob("bank/*")))


def test_classes_and_captions_are_counted_and_filtered(bank: Bank) -> None:
    assert bank.info().by_class == {"faces": 20, "flags": 20, "food": 20}
    assert bank.labels() == {"flags": 0, "food": 1, "faces": 2}
    found = bank.search(8, 30, where="class = 'food' AND caption IS NOT NULL")
    assert set(found["class"].to_pylist()) == {"food"}
    assert bank.rows([14], ["class", "caption"]).to_pylist() == [
        {"id": 14, "class": "food", "caption": "picture number 7"}
    ]
    assert len(bank.search(None, 5, where="class = 'flgas'")) == 0
    assert len(bank.search(None, 5)) == 5


@pytest.mark.parametrize("query", [np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM + 1)])
def test_queries_without_direction_are_refused(bank: Bank, query: np.ndarray) -> None:
    with pytest.raises(Refused):
        bank.search(query)


def test_an_earlier_bank_is_read_as_if_its_new_columns_were_null(earlier: str) -> None:
    bank = Bank(earlier)
    assert "class" not in bank.table.schema.names
    assert bank.info().by_class == {"None": 48}
    (id,) = bank.sample(1, 0)
    assert bank.rows([id])["caption"].to_pylist() == [None]
    assert len(bank.search(int(id), 5, where="class = 'x'")) == 0
    assert len(bank.search(int(id), 5, where="class IS NULL")) == 5
    assert bank.search(int(id), 1).column_names[-3:] == ["class", "caption", "_distance"]
    key = bank.rows([id], ["key"])["key"][0].as_py()
    assert id in bank.search(key, 48)["id"].to_pylist()
    assert [change.kind for change in bank.history()] == ["built"]


def test_an_earlier_bank_is_edited_and_gets_the_new_columns(earlier: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(earlier, tmp_path / "bank"))
    bank = Bank(copy)
    bank.build_index("IVF_PQ" if len(bank) > 256 else "auto")
    before = bank.version
    (added,) = bank.append(np.ones((1, bank.dim)), "external", bank.encoder, classes=["flags"])
    assert bank.matching("class = 'flags'").tolist() == [added]
    assert bank.search("flags", 3)["id"].to_pylist() == [added]
    assert bank.content_revision == 2 and len(bank.history()) == 2
    assert bank.diff(before).changed.size == 0
    bank.restore(before)
    assert len(bank) == 48 and len(bank.matching("class IS NULL")) == 48
    ids = bank.matching()
    writer = BankWriter(copy, bank.dim, bank.encoder, lease=9)
    writer.finish_bank(ids)
    assert Bank(copy).table.schema.names[-2:] == ["class", "caption"]
