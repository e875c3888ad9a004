"""The form that Prefect shows for a recipe's overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.flows import load_flow_from_entrypoint
from pydantic import ValidationError

from flows.experiments.flow import compare_arms
from flows.pipeline import FLOWS, pipeline
from flows.recipe.files import RecipeError, load, names
from flows.recipe.form import Overrides, overrides_of
from flows.recipe.model import Recipe
from flows.upkeep import bank_add, bank_optimise, bank_withdraw

ROOT = Path(__file__).parents[3]


def test_the_form_of_overrides_has_every_field_and_refuses_unknown_ones() -> None:
    form = Overrides(train={"steps": 5}, data={"source": "/pictures"})  # type: ignore[call-arg]
    assert overrides_of(form) == {"train": {"steps": 5}, "data": {"source": "/pictures"}}
    emptied = Overrides(train={"start_from": None}, data={})  # type: ignore[call-arg]
    assert (
        overrides_of(emptied)
        == {"train": {"start_from": None}}
        == overrides_of({"train": {"start_from": None}, "data": {}})
    )
    assert json.loads(emptied.model_dump_json()) == {"train": {"start_from": None}, "data": {}}
    assert set(Overrides.model_fields) == set(Recipe.model_fields)
    assert Overrides.model_json_schema()["$defs"]["TrainOverrides"]["properties"]["steps"]["description"]
    with pytest.raises(ValidationError):
        Overrides(train={"stps": 5})  # type: ignore[call-arg]


def test_a_null_that_was_given_counts_and_one_that_was_not_does_not() -> None:
    given = {"evaluate": {"network": None, "samples": 5}, "train": None, "cluster": {"bank": None}}
    assert overrides_of(given) == {"evaluate": {"network": None, "samples": 5}}
    assert overrides_of(Overrides.model_validate(given)) == overrides_of(given)
    recipe = load("emoji", overrides_of({"train": {"start_from": "weights/x"}}))
    assert recipe.train.start_from == "weights/x"
    assert (
        load("emoji", overrides_of(Overrides.model_validate({"train": {"start_from": None}}))).train.start_from is None
    )
    with pytest.raises(RecipeError, match=r"train\.steps is None"):
        load("emoji", overrides_of({"train": {"steps": None}}))


def test_the_schema_of_a_form_fills_in_no_null() -> None:
    """A form that sent the schema's defaults would override every field that may be none."""
    schema = Overrides.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert not [name for name, field in part["properties"].items() if "default" in field]
        assert "required" not in part


def test_a_form_asks_for_values_and_says_what_they_mean() -> None:
    """117 switches between a type and null stood before as many values, and choices looked like texts."""
    schema = Overrides.model_json_schema()
    every = {
        f"{part}.{name}": field for part, each in schema["$defs"].items() for name, field in each["properties"].items()
    }
    every |= schema["properties"]
    assert not [name for name, field in every.items() if not field.get("description")]
    assert every["TrainOverrides.steps"] | {"description": ""} == {
        "title": "steps", "type": "integer", "minimum": 1, "description": "",
    }  # fmt: skip
    assert every["TrainOverrides.lr"]["description"].endswith("; default 0.0002")
    assert every["SampleOverrides.method"]["enum"] == ["euler", "heun", "dopri5", "multistep"]
    assert every["train"]["$ref"].endswith("TrainOverrides")
    assert {"type": "null"} in every["TrainOverrides.start_from"]["anyOf"], "here a null means something"


def test_a_recipe_is_a_choice_that_may_be_a_path() -> None:
    """In the form of every flow that is deployed; what the form sends is checked against this schema."""
    flows = {**FLOWS, "pipeline": pipeline, "compare_arms": compare_arms}
    flows |= {"add": bank_add, "withdraw": bank_withdraw, "optimise": bank_optimise}
    for flow in flows.values():
        schema = flow.parameters.model_dump()["properties"]["recipe"]
        shipped, path = schema["anyOf"]
        assert shipped["enum"] == names() and "enum" not in path and path["type"] == "string"
        assert "YAML" in schema["description"] and schema["default"] == "emoji"
        needed = dict.fromkeys(flow.parameters.required, "x")
        assert flow.validate_parameters(needed | {"recipe": "mine/own.yaml"})["recipe"] == "mine/own.yaml"
        assert all(field.get("description") for field in flow.parameters.properties.values()), flow.name


@pytest.mark.parametrize(
    "entrypoint",
    [
        "flows/pipeline.py:pipeline",
        "flows/pipeline.py:train",
        "flows/experiments/flow.py:compare_arms",
        "flows/upkeep.py:bank_optimise",
    ],
)
def test_a_flow_that_is_served_from_its_file_has_its_form(entrypoint: str) -> None:
    """Prefect loads it by path then, where annotations that are texts mean nothing."""
    served = load_flow_from_entrypoint(str(ROOT / entrypoint))
    given = served.validate_parameters({"recipe": "emoji", "overrides": {"train": {"steps": 3}}})
    assert overrides_of(given["overrides"]) == {"train": {"steps": 3}}
