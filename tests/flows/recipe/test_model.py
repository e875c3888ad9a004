"""The model: what is refused, what is part of an identity, which paths travel."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe.files import RecipeError, load


def test_patch_two_on_an_odd_grid_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"network\.patch 2 does not divide the latent grid of 9 cells"):
        load("emoji", {"network": {"patch": 2}, "data": {"image_size": 72}})


def test_operational_fields_are_no_part_of_an_identity() -> None:
    recipe = load("emoji")
    more = load("emoji", {"train": {"steps": 9999, "log_every": 1, "keep": 7}, "tokenizer": {"batch": 3}})
    assert recipe.train.identity() == more.train.identity()
    assert recipe.tokenizer.identity() == more.tokenizer.identity()
    assert recipe.train.identity() != load("emoji", {"train": {"lr": 1}}).train.identity()


def test_a_background_is_a_colour_however_it_is_written() -> None:
    def identity(background: str) -> dict[str, object]:
        return load("emoji", {"data": {"background": background}}).data.identity()

    assert identity("white") == identity("#FFF") == load("emoji").data.identity()
    assert identity("black") == identity("rgb(0, 0, 0)") == load("emoji").data.identity() | {"background": "#000000"}
    with pytest.raises(RecipeError, match=r"data\.background 'cloud' is no colour; give a name such as black"):
        load("emoji", {"data": {"background": "cloud"}})


def test_averages_count_once_and_in_no_order() -> None:
    plain = load("emoji").train
    assert load("emoji", {"train": {"emas": [plain.ema]}}).train.identity() == plain.identity()
    one, other = (load("emoji", {"train": {"emas": each}}).train for each in ([0.9995, 0.9], [0.9, 0.9995, 0.9]))
    assert one.identity() == other.identity() == plain.identity() | {"emas": [0.9, 0.9995]}
    assert one.averages() == {"ema": plain.ema, "ema_9": 0.9, "ema_9995": 0.9995}


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


def test_what_a_recipe_names_in_its_store_moves_with_it() -> None:
    evaluate = {"further_encoders": ["/old/runs/weights/a", "/old/runs-2/a"], "network": "training/x-1"}
    named = {"store": "/old/runs", "evaluate": evaluate, "tokenizer": {"source": "/old/runs/weights/t"}}
    moved = load("emoji", named).moved("s3://new")
    assert (moved.store, moved.tokenizer.source) == ("s3://new", "s3://new/weights/t")
    assert moved.evaluate.further_encoders == ["s3://new/weights/a", "/old/runs-2/a"]
    assert moved.evaluate.network == "training/x-1" and moved.moved("/old/runs") == load("emoji", named)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "", "emoji.tar", "x" * 10_000])
def test_an_asset_is_one_that_is_shipped(name: str) -> None:
    with pytest.raises(RecipeError, match=r"is not shipped; shipped are emoji, as asset:NAME") as refusal:
        load("emoji", {"data": {"source": f"asset:{name}"}})
    assert len(str(refusal.value)) < 250
