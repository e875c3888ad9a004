"""The Prefect flows: one for each stage, and the chain. What the stages do is in modules of their own, free of Prefect."""

from __future__ import annotations

from prefect import Flow, flow

from flows.engine.context import Result
from flows.engine.stage import Stage
from flows.recipe.form import Overrides
from flows.session import run, session
from flows.stages.chain import STAGES

StageFlow = Flow[[str, Overrides | None], Result]


def _flow_of(stage: Stage) -> StageFlow:
    def body(recipe: str = "emoji", overrides: Overrides | None = None) -> Result:
        return run(stage, recipe, overrides)

    body.__name__ = body.__qualname__ = stage.name
    body.__doc__ = stage.description
    named = flow(name=stage.name, flow_run_name=f"{stage.name}-{{recipe}}", persist_result=False)
    return named(body)


FLOWS: dict[str, StageFlow] = {stage.name: _flow_of(stage) for stage in STAGES}
globals().update(FLOWS)  # a deployment names its flow as an attribute of this module


@flow(name="pipeline", flow_run_name="pipeline-{recipe}", persist_result=False)
def pipeline(recipe: str = "emoji", overrides: Overrides | None = None) -> list[Result]:
    """From pictures to a measured generator. Computes only what is not in the store yet."""
    with (
        session(recipe, overrides) as current,
        current.tracking.pipeline_run(current.plan.recipe.model_dump(mode="json")) as parent,
    ):
        current.parent = parent
        return [stage(recipe, overrides) for stage in FLOWS.values()]
