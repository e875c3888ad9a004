"""The form that Prefect shows for a recipe's overrides."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from flows.recipe.form import Overrides, overrides_of
from flows.recipe.model import Recipe


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
