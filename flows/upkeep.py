"""The bank's edits and upkeep as Prefect flows, for deployments: each is one commit, and a run of kind `bank` in MLflow.

They call what `gmem bank` calls. A second attempt is safe: pictures that are there are not added twice, what is withdrawn
is withdrawn already, and an index that finds enough stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, tags

from flows.engine.progress import shown
from flows.explore import open_bank
from flows.incoming import add_pictures
from flows.recipe.files import load
from flows.recipe.form import Overrides, RecipeChoice, overrides_of
from flows.recipe.model import Recipe
from flows.withdrawal import Asked, rests_on, withdraw
from storage.store import Store
from storage.tracking.tracking import Tracking

if TYPE_CHECKING:
    from storage.tables.bank import Bank
    from storage.tracking.run import Run

Told = dict[str, Any]


@flow(name="bank-add", persist_result=False)
def bank_add(
    source: str,
    batch: str,
    recipe: RecipeChoice = "emoji",
    reason: str | None = None,
    overrides: Overrides | None = None,
) -> Told:
    """Adds pictures from elsewhere to a recipe's bank, encoded by the bank's own encoder.

    Args:
        source: a folder of pictures, tars, Parquet or Lance.
        batch: what the rows' keys begin with.
        reason: for the bank's history.
        recipe: whose bank: a shipped recipe's name, or the path of a YAML file.
        overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
    """
    chosen = load(recipe, overrides_of(overrides))
    with _edited("bank-add", chosen, {"source": source, "batch": batch, "reason": reason}) as (bank, run):
        with shown("encode") as progress:
            added, unusable = add_pictures(chosen, bank, source, batch, reason, progress)
        left_out = len(added.duplicates) + len(added.withdrawn) + len(unusable)
        run.metrics({"added": len(added.ids), "left_out": left_out})
        if unusable:
            run.table("unusable", [{"picture": name, "reason": why} for name, why in unusable.items()])
        get_run_logger().info("%d pictures added as %s/…, %d left out", len(added.ids), batch, left_out)
        return added.to_dict() | {"unusable": unusable, "version": bank.version}


@flow(name="bank-withdraw", persist_result=False)
def bank_withdraw(
    reason: str,
    where: str | None = None,
    ids: list[int] | None = None,
    near: str | None = None,
    similarity: float = 0.95,
    purge: bool = False,
    measure: bool = False,
    network: str | None = None,
    recipe: RecipeChoice = "emoji",
    overrides: Overrides | None = None,
) -> Told:
    """Takes rows out of a recipe's bank, with mirror images and mixtures; no later run brings them back. Tells what was
    made with them.

    Args:
        reason: for the bank's history, where it stays.
        where: rows that fulfil this SQL condition.
        ids: rows of these ids.
        near: all that is near to a picture file, or to the row of this id.
        similarity: with near, the least cosine of snippets that counts.
        purge: also removes the bank's earlier versions for good, whatever rests on them.
        measure: generates from the nearest that remain, and tells how near that comes.
        network: with measure, a network's URI; none: the recipe's.
        recipe: whose bank: a shipped recipe's name, or the path of a YAML file.
        overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
    """
    chosen = load(recipe, overrides_of(overrides))
    asked = Asked(reason, ids, where, near, similarity, purge, measure, network)
    with _edited("bank-withdraw", chosen, asdict(asked)) as (bank, run), shown("withdraw") as progress:
        told = withdraw(chosen, bank, asked, run, tracking_of(chosen), progress)
        for name, what in rests_on(told):
            get_run_logger().info("%s: %s", name, what)
        return told


@flow(name="bank-optimise", persist_result=False)
def bank_optimise(recipe: RecipeChoice = "emoji", overrides: Overrides | None = None) -> Told:
    """Compacts a recipe's bank, takes new rows into its indices, and measures what a search finds.

    Args:
        recipe: whose bank: a shipped recipe's name, or the path of a YAML file.
        overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
    """
    chosen = load(recipe, overrides_of(overrides))
    with _edited("bank-optimise", chosen, {}) as (bank, run):
        return optimised(bank, run)


def optimised(bank: Bank, run: Run) -> Told:
    """One round of a bank's upkeep; its figures go to the run."""
    bank.build_index()
    about = bank.info()
    figures = {name: getattr(about, name) for name in ("rows", "unindexed", "fragments", "versions", "bytes")}
    run.metrics(figures)
    search = about.search or {}
    wide = {f"share of {effort['share']:g}": effort for effort in search.get("wide", ())}
    for kind, effort in {"plain": search.get("plain"), "filtered": search.get("filtered"), **wide}.items():
        run.metrics({f"search/{kind}/{name}": float(value) for name, value in (effort or {}).items()})
    return figures | {"index": about.index, "search": about.search, "version": about.version}


@contextmanager
def maintained(recipe: Recipe, what: str, parameters: Told) -> Iterator[Run]:
    """A run in the recipe's experiment for a change of its bank."""
    with tracking_of(recipe).experiment_run(what, parameters, kind="bank") as run:
        yield run


def tracking_of(recipe: Recipe) -> Tracking:
    return Tracking.open(recipe.tracking.uri, Store(recipe.store), recipe.name)


@contextmanager
def _edited(what: str, recipe: Recipe, parameters: Told) -> Iterator[tuple[Bank, Run]]:
    """The recipe's bank, and the run that records what is done to it."""
    bank = open_bank(recipe)
    with tags(recipe.name), maintained(recipe, what, parameters) as run:
        yield bank, run
        run.metrics({"version": bank.version, "rows": len(bank)})
