"""Stage bank: image shards through the encoder into the memory bank, and into patch tokens for the alignment loss."""

from __future__ import annotations

from typing import Any

from flows.engine.context import Context
from flows.engine.stage import Output, Plan, Stage
from flows.recipe.model import Recipe
from flows.stages.ingest.stage import IMAGES
from gmem.weights import WeightsRef

VERSION = 1
SNIPPET_WIDTH = 768
"""Of the published encoder: an estimate does not load the weights to know theirs."""


def _parameters(plan: Plan) -> dict[str, Any]:
    return {"weights": WeightsRef.parse(plan.recipe.encoder.source).identity(), "mirror": plan.recipe.data.mirror}


def _row_bytes(recipe: Recipe) -> int:
    """Snippet, thumbnail and patch tokens, without an index."""
    tokens = recipe.grid**2 if recipe.train.align else 0
    return 2 * SNIPPET_WIDTH + 2000 + 2 * tokens * recipe.bank.patch_components


def revision(plan: Plan) -> dict[str, int]:
    """What a fingerprint takes of edits of the recipe's bank: nothing of a bank that is as it was made, or not there."""
    from storage.tables.bank import Bank

    artifact = plan.artifact(BANK)
    number = Bank(artifact.uri).content_revision if artifact.complete else 1
    return {} if number == 1 else {"revision": number}


def pinned(context: Context, kind: str) -> dict[str, int]:
    """The bank's newest version for what makes an artifact of this kind, tagged so that it is never cleaned up; what is
    continued goes on with the one it began with, whatever was added since."""
    from storage.tables.bank import Bank

    bank = Bank(context.artifact("bank").uri)
    tag = f"{kind}-{context.fingerprints[kind]}"
    tagged = bank.table.tags.list().get(tag)
    return {"bank": tagged["version"] if tagged else bank.tag(tag)}


BANK = Output("bank", VERSION, _parameters, inputs=lambda recipe: (IMAGES,))
PATCHES = Output(
    "patches",
    VERSION,
    lambda plan: _parameters(plan) | {"components": plan.recipe.bank.patch_components},
    inputs=lambda recipe: (IMAGES,),
    wanted=lambda recipe: recipe.train.align > 0,
)
STAGE = Stage(
    name="bank",
    description="Image shards into the memory bank, and into patch tokens for the alignment loss.",
    unit="rows",
    outputs=(BANK, PATCHES),
    driver="flows.stages.bank.driver",
    rows=lambda recipe, pictures: pictures * recipe.views,
    row_bytes=_row_bytes,
    workers_import=("flows.stages.bank.driver", "timm"),
)
