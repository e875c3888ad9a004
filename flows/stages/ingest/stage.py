"""Stage ingest: a folder of pictures, WebDataset tars, Parquet or Lance into image shards of one size, every input accounted for."""

from __future__ import annotations

from typing import Any

from flows.cluster.resources import one_task_per_cpu
from flows.engine.stage import Output, Plan, Stage
from flows.recipe.model import Recipe
from gmem.weights import content_identity

VERSION = 1


def _parameters(plan: Plan) -> dict[str, Any]:
    """What is in the source counts, not where the source lies; of a shipped one the content, the same in every copy."""
    listing = shipped_content(plan.recipe) or plan.source_fingerprint
    data = plan.recipe.data
    as_found = [name for name in ("layout", "label") if getattr(data, name) is None]
    return data.identity("source", "mirror", *as_found) | {"listing": listing}


def shipped_content(recipe: Recipe) -> str | None:
    """The identity of a shipped source; None of any other."""
    return content_identity(recipe.source) if recipe.data.source.startswith("asset:") else None


IMAGES = Output("images", VERSION, _parameters)
STAGE = Stage(
    name="ingest",
    description="Pictures into image shards; whatever cannot be used is listed in index.parquet with the reason.",
    unit="pictures",
    outputs=(IMAGES,),
    driver="flows.stages.ingest.driver",
    rows=lambda recipe, pictures: pictures,
    row_bytes=lambda recipe: recipe.picture_bytes,
    reserves=one_task_per_cpu,
)
