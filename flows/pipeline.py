"""The chain: ingest, latents, bank, train, evaluate."""

from __future__ import annotations

from prefect import flow

from flows import bank, evaluate, ingest, latents, train
from flows.orchestration import session
from flows.recipe import Overrides
from flows.stage import Result, Stage

STAGES: tuple[Stage, ...] = (ingest.STAGE, latents.STAGE, bank.STAGE, train.STAGE, evaluate.STAGE)
FLOWS = {"ingest": ingest.ingest, "latents": latents.latents, "bank": bank.bank, "train": train.train, "evaluate": evaluate.evaluate}


@flow(name="pipeline", flow_run_name="pipeline-{recipe}", persist_result=False)
def pipeline(recipe: str = "emoji", overrides: Overrides | None = None) -> list[Result]:
    """From pictures to a measured generator. Computes only what is not in the store yet."""
    with session(recipe, overrides) as current, current.tracking.pipeline_run(current.plan.recipe.model_dump(mode="json")) as parent:
        current.parent = parent
        return [stage_flow(recipe, overrides) for stage_flow in FLOWS.values()]
