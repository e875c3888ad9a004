"""What a section of the recipe is: typed fields, of which some name something, and some are merely operational."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Doc

from gmem import settings
from gmem.weights import WeightsRef, absolute

Named = Literal["pictures", "weights", "network", "guide", "bank", "file"]


@dataclass(frozen=True)
class Names:
    """Marks a field that names something by a path, a URI or a name of its own; a list names several."""

    kind: Named
    needed: bool = False
    """Whether nothing can be made without it."""


def operational(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how a stage works, not what it produces."""
    return Field(default, description=description, json_schema_extra={"operational": True}, **constraints)


class Section(BaseModel):
    """Fields that gmem reads are declared there (gmem/settings.py): such a section inherits them, and is what gmem takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields that are younger than stores: at their defaults they are no part of an identity."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        for field in cls.model_fields.values():
            told = (each.documentation for each in field.metadata if isinstance(each, Doc))
            field.description = field.description or next(told, None)

    @classmethod
    def names(cls) -> dict[str, Names]:
        """The fields that name something, with what."""
        marks = {name: [m for m in field.metadata if isinstance(m, Names)] for name, field in cls.model_fields.items()}
        return {name: mark for name, found in marks.items() for mark in found}

    def named(self, field: str) -> list[str]:
        """What one of these fields names, the same from whatever folder."""
        value = getattr(self, field)
        sources = value if isinstance(value, list) else [value] if value else []
        if self.names()[field].kind == "weights":
            return [str(WeightsRef.parse(source).absolute()) for source in sources]
        return [absolute(source) for source in sources]

    def in_full(self) -> Self:
        """The same with every path in full."""
        paths = {name: self.named(name) for name in self.names()}
        several = {name for name in paths if isinstance(getattr(self, name), list)}
        return self.model_copy(update={n: p if n in several else p[0] for n, p in paths.items() if p})

    def model_post_init(self, _context: Any) -> None:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"{name} is {settings.shown(value)}, which no machine counts; give less than 2^63")
        if isinstance(self, settings.Settings):
            self.check()

    def identity(self, *without: str) -> dict[str, Any]:
        """The fields that decide what a stage produces, for its fingerprint."""
        kept = {
            name
            for name, field in type(self).model_fields.items()
            if name not in without
            and not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"))
            and not (name in self.LATER and getattr(self, name) == field.default)
        }
        return self.model_dump(mode="json", include=kept)
