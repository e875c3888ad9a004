"""The collected inputs as people have them, each with what is right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

TWELVE = [str(number) for number in range(12)]


def test_one_tar_beside_forty_pictures(cases: Path, seen: type) -> None:
    found = seen(cases / "leftover")
    assert Counter(found.labels.values()) == {"cats": 20, "dogs": 20}
    assert list(found.reasons) == ["annotations.tar"] and "data.layout=tars" in found.reasons["annotations.tar"]


@pytest.mark.parametrize("name", ["dotted", "apple", "unsorted"])
def test_tars_of_other_tools(cases: Path, seen: type, name: str) -> None:
    found = seen(cases / "shards" / name)
    assert found.classes == TWELVE
    assert Counter(found.labels.values()) == dict.fromkeys(TWELVE, 4)
    assert set(found.reasons.values()) == ({"left behind by a tool"} if name == "apple" else set())


def test_litter_changes_no_class(cases: Path, seen: type) -> None:
    clean, littered = seen(cases / "digits"), seen(cases / "digits-littered")
    assert clean.classes == littered.classes == TWELVE
    assert clean.labels == littered.labels and clean.reasons == {}
    assert littered.reasons["__MACOSX"] == "left behind by a tool"
    assert littered.reasons[".ipynb_checkpoints"] == littered.reasons[".DS_Store"] == "hidden"


def test_odd_metadata(cases: Path, seen: type, tmp_path: Path) -> None:
    rows = seen(cases / "metadata").rows(tmp_path)
    assert len(rows) == 46 and all(row["kept"] for row in rows)


def test_labels_of_edm(cases: Path, seen: type) -> None:
    found = seen(cases / "edm")
    assert found.classes == ["0", "1", "2", "3"] and found.reasons == {} and found.notes == ()
    assert Counter(found.labels.values()) == dict.fromkeys(found.classes, 12)


def test_signs_in_a_path(cases: Path, seen: type) -> None:
    assert seen(cases / "names" / "My Pictures #2").classes == ["right"]
