"""The Prefect flows: one for each stage, and the chain. What the stages do is in modules of their own, free of Prefect."""

from __future__ import annotations

from prefect import Flow, flow

from flows.engine.stage import Result
from flows.recipe.form import Overrides
from flows.session import run, session
from flows.stages import bank as bank_stage
from flows.stages import ingest as ingest_stage
from flows.stages import latents as latents_stage
from flows.stages.evaluate import driver as evaluate_stage
from flows.stages.train import driver as train_stage


@flow(name="ingest", flow_run_name="ingest-{recipe}", persist_result=False)
def ingest(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
    """Pictures into image shards; whatever cannot be used is listed in index.parquet with the reason."""
    return run(ingest_stage.STAGE, recipe, overrides)


@flow(name="latents", flow_run_name="latents-{recipe}", persist_result=False)
def latents(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
    """Image shards into the latents table, one row for a picture and one for its mirror image."""
    return run(latents_stage.STAGE, recipe, overrides)


@flow(name="bank", flow_run_name="bank-{recipe}", persist_result=False)
def bank(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
    """Image shards into the memory bank, and into patch tokens for the alignment loss."""
    return run(bank_stage.STAGE, recipe, overrides)


@flow(name="train", flow_run_name="train-{recipe}", persist_result=False)
def train(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
    """Trains the network on latents, snippets and patch tokens; goes on from the newest checkpoint."""
    return run(train_stage.STAGE, recipe, overrides)


@flow(name="evaluate", flow_run_name="evaluate-{recipe}", persist_result=False)
def evaluate(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
    """Samples from random snippets of the bank and measures them against the pictures."""
    return run(evaluate_stage.STAGE, recipe, overrides)


FLOWS: dict[str, Flow[[str, Overrides | None], Result]] = {f.name: f for f in (ingest, latents, bank, train, evaluate)}


@flow(name="pipeline", flow_run_name="pipeline-{recipe}", persist_result=False)
def pipeline(recipe: str = "emoji", overrides: Overrides | None = None) -> list[Result]:
    """From pictures to a measured generator. Computes only what is not in the store yet."""
    with (
        session(recipe, overrides) as current,
        current.tracking.pipeline_run(current.plan.recipe.model_dump(mode="json")) as parent,
    ):
        current.parent = parent
        return [stage(recipe, overrides) for stage in FLOWS.values()]
