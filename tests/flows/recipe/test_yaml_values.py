"""YAML that is damaged, or made to grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe.files import RecipeError, load
from flows.recipe.yaml_values import MAX_VALUES, NotYaml, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGED = {
    "laughs": (LAUGHS, "stands for more than 20,000 values"),
    "merges": (MERGES, "stands for more than 20,000 values"),
    "list in itself": ("a: &a [*a]", "nested deeper than 32 levels"),
    "mapping in itself": ("&a {b: *a}", "nested deeper than 32 levels"),
    "deep list": ("[" * 10_000, "nested deeper than 32 levels"),
    "deep mapping": ("{a: " * 20_000, "nested deeper than 32 levels"),
    "deep closed": ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
    "date": ("a: 2024-13-45", "month must be in 1..12"),
    "digits": ("a: " + "9" * 5000, "number, date or tag that cannot be"),
    "number": ("a: !!int many", "number, date or tag that cannot be"),
    "timestamp": ("a: !!timestamp soon", "number, date or tag that cannot be"),
    "bool": ("a: !!bool maybe", "number, date or tag that cannot be"),
    "tag": ("a: 1\nb: !!python/name:os.system", "breaks at line 2"),
    "unknown alias": ("a: *b", "breaks at line 1"),
    "zero byte": ("a: \0", "signs that no text has"),
    "long": ("a: " + "x" * (1 << 20), "longer than 1,048,576 characters"),
    "two documents": ("a: 1\n---\nb: 1", "it"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    text, reason = DAMAGED[name]
    with pytest.raises(NotYaml, match=reason):
        read_yaml(text)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=reason) as refusal:
        load(str(tmp_path / "mine.yaml"))
    assert len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


def test_aliases_of_a_modest_size_are_read() -> None:
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert len(read_yaml("- 1\n" * (MAX_VALUES - 1))) == MAX_VALUES - 1
    assert read_yaml("") is None


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="no text in UTF-8"):
        load(str(tmp_path / "mine.yaml"))
