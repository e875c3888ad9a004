"""How a stage is built: lease, job, manifest, tracking."""

from __future__ import annotations

import json
from contextlib import ExitStack
from importlib.metadata import version as installed
from time import monotonic, time
from typing import Any

from flows.cluster.errors import explained
from flows.cluster.resources import reserved_hours
from flows.engine.context import Context, Made, Result
from flows.engine.progress import Progress
from flows.engine.stage import Output, Plan, Stage, check_inputs, result_of
from storage.manifest import Manifest
from storage.store import Artifact, Lease
from storage.tracking.models import NOTE
from storage.tracking.tracking import Run, Tracking


def build(stage: Stage, plan: Plan, tracking: Tracking, parent: str | None, progress: Progress) -> Result:
    """Builds what is missing of a stage's artifacts, here and now, over the Ray this process has joined.

    Lease, manifest and MLflow run belong to the process that does the work: on a cluster that is the job, which goes
    on, and finishes, without the flow that submitted it.
    """
    import ray  # not above: `found` needs none, and it takes longer to import than all is found
    from ray.exceptions import RayError

    plan = plan.settled()
    recipe, missing = plan.recipe, plan.missing(stage)
    if not missing:
        return found(stage, plan, tracking, parent)
    check_inputs(stage, plan)
    start = monotonic()
    with ExitStack() as stack:
        holder, wait = f"stage {stage.name}", recipe.tracking.lease_wait
        leases = {output.kind: stack.enter_context(plan.artifact(output).lease(holder, wait)) for output in missing}
        # Whoever held the lease before us may have finished the work.
        if not (missing := plan.missing(stage)):
            return found(stage, plan, tracking, parent)
        continued = plan.artifact(missing[0]).folder if stage.continues else None
        run = stack.enter_context(tracking.stage_run(stage.name, parent, _parameters(stage, plan), continued))
        made_here = ", ".join(f"`{plan.artifact(output).folder}`" for output in missing)
        run.tags({NOTE: f"{stage.description}\n\nMakes {made_here}."})
        run.system_metrics()
        context = Context(
            recipe=recipe,
            fingerprints=plan.fingerprints(stage),
            parameters={output.kind: plan.parameters(output) for output in stage.wanted(recipe)},
            leases={kind: lease.number for kind, lease in leases.items()},
            tracking_uri=tracking.uri,
            run_id=run.id,
        )
        inputs = _inputs(stage, plan)
        finished = {artifact.kind: manifest.details.get("version") for artifact, manifest in inputs}
        tables = {kind: version for kind, version in finished.items() if version is not None}
        context.versions = tables | stage.pins(context)
        _log_inputs(inputs, context, stage.name, run)
        # Asked before: what cancels us may have ended Ray as well, which would not answer.
        reserved = stage.resources(recipe.cluster) if ray.is_initialized() else None
        began, at = monotonic(), time()
        try:
            made = stage.run(context, progress)
        except RayError as error:
            raise explained(error) from error
        finally:
            if reserved:
                run.add(reserved_hours(reserved, monotonic() - began))
        if reserved and recipe.cluster.profile:
            _log_timeline(run, at)
        seconds = monotonic() - start
        _commit(plan, {output: leases[output.kind] for output in missing}, made, context.versions, run, seconds)
    return _concluded(result_of(stage, plan, True, monotonic() - start), tracking, parent)


def _log_timeline(run: Run, start: float) -> None:
    """What Ray did since then: `profile/tasks.json`, for ui.perfetto.dev or chrome://tracing, and the table `tasks`."""
    from flows.cluster import timeline

    events = timeline.since(start)
    run.artifact("profile/tasks.json", json.dumps(events).encode())
    run.table("tasks", timeline.by_task(events))


def _commit(
    plan: Plan,
    leases: dict[Output, Lease],
    made: dict[str, Made],
    versions: dict[str, int],
    run: Run,
    seconds: float,
) -> None:
    """Makes each output usable by its manifest, under its lease; metrics and figures go to MLflow."""
    for output, lease in leases.items():
        artifact, each = plan.artifact(output), made[output.kind]
        artifact.commit(artifact.describe(lease, **_description(output, plan, each, versions, run.id, seconds)))
        run.metrics(each.metrics, each.details.get("step"))
        for title, path in each.figures.items():
            run.artifact(f"{title}.png", plan.store.read_bytes(artifact.path(path)))
    run.metrics({"seconds": seconds})


def _inputs(stage: Stage, plan: Plan) -> list[tuple[Artifact, Manifest]]:
    """What a stage reads and is there; an input may also be an output of the stage itself."""
    needed = dict.fromkeys(each for output in stage.wanted(plan.recipe) for each in _read(output, plan))
    artifacts = [plan.artifact(output) for output in needed]
    return [(artifact, manifest) for artifact in artifacts if (manifest := artifact.manifest())]


def _read(output: Output, plan: Plan) -> tuple[Output, ...]:
    """All that it reads, each once."""
    return tuple(dict.fromkeys((*output.inputs(plan.recipe), *output.reads(plan.recipe))))


def _log_inputs(inputs: list[tuple[Artifact, Manifest]], context: Context, stage: str, run: Run) -> None:
    """The artifacts a stage reads, as MLflow datasets."""
    for artifact, manifest in inputs:
        version = context.versions.get(artifact.kind)
        name = f"{context.recipe.name}-{artifact.kind}"
        run.dataset(name, artifact.folder, artifact.fingerprint, version, stage, manifest.counts.get("rows"))


def _parameters(stage: Stage, plan: Plan) -> dict[str, Any]:
    """What decides the artifacts, and the stage's section of the recipe, where it has one of its name, with all else."""
    section = getattr(plan.recipe, stage.name, None)
    own = {f"{stage.name}.{k}": v for k, v in section.model_dump(mode="json").items()} if section else {}
    return own | {
        f"{output.kind}.{k}": v for output in stage.wanted(plan.recipe) for k, v in plan.parameters(output).items()
    }


def _description(
    output: Output, plan: Plan, made: Made, versions: dict[str, int], run_id: str, seconds: float
) -> dict[str, Any]:
    """What the manifest of an output says."""
    inputs = {}
    for needed in _read(output, plan):
        if manifest := plan.artifact(needed).manifest():
            version = versions.get(needed.kind, manifest.details.get("version"))
            inputs[needed.kind] = plan.artifact(needed).reference(version)
    return {
        "parameters": plan.parameters(output),
        "inputs": inputs,
        "counts": made.counts,
        "times": {"seconds": seconds},
        "code_version": installed("gmem-pipeline"),
        "mlflow_run": run_id,
        "details": made.details | {"version": made.version, "figures": made.figures},
    }


def found(stage: Stage, plan: Plan, tracking: Tracking, parent: str | None) -> Result:
    """A stage with nothing missing: which run made it, linked from the run that wanted it."""
    result = result_of(stage, plan, False, 0.0)
    if parent and result.run_id:
        tracking.link(parent, stage.name, result.run_id)
    return _concluded(result, tracking, parent)


def _concluded(result: Result, tracking: Tracking, parent: str | None) -> Result:
    if parent:
        tracking.conclude(parent, result.metrics, result.details.get("step"))
    return result
