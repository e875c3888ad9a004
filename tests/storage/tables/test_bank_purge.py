"""What is purged is in no file any more, and whatever a purge is interrupted by, the bank's rows are whole."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import Refused
from storage.files import open_files
from storage.tables import bank_purge
from storage.tables.bank import Bank
from storage.tables.bank_commits import withdrawn
from storage.tables.bank_rows import table_uri, write_fragments
from storage.tables.bank_writer import BankWriter

from .conftest import DIM, ENCODER, shard_rows, snippets


def traces(bank: Bank, row: dict[str, Any]) -> set[str]:
    """Which of a row's contents lie in some file of the bank."""
    contents = {"snippet": np.array(row["snippet"], np.float16).tobytes(), "thumbnail": row["thumbnail"]}
    files = [path.read_bytes() for path in Path(bank.artifact).rglob("*") if path.is_file()]
    return {name for name, content in contents.items() if any(content in data for data in files)}


@pytest.mark.parametrize("kind", ["auto", "IVF_HNSW_SQ"])
def test_a_purged_picture_is_in_no_file(bank: Bank, kind: str) -> None:
    bank.append(snippets(8, 600), "external", ENCODER)
    bank.build_index(kind)
    bank.tag("training-abc")
    (row,) = bank.rows([14]).to_pylist()
    bank.withdraw("asked for by its owner", [14])
    assert traces(bank, row) == {"snippet", "thumbnail"}
    indices = {index.name for index in bank.table.list_indices()}

    done = bank.purge("asked for by its owner")
    assert traces(bank, row) == set()
    assert done.versions > 3 and done.tags == ["training-abc"] and done.bytes > 0 and done.undecided == 0
    assert len(bank) == len(Bank(bank.artifact)) == 658 and bank.content_revision == 3
    assert {index.name for index in bank.table.list_indices()} == indices
    assert [about["version"] for about in bank.dataset.versions()] == [bank.version]
    assert {stone["id"] for stone in withdrawn(bank.dataset)} == {14, 15}
    assert sorted(bank.search("k8", 9)["id"].to_pylist()) == [16, 17] and len(bank.search("k7", 9)) == 0


def test_a_purged_version_is_refused_in_a_sentence(bank: Bank) -> None:
    version, before = bank.tag("training-abc"), datetime.now(UTC)
    bank.withdraw("private", [14])
    bank.purge("private")
    for named in (version, "training-abc"):
        with pytest.raises(
            Refused, match=rf"version {named} of the bank .* was purged on 20.* \(private\), and"
        ) as error:
            Bank(bank.artifact, named)
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match="no version nobody"):
        Bank(bank.artifact, "nobody")
    with pytest.raises(Refused, match="no version 999"):
        Bank(bank.artifact, 999)
    with pytest.raises(Refused, match="no version from"):
        Bank(bank.artifact, before - timedelta(days=1))
    with pytest.raises(Refused, match="was purged"):
        bank.restore(version)
    with pytest.raises(Refused, match="reason"):
        bank.purge(" ")


def test_the_history_begins_with_the_purge_and_goes_on(bank: Bank) -> None:
    bank.withdraw("private", [14])
    bank.purge("as the law asks")
    (change,) = bank.history()
    assert (change.kind, change.reason, change.rows, change.revision) == ("purge", "as the law asks", 58, 2)
    bank.append(snippets(9, 1), "external", ENCODER)
    assert [each.kind for each in bank.history()] == ["purge", "append"]
    bank.withdraw("private", [16])
    bank.purge("again")
    assert [each.reason for each in bank.history()] == ["again"] and bank.content_revision == 4
    with pytest.raises(Refused, match="again"):
        Bank(bank.artifact, 2)


def test_no_rerun_brings_back_what_was_purged(bank: Bank, artifact: str) -> None:
    bank.withdraw("asked for", where="shard = 'shard-1' OR key = 'k3'")
    bank.purge("asked for")
    writer = BankWriter(artifact, 12, ENCODER, lease=2)
    assert writer.commit([write_fragments(artifact, f"shard-{n}", shard_rows(n)) for n in range(3)]) == 0
    writer.finish_bank(np.arange(60))
    assert len(Bank(artifact)) == 38


@pytest.mark.parametrize("at", ["_rewrite", "_mark", "_remove", "unreferenced"])
def test_a_kill_leaves_the_rows_and_a_second_purge_goes_on(
    bank: Bank, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    bank.tag("training-abc")
    (row,) = bank.rows([14]).to_pylist()
    bank.withdraw("private", [14])
    monkeypatch.setattr(bank_purge, at, killed)
    with pytest.raises(KeyboardInterrupt):
        bank.purge("private")
    monkeypatch.undo()
    assert len(Bank(bank.artifact)) == 58
    Bank(bank.artifact).purge("private")
    there = Bank(bank.artifact)
    assert len(there) == 58 and there.content_revision == 2 and traces(there, row) == set()
    with pytest.raises(Refused, match=r"training-abc of the bank .* was purged"):
        Bank(bank.artifact, "training-abc")


def test_files_that_somebody_may_be_committing_stay(bank: Bank) -> None:
    def begun(number: int) -> Path:
        (file,) = write_fragments(bank.artifact, "", shard_rows(number, 1))["fragments"][0]["files"]
        return Path(table_uri(bank.artifact), "data", file["path"])

    new, old = begun(7), begun(8)
    os.utime(old, (time.time() - 7200,) * 2)
    bank.withdraw("private", [14])
    assert bank.purge("private").undecided == 1
    assert new.exists() and not old.exists()


def test_a_purge_reaches_an_object_store(bucket: str) -> None:
    artifact = f"{bucket}/runs/bank"
    writer = BankWriter(artifact, DIM, ENCODER, lease=1)
    writer.commit([write_fragments(artifact, "shard-0", shard_rows(0))])
    writer.finish_bank(np.arange(20))
    bank = Bank(artifact)
    thumbnail = bank.rows([14], ["thumbnail"])["thumbnail"][0].as_py()
    bank.withdraw("private", [14])
    done = bank.purge("private")
    assert done.versions > 1 and done.undecided == 0 and len(Bank(artifact)) == 18
    files = open_files(artifact)
    assert not any(thumbnail in files.read(f"{artifact}/{path}") for path in files.walk(artifact))
    with pytest.raises(Refused, match="was purged"):
        Bank(artifact, 2)
