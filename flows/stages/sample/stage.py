"""Stage sample: any number of pictures of chosen snippets, as WebDataset shards with an index."""

from __future__ import annotations

from typing import Any

from flows.engine.stage import Output, Plan, Stage
from flows.recipe.model import Recipe
from flows.stages import subject
from flows.stages.bank.stage import UNEDITED

VERSION = 1


def _drawn(recipe: Recipe) -> bool:
    return recipe.selection.prior


def _parameters(plan: Plan) -> dict[str, Any]:
    selection = plan.recipe.selection
    return {"selection": selection.identity()} | subject.parameters(plan, _drawn(plan.recipe), selection.neighbours > 0)


GENERATED = Output(
    "generated",
    VERSION,
    _parameters,
    inputs=lambda recipe: subject.made_of(recipe, _drawn(recipe)),
    reads=subject.read,
    wanted=lambda recipe: recipe.selection.count > 0,
    defaults=UNEDITED,
)
STAGE = Stage(
    name="sample",
    description="Samples pictures of chosen snippets of the bank, or of drawn ones, into shards with an index.",
    unit="samples",
    outputs=(GENERATED,),
    driver="flows.stages.sample.driver",
    rows=lambda recipe, pictures: recipe.selection.count,
    row_bytes=lambda recipe: recipe.picture_bytes,
    workers_import=("flows.stages.sample.driver",),
    pins=lambda context: subject.pinned(context, "generated"),
    about=subject.about,
    asked_by="selection.count=1000",
)
