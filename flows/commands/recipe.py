"""``gmem recipe``: list, show, check."""

from __future__ import annotations

import typer

from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import tell

app = typer.Typer(no_args_is_help=True, help="The parameters of every stage.")


@app.command("list")
def list_recipes() -> None:
    """The shipped recipes, a line each."""
    from flows.recipe.files import load, names

    for name in names():
        print(f"{name:16} {load(name).description}")


@app.command()
def show(recipe: RecipeName, set: Set = None, store: StoreUri = None, json: Json = False) -> None:
    """Prints a recipe fully resolved: every key, with what it extends and overrides applied."""
    import yaml

    values = resolved(recipe, set, store).model_dump(mode="json")
    print_json(values) if json else print(yaml.safe_dump(values, sort_keys=False), end="")


@app.command()
def check(file: RecipeName, set: Set = None) -> None:
    """Validates a recipe without running it: a line for each problem, with file and line of its key.

    What it names and is not here is told, since it may be where it will run.
    """
    from flows.commands.doctor import examine_named
    from flows.recipe.files import RecipeError

    try:
        recipe = resolved(file, set, None)
    except RecipeError as error:
        for problem in error.problems:
            tell(str(problem))
        if not error.problems:
            raise
        raise typer.Exit(2) from None
    for key, there, text in examine_named(recipe):
        if not there:
            tell(f"not here: {key}: {text}")
    print(
        f"{recipe.name}: {recipe.data.image_size} px, latent {recipe.tokenizer.channels}x{recipe.grid}x{recipe.grid}, network {recipe.network.size}/{recipe.network.patch}, {recipe.train.steps:,} steps: valid"
    )
