"""JSON of a store that is damaged, or made to harm: one sentence that names it, and never more memory than its limit."""

from __future__ import annotations

from typing import Any

import pytest

from storage import documents
from storage.documents import read_json
from storage.errors import Damaged

BAD = {
    "empty": b"",
    "cut": b'{"a": 1',
    "deep": b"[" * 10_000 + b"]" * 10_000,
    "deep object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "half a character": b'{"a": "\\ud800"}',
    "no text": b"\xff\xfe\x00",
    "wrong type": b"[1, 2]",
    "long key": b'{"' + b"k" * 10_000 + b'": "x"}',
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_damaged_is_one_sentence(name: str) -> None:
    with pytest.raises(Damaged, match=r"^a/b\.json is damaged \(.+\): remove it\.$") as error:
        read_json(BAD[name], "a/b.json", dict[str, int], "remove it.")
    assert len(str(error.value)) < 400


def test_a_document_comes_back_in_its_type() -> None:
    assert read_json('{"a": [1, {"b": null}]}', "x", dict[str, Any], "") == {"a": [1, {"b": None}]}
    assert read_json(b"[1, 2, 3]", "x", tuple[int, int, int], "") == (1, 2, 3)
    assert read_json("7", "x", int, "") == 7


def test_a_document_that_is_too_large_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST", 10)
    with pytest.raises(Damaged, match="12 bytes"):
        read_json("[1, 2, 3, 4]", "x", list[int], "remove it.")
