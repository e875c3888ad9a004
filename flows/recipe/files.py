"""Recipes as files: a name or a path becomes a recipe, and whatever is wrong becomes one sentence with a remedy.

A recipe is a YAML file. It may extend another by name, and is resolved in this order:
the model's defaults < the recipe it extends < the file itself < ``--set`` or a flow's ``overrides``.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from flows.recipe.model import Recipe
from flows.recipe.problems import Places, Problem, overridden, places_of, printable, problems, sentence
from flows.recipe.yaml_values import MAX_CHARACTERS, NotYaml, Place, read_document, read_yaml
from gmem.settings import shown
from storage.errors import Refused

RECIPES = Path(__file__).parent


class RecipeError(Refused):
    """A recipe that cannot be used; the message is one sentence that names the key and the remedy.

    `problems` are all those of its values.
    """

    def __init__(self, sentence: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(sentence)
        self.problems = tuple(problems)


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Resolves a shipped recipe's name or a YAML file's path, with nested `overrides` on top.

    Raises RecipeError with one sentence that names the key and the remedy.
    """
    values, places = _layers(recipe, ())
    try:
        return Recipe.model_validate(merged(values, overrides or {}))
    except ValidationError as error:
        whole = f"recipe {printable(recipe)}"
        found = problems(error, Recipe, overridden(places, dict.fromkeys(_keys(overrides or {}), whole)), whole)
        raise RecipeError(sentence(found), found) from None


def assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=2000", …]`` as nested overrides.

    Values of a recipe's texts, such as paths, are taken as typed, but that null is none; others are read as YAML.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"{shown(pair)} is not of the form KEY=VALUE, such as train.steps=2000")
        result |= {key.strip(): typed(key.strip(), text)}
    for key in result:
        if any(other.startswith(f"{key}.") for other in result):
            raise RecipeError(f"{printable(key)} is set both as a value and as a section; keep one of them")
    return nested(result)


def typed(key: str, text: str) -> Any:
    """The value that a text stands for under a dotted key of the recipe."""
    try:
        return _value(text, _is_text(tuple(key.split("."))))
    except NotYaml as error:
        raise RecipeError(f"the value of {printable(key)} is no YAML ({error}); quote it, or give another") from None


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """Values under dotted keys, such as `train.steps`, as the nested dictionary they stand for."""
    result: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, last = str(key).split(".")
        place = {last: value}
        for section in reversed(sections):
            place = {section: place}
        result = merged(result, place)
    return result


def _value(text: str, is_text: bool) -> Any:
    if is_text and text.strip() not in ("", "null", "~") and text[:1] not in ("'", '"'):
        return text
    value = read_yaml(text)
    # YAML 1.1 reads 1e-4 as text; a float that Python reads is meant as one.
    return float(value) if isinstance(value, str) and not is_text and _is_number(value) else value


def _is_text(place: tuple[str, ...]) -> bool:
    """Whether the recipe holds a text there."""
    model: Any = Recipe
    for part in place:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if part not in fields:
            return False
        model = fields[part].annotation
    return model is str or (get_origin(model) in (Union, types.UnionType) and set(get_args(model)) == {str, type(None)})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text[:1] in "+-.0123456789"


def _layers(recipe: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], Places]:
    """The values of a recipe and of what it extends, and where each key was given."""
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not _is_file(path):
        near = difflib.get_close_matches(recipe[:80], names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(names())}, or name a .yaml file"
        raise RecipeError(f"recipe {shown(recipe)} does not exist; {hint}")
    if str(path) in seen:
        raise RecipeError(f"recipe {printable(recipe)} extends itself; remove one 'extends'")
    try:
        document = read_document(_text_of(path))
    except NotYaml as error:
        raise RecipeError(f"recipe {printable(recipe)} is not valid YAML: {error}; correct it there") from None
    values = document.values or {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"recipe {printable(recipe)} is not a mapping of sections; see 'gmem recipe show emoji' for the form"
        )
    base = values.pop("extends", None)
    own, places = {"name": path.stem} | values, places_of(document.lines, str(path))
    if not base:
        return own, places
    below, places_below = _layers(str(base), (*seen, str(path)))
    return merged(below, own), overridden(places_below, places)


def _keys(values: dict[str, Any], above: Place = ()) -> Iterator[Place]:
    """The keys of nested values, but not those of whole sections."""
    for name, value in values.items():
        key = (*above, str(name))
        if isinstance(value, dict) and value:
            yield from _keys(value, key)
        else:
            yield key


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _text_of(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        try:
            return file.read(MAX_CHARACTERS + 1)
        except UnicodeDecodeError:
            raise NotYaml("it is no text in UTF-8") from None


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one; where both have a value, that of `top`."""
    result = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
