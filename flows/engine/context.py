"""What a stage's work is told, what it gives back, and the line of the summary that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from flows.recipe.model import Recipe
from storage.manifest import Manifest
from storage.store import Artifact, Store
from storage.tracking.tracking import Run


class Context(BaseModel):
    """What the work of a stage needs to run anywhere: plain values only, so that it can be sent to workers."""

    recipe: Recipe
    fingerprints: dict[str, str]
    parameters: dict[str, dict[str, Any]] = {}
    """Of each kind that the stage makes: what decided its fingerprint, and so must decide its content."""
    versions: dict[str, int] = {}
    """Of each input that is a table, the one version that the stage reads from beginning to end."""
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
class Made:
    """What became of one output: counts, version and details for its manifest, metrics and figures for people.

    A manifest moves with its store, so details name what lies in the store relative to its root.
    """

    counts: dict[str, int]
    version: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    """Title -> path of a PNG in the artifact's folder."""


@dataclass(frozen=True)
class Result:
    """One line of the summary."""

    stage: str
    unit: str
    fresh: bool
    seconds: float
    rows: int
    artifacts: dict[str, str]
    versions: dict[str, int]
    """Of each artifact that is a table, or goes on as one does."""
    run_id: str | None
    store: str
    details: dict[str, Any]
    pictures: dict[str, str] = field(default_factory=dict)
    """Title -> URI of a figure."""
    about: str = ""
    """What its stage says of it, in a few words."""

    @property
    def metrics(self) -> dict[str, float]:
        """The few numbers by which runs are compared."""
        held_out = self.details.get("held_out")
        return self.details.get("metrics", {}) | ({} if held_out is None else {"held_out_loss": held_out})

    @property
    def rate(self) -> float:
        return self.rows / self.seconds if self.seconds and self.fresh else 0.0
