"""What a stage is, and a recipe's plan: which outputs there are, which are missing, and why."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

from flows.cluster.resources import Resources, Rule, one_actor_per_device, resources
from flows.engine.context import Context, Made, Result
from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.recipe.cluster import Cluster
from flows.recipe.model import Recipe
from storage.images.sources import Listing, list_source
from storage.manifest import Manifest
from storage.store import Artifact, Store, fingerprint


@dataclass(frozen=True)
class Output:
    """One kind of artifact: what it depends on decides its fingerprint, and so whether it is there already."""

    kind: str
    version: int
    """Raise by hand when the stage's code makes something else of the same parameters."""
    parameters: Callable[[Plan], dict[str, Any]]
    inputs: Callable[[Recipe], tuple[Output, ...]] = lambda recipe: ()
    reads: Callable[[Recipe], tuple[Output, ...]] = lambda recipe: ()
    """What it reads besides: things that its inputs were made of, so that their fingerprints count already."""
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What parameters are that were left out of a fingerprint, as they were before there was anything else."""
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    done: Callable[[Plan, Artifact], bool] = lambda plan, artifact: artifact.complete


@dataclass(frozen=True)
class Stage:
    """Everything that is said of a stage anywhere. What does the work is named, and imported when it is to be done, so
    that plans and tables need neither torch nor Ray."""

    name: str
    description: str
    """Of the Prefect flow and its deployment, in a sentence."""
    unit: str
    """What it counts: pictures, steps, samples."""
    outputs: tuple[Output, ...]
    driver: str
    """The module whose `run(context, progress)` does the work."""
    rows: Callable[[Recipe, int], int]
    """About how many there will be, of so many pictures."""
    row_bytes: Callable[[Recipe], int] = lambda recipe: 0
    """About what one takes in the store."""
    kept_bytes: Callable[[Recipe], int] = lambda recipe: 0
    """About what it keeps there besides, such as checkpoints."""
    workers_import: tuple[str, ...] = ()
    """Modules that its workers import: a third of a small run's time, unless somebody does it ahead."""
    reserves: Rule = one_actor_per_device
    pins: Callable[[Context], dict[str, int]] = lambda context: {}
    """Versions of inputs that it reads, by kind, where those are not the ones their manifests name."""
    about: Callable[[Plan], str] = lambda plan: ""
    """What is to be said of what is there, besides that it is, in a few words."""
    asked_by: str = ""
    """A setting, such as prior.steps=800, of a stage that makes nothing unless it is asked."""
    continues: bool = False
    """Whether a run that was interrupted is continued under the same MLflow run, so that its curves go on."""

    def run(self, context: Context, progress: Progress) -> dict[str, Made]:
        """Builds the outputs that `context.leases` names; what became of each, by kind."""
        made: dict[str, Made] = import_module(self.driver).run(context, progress)
        return made

    def wanted(self, recipe: Recipe) -> list[Output]:
        return [output for output in self.outputs if output.wanted(recipe)]

    def resources(self, cluster: Cluster) -> Resources:
        """What each of its actors, tasks or workers reserves of the Ray that this process has joined."""
        return resources(cluster, self.name, self.reserves)


