"""What a stage is, which of its artifacts are there already, and how one is built: lease, job, manifest, tracking."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as installed
from time import monotonic
from typing import Any

from pydantic import BaseModel
from ray.exceptions import RayError

from flows.cluster.errors import explained
from flows.cluster.resources import reserved
from flows.progress import Report
from flows.recipe import Recipe
from storage.sources import Listing, list_source
from storage.store import Artifact, Manifest, Store, fingerprint
from storage.tracking import Run, Tracking


class StageError(ValueError):
    """Why a stage cannot run, in one sentence a user can act on."""


@dataclass(frozen=True)
class Part:
    """One kind of artifact: what it depends on decides its fingerprint, and so whether it is there already."""

    kind: str
    version: int
    """Raise by hand when the stage's code makes something else of the same parameters."""
    parameters: Callable[[Plan], dict[str, Any]]
    inputs: tuple[Part, ...] = ()
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    done: Callable[[Plan, Artifact], bool] = lambda plan, artifact: artifact.complete


@dataclass(frozen=True)
class Outcome:
    """What a job made: counts and details for the manifest, metrics and pictures for MLflow and Prefect."""

    counts: dict[str, int]
    versions: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    """Title -> URI of a PNG."""


@dataclass(frozen=True)
class Stage:
    name: str
    unit: str
    """What it counts: pictures, steps, samples."""
    parts: tuple[Part, ...]
    job: Callable[[Job, Report], Outcome]
    continues: bool = False
    """Whether a run that was interrupted is continued under the same MLflow run, so that its curves go on."""

    def wanted(self, recipe: Recipe) -> list[Part]:
        return [part for part in self.parts if part.wanted(recipe)]


