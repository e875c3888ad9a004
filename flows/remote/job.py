"""A stage's job on a cluster: ``python -m flows.remote.job`` builds what the request in its environment asks for.

It runs on a node of the cluster, as the driver of the same work that an embedded run does in the flow's process, and
tells of it in lines on standard output (flows/engine/progress.py). What it makes is in the store; only an error is told.
Leases and the stage's MLflow run are its own, so it needs nobody to finish.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel

from flows.cluster.connection import connected
from flows.engine.build import build
from flows.engine.errors import StageError
from flows.engine.progress import Lines, Progress
from flows.engine.stage import Plan, Stage
from flows.recipe.model import Recipe
from flows.refusals import REFUSALS
from flows.stages.chain import stage_named
from storage.tracking.tracking import Tracking

REQUEST = "GMEM_REQUEST"
COMPARED = ("ray", "torch", "pylance", "lancedb", "pydantic")


class Request(BaseModel):
    """What a flow asks of a job: plain values and URIs, and no secrets, since clusters show it to people."""

    stage: str
    recipe: Recipe
    fingerprints: dict[str, str]
    """Of what the stage makes, as the flow sees it."""
    source_fingerprint: str
    tracking: Tracking
    parent: str | None
    versions: dict[str, str]

    @classmethod
    def of(cls, stage: Stage, plan: Plan, tracking: Tracking, parent: str | None) -> Request:
        return cls(
            stage=stage.name,
            recipe=plan.recipe,
            fingerprints={part.kind: plan.fingerprint(part) for part in stage.wanted(plan.recipe)},
            source_fingerprint=plan.source_fingerprint,
            tracking=tracking,
            parent=parent,
            versions=versions(),
        )


def versions() -> dict[str, str]:
    """Of Python and of those packages in which both sides have to agree."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in COMPARED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def difference(here: dict[str, str], there: dict[str, str]) -> str:
    """Which versions differ between this cluster and the flow, in one sentence; empty when none does."""
    parts = [f"{name} {here[name]} (there {there[name]})" for name in here if here[name] != there.get(name, "none")]
    return f"this cluster has other versions than the flow: {', '.join(parts)}" if parts else ""


def perform(request: Request, progress: Progress) -> None:
    """Builds the stage over the cluster this process runs in.

    Raises Refused where the cluster sees other inputs than the flow, besides whatever the stage raises.
    """
    if unlike := difference(versions(), request.versions):
        progress.note(unlike)
    stage = stage_named(request.stage)
    # Ray set RAY_ADDRESS to this cluster's own; the recipe's is for those outside.
    here = request.recipe.cluster.model_copy(update={"address": "auto"})
    plan = Plan(request.recipe.model_copy(update={"cluster": here}), request.source_fingerprint)
    for part in stage.wanted(plan.recipe):
        if plan.fingerprint(part) != request.fingerprints[part.kind]:
            raise StageError(
                f"the cluster would make other {part.kind} than the flow asked for: weights that the recipe names by a "
                f"path must be the same on the cluster's nodes as where the flow runs"
            )
    with connected(here):
        build(stage, plan, request.tracking, request.parent, progress)


def main() -> int:
    """Exit codes as of the `gmem` command: 0 done, 1 failed, 2 cannot be done as asked, 130 stopped."""
    signal.signal(signal.SIGTERM, _interrupt)
    lines = Lines()
    try:
        perform(Request.model_validate_json(os.environ[REQUEST]), lines)
    except KeyboardInterrupt:
        lines.note("stopped; what is committed stays")
        return 130
    except Exception as error:  # noqa: BLE001 - handed to the flow, which raises it there
        lines.error(error)
        return 2 if isinstance(error, REFUSALS) else 1
    return 0


def _interrupt(_signal: int, _frame: Any) -> None:
    """The cluster stops the job: the stage commits what it has, and training writes a checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
