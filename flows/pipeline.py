"""The Prefect flows: one for each stage, and the chain. What the stages do is in modules of their own, free of Prefect."""

# No postponed annotations here: Prefect makes a flow's form from its signature wherever it is served or deployed.

from prefect import Flow, flow, tags

from flows.engine.context import Result
from flows.engine.stage import Stage
from flows.recipe.form import ABOUT, Overrides, RecipeChoice, overrides_of
from flows.session import prefect_tags, run, session, summarise
from flows.stages.chain import STAGES, stages_of

StageFlow = Flow[[str, Overrides | None], Result]


def _flow_of(stage: Stage) -> StageFlow:
    def body(recipe: RecipeChoice = "emoji", overrides: Overrides | None = None) -> Result:
        return run(stage, recipe, overrides)

    body.__name__ = body.__qualname__ = stage.name
    body.__doc__ = stage.description + ABOUT
    return flow(name=stage.name, persist_result=False)(body)


FLOWS: dict[str, StageFlow] = {stage.name: _flow_of(stage) for stage in STAGES}
globals().update(FLOWS)  # a deployment names its flow as an attribute of this module


@flow(name="pipeline", persist_result=False)
def pipeline(recipe: RecipeChoice = "emoji", overrides: Overrides | None = None) -> list[Result]:
    """From pictures to a measured generator. Computes only what is not in the store yet.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file.
        overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
    """
    with session(recipe, overrides) as current, tags(current.plan.recipe.name):
        parameters = current.plan.recipe.model_dump(mode="json")
        with current.tracking.pipeline_run(parameters, overrides_of(overrides), prefect_tags()) as parent:
            current.parent = parent
            names = [stage.name for stage in stages_of(current.plan.recipe)]
            flows = [FLOWS[name].with_options(flow_run_name=f"{name}-{{recipe}}") for name in names]
            results = [each(recipe, overrides) for each in flows]
        summarise(results, current)
        return results