class Plan:
    """A recipe on a store: where each artifact lies, and whether it is there."""

    def __init__(self, recipe: Recipe, source_fingerprint: str | None = None) -> None:
        self.store = Store(recipe.store)
        # Jobs run in other folders than we do, so what they are told of is named in full.
        self.recipe = recipe.located(self.store.root)
        if source_fingerprint:  # a job on a cluster is told what the flow saw
            self.source_fingerprint = source_fingerprint

    @cached_property
    def listing(self) -> Listing:
        """What the source holds now; listed once, since a source may have millions of files."""
        return list_source(self.recipe.source)

    @cached_property
    def source_fingerprint(self) -> str:
        return self.listing.fingerprint

    def fingerprint(self, part: Part) -> str:
        inputs = {i.kind: self.fingerprint(i) for i in part.inputs if i.wanted(self.recipe)}
        return fingerprint(part.kind, part.version, part.parameters(self), inputs)

    def artifact(self, part: Part) -> Artifact:
        return self.store.artifact(part.kind, self.recipe.name, self.fingerprint(part))

    def done(self, part: Part) -> bool:
        return part.done(self, self.artifact(part))

    def missing(self, stage: Stage) -> list[Part]:
        return [part for part in stage.wanted(self.recipe) if not self.done(part)]

    def why(self, stage: Stage) -> str:
        """Why a stage would run, told as what differs from the newest artifact of its kind; empty when it would not."""
        missing = self.missing(stage)
        return "" if not missing else self._difference(missing[0])

    def _difference(self, part: Part) -> str:
        started = self.artifact(part)
        if started.complete:
            return "to be continued"
        others = [a for a in self.store.artifacts(part.kind) if a.name == self.recipe.name and a.complete]
        if not others:
            return "not there yet"
        manifest = max((m for a in others if (m := a.manifest())), key=lambda m: m.created)
        before, now = _flat(manifest.parameters), _flat(part.parameters(self))
        changed = [
            f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        changed += [
            f"{i.kind} is another"
            for i in part.inputs
            if i.kind in manifest.inputs and manifest.inputs[i.kind].fingerprint != self.fingerprint(i)
        ]
        return "changed: " + ", ".join(changed or [f"version {part.version} of the stage's code"])


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names, as recipes are overridden."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class Job(BaseModel):
    """What a job needs to run anywhere: plain values only, so that it can be sent to workers."""

    stage: str
    recipe: Recipe
    fingerprints: dict[str, str]
    leases: dict[str, int]
    """Numbers of the leases held for what is missing; an input has none."""
    tracking_uri: str
    run_id: str

    @cached_property
    def store(self) -> Store:
        return Store(self.recipe.store)

    def artifact(self, kind: str) -> Artifact:
        return self.store.artifact(kind, self.recipe.name, self.fingerprints[kind])

    def manifest(self, kind: str) -> Manifest:
        manifest = self.artifact(kind).manifest()
        assert manifest is not None, f"{kind} is an input and therefore complete"
        return manifest

    @cached_property
    def run(self) -> Run:
        return Run(self.tracking_uri, self.run_id)


@dataclass(frozen=True)
class Result:
    """One line of the summary."""

    stage: str
    unit: str
    fresh: bool
    seconds: float
    rows: int
    artifacts: dict[str, str]
    version: int | None
    run_id: str | None
    store: str
    details: dict[str, Any]
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.rows / self.seconds if self.seconds and self.fresh else 0.0


def build(stage: Stage, plan: Plan, tracking: Tracking, parent: str | None, report: Report) -> Result:
    """Builds what is missing of a stage's artifacts, here and now, over the Ray this process has joined.

    Lease, manifest and MLflow run belong to the process that does the work: on a cluster that is the job, which goes
    on, and finishes, without the flow that submitted it.
    """
    recipe = plan.recipe
    missing = plan.missing(stage)
    if not missing:
        return found(stage, plan, tracking, parent)
    check_inputs(stage, plan)
    start = monotonic()
    with ExitStack() as stack:
        holder = f"{socket.gethostname()}:{os.getpid()}"
        leases = {
            p.kind: stack.enter_context(plan.artifact(p).lease(holder, recipe.tracking.lease_wait)) for p in missing
        }
        # Whoever held the lease before us may have finished the work.
        if not (missing := plan.missing(stage)):
            return found(stage, plan, tracking, parent)
        continued = plan.artifact(missing[0]).folder if stage.continues else None
        run = stack.enter_context(tracking.stage_run(stage.name, parent, _parameters(stage, plan), continued))
        run.system_metrics()
        _log_inputs(stage, plan, run)
        job = Job(
            stage=stage.name,
            recipe=recipe,
            fingerprints=_fingerprints(stage, plan),
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
        for part in missing:
            artifact = plan.artifact(part)
            artifact.commit(artifact.describe(leases[part.kind], **_description(part, plan, outcome, run.id, seconds)))
        run.metrics(outcome.metrics | {"seconds": seconds})
        for title, picture in outcome.pictures.items():
            run.artifact(f"{title}.png", plan.store.read_bytes(picture))
    return result_of(stage, plan, True, monotonic() - start)


def _log_inputs(stage: Stage, plan: Plan, run: Run) -> None:
    """The artifacts a stage reads, as MLflow datasets whose digest is the table's version (or the fingerprint)."""
    wanted = {
        needed.kind: needed
        for part in stage.wanted(plan.recipe)
        for needed in part.inputs
        if needed.wanted(plan.recipe)
    }
    for kind, part in wanted.items():
        artifact = plan.artifact(part)
        if manifest := artifact.manifest():  # an input may also be a part of the stage itself
            version = manifest.details.get("version") or manifest.fingerprint
            run.dataset(f"{plan.recipe.name}-{kind}", artifact.uri, version, stage.name, manifest.counts.get("rows"))


def check_inputs(stage: Stage, plan: Plan) -> None:
    """Raises StageError if something the stage reads is not there."""
    for part in stage.wanted(plan.recipe):
        for needed in part.inputs:
            if needed not in stage.parts and needed.wanted(plan.recipe) and not plan.artifact(needed).complete:
                raise StageError(
                    f"stage {stage.name} needs the {needed.kind} of recipe {plan.recipe.name}, which are not in {plan.store.root} yet; "
                    f"run 'gmem run' for the whole chain, or the stage that makes them first"
                )


def _fingerprints(stage: Stage, plan: Plan) -> dict[str, str]:
    parts = {
        p.kind: p for part in stage.wanted(plan.recipe) for p in (part, *_ancestors(part)) if p.wanted(plan.recipe)
    }
    return {kind: plan.fingerprint(part) for kind, part in parts.items()}


def _ancestors(part: Part) -> list[Part]:
    return [p for needed in part.inputs for p in (needed, *_ancestors(needed))]


def _parameters(stage: Stage, plan: Plan) -> dict[str, Any]:
    return {f"{part.kind}.{k}": v for part in stage.wanted(plan.recipe) for k, v in part.parameters(plan).items()}


def _description(part: Part, plan: Plan, outcome: Outcome, run_id: str, seconds: float) -> dict[str, Any]:
    """What the manifest of a part says."""
    inputs = {}
    for needed in part.inputs:
        if needed.wanted(plan.recipe) and (made := plan.artifact(needed).manifest()):
            inputs[needed.kind] = plan.artifact(needed).reference(made.details.get("version"))
    return {
        "parameters": part.parameters(plan),
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


def result_of(stage: Stage, plan: Plan, fresh: bool, seconds: float) -> Result:
    """What the store says of a stage that is complete."""
    last = stage.wanted(plan.recipe)[-1]
    manifest = plan.artifact(last).manifest()
    assert manifest is not None, f"{last.kind} was just found or committed"
    return Result(
        stage=stage.name,
        unit=stage.unit,
        fresh=fresh,
        seconds=seconds or manifest.times.get("seconds", 0.0),
        rows=manifest.counts.get("rows", 0),
        artifacts={part.kind: plan.artifact(part).uri for part in stage.wanted(plan.recipe)},
        version=manifest.details.get("version"),
        run_id=manifest.mlflow_run,
        store=plan.store.root,
        details=manifest.details,
        pictures=manifest.details.get("pictures") or {},
    )
