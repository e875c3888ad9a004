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
        fields[key] = (
            kind | None if not _is_optional(kind) else kind,
            Field(default_factory=_empty, description=field.description),
        )
    return create_model(name, __base__=_Form, **fields)


def _empty() -> None:
    """A default that the schema does not show: a form that filled it in would give a null for every field."""


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


if TYPE_CHECKING:

    class Overrides(BaseModel): ...
else:
    Overrides = _optional(Recipe, "Overrides")


def overrides_of(form: BaseModel | dict[str, Any] | None, model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """A filled form (or nested dictionary) of a model as overrides.

    Sections that were left empty are dropped, as is what was not given; a null that was given for a field counts.
    """
    values = form.model_dump(exclude_unset=True) if isinstance(form, BaseModel) else form or {}
    kept: dict[str, Any] = {}
    for key, value in values.items():
        section = _section(model, key)
        if section and (value is None or isinstance(value, dict)):
            if inner := overrides_of(value, section):
                kept[key] = inner
        else:
            kept[key] = value
    return kept


def _section(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
