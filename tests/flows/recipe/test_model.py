"""The model: what is refused, what is part of an identity, what moves with its store."""

from __future__ import annotations

import pytest

from flows.recipe.files import RecipeError, load


def test_patch_two_on_an_odd_grid_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"network\.patch 2 does not divide the latent grid of 9 cells"):
        load("emoji", {"network": {"patch": 2}, "data": {"image_size": 72}})


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
