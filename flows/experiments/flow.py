"""An experiment as a Prefect flow: every arm trained and measured alike, and what comes of it in one place."""

# No postponed annotations here: Prefect makes a flow's form from its signature wherever it is served or deployed.

import platform
import re
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed
from itertools import chain
from typing import Annotated, Any

from prefect import flow, tags
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from pydantic import Field

from flows.cluster.address import jobs_address
from flows.cluster.connection import connected
from flows.cluster.limits import limits
from flows.console import tell
from flows.engine.context import Result
from flows.engine.stage import Plan, Stage
from flows.experiments import design, registering
from flows.experiments.curves import Point
from flows.experiments.design import Trial
from flows.experiments.plots import distances
from flows.experiments.registering import Measured
from flows.experiments.results import Findings, markdown, split_of, table
from flows.experiments.side_by_side import side_by_side
from flows.recipe.files import load, merged, nested
from flows.recipe.form import Overrides, RecipeChoice, overrides_of
from flows.session import DEPLOYED_WAIT, Session, attempted, planned, show_picture
from flows.stages.chain import STAGES
from flows.stages.evaluate.comparison import read_report
from flows.stages.evaluate.stage import STAGE as EVALUATE
from flows.stages.evaluate.stage import distance_metric
from flows.stages.ingest.stage import IMAGES
from flows.stages.train.stage import TRAINING
from gmem.weights import WeightsRef
from storage.checkpoints import all_checkpoints, at
from storage.errors import Refused
from storage.images.shards import HELD_OUT, TRAIN
from storage.tracking.tracking import Run, Tracking

PLOT, FINDINGS = "distances.png", "findings.json"
"""Files in the experiment's run in MLflow."""
SPLITS = (TRAIN, HELD_OUT)

Trials = list[tuple[Trial, list[Plan]]]
"""Each with a plan for every step at which it is measured, the last step first: it trains for all of them."""


@flow(name="compare-arms", persist_result=False)
def compare_arms(
    recipe: RecipeChoice = "emoji",
    experiment: str | dict[str, Any] = "emoji-memory",
    overrides: Overrides | None = None,
    note: str = "",
    register_best: bool = False,
    at_once: Annotated[int, Field(ge=1)] = 1,
) -> Findings:
    """Trains and measures every arm of an experiment alike, and tells what each change of the recipe is worth.

    Args:
        recipe: a shipped recipe's name, or the path of a YAML file.
        experiment: a shipped experiment's name, or what its file would hold.
        overrides: what is to be otherwise than in the recipe; fields that are left empty stay as they are.
        note: what a reader of the results should know.
        register_best: whether the best point becomes the version `best` of the recipe's registered model.
        at_once: trainings that share a cluster at a time; more than one as jobs of a cluster alone.
    """
    chosen = design.load(experiment)
    base = _with_averages(recipe, chosen, overrides_of(overrides))

    # Every arm's every plan is made before anything is computed, so that what cannot be is refused at once.
    trials = _trials(recipe, chosen, base, _sharing(at_once))
    first = trials[0][1][0]
    if at_once > 1 and not jobs_address(first.recipe.cluster):
        raise Refused(
            "arms are at work side by side as jobs of a cluster; set cluster.address to its jobs API, such as "
            "http://127.0.0.1:8265 after 'ray start --head', or leave --at-once away"
        )
    tracking = Tracking.open(first.recipe.tracking.uri, first.store, first.recipe.name)

    with ExitStack() as stack, tags(first.recipe.name):
        run = stack.enter_context(tracking.experiment_run(chosen.name, chosen.model_dump()))
        if not jobs_address(first.recipe.cluster) and _anything_missing(trials):
            stack.enter_context(connected(first.recipe.cluster))  # once for all arms
        work = []
        for number, (trial, plans) in enumerate(trials, 1):
            told = f"{chosen.name}: trial {number} of {len(trials)}, {trial.name}"
            work.append(partial(_measured, trial, plans, tracking, run.id, told))
        measured = list(chain.from_iterable(side_by_side(work, at_once)))
        points = [point for point, _ in measured]
        found = Findings(
            experiment=chosen.model_dump(),
            recipe=recipe,
            overrides={key: value for key, value in base.items() if key != "store"},
            metric=distance_metric(first.recipe.evaluate),
            points=points,
            floors=_floors(points, distance_metric(first.recipe.evaluate)),
            made=datetime.now(UTC).date().isoformat(),
            hardware=f"{limits().cpus:.3g} CPUs ({platform.machine()})",
            versions={name: installed(name) for name in ("gmem-pipeline", "torch")},
            run_id=run.id,
            note=note,
        )
        _publish(found, run)
        if register_best:
            uri = registering.register(measured, found.distances[0], chosen.name, run)
            found = replace(found, registered=uri)
        return found


def _sharing(at_once: int) -> dict[str, Any]:
    """What changes of a recipe where others are at work beside it: its share, and that it waits for what they make."""
    if at_once == 1:
        return {}
    return {"cluster": {"share": 1 / at_once}, "tracking": {"lease_wait": DEPLOYED_WAIT}}


def _with_averages(recipe: str, chosen: design.Experiment, base: dict[str, Any]) -> dict[str, Any]:
    """The overrides, and that the training keeps every average that some arm samples."""
    common = load(recipe, merged(base, nested(chosen.common)))
    lacking = chosen.averages() - set(common.train.averages().values())
    if common.evaluate.network or not lacking:
        return base
    return merged(base, {"train": {"emas": sorted({*common.train.emas, *lacking})}})


