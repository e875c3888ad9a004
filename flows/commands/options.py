"""Options that several commands share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.recipe import STORE

if TYPE_CHECKING:
    from flows.recipe.model import Recipe
    from storage.store import Store

RecipeName = Annotated[str, typer.Argument(help="a shipped recipe's name (see 'gmem recipe list') or a YAML file")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="overrides a key of the recipe, such as train.steps=2000; repeatable"
    ),
]
StoreUri = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URI", help=f"the store: a directory or s3://bucket/prefix; none: the recipe's, or {STORE}"
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="leave in MLflow where the time goes: Ray's tasks, and a few training steps")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of standard output")]


def overrides(pairs: list[str] | None, store: str | None, profile: bool = False) -> dict[str, Any]:
    from flows.recipe.files import assignments

    pairs = [*(pairs or []), *(["cluster.profile=true"] if profile else [])]
    return assignments(pairs) | ({"store": store} if store else {})


def resolved(name: str, pairs: list[str] | None, store: str | None) -> Recipe:
    from flows.recipe.files import load

    return load(name, overrides(pairs, store))


def opened(store: str | None) -> Store:
    """The store, for commands without a recipe that could name it."""
    from storage.store import Store

    return Store(store or STORE)


def print_json(values: Any) -> None:
    print(json.dumps(values, default=str), flush=True)
