"""What a stage made, as Prefect's assets: what was made of what, by which run, in which version, with which numbers.

They are told as events, as `@materialize` does. A server that shows no assets keeps these with its other events; none of
it can cost a run anything.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.states import Completed

from flows.engine.context import Result
from flows.engine.stage import Plan, Stage

log = logging.getLogger(__name__)

LONGEST = 512
"""Characters of an asset's key, by Prefect."""


def emit_made(result: Result, stage: Stage, plan: Plan, page: str) -> None:
    """Tells Prefect of each artifact that a stage made just now, and of what it was made.

    Args:
        page: of its run in MLflow.
    """
    if not result.fresh:
        return
    try:
        made = {kind: _asset(uri, f"{kind} of {plan.recipe.name}", page) for kind, uri in result.artifacts.items()}
        context = AssetContext(
            downstream_assets=set(made.values()),
            direct_asset_dependencies={Asset(key=key_of(uri)) for uri in _made_of(stage, plan)},
            materialized_by="gmem",
            materialization_metadata={made[kind].key: _numbers(result, kind) for kind in result.artifacts},
        )
        context.emit_events(Completed())
    except Exception as error:  # noqa: BLE001 - whatever Prefect makes of it, the work is done
        log.info("Prefect was told of no assets (%s)", error)


def key_of(uri: str) -> str:
    """An artifact's address as Prefect takes it for a key; characters that it refuses are underscores."""
    full = uri if "://" in uri else f"file://{Path(uri).absolute()}"
    return re.sub(r"[^\w./:@+=,~-]", "_", full)[:LONGEST]


def _asset(uri: str, name: str, page: str) -> Asset:
    shown = page if page.startswith("http") else None
    return Asset(key=key_of(uri), properties=AssetProperties(name=name, description=uri[:LONGEST], url=shown))


def _made_of(stage: Stage, plan: Plan) -> set[str]:
    """Addresses of the artifacts that a stage read, or of the pictures."""
    recipe, outputs = plan.recipe, stage.wanted(plan.recipe)
    read = {needed for output in outputs for needed in (*output.inputs(recipe), *output.reads(recipe))}
    return {plan.artifact(needed).uri for needed in read - set(outputs)} or {recipe.source}


def _numbers(result: Result, kind: str) -> dict[str, Any]:
    about = {
        "uri": result.artifacts[kind],
        "version": result.versions.get(kind),
        "rows": result.rows,
        "unit": result.unit,
        "seconds": round(result.seconds, 1),
        "mlflow_run": result.run_id,
    }
    return about | result.metrics
