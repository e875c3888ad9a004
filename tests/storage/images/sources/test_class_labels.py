"""Names of classes of a set whose files do not all tell them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

NAMES = ["cat", "dog", "hen"]
CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: {column}
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
          '2': hen
---
# Animals
"""
INFOS = {"default": {"features": {"label": {"_type": "ClassLabel", "names": NAMES}, "image": {"_type": "Image"}}}}


def part(path: Path, data: bytes, column: str = "label", names: list[str] | None = None) -> None:
    """A file of three rows; with `names` its schema tells them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table({"image": pa.array([data] * 3, pa.binary()), column: [2, 0, 1]})
    features = {column: {"_type": "ClassLabel", "names": names}}
    about = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    pq.write_table(rows.replace_schema_metadata(about), path)


def classes(found: object) -> list[str | None]:
    return [entry.class_name for entry in found.usable.values()]  # type: ignore[attr-defined]


def test_those_of_one_file_hold_for_the_others(tmp_path: Path, seen: type, picture: Callable[..., bytes]) -> None:
    part(tmp_path / "data" / "train-0.parquet", picture())
    part(tmp_path / "data" / "train-1.parquet", picture(), names=NAMES)
    assert classes(seen(tmp_path)) == ["hen", "cat", "dog"] * 2


@pytest.mark.parametrize("column", ["label", "fine_label"])
def test_the_sets_card_tells_them(column: str, tmp_path: Path, seen: type, picture: Callable[..., bytes]) -> None:
    part(tmp_path / "data" / "train-0.parquet", picture(), column)
    (tmp_path / "README.md").write_text(CARD.format(column=column))
    found = seen(tmp_path)
    assert classes(found) == ["hen", "cat", "dog"] and found.reasons == {}
    assert [entry.label for entry in found.usable.values()] == ["2", "0", "1"]


def test_so_does_the_older_file_and_a_list_of_configurations(
    tmp_path: Path, seen: type, picture: Callable[..., bytes]
) -> None:
    part(tmp_path / "a" / "train.parquet", picture())
    (tmp_path / "a" / "dataset_infos.json").write_text(json.dumps(INFOS))
    assert classes(seen(tmp_path / "a")) == ["hen", "cat", "dog"]
    part(tmp_path / "b" / "train.parquet", picture())
    several = CARD.format(column="label").replace("  features", "- config_name: plain\n  features")
    (tmp_path / "b" / "README.md").write_text(several)
    assert classes(seen(tmp_path / "b")) == ["hen", "cat", "dog"]


def test_a_file_knows_its_own_names_best(tmp_path: Path, seen: type, picture: Callable[..., bytes]) -> None:
    part(tmp_path / "a.parquet", picture(), names=["x", "y", "z"])
    (tmp_path / "README.md").write_text(CARD.format(column="label"))
    assert classes(seen(tmp_path)) == ["z", "x", "y"]


@pytest.mark.parametrize(
    "text",
    [
        "no card at all",
        "---\ndataset_info: [\n---\n",
        "---\ndataset_info:\n  features: 3\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\nwhen: 2020-99-99\ndataset_info: {}\n---\n",
        "---\na: &a [x]\nb: &b [*a, *a]\ndataset_info: {features: [{name: label, dtype: {class_label: {names: {k: v}}}}]}\n---\n",
    ],
)
def test_a_card_that_says_nothing_costs_nothing(
    text: str, tmp_path: Path, seen: type, picture: Callable[..., bytes]
) -> None:
    part(tmp_path / "train.parquet", picture())
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "dataset_infos.json").write_text(text)
    found = seen(tmp_path)
    assert classes(found) == [None] * 3 and found.reasons["README.md"] == "not Parquet among Parquet files"
