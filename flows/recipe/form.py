"""Overrides of a recipe as a form, which Prefect shows field by field, and as the nested dictionary it stands for."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from flows.recipe.model import Recipe


def _optional(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The same model with every field optional and null by default, nested ones too: the form of overrides."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _optional(kind, f"{kind.__name__}Overrides")
        elif field.metadata:
            kind = Annotated[kind, *field.metadata]
        fields[key] = (kind | None if not _is_optional(kind) else kind, Field(None, description=field.description))
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


if TYPE_CHECKING:

    class Overrides(BaseModel): ...
else:
    Overrides = _optional(Recipe, "Overrides")


def overrides_of(form: BaseModel | dict[str, Any] | None) -> dict[str, Any]:
    """A filled form (or nested dictionary) as overrides: what was left empty is dropped."""
    if form is None:
        return {}
    values = form.model_dump(exclude_none=True) if isinstance(form, BaseModel) else form
    nested = {k: overrides_of(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}
