"""Conditions that people type."""

from __future__ import annotations

import pytest

from storage.errors import Refused
from storage.tables.bank import Bank
from storage.tables.bank_where import condition, equals, joined

from .conftest import ENCODER, snippets


def test_values_are_quoted(bank: Bank) -> None:
    assert equals("split", "o'clock") == "split = 'o''clock'"
    assert len(bank.matching(equals("split", "x' OR 'a' = 'a"))) == 0
    assert len(bank.matching(equals("split", "train"))) == 48
    assert joined(None, "a", "b OR c") == "(a) AND (b OR c)" and joined(None) is None
    with pytest.raises(Refused, match="not one SQL condition"):
        joined("id = 1) OR (id = 2", "split = 'train'")


def test_a_row_that_says_nothing_is_no_mirror_image(bank: Bank) -> None:
    (untold,) = bank.append(snippets(5, 1), "external", ENCODER, flipped=[None])
    (told,) = bank.append(snippets(6, 1), "external", ENCODER)
    assert bank.rows([told], ["flipped"])["flipped"].to_pylist() == [False]
    found = bank.matching("NOT flipped AND origin = 'external'")
    assert found.tolist() == [untold, told]
    assert len(bank.matching("key = 'flipped' OR key = 'k1'")) == 2, "a text stays what it is"


@pytest.mark.parametrize(
    "where",
    [
        "id = 1; DROP TABLE bank", "id = 1;", "", "  ", "key = 'x", "o'clock", "NOT (", "colour = 3", "class = 3", "id", "1",
        "id = (SELECT max(id) FROM bank)", "(" * 3000 + "id = 1" + ")" * 3000, " OR ".join(["id = 1"] * 3000),
        "regexp_match(key, '(')", "id = 99999999999999999999999", "key = \x00", "`id = 1",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_a_sentence(bank: Bank, where: str) -> None:
    for ask in (lambda: bank.search(None, 4, where), lambda: bank.search(3, 4, where), lambda: bank.matching(where)):
        with pytest.raises(Refused) as error:
            ask()
        assert "\n" not in str(error.value) and "/home" not in str(error.value) and len(str(error.value)) < 500


def test_columns_of_a_later_release_are_null_in_an_earlier_bank() -> None:
    assert condition("class = 'class' AND id > 3", ["id"]) == "CAST(NULL AS string) = 'class' AND id > 3"
    assert condition("class = 'x'", ["id", "class", "caption"]) == "class = 'x'"
