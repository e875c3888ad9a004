"""What a stage is: its outputs, which are artifacts with fingerprints, its job, and what the job is told and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flows.engine.progress import Progress
from flows.recipe.model import Recipe
from storage.store import Artifact, Manifest, Store
from storage.tracking.tracking import Run

if TYPE_CHECKING:
    from flows.engine.plan import Plan


class StageError(ValueError):
    """Why a stage cannot run, in one sentence a user can act on."""


@dataclass(frozen=True)
class Output:
    """One kind of artifact: what it depends on decides its fingerprint, and so whether it is there already."""

    kind: str
    version: int
    """Raise by hand when the stage's code makes something else of the same parameters."""
    parameters: Callable[[Plan], dict[str, Any]]
    inputs: tuple[Output, ...] = ()
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    done: Callable[[Plan, Artifact], bool] = lambda plan, artifact: artifact.complete

    def needs(self, recipe: Recipe) -> list[Output]:
        """Those of its inputs that are wanted."""
        return [output for output in self.inputs if output.wanted(recipe)]


@dataclass(frozen=True)
class Made:
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
    outputs: tuple[Output, ...]
    run: Callable[[Context, Progress], Made]
    continues: bool = False
    """Whether a run that was interrupted is continued under the same MLflow run, so that its curves go on."""

    def wanted(self, recipe: Recipe) -> list[Output]:
        return [output for output in self.outputs if output.wanted(recipe)]


class Context(BaseModel):
    """What a job needs to run anywhere: plain values only, so that it can be sent to workers."""

    recipe: Recipe
    fingerprints: dict[str, str]
    parameters: dict[str, dict[str, Any]] = {}
    """Of each kind that the stage makes: what decided its fingerprint, and so must decide its content."""
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
