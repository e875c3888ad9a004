"""What is wrong with the values of a recipe or an experiment: each problem with its place, its key and a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows.recipe.yaml_values import Place
from gmem.settings import shown

MAX_TOLD = 400
"""Characters that one message tells of several problems."""
LISTED = 20
"""Keys of a section that an unknown one is answered with, at most."""
KEY = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)+")
"""A key of a section, as messages name it."""

Places = dict[Place, str]
"""Where each key was given, such as `mine.yaml:12`; what overrides others is further behind."""


class Problem(NamedTuple):
    """`where`: the file and line of the key, or else what as a whole is wrong."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def places_of(lines: Mapping[Place, int], file: str) -> Places:
    """The places of a file's keys."""
    name = printable(file) if len(file) <= 80 else f"…{printable(file[-79:])}"
    return {key: f"{name}:{line}" for key, line in lines.items()}


def problems(error: ValidationError, model: type[BaseModel], places: Places, whole: str) -> list[Problem]:
    """The problems of a model's validation.

    Args:
        places: where the keys of its values were given.
        whole: what stands in place of a file and line for keys that no file has.
    """
    texts = [(each, _text(each, model)) for each in error.errors(include_url=False)]
    return [Problem(_where(each, text, places) or whole, text) for each, text in texts]


def _where(found: ErrorDetails, text: str, places: Places) -> str | None:
    """The place of the key; of several, which do not go together, that of the one given last."""
    if found["type"] == "value_error":
        named = {tuple(name.split(".")) for name in KEY.findall(text)}
        if given := [key for key in places if key in named]:
            return places[given[-1]]
    key = tuple(str(part) for part in found["loc"])
    above = (key[:length] for length in range(len(key), 0, -1))
    return next((places[each] for each in above if each in places), None)


def overridden(below: Places, by: Places) -> Places:
    """The places of keys with those of a further layer."""
    return {key: place for key, place in below.items() if key not in by} | by


def sentence(found: Sequence[Problem]) -> str:
    """Problems in one sentence, as many as can be read; a place is named once for all that is there."""
    told, before = "", ""
    for number, problem in enumerate(found):
        more = problem.text if problem.where == before else str(problem)
        if told and len(told) + len(more) > MAX_TOLD:
            return f"{told}; and {len(found) - number} more"
        told, before = f"{told}; {more}" if told else more, problem.where
    return told


def printable(name: str) -> str:
    """A key, a recipe or another name as messages quote it: on one line, at most 80 characters."""
    return name[:80] if name[:80].isprintable() else shown(name)


def _text(found: ErrorDetails, model: type[BaseModel]) -> str:
    key = printable(".".join(str(part) for part in found["loc"]))
    if found["type"] == "extra_forbidden":
        return f"unknown key {key}; {_hint(found['loc'], model)}"
    if found["type"] == "value_error":
        return str(found["ctx"]["error"])
    message = found["msg"][0].lower() + found["msg"][1:]
    return f"{key} is {shown(found['input'])}, but {message.replace('input should', 'it should')}"


def _hint(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What may be meant by an unknown key: the key of that name in a section, or one alike beside it."""
    last, known = str(place[-1]), _fields_at(model, place[:-1])
    sections = [name for name in model.model_fields if last in _fields_at(model, (name,))]
    if sections:
        return f"did you mean {' or '.join(f'{section}.{last}' for section in sections)}?"
    near = difflib.get_close_matches(last, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    more = ", … ('gmem recipe show' lists all)" if len(known) > LISTED else ""
    return f"known there: {', '.join(known[:LISTED])}{more}"


def _fields_at(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Keys of a section; none of what is no section."""
    for part in place:
        model = model.model_fields[str(part)].annotation
    return list(getattr(model, "model_fields", {}))
