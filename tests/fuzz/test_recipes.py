"""Recipes, overrides and addresses, damaged: read, or one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flows.experiments import design
from flows.recipe.files import RECIPES, RecipeError, assignments, load
from flows.recipe.form import overrides_of
from flows.recipe.model import Recipe
from storage.errors import Refused
from storage.images.sources.files import files_of, reach
from tests.fuzz.mutation import given_many, is_one_sentence, mutated, within_memory

WHOLE = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
WHOLE += [b"a: &a [1, *a]\nb: {<<: *a}\n", b"train: {steps: 0x1f, lr: 1e-4, seed: !!int 3}\nname: 2024-01-01\n"]
ARMS = [path.read_bytes() for path in sorted(design.SHIPPED.glob("*.yaml"))]
ARMS += [b"grid: {sample.steps: [1, 2], train.lr: [1e-4]}\nseeds: [1]\n"]
KEYS = [
    f"{section}.{name}" if fields else section
    for section, field in Recipe.model_fields.items()
    for fields in [getattr(field.annotation, "model_fields", {})]
    for name in fields or [""]
]
WORDS = st.sampled_from(
    ("null", "[", "{a: ", "!!int", "*a", "&a", "1e999", ".nan", "-1", "9" * 5000, "$HOME", "'", "#")
)
TEXTS = st.lists(WORDS | st.text(max_size=5), max_size=4).map("".join)


@given_many()
@given(mutated(WHOLE))
def test_damaged_recipes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory():
        path = Path(folder) / "mine.yaml"
        path.write_bytes(data)
        try:
            assert isinstance(load(str(path)), Recipe)
        except RecipeError as error:
            assert is_one_sentence(error), str(error)


@given_many(0.5)
@given(mutated(ARMS))
def test_damaged_experiments(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, within_memory():
        path = Path(folder) / "mine.yaml"
        path.write_bytes(data)
        try:
            trials = list(design.load(str(path)).trials())
            assert 0 < len(trials) <= design.MOST_TRIALS
        except Refused as error:
            assert is_one_sentence(error), str(error)


@given_many(2.0)
@given(st.lists(st.tuples(st.sampled_from(KEYS) | TEXTS, TEXTS), min_size=1, max_size=3))
def test_any_assignment(pairs: list[tuple[str, str]]) -> None:
    try:
        overrides = assignments(f"{key}={value}" for key, value in pairs)
        assert isinstance(load("emoji", overrides_of(overrides)), Recipe)
    except RecipeError as error:
        assert is_one_sentence(error), str(error)


ADDRESSES = st.sampled_from(
    ("file://", "memory://", "zip://", "gs://", "asset:", "{1..9}", "{a,b}", "::", "*", "[", "../", "~", "$HOME", "${X")
)


@given_many()
@given(st.lists(ADDRESSES | st.text(max_size=4), max_size=4).map("".join))
def test_any_address(text: str) -> None:
    """In a folder that is not there, so that no test walks a whole disk."""
    source = text if "://" in text and "**" not in text else f"/nowhere/{text}"
    if source.startswith(("file:", "zip:")):
        source = source.replace("://", ":///nowhere/", 1)
    try:
        place = reach(source)
        if not place.is_folder:
            files_of(place)
    except Refused as error:
        assert is_one_sentence(error), str(error)
