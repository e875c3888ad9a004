"""Pictures from elsewhere, mixtures and withdrawals on a real table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from storage.errors import Refused
from storage.images.decoding import thumbnail
from storage.tables import bank_commits, bank_edits
from storage.tables.bank import Bank
from storage.tables.bank_commits import withdrawn
from storage.tables.bank_edits import Pictures
from storage.tables.bank_rows import write_fragments
from storage.tables.bank_writer import BankWriter

from .conftest import DIM, ENCODER, shard_rows, snippets


def pictures(values: np.ndarray, first: int = 200) -> Pictures:
    names = [f"p{n}.png" for n in range(len(values))]
    small = [thumbnail(np.full((64, 64, 3), first + n, np.uint8)) for n in range(len(values))]
    return Pictures(values, names, small, ["flags"] * len(values), ["mine"] * len(values))


def test_added_pictures_are_external_under_the_name_of_their_batch(bank: Bank) -> None:
    added = bank.add(pictures(snippets(9, 3)), "holiday", ENCODER, "for the calendar")
    rows = bank.rows(added.ids).to_pylist()
    assert [row["key"] for row in rows] == [f"holiday/p{n}.png" for n in range(3)]
    assert {(row["origin"], row["class"], row["label"], row["flipped"]) for row in rows} == {
        ("external", "flags", 0, False)
    }
    assert sorted(bank.search("holiday", 9)["id"].to_pylist()) == added.ids
    last = bank.history()[-1]
    assert (last.kind, last.reason, last.details) == ("append", "for the calendar", {"batch": "holiday", "rows": 3})
    assert last.revision == bank.content_revision == 2


def test_a_picture_that_is_there_is_said_and_not_added_twice(bank: Bank) -> None:
    there = bank.snippets([14]).numpy()
    values = np.concatenate([snippets(9, 2), there * 1.0003, snippets(9, 1)])
    given = pictures(values)
    given = Pictures(values, given.keys, [*given.thumbnails[:3], given.thumbnails[0]], given.classes, given.captions)
    added = bank.add(given, "batch", ENCODER)
    assert len(added.ids) == 2
    assert added.duplicates == {"p2.png": "k7", "p3.png": "p0.png"}
    version = bank.version
    again = bank.add(given, "batch", ENCODER)
    assert again.ids == [] and len(again.duplicates) == 4 and Bank(bank.artifact).version == version


@pytest.mark.parametrize("name", ["", " ", "a/b", "x" * 81])
def test_odd_names_of_batches_are_refused(bank: Bank, name: str) -> None:
    with pytest.raises(Refused, match="batch name"):
        bank.add(pictures(snippets(9, 1)), name, ENCODER)


def test_a_mixture_keeps_its_parents(bank: Bank) -> None:
    made = bank.mix([0, 6], weights=[3, 1])
    (row,) = bank.rows([made]).to_pylist()
    assert (row["origin"], row["parents"], row["class"], row["label"]) == ("mixed", [0, 6], "flags", 0)
    np.testing.assert_allclose(bank.snippets([made]).numpy()[0], bank.mixture([0, 6], weights=[3, 1]), atol=2e-3)
    assert bank.history()[-1].details == {"parents": [0, 6], "method": "spherical", "weights": [3, 1], "seed": 0}
    assert bank.rows([bank.mix([0, 2])], ["class"])["class"].to_pylist() == [None]
    version = bank.version
    for ids, words in (([0], "at least 2"), ([0, 999], "no row 999"), ([4, 4], "named twice")):
        with pytest.raises(Refused, match=words):
            bank.mix(ids)
    assert Bank(bank.artifact).version == version


def test_a_withdrawal_takes_mirror_images_and_descendants_along(bank: Bank) -> None:
    child = bank.mix([10, 20])
    grandchild = bank.mix([child, 40])
    bystander = bank.mix([30, 40])
    gone = bank.withdraw("asked for by its owner", where="key = 'k5' AND NOT flipped")
    assert (gone.asked, gone.mirrored, gone.descended) == ([10], [11], [child, grandchild])
    assert len(bank) == 60 - 2 + 1 and bystander in bank.matching()
    last = bank.history()[-1]
    assert (last.kind, last.reason, last.rows, last.revision) == ("withdraw", "asked for by its owner", 59, 5)
    assert last.author and bank.content_revision == 5
    stones = {stone["id"]: stone for stone in withdrawn(bank.dataset)}
    assert stones.keys() == {10, 11, child, grandchild}
    assert stones[10]["key"] == "k5" and len(stones[10]["picture"]) == 32 and stones[child]["picture"] is None
    with pytest.raises(Refused, match="no row 10"):
        bank.mix([10, 12])


def test_what_is_withdrawn_is_not_brought_back_by_adding_it(bank: Bank) -> None:
    added = bank.add(pictures(snippets(9, 2)), "holiday", ENCODER)
    bank.withdraw("private", added.ids[:1])
    again = bank.add(pictures(snippets(9, 2)), "summer", ENCODER)
    assert (again.ids, again.withdrawn, again.duplicates) == ([], {"p0.png": "private"}, {"p1.png": "holiday/p1.png"})


def test_a_rerun_of_the_stage_does_not_bring_it_back(bank: Bank, artifact: str) -> None:
    bank.withdraw("asked for", where="shard = 'shard-1' OR key = 'k3'")
    assert len(bank) == 38
    bank.dataset.cleanup_old_versions(older_than=timedelta(0))
    writer = BankWriter(artifact, DIM, ENCODER, lease=2)
    assert writer.commit([write_fragments(artifact, f"shard-{n}", shard_rows(n)) for n in range(3)]) == 0
    writer.finish_bank(np.arange(60))
    assert len(Bank(artifact)) == 38 and len(withdrawn(Bank(artifact).dataset)) == 22


def test_bad_withdrawals_change_nothing(bank: Bank) -> None:
    version = bank.version
    for words, arguments in (
        ("all 60 rows", {"where": "id >= 0"}),
        ("all 60 rows", {"where": "NOT flipped"}),
        ("no row fits", {"where": "class = 'flgas'"}),
        ("no row 77", {"ids": [77]}),
        ("either ids or a condition", {}),
        ("either ids or a condition", {"ids": [1], "where": "id = 1"}),
    ):
        with pytest.raises(Refused, match=words):
            bank.withdraw("why", **arguments)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="reason"):
        bank.withdraw("  ", [1])
    bank.refresh()
    assert bank.content_revision == 1 and bank.history()[-1].version <= version


def test_a_kill_after_the_commit_loses_no_tombstone(bank: Bank, artifact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(artifact: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(bank_commits, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        bank.withdraw("asked for", [4])
    monkeypatch.undo()
    there = Bank(artifact)
    assert len(there) == 58 and there.content_revision == 2
    assert {stone["id"] for stone in withdrawn(there.dataset)} == {4, 5}
    BankWriter(artifact, DIM, ENCODER, lease=2).finish_bank(np.arange(60))


def test_a_kill_before_the_commit_leaves_the_bank_as_it_was(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bank_commits.LanceDataset, "commit", killed)
    for edit in (lambda: bank.withdraw("why", [4]), lambda: bank.mix([0, 2]), lambda: bank.restore(bank.version)):
        with pytest.raises(KeyboardInterrupt):
            edit()
    monkeypatch.undo()
    assert len(Bank(bank.artifact)) == 60 and Bank(bank.artifact).content_revision == 1


def test_a_mixture_of_what_is_withdrawn_meanwhile_goes_too(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    append = bank_edits.append

    def late(*arguments: Any, **columns: Any) -> Any:
        monkeypatch.undo()
        Bank(bank.artifact).withdraw("meanwhile", [2])
        return append(*arguments, **columns)

    monkeypatch.setattr(bank_edits, "append", late)
    with pytest.raises(Refused, match="row 2 was withdrawn while it was mixed"):
        bank.mix([0, 2])
    assert len(Bank(bank.artifact)) == 58


def test_withdrawals_and_additions_at_the_same_time_all_count(bank: Bank, artifact: str) -> None:
    def edit(number: int) -> None:
        own = Bank(artifact)
        if number % 2:
            own.withdraw("why", [20 * number])
        else:
            own.append(snippets(100 + number, 2), "external", ENCODER)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(edit, (0, 1, 2)))
    bank.refresh()
    assert len(bank) == 60 - 2 + 4 and bank.content_revision == 4


# --- what another client leaves --------------------------------------------------------------------------------------


def by_another(bank: Bank, **values: Any) -> None:
    """A row added with LanceDB alone: a copy of row 7 but for these values."""
    row = bank.dataset.to_table(filter="id = 7").to_pylist()[0] | {"id": 2**41} | values
    table = lancedb.connect(bank.artifact).open_table("bank")
    schema = table.schema.remove_metadata()
    table.add(pa.Table.from_pylist([row], schema=schema), on_bad_vectors="fill" if "snippet" in values else "error")


def test_sound_rows_of_another_client_are_used(bank: Bank, artifact: str) -> None:
    by_another(bank)
    lancedb.connect(artifact).open_table("bank").delete("id = 3")
    there = Bank(artifact)
    assert len(there) == 60 and there.content_revision == 3
    assert [change.kind for change in there.history()] == [
        "built",
        "another client's Append",
        "another client's Delete",
    ]
    assert there.append(snippets(1, 1), "external", ENCODER)[0] == 2**41 + 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"id": 7}, "1 rows of an id that is there already .first 7"),
        ({"origin": "elsewhere"}, "unknown origin .first 'elsewhere'"),
        ({"snippet": [0.0] * DIM}, "zero or not finite"),
        ({"snippet": [float("inf")] * DIM}, "zero or not finite"),
    ],
)
def test_unsound_rows_of_another_client_are_noticed(
    bank: Bank, artifact: str, values: dict[str, Any], words: str
) -> None:
    sound = bank.version
    by_another(bank, **values)
    with pytest.raises(Refused, match=words) as error:
        Bank(artifact)
    assert f"version {sound}" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(Refused, match=words):
        bank.append(snippets(1, 1), "external", ENCODER)
    pinned = Bank(artifact, version=sound)
    pinned.restore(sound, "rid of it")
    assert len(Bank(artifact)) == 60


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True])
def test_words_are_found_in_key_class_and_caption(bank: Bank, indexed: bool) -> None:
    if indexed:
        bank.build_index()
    assert set(bank.search("flags", 60)["class"].to_pylist()) == {"flags"}
    assert sorted(bank.search("k7", 60)["id"].to_pylist()) == [14, 15]
    assert bank.search("number 13", 2)["key"].to_pylist() == ["k13", "k13"]
    held_out = bank.search("flags", 60, where="split = 'held_out' AND NOT flipped")
    assert sorted(held_out["id"].to_pylist()) == [0, 30]
    assert len(bank.search("nowhere", 5)) == 0
    assert len(bank.search("x' OR nobody; --", 5)) == 0
    added = bank.append(snippets(3, 1), "external", ENCODER, keys=["late/flags"])
    assert added[0] in bank.search("late", 5)["id"].to_pylist(), "rows that came after the index are found too"
    with pytest.raises(Refused, match="no words"):
        bank.search(" ", 5)
