"""Recipes as files: layers, overrides, and what is refused, each time in one sentence with the key and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe.files import RecipeError, assignments, load, names


def test_shipped_recipes_are_valid_and_carry_the_published_hyper_parameters() -> None:
    assert {"emoji", "imagenet256-b", "imagenet256-xl", "imagenet512-xl"} <= set(names())
    xl = load("imagenet256-xl")
    assert (xl.network.size, xl.train.steps, xl.train.batch, xl.train.lr, xl.train.mask) == (
        "XL",
        200_000,
        1024,
        2e-4,
        0.4,
    )
    assert (xl.tokenizer.factor, xl.tokenizer.channels, xl.grid) == (16, 32, 16)
    assert (xl.train.beta1, xl.train.beta2, xl.train.ema, xl.train.clip) == (0.9, 0.95, 0.9999, 1.0)
    assert (xl.sample.kind, xl.sample.method, xl.sample.steps, xl.sample.last_size) == ("sde", "heun", 50, 0.004)
    assert load("imagenet512-xl").grid == 32


def test_a_recipe_extends_another_and_its_own_values_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: emoji\ntrain: {steps: 7}\n")
    recipe = load(str(mine))
    assert recipe.name == "mine"
    assert recipe.train.steps == 7
    assert recipe.train.batch == load("emoji").train.batch


def test_overrides_win_over_everything() -> None:
    recipe = load("emoji", assignments(["train.steps=12", "train.lr=1e-4", "data.mirror=false"]))
    assert (recipe.train.steps, recipe.train.lr, recipe.data.mirror) == (12, 1e-4, False)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("train.stps=3", "unknown key train.stps; did you mean steps?"),
        ("image_size=32", "unknown key image_size; did you mean data.image_size?"),
        ("data.factor=3", "unknown key data.factor; did you mean tokenizer.factor?"),
        ("train.steps=many", "train.steps is 'many'"),
        ("train.steps=0", "greater than or equal to 1"),
        ("data.image_size=250", "not divisible by tokenizer.factor 8; choose a multiple such as 248"),
        ("network.size=XXL", "network.size is 'XXL'"),
        ("nonsense=1", "unknown key nonsense"),
        ("sample.method=dopri5", "dopri5"),
        ("evaluate.reference=ref.npz", "name its weights by evaluate.inception"),
        ("sample.guide=earlier:soon", "write it as earlier:20000"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_a_remedy(pair: str, sentence: str) -> None:
    changes = assignments([pair])
    if "dopri5" in pair:
        changes["sample"]["kind"] = "sde"
    with pytest.raises(RecipeError) as refusal:
        load("emoji", changes)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unknown_recipe_suggests_a_near_one() -> None:
    with pytest.raises(RecipeError, match="did you mean emoji"):
        load("emojii")


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "extends: loop\n"])
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text(text.replace("loop", str(file)))
    with pytest.raises(RecipeError) as refusal:
        load(str(file))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["My Pictures #2", "Fotos: 2024", "2024-13-45", "1e-4", "yes", "[a]", "*b", "007", "%x", "a b ", "@x", "!c"]
)
def test_a_text_is_taken_as_typed(text: str) -> None:
    recipe = load("emoji", assignments([f"data.source={text}", f"train.start_from={text}", f"description={text}"]))
    assert (recipe.data.source, recipe.train.start_from, recipe.description) == (text, text, text)


def test_of_a_text_null_is_none_and_quotes_are_yamls() -> None:
    given = assignments(["train.start_from=null", "evaluate.network=", "data.source='null'", "evaluate.samples=7"])
    assert given["train"]["start_from"] is None and given["evaluate"] == {"network": None, "samples": 7}
    assert given["data"]["source"] == "null"
    with pytest.raises(RecipeError, match=r"data\.source is None"):
        load("emoji", assignments(["data.source=null"]))


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "pair",
    [
        LONG,
        f"{LONG}=1",
        f"train.{LONG}=1",
        f"train.steps={LONG}",
        f"network.size={LONG}",
        f"name={LONG} {LONG}",
        f"cluster.address=ray://{LONG}",
        f"sample.guide=earlier:{LONG}",
        "train.steps=" + "9" * 5000,
        "train.steps=0x" + "f" * 5000,
        "train.steps=" + "[" * 5000,
        "train.seed=9223372036854775808",
        "train.lr=.inf",
        "train.lr=.nan",
        "train.steps=2024-13-45",
        "train.steps=!!timestamp soon",
        "train.steps=!!int many",
        "train.steps=!!binary x",
        "train.steps=!!python/object/apply:os.getcwd []",
        "train.steps=&a [*a]",
        "train=5",
        "train.steps={a: 1}",
        "data={1: 2}",
        "data={source: [1]}",
        "evaluate.further_encoders={a: [b]}",
        "..=1",
        "a\nb=[",
        "train.a\nb=1",
        "train.=1",
    ],
    ids=lambda pair: pair[:30],
)
def test_values_that_cannot_be_are_quoted_short(pair: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        load("emoji", assignments([pair]))
    assert len(str(refusal.value)) < 450 and "\n" not in str(refusal.value)


def test_names_that_no_recipe_has() -> None:
    for name in (LONG, f"{LONG}.yaml", "a\0b.yaml", "a\nb", "/", ""):
        with pytest.raises(RecipeError) as refusal:
            load(name)
        assert len(str(refusal.value)) < 450


def test_all_problems_are_told_at_once_and_no_more_than_can_be_read() -> None:
    with pytest.raises(RecipeError) as error:
        load("emoji", {"train": {"stps": 3, "batch": 0}, "data": {"image_size": "wide"}})
    assert all(key in str(error.value) for key in ("train.stps", "train.batch", "data.image_size"))
    with pytest.raises(RecipeError, match=r"; and \d+ more$") as error:
        load("emoji", {"train": {f"unknown{number}": 1 for number in range(50)}})
    assert len(str(error.value)) < 700
