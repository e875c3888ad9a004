"""What the doctor says of everything that a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.doctor import LOOKS, Finding, examine_named
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.recipe.section import Named
from storage.errors import Refused
from tests.onnx_files import write_means

NEEDED = ("data.source", "tokenizer.source", "encoder.source")


def looked(store: Path, **sections: dict[str, Any]) -> dict[str, Finding]:
    return {found[0]: found for found in examine_named(load("emoji", {"store": str(store), **sections}))}


def test_every_kind_of_thing_that_may_be_named_is_looked_at() -> None:
    assert set(get_args(Named)) == set(LOOKS)


def test_the_demo_has_what_it_names(tmp_path: Path) -> None:
    found = looked(tmp_path)
    assert all(there for _, there, _ in found.values()) and {*NEEDED, "evaluate.encoder"} <= found.keys()


def test_a_table_of_marks_and_words_whatever_the_width(tmp_path: Path) -> None:
    for columns in ("80", "200"):
        done = CliRunner().invoke(app, ["doctor", "emoji", "--store", str(tmp_path)], env={"COLUMNS": columns})
        lines = [line for line in done.stdout.splitlines() if line.startswith("│")]
        assert {line[1:5].strip() for line in lines} <= {"", "ok", "no"} and "[/" not in done.stdout
        assert any(line.startswith("│ ok │ Python") for line in lines), done.stdout


def test_what_is_missing_is_told_key_by_key(tmp_path: Path) -> None:
    named = {
        "data": {"source": str(tmp_path / "pictures")},
        "tokenizer": {"source": "./weights/none"},
        "encoder": {"source": str(tmp_path / "none")},
        "train": {"start_from": "weights/none-000000000000"},
        "sample": {"guide": "weights/none-000000000000"},
        "evaluate": {
            "network": "weights/none-000000000000",
            "bank": "bank/none-000000000000",
            "further_encoders": ["shipped:none"],
            "copy_detector": "onnx:none.onnx",
            "inception": str(tmp_path / "inception.pth"),
            "reference": str(tmp_path / "reference.npz"),
        },
    }
    found = looked(tmp_path, **named)
    missing = {f"{section}.{key}" for section, keys in named.items() for key in keys}
    assert {key for key, (_, there, _) in found.items() if not there} == missing
    assert all(found[key][2] for key in missing)


def test_a_source_of_which_nothing_can_be_used_is_told_as_a_plan_tells_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("list.csv", "words.txt", "words.doc"):
        (tmp_path / "pictures" / name).write_text("words")
    source = {"source": str(tmp_path / "pictures")}
    with pytest.raises(Refused, match=r"\(3 inputs, mostly: .*\); correct data\.source") as refusal:
        Plan(load("emoji", {"store": str(tmp_path), "data": source})).listing  # noqa: B018
    assert looked(tmp_path, data=source)["data.source"] == ("data.source", False, str(refusal.value))


def test_an_onnx_network_is_opened(tmp_path: Path) -> None:
    named = f"onnx:{write_means(tmp_path / 'means.onnx')}"
    told = f"{named} (bilinear to 288 px, bytes, output vector)"
    assert looked(tmp_path, evaluate={"copy_detector": named})["evaluate.copy_detector"][1:] == (True, told)
    _, there, told = looked(tmp_path, evaluate={"copy_detector": f"{named}?size=9"})["evaluate.copy_detector"]
    assert not there and told == "size=9 is not possible; give a value such as size=288"


@pytest.mark.parametrize("key", NEEDED)
def test_what_must_be_named_and_is_not_is_said(tmp_path: Path, key: str) -> None:
    section, _, field = key.partition(".")
    assert looked(tmp_path, **{section: {field: ""}})[key] == (key, False, f"not set; set {key}")


def test_an_earlier_guide_is_there_once_the_training_is(tmp_path: Path) -> None:
    assert looked(tmp_path, sample={"guide": "earlier:500"})["sample.guide"][1]
