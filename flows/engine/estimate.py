"""What would run, why, and about how much work and space it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flows.engine.stage import Plan, Stage


@dataclass(frozen=True)
class Estimate:
    """One line of `gmem plan`. Minutes are known only where the store holds a finished artifact of the kind to go by."""

    stage: str
    runs: bool
    why: str
    rows: int
    bytes: int
    minutes: float | None


def estimates(stages: Iterable[Stage], plan: Plan) -> list[Estimate]:
    """Each stage in order; one whose inputs would be made again runs too."""
    return [_estimate(stage, plan, stage.rows(plan.recipe, len(plan.listing))) for stage in stages]


def _estimate(stage: Stage, plan: Plan, rows: int) -> Estimate:
    why = plan.why(stage)
    if not why:
        return _there(stage, plan)
    size = stage.row_bytes(plan.recipe) * rows + stage.kept_bytes(plan.recipe)
    return Estimate(stage.name, True, why, rows, size, _minutes(stage, plan, rows))


def _there(stage: Stage, plan: Plan) -> Estimate:
    """What the store has of a stage, counted rather than estimated."""
    made = [plan.artifact(output).summary() for output in stage.wanted(plan.recipe)]
    about = stage.about(plan)
    told = f"there already, {about}" if about else "there already"
    return Estimate(
        stage.name, False, told, made[-1]["counts"].get("rows", 0), sum(each["bytes"] for each in made), 0.0
    )


def _minutes(stage: Stage, plan: Plan, rows: int) -> float | None:
    """By the rate of the latest finished artifact of the same kind and recipe, on whatever machine made it."""
    latest = plan.latest(stage.outputs[0])
    if latest is None:
        return None
    return rows / max(latest.counts.get("rows", 0), 1) * latest.times.get("seconds", 0.0) / 60