def _trials(recipe: str, chosen: design.Experiment, base: dict[str, Any], sharing: dict[str, Any]) -> Trials:
    """Raises Refused where the store holds a training without the checkpoints that are to be measured, or arms are
    measured in different features."""
    made: Trials = []
    source: tuple[Any, str] | None = None
    steps: list[int] | list[None] = sorted(chosen.steps, reverse=True) or [None]
    for trial in chosen.trials():
        plans = []
        for step in steps:
            plan = planned(recipe, merged(sharing, merged(base, trial.at(step))))
            if source and source[0] == plan.recipe.data:
                plan.source_fingerprint = source[1]  # listed once, for a source may have millions of files
            source = plan.recipe.data, plan.source_fingerprint
            _require_encoder(trial, plan)
            _require_checkpoint(trial, plan)
            plans.append(plan)
        made.append((trial, plans))
    metrics = sorted({distance_metric(plan.recipe.evaluate) for _, plans in made for plan in plans})
    if len(metrics) > 1:
        raise Refused(
            f"the arms would be measured by {' and '.join(metrics)}; name one encoder for all to evaluate with"
        )
    return made


def _require_encoder(trial: Trial, plan: Plan) -> None:
    """Before the arms ahead of it are trained. What a cluster's nodes have cannot be seen from here."""
    named = WeightsRef.parse(plan.recipe.encoder.source)
    if named.kind == "folder" and not named.folder().exists() and not jobs_address(plan.recipe.cluster):
        raise Refused(
            f"arm {trial.arm} takes its snippets from {named}, and there is no such folder; train it by 'gmem pretrain "
            "encoder', or those of emoji-encoders by 'make encoders'"
        )


def _require_checkpoint(trial: Trial, plan: Plan) -> None:
    if plan.recipe.evaluate.network or not plan.done(TRAINING):
        return
    kept = [each.step for each in all_checkpoints(plan.artifact(TRAINING))]
    if plan.recipe.train.steps not in kept:
        raise Refused(
            f"the training of {trial.name} is in {plan.store.root} already, and of its checkpoints only those at steps "
            f"{', '.join(map(str, kept))[:80]}, not at {plan.recipe.train.steps}; give the experiment other seeds, steps or store"
        )


def _needed(plan: Plan) -> list[Stage]:
    """The stages that an evaluation rests on: a network from elsewhere needs no training."""
    kinds = plan.fingerprints(EVALUATE)
    return [stage for stage in STAGES if any(output.kind in kinds for output in stage.wanted(plan.recipe))]


def _anything_missing(trials: Trials) -> bool:
    return any(plan.missing(stage) for _, plans in trials for plan in plans for stage in _needed(plan))


def _measured(trial: Trial, plans: list[Plan], tracking: Tracking, parent: str, told: str) -> list[Measured]:
    """Every evaluation of one trial, in order of steps, under a run of its own in MLflow."""
    get_run_logger().info(told)
    tell(told)
    measured = []
    with tracking.experiment_run(trial.name, plans[0].recipe.model_dump(mode="json"), "trial", parent) as run:
        for plan in plans:
            with ExitStack() as stack:
                current = Session(plan, stack)
                current.parent = run.id
                stages = _needed(plan) if plan is plans[0] else [EVALUATE]
                made = [attempted(stage, current, f"{stage.name}: {trial.name}") for stage in stages]
                measured.append((_point(trial, plan, made[-1]), plan))
    return measured[::-1]


def _point(trial: Trial, plan: Plan, result: Result) -> Point:
    recipe, metrics = plan.recipe, result.details["metrics"]
    report = result.artifacts["report"]
    calls = next(each.protocol.calls for each in read_report(report, plan.store))
    step, epochs, seconds = result.details["step"], None, None
    if not recipe.evaluate.network:
        images = plan.artifact(IMAGES).manifest()
        assert images is not None, "the training was made of them"
        epochs = step * recipe.train.batch / images.counts[TRAIN]
        seconds = at(plan.artifact(TRAINING), step).manifest.details.get("seconds")
    return Point(
        arm=trial.arm,
        seed=trial.seed,
        step=step,
        epochs=epochs,
        seconds=seconds,
        calls=calls,
        metrics=metrics,
        report=plan.store.relative(report),
    )


def _floors(points: list[Point], metric: str) -> dict[str, float]:
    """Of the tokenizer's reconstructions, which are the same for all arms but those of another tokenizer."""
    keys = {split: f"{split}/floor/{metric}" for split in SPLITS}
    return {split: points[0].metrics[key] for split, key in keys.items() if key in points[0].metrics}


def _publish(found: Findings, run: Run) -> None:
    """Table, plots and findings in MLflow and Prefect."""
    run.artifact(FINDINGS, found.to_json().encode())
    for key in found.distances:
        split, name = split_of(key), found.design.name
        title = f"{name}: {found.metric} from {split} snippets"
        plot = distances(found.points, key, title)
        run.artifact(f"{split}-{PLOT}", plot)
        show_picture(plot, re.sub("[^a-z0-9]+", "-", f"{name}-{split}".lower()).strip("-"), title)
    columns, rows = table(found)
    run.table("arms", [dict(zip(columns, row, strict=True)) for row in rows])
    run.artifact("findings.md", markdown(found).encode())
    create_markdown_artifact(
        markdown(found), key="experiment", description=found.design.description or found.design.name
    )
