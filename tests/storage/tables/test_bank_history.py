"""Changes, restores and differences between versions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_writer import BankWriter

from .conftest import DIM, ENCODER, snippets


def test_history_lists_what_changed_rows_and_nothing_else(bank: Bank) -> None:
    bank.append(snippets(1, 2), "external", ENCODER, "more")
    bank.tag("before")
    bank.build_index()
    bank.withdraw("less", [0])
    found = bank.history()
    assert [(c.kind, c.reason, c.rows, c.revision) for c in found] == [
        ("built", None, 60, 1), ("append", "more", 62, 2), ("withdraw", "less", 60, 3),
    ]  # fmt: skip
    assert [c.tags for c in found] == [[], ["before"], []]
    for change in found:
        at = Bank(bank.artifact, change.version)
        assert (len(at), at.content_revision) == (change.rows, change.revision)
    assert len(Bank(bank.artifact, found[1].version).history()) == 2


def test_a_bank_is_opened_at_a_version_a_tag_or_a_time(bank: Bank) -> None:
    built = bank.tag("built")
    made = next(v["timestamp"] for v in bank.dataset.versions() if v["version"] == built)
    bank.append(snippets(1, 2), "external", ENCODER)
    for version in (built, "built", made):
        assert len(Bank(bank.artifact, version)) == 60
    assert len(Bank(bank.artifact, datetime.now(UTC) + timedelta(days=1))) == 62
    with pytest.raises(Refused, match="no version from"):
        Bank(bank.artifact, datetime(2001, 1, 1))
    with pytest.raises(ValueError, match="version nobody of the bank"):
        Bank(bank.artifact, "nobody")


def test_a_restored_version_brings_its_rows_back_and_reuses_no_id(bank: Bank) -> None:
    built = bank.version
    (first,) = bank.append(snippets(1, 1), "external", ENCODER)
    bank.withdraw("asked for", [0])
    version = bank.restore(built, "a mistake")
    assert version == bank.version and len(bank) == 60 and 0 in bank.matching()
    assert (bank.history()[-1].kind, bank.history()[-1].reason) == ("restore", "a mistake")
    assert bank.content_revision == 4
    bank.dataset.cleanup_old_versions(older_than=timedelta(0))
    bank.refresh()
    assert bank.append(snippets(2, 1), "external", ENCODER)[0] > first
    with pytest.raises(ValueError, match="holds no version"):
        bank.restore(built)
    with pytest.raises(ValueError, match=f"version {built} of the bank; its history lists"):
        Bank(bank.artifact).diff(built)


def test_the_difference_of_two_versions(bank: Bank) -> None:
    before = bank.version
    (added,) = bank.append(snippets(1, 1), "external", ENCODER)
    bank.withdraw("asked for", [0])
    bank.table.update(where="id = 5", values={"caption": "another"})
    bank.refresh()
    found = bank.diff(before)
    assert (found.added.tolist(), found.removed.tolist(), found.changed.tolist()) == ([added], [0, 1], [5])
    bank.build_index()
    back = bank.diff(bank.version, before)
    assert (back.added.tolist(), back.removed.tolist(), back.changed.tolist()) == ([0, 1], [added], [5])
    assert not np.concatenate([*vars(bank.diff(bank.version)).values()]).size


def test_an_unfinished_bank_is_not_opened(artifact: str) -> None:
    with pytest.raises(ValueError, match="holds no bank"):
        Bank(artifact)
    BankWriter(artifact, DIM, ENCODER)
    with pytest.raises(ValueError, match="unfinished"):
        Bank(artifact)


def test_of_a_version_before_the_bank_was_finished_it_says_which_are_whole(bank: Bank) -> None:
    first = bank.history()[0].version
    bank.append(snippets(9, 1), "external", ENCODER)
    with pytest.raises(
        Refused, match=rf"version 1 .* before the bank was finished; the first whole version is {first},"
    ):
        Bank(bank.artifact, 1)
    assert len(Bank(bank.artifact, first)) == 60
