"""Overrides of a recipe as a form, which Prefect shows field by field, and as the nested dictionary it stands for."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, create_model, model_serializer

from flows.recipe.model import Recipe


class _Form(BaseModel):
    """Holds, and gives, what was filled in; null is a value like any other."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _filled_in(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if key in self.model_fields_set}


def _optional(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The same model with every field optional, nested ones too: the form of overrides."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _optional(kind, f"{kind.__name__}Overrides")
        elif field.metadata:
            kind = Annotated[kind, *field.metadata]
        # Without a default in the schema a form sends what a person has filled in, and no nulls for the rest.
        about = Field(None, description=field.description, json_schema_extra=_without_default)
        fields[key] = (kind | None if not _is_optional(kind) else kind, about)
    return create_model(name, __base__=_Form, **fields)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


if TYPE_CHECKING:

    class Overrides(BaseModel): ...
else:
    Overrides = _optional(Recipe, "Overrides")


def overrides_of(form: BaseModel | dict[str, Any] | None) -> dict[str, Any]:
    """A filled form (or nested dictionary) as overrides: what was left empty is dropped, null is kept."""
    if form is None:
        return {}
    values = form.model_dump() if isinstance(form, BaseModel) else form
    nested = {k: overrides_of(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v != {}}
