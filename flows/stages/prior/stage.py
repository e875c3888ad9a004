"""Stage prior: how the bank's snippets are distributed, learned, so that new ones can be drawn."""

from __future__ import annotations

from typing import Any

from flows.engine.stage import Output, Plan, Stage
from flows.stages.bank.stage import BANK, UNEDITED, edits, pinned
from storage.checkpoints import latest
from storage.store import Artifact

VERSION = 1


def _parameters(plan: Plan) -> dict[str, Any]:
    """As in training, the number of steps is no part of its identity: more steps continue it."""
    return {"prior": plan.recipe.prior.identity()} | edits(plan)


def _reached(plan: Plan, artifact: Artifact) -> bool:
    last = latest(artifact)
    return artifact.complete and last is not None and last.step >= plan.recipe.prior.steps


PRIOR = Output(
    "prior",
    VERSION,
    _parameters,
    inputs=lambda recipe: (BANK,),
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
    pins=lambda context: pinned(context, "prior"),
    continues=True,
)
