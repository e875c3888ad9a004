"""How a stage is built: lease, job, manifest, tracking."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.metadata import version as installed
from time import monotonic
from typing import Any

from ray.exceptions import RayError

from flows.cluster.errors import explained
from flows.cluster.resources import reserved
from flows.engine.plan import Plan, check_inputs, result_of
from flows.engine.progress import Report
from flows.engine.stage import Job, Outcome, Part, Result, Stage
from storage.store import Lease
from storage.tracking.tracking import Run, Tracking


def build(stage: Stage, plan: Plan, tracking: Tracking, parent: str | None, report: Report) -> Result:
    """Builds what is missing of a stage's artifacts, here and now, over the Ray this process has joined.

    Lease, manifest and MLflow run belong to the process that does the work: on a cluster that is the job, which goes
    on, and finishes, without the flow that submitted it.
    """
    plan = plan.settled()
    recipe, missing = plan.recipe, plan.missing(stage)
    if not missing:
        return found(stage, plan, tracking, parent)
    check_inputs(stage, plan)
    start = monotonic()
    with ExitStack() as stack:
        holder, wait = f"stage {stage.name}", recipe.tracking.lease_wait
        leases = {part.kind: stack.enter_context(plan.artifact(part).lease(holder, wait)) for part in missing}
        # Whoever held the lease before us may have finished the work.
        if not (missing := plan.missing(stage)):
            return found(stage, plan, tracking, parent)
        continued = plan.artifact(missing[0]).folder if stage.continues else None
        run = stack.enter_context(tracking.stage_run(stage.name, parent, _parameters(stage, plan), continued))
        run.system_metrics()
        _log_inputs(stage, plan, run)
        job = Job(
            recipe=recipe,
            fingerprints=plan.fingerprints(stage),
            parameters={part.kind: plan.parameters(part) for part in stage.wanted(recipe)},
            leases={kind: lease.number for kind, lease in leases.items()},
            tracking_uri=tracking.uri,
            run_id=run.id,
        )
        began = monotonic()
        try:
            outcome = stage.job(job, report)
        except RayError as error:
            raise explained(error) from error
        finally:
            run.add(reserved(recipe.cluster, stage.name, monotonic() - began))
        seconds = monotonic() - start
        _commit(plan, {part: leases[part.kind] for part in missing}, outcome, run, seconds)
    return result_of(stage, plan, True, monotonic() - start)


def _commit(plan: Plan, leases: dict[Part, Lease], outcome: Outcome, run: Run, seconds: float) -> None:
    """Makes each part usable by its manifest, under its lease; metrics and pictures go to MLflow."""
    for part, lease in leases.items():
        artifact = plan.artifact(part)
        artifact.commit(artifact.describe(lease, **_description(part, plan, outcome, run.id, seconds)))
    run.metrics(outcome.metrics | {"seconds": seconds})
    for title, picture in outcome.pictures.items():
        run.artifact(f"{title}.png", plan.store.read_bytes(picture))


def _log_inputs(stage: Stage, plan: Plan, run: Run) -> None:
    """The artifacts a stage reads, as MLflow datasets whose digest is the table's version (or the fingerprint)."""
    inputs = {needed.kind: needed for part in stage.wanted(plan.recipe) for needed in part.needs(plan.recipe)}
    for kind, part in inputs.items():
        artifact = plan.artifact(part)
        if manifest := artifact.manifest():  # an input may also be a part of the stage itself
            version = manifest.details.get("version") or manifest.fingerprint
            run.dataset(f"{plan.recipe.name}-{kind}", artifact.uri, version, stage.name, manifest.counts.get("rows"))


def _parameters(stage: Stage, plan: Plan) -> dict[str, Any]:
    return {f"{part.kind}.{k}": v for part in stage.wanted(plan.recipe) for k, v in plan.parameters(part).items()}


def _description(part: Part, plan: Plan, outcome: Outcome, run_id: str, seconds: float) -> dict[str, Any]:
    """What the manifest of a part says."""
    inputs = {}
    for needed in part.needs(plan.recipe):
        if made := plan.artifact(needed).manifest():
            inputs[needed.kind] = plan.artifact(needed).reference(made.details.get("version"))
    return {
        "parameters": plan.parameters(part),
        "inputs": inputs,
        "counts": outcome.counts,
        "times": {"seconds": seconds},
        "code_version": installed("gmem-pipeline"),
        "mlflow_run": run_id,
        "details": outcome.details | {"version": outcome.versions.get(part.kind), "pictures": outcome.pictures},
    }


def found(stage: Stage, plan: Plan, tracking: Tracking, parent: str | None) -> Result:
    """A stage with nothing missing: which run made it, linked from the run that wanted it."""
    result = result_of(stage, plan, False, 0.0)
    if parent and result.run_id:
        tracking.link(parent, stage.name, result.run_id)
    return result
