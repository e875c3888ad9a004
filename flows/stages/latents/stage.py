"""Stage latents: image shards through the tokenizer into the latents table."""

from __future__ import annotations

from typing import Any

from flows.engine.stage import Output, Plan, Stage
from flows.stages.ingest.stage import IMAGES
from gmem.weights import WeightsRef

VERSION = 1


def _parameters(plan: Plan) -> dict[str, Any]:
    tokenizer = plan.recipe.tokenizer
    return tokenizer.identity("source") | {
        "weights": WeightsRef.parse(tokenizer.source).identity(),
        "mirror": plan.recipe.data.mirror,
    }


LATENTS = Output("latents", VERSION, _parameters, inputs=lambda recipe: (IMAGES,))
STAGE = Stage(
    name="latents",
    description="Image shards into the latents table, one row for a picture and one for its mirror image.",
    unit="rows",
    outputs=(LATENTS,),
    driver="flows.stages.latents.driver",
    rows=lambda recipe, pictures: pictures * recipe.views,
    row_bytes=lambda recipe: 2 * recipe.tokenizer.channels * recipe.grid**2 + 32,
    workers_import=("flows.stages.latents.driver", "diffusers.models.autoencoders.autoencoder_kl"),
)
