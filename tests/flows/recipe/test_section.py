"""Sections: which fields are part of an identity, which paths travel."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe.files import load


def test_operational_fields_are_no_part_of_an_identity() -> None:
    recipe = load("emoji")
    more = load("emoji", {"train": {"steps": 9999, "log_every": 1, "keep": 7}, "tokenizer": {"batch": 3}})
    assert recipe.train.identity() == more.train.identity()
    assert recipe.tokenizer.identity() == more.tokenizer.identity()
    assert recipe.train.identity() != load("emoji", {"train": {"lr": 1}}).train.identity()


def test_workers_in_other_folders_are_told_paths_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pth", "network"):
        Path(name).touch()
    evaluate = {"encoder": "timm:vit@weights.pth", "inception": "weights.pth", "network": "network", "bank": "bank/b-1"}
    evaluate |= {"further_encoders": ["timm:vit@weights.pth", "timm:vit"]}
    overrides = {"evaluate": evaluate, "sample": {"guide": "earlier:5"}, "tokenizer": {"source": "network"}}
    recipe = load("emoji", overrides).located("/store")
    assert recipe.tokenizer.source == str(tmp_path / "network")
    assert recipe.evaluate.further_encoders == [f"timm:vit@{tmp_path}/weights.pth", "timm:vit"]
    assert (recipe.evaluate.inception, recipe.evaluate.network) == (
        str(tmp_path / "weights.pth"),
        str(tmp_path / "network"),
    )
    assert recipe.evaluate.encoder == f"timm:vit@{tmp_path}/weights.pth"
    assert (recipe.evaluate.bank, recipe.sample.guide, recipe.sample.earlier) == ("bank/b-1", "earlier:5", 5)
    assert (recipe.store, recipe.data.source) == ("/store", "asset:emoji")