class Plan:
    """A recipe on a store: where each artifact lies, and whether it is there."""

    def __init__(self, recipe: Recipe, source_fingerprint: str | None = None) -> None:
        self.store = Store(recipe.store)
        # Jobs run in other folders than we do, so what they are told of is named in full.
        self.recipe = recipe.located(self.store.root)
        if source_fingerprint:  # a job on a cluster is told what the flow saw
            self.source_fingerprint = source_fingerprint
        self._settled: dict[Output, tuple[dict[str, Any], str]] | None = None

    def settled(self) -> Plan:
        """The same, but what an output is made of stays what it was when it was first asked for.

        While a stage is built others may train the network on, add to the bank or change the pictures: the artifacts
        that it holds the leases of are still those that it began.
        """
        settled = copy.copy(self)
        settled._settled = {}
        return settled

    @cached_property
    def listing(self) -> Listing:
        """What the source holds now; listed once, since a source may have millions of files. Refused when nothing of it
        can be used."""
        listing = list_source(self.recipe.source, self.recipe.data.layout, self.recipe.data.label)
        listing.require_usable()
        return listing

    @cached_property
    def source_fingerprint(self) -> str:
        return self.listing.fingerprint

    def fingerprint(self, output: Output) -> str:
        return self._described(output)[1]

    def parameters(self, output: Output) -> dict[str, Any]:
        """What decides an output's content, besides its inputs and the version of the stage's code."""
        return self._described(output)[0]

    def _described(self, output: Output) -> tuple[dict[str, Any], str]:
        if self._settled is not None and output in self._settled:
            return self._settled[output]
        inputs = {needed.kind: self.fingerprint(needed) for needed in output.inputs(self.recipe)}
        parameters = output.parameters(self)
        described = parameters, fingerprint(output.kind, output.version, parameters, inputs)
        if self._settled is not None:
            self._settled[output] = described
        return described

    def fingerprints(self, stage: Stage) -> dict[str, str]:
        """By kind, of what a stage makes and of everything that this rests on."""
        outputs = {o.kind: o for output in stage.wanted(self.recipe) for o in (output, *self._ancestors(output))}
        return {kind: self.fingerprint(output) for kind, output in outputs.items()}

    def _ancestors(self, output: Output) -> list[Output]:
        return [o for needed in output.inputs(self.recipe) for o in (needed, *self._ancestors(needed))]

    def artifact(self, output: Output) -> Artifact:
        return self.store.artifact(output.kind, self.recipe.name, self.fingerprint(output))

    def done(self, output: Output) -> bool:
        return output.done(self, self.artifact(output))

    def missing(self, stage: Stage) -> list[Output]:
        return [output for output in stage.wanted(self.recipe) if not self.done(output)]

    def latest(self, output: Output) -> Manifest | None:
        """Of the finished artifacts of an output's kind and this recipe's name, whatever their fingerprints."""
        artifacts = [a for a in self.store.artifacts(output.kind) if a.name == self.recipe.name]
        return max((m for a in artifacts if (m := a.manifest())), key=lambda m: m.created, default=None)

    def why(self, stage: Stage) -> str:
        """Why a stage would run, told as what differs from the latest artifact of its kind; empty when it would not."""
        missing = self.missing(stage)
        return "" if not missing else self._difference(missing[0])

    def _difference(self, output: Output) -> str:
        if self.artifact(output).complete:
            return "to be continued"
        manifest = self.latest(output)
        if manifest is None:
            return "not there yet"
        before = {**output.defaults, **_flat(manifest.parameters)}
        now = {**output.defaults, **_flat(self.parameters(output))}
        changed = [
            f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        changed += self._other_inputs(output, manifest)
        return "changed: " + ", ".join(changed or [f"version {output.version} of the stage's code"])

    def _other_inputs(self, output: Output, manifest: Manifest) -> list[str]:
        """How what an output is made of differs from what a manifest says."""
        needed = {each.kind: self.fingerprint(each) for each in output.inputs(self.recipe)}
        read = {each.kind for each in output.reads(self.recipe)}
        return [
            *(f"{kind} is another" for kind, name in needed.items() if _of(manifest, kind) not in (None, name)),
            *(f"with {kind}" for kind in needed if _of(manifest, kind) is None),
            *(f"without {kind}" for kind in manifest.inputs if kind not in needed.keys() | read),
        ]


def _of(manifest: Manifest, kind: str) -> str | None:
    return manifest.inputs[kind].fingerprint if kind in manifest.inputs else None


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names, as recipes are overridden."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def require_wanted(stage: Stage, recipe: Recipe) -> None:
    """Raises StageError for a stage that has nothing to make."""
    if not stage.wanted(recipe):
        raise StageError(
            f"recipe {recipe.name} asks for nothing of stage {stage.name}; set {stage.asked_by.partition('=')[0]}, such as "
            f"--set {stage.asked_by}"
        )


def check_inputs(stage: Stage, plan: Plan) -> None:
    """Raises StageError if something the stage reads is not there."""
    for output in stage.wanted(plan.recipe):
        for needed in output.inputs(plan.recipe):
            if needed not in stage.outputs and not plan.artifact(needed).complete:
                raise StageError(
                    f"stage {stage.name} needs the {needed.kind} of recipe {plan.recipe.name}, "
                    f"which are not in {plan.store.root} yet; "
                    f"run 'gmem run' for the whole chain, or the stage that makes them first"
                )


def result_of(stage: Stage, plan: Plan, fresh: bool, seconds: float) -> Result:
    """What the store says of a stage that is complete."""
    outputs = stage.wanted(plan.recipe)
    last = plan.artifact(outputs[-1])
    manifest = last.manifest()
    assert manifest is not None, f"{last.kind} was just found or committed"
    return Result(
        stage=stage.name,
        unit=stage.unit,
        fresh=fresh,
        seconds=seconds or manifest.times.get("seconds", 0.0),
        rows=manifest.counts.get("rows", 0),
        artifacts={output.kind: plan.artifact(output).uri for output in outputs},
        versions=_versions([plan.artifact(output) for output in outputs]),
        run_id=manifest.mlflow_run,
        store=plan.store.root,
        details=manifest.details | {"lines": _lines(manifest)},
        about=stage.about(plan),
        pictures=_figures(last, manifest),
    )


def _versions(artifacts: list[Artifact]) -> dict[str, int]:
    """What each artifact's manifest names as its version, by kind."""
    manifests = {artifact.kind: artifact.manifest() for artifact in artifacts}
    named = {kind: manifest.details.get("version") for kind, manifest in manifests.items() if manifest}
    return {kind: version for kind, version in named.items() if version is not None}


def _figures(artifact: Artifact, manifest: Manifest) -> dict[str, str]:
    """Where an artifact's figures lie now; release 0.1 named them in full, by where the store was then."""
    named = manifest.details.get("figures") or manifest.details.get("pictures") or {}
    return {title: artifact.path(path.rpartition("/")[2]) for title, path in named.items()}


def _lines(manifest: Manifest) -> list[str]:
    """What a person reads; release 0.1 kept it with marks for the terminal, and with the figures' addresses."""
    addresses = tuple((manifest.details.get("pictures") or {}).values())
    lines = [line for line in manifest.details.get("lines") or [] if not (addresses and line.endswith(addresses))]
    return [re.sub(r"\[(bold|/)\]", "", line) for line in lines]
