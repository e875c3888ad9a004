"""Settings: declared once, bounds hold without a recipe, and a recipe's sections are what gmem takes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from flows.recipe.files import RecipeError, load
from flows.recipe.form import Overrides
from flows.recipe.section import Section
from gmem.settings import LearnerConfig, MemoryConfig, NetworkChoices, NetworkConfig, SamplerConfig, Settings

SECTIONS = {"bank": MemoryConfig, "network": NetworkChoices, "train": LearnerConfig, "sample": SamplerConfig}


@pytest.mark.parametrize(
    ("settings", "values", "sentence"),
    [
        (SamplerConfig, {"steps": 1}, r"^sample\.steps is 1; give at least 2$"),
        (SamplerConfig, {"method": "rk4"}, r"^sample\.method is 'rk4'; use one of euler, heun, dopri5, multistep$"),
        (LearnerConfig, {"mask": 1.0}, r"^train\.mask is 1\.0; give less than 1$"),
        (LearnerConfig, {"shift_base": 0}, r"^train\.shift_base is 0; give at least 1$"),
        (LearnerConfig, {"emas": (0.9, 1.0)}, r"^train\.emas holds 1\.0; give numbers from 0 to less than 1$"),
        (LearnerConfig, {"lr": float("nan")}, r"^train\.lr is nan; give more than 0$"),
        (MemoryConfig, {"snippets": 0}, r"^bank\.snippets is 0; give more than 0$"),
        (MemoryConfig, {"snippets": 2.5}, r"^bank\.snippets 2\.5 is neither a share nor a number of pictures"),
        (MemoryConfig, {"choice": "best"}, r"^bank\.choice is 'best'; use one of random, balanced, medoids, farthest$"),
        (NetworkConfig, {"depth": 0, "width": 32, "heads": 2}, r"^network\.depth is 0; give at least 1$"),
    ],
)
def test_what_lies_outside_its_bounds_is_refused_by_name(settings: type, values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(**values)


@pytest.mark.parametrize(("section", "settings"), SECTIONS.items())
def test_a_section_of_a_recipe_is_the_settings_themselves(section: str, settings: type[Settings]) -> None:
    recipe = load("emoji")
    mine = getattr(recipe, section)
    assert isinstance(mine, settings) and isinstance(mine, Section)
    names = {field.name for field in fields(settings)}  # type: ignore[arg-type]  # every subclass is a dataclass
    assert names <= type(mine).model_fields.keys()
    form = Overrides.model_fields[section].annotation
    assert form is not None
    described = form.__args__[0].model_fields
    assert [name for name in names if not described[name].description] == []


def test_what_settings_refuse_together_a_recipe_refuses_too() -> None:
    with pytest.raises(RecipeError, match="guidance_from lies after"):
        load("emoji", {"sample": {"guidance_from": 0.5, "guidance_until": 0.2}})


def test_what_training_may_do_otherwise_counts_only_where_it_is_set() -> None:
    plain = load("emoji").train
    for changed in ({"route": 0.5}, {"optimiser": "muon"}):
        assert load("emoji", {"train": changed}).train.identity() == plain.identity() | changed
    with pytest.raises(RecipeError, match=r"train\.optimiser muon needs whole matrices"):
        load("emoji", {"train": {"optimiser": "muon", "sharded": True}})


def test_younger_settings_count_only_where_they_are_set() -> None:
    plain, strict = (load("imagenet256-b", {"sample": each}).sample for each in ({}, {"rtol": 1e-5}))
    assert strict.identity() == plain.identity() | {"rtol": 1e-5}
    assert not plain.identity().keys() & {"rtol", "atol", "diffusion_norm"}


@pytest.mark.parametrize(
    ("snippets", "kept"), [(None, 1624), (0.5, 812), (0.01, 16), (1e-6, 1), (1, 1), (100, 100), (1624, 1624)]
)
def test_a_share_or_a_number_of_pictures_is_kept(snippets: float | None, kept: int) -> None:
    config = MemoryConfig(snippets=snippets)
    assert config.count(1624) == kept and config.whole == (snippets is None)


def test_more_pictures_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match=r"bank\.snippets asks for 2,000 of 1,624 training pictures; give a smaller"):
        MemoryConfig(snippets=2000).count(1624)
    assert not MemoryConfig(rank=16).whole
