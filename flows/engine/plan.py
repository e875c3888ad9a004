"""What of a recipe is on its store already, what is missing, and why."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from flows.engine.stage import Output, Result, Stage, StageError
from flows.recipe.model import Recipe
from storage.images.sources import Listing, list_source
from storage.store import Artifact, Manifest, Store, fingerprint


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
        """What the source holds now; listed once, since a source may have millions of files."""
        return list_source(self.recipe.source)

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
        inputs = {needed.kind: self.fingerprint(needed) for needed in output.needs(self.recipe)}
        parameters = output.parameters(self)
        described = parameters, fingerprint(output.kind, output.version, parameters, inputs)
        if self._settled is not None:
            self._settled[output] = described
        return described

    def fingerprints(self, stage: Stage) -> dict[str, str]:
        """By kind, of what a stage makes and of everything that this rests on."""
        outputs = {p.kind: p for output in stage.wanted(self.recipe) for p in (output, *self._ancestors(output))}
        return {kind: self.fingerprint(output) for kind, output in outputs.items()}

    def _ancestors(self, output: Output) -> list[Output]:
        return [p for needed in output.needs(self.recipe) for p in (needed, *self._ancestors(needed))]

    def artifact(self, output: Output) -> Artifact:
        return self.store.artifact(output.kind, self.recipe.name, self.fingerprint(output))

    def done(self, output: Output) -> bool:
        return output.done(self, self.artifact(output))

    def missing(self, stage: Stage) -> list[Output]:
        return [output for output in stage.wanted(self.recipe) if not self.done(output)]

    def newest(self, output: Output) -> Manifest | None:
        """Of the finished artifacts of an output's kind and this recipe's name, whatever their fingerprints."""
        artifacts = [a for a in self.store.artifacts(output.kind) if a.name == self.recipe.name]
        return max((m for a in artifacts if (m := a.manifest())), key=lambda m: m.created, default=None)

    def why(self, stage: Stage) -> str:
        """Why a stage would run, told as what differs from the newest artifact of its kind; empty when it would not."""
        missing = self.missing(stage)
        return "" if not missing else self._difference(missing[0])

    def _difference(self, output: Output) -> str:
        started = self.artifact(output)
        if started.complete:
            return "to be continued"
        manifest = self.newest(output)
        if manifest is None:
            return "not there yet"
        before, now = _flat(manifest.parameters), _flat(self.parameters(output))
        changed = [
            f"{key} {before.get(key, 'unset')} -> {now.get(key, 'unset')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        changed += [
            f"{i.kind} is another"
            for i in output.needs(self.recipe)
            if i.kind in manifest.inputs and manifest.inputs[i.kind].fingerprint != self.fingerprint(i)
        ]
        return "changed: " + ", ".join(changed or [f"version {output.version} of the stage's code"])


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters under dotted names, as recipes are overridden."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_inputs(stage: Stage, plan: Plan) -> None:
    """Raises StageError if something the stage reads is not there."""
    for output in stage.wanted(plan.recipe):
        for needed in output.needs(plan.recipe):
            if needed not in stage.outputs and not plan.artifact(needed).complete:
                raise StageError(
                    f"stage {stage.name} needs the {needed.kind} of recipe {plan.recipe.name}, which are not in {plan.store.root} yet; "
                    f"run 'gmem run' for the whole chain, or the stage that makes them first"
                )


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
        artifacts={output.kind: plan.artifact(output).uri for output in stage.wanted(plan.recipe)},
        version=manifest.details.get("version"),
        run_id=manifest.mlflow_run,
        store=plan.store.root,
        details=manifest.details,
        pictures=manifest.details.get("pictures") or {},
    )
