"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flows.recipe import Recipe
from flows.recipe_files import assignments, load

RecipeName = Annotated[str, typer.Argument(help="a shipped recipe's name (see 'gmem recipe list') or a YAML file")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="overrides a key of the recipe, such as train.steps=2000; repeatable"
    ),
]
StoreUri = Annotated[
    str | None,
    typer.Option("--store", metavar="URI", help="the store: a directory or s3://bucket/prefix (recipe key 'store')"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of standard output")]


def overrides(pairs: list[str] | None, store: str | None) -> dict[str, Any]:
    return assignments(pairs or []) | ({"store": store} if store else {})


def resolved(name: str, pairs: list[str] | None, store: str | None) -> Recipe:
    return load(name, overrides(pairs, store))


def print_json(values: Any) -> None:
    print(json.dumps(values, default=str), flush=True)
