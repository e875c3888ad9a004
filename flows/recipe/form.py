"""Overrides of a recipe as a form, which Prefect shows field by field, and as the nested dictionary it stands for."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticUndefined

from flows.recipe.files import names
from flows.recipe.model import Recipe

SECTIONS = {
    "Data": "Which pictures, how they are cut, which are kept for evaluation.",
    "Tokenizer": "What makes latents of pictures.",
    "Encoder": "What makes snippets of pictures.",
    "Bank": "Which snippets are kept to condition with, and what beside them.",
    "Prior": "How new snippets are drawn.",
    "Network": "What is trained.",
    "Train": "How it is trained: steps, batch, learning rate, checkpoints.",
    "Sample": "How samples are made, also while it trains.",
    "Evaluate": "What is measured, and in whose features.",
    "Cluster": "Where it runs, and what each stage reserves; changes no result.",
    "Reserved": "What a worker of this stage reserves.",
    "Tracking": "Where MLflow is.",
}
"""What a form says of a section of the recipe, by its class; of others what their docstring says."""

RecipeChoice = Annotated[
    str,
    WithJsonSchema(
        {
            "anyOf": [
                {"title": "shipped", "type": "string", "enum": names()},
                {"title": "path of a YAML file, where the run takes place", "type": "string"},
            ]
        }
    ),
]
"""A recipe, which a form shows as a choice."""

ABOUT = """

Args:
    recipe: a shipped recipe's name, or the path of a YAML file.
    overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
"""
"""For the docstring of a flow: what its form says of these."""


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
        if not _is_optional(field.annotation):
            kind = Annotated[kind | None, _ShownPlain()]
        fields[key] = kind, Field(default_factory=_empty, title=key, description=_told(field))
    return create_model(name, __base__=_Form, **fields)


class _ShownPlain:
    """Leaves the null out of a field's schema where a recipe has none: else a form asks for the type before the value."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        plain = [each for each in schema.pop("anyOf") if each.get("type") != "null"]
        return schema | (plain[0] if len(plain) == 1 else {"anyOf": plain})


def _told(field: FieldInfo) -> str | None:
    """What a form says below a field: what it means, and what it is where the recipe does not say."""
    if isinstance(field.default, BaseModel):
        return SECTIONS.get(type(field.default).__name__) or type(field.default).__doc__
    if field.default in (PydanticUndefined, None, "", []):
        return field.description
    return f"{field.description}; default {field.default}"


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
