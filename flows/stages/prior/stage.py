"""Stage prior: how the bank's snippets are distributed, learned, so that new ones can be drawn."""

from __future__ import annotations

from typing import Any

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan, Stage
from flows.stages.bank.stage import BANK, MEMORY, UNEDITED, edits, pinned
from storage.checkpoints import latest
from storage.store import Artifact

VERSION = 1


def _parameters(plan: Plan) -> dict[str, Any]:
    """As in training, the number of steps is no part of its identity: more steps continue it."""
    return {"prior": plan.recipe.prior.identity()} | edits(plan)


def _reached(plan: Plan, artifact: Artifact) -> bool:
    last = latest(artifact)
    return artifact.complete and last is not None and last.step >= plan.recipe.prior.steps


def _pins(context: Context) -> dict[str, int]:
    """The version of the bank that it begins with, or began; StageError where rows changed since the plan was made."""
    from storage.tables.bank import Bank

    versions = pinned(context, "prior")
    bank = Bank(context.artifact("bank").uri, versions["bank"])
    if bank.content_revision != context.parameters["prior"].get("bank_revision", 1):
        raise StageError("the bank was edited in the moment in which the prior began to learn from it; run again")
    return versions


PRIOR = Output(
    "prior",
    VERSION,
    _parameters,
    inputs=lambda recipe: (BANK, MEMORY) if MEMORY.wanted(recipe) else (BANK,),
    wanted=lambda recipe: recipe.prior.steps > 0,
    done=_reached,
    defaults=UNEDITED,
)
STAGE = Stage(
    name="prior",
    description="Learns how the bank's snippets are distributed, so that snippets that are nobody's can be drawn.",
    unit="steps",
    outputs=(PRIOR,),
    driver="flows.stages.prior.driver",
    rows=lambda recipe, pictures: recipe.prior.steps,
    workers_import=("flows.stages.prior.driver",),
    pins=_pins,
    asked_by="prior.steps=800",
    continues=True,
)
