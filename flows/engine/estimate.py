"""What would run, why, and about how much work and space it is."""

from __future__ import annotations

from dataclasses import dataclass

from flows.engine.plan import Plan
from flows.engine.stage import Stage
from flows.recipe.model import Recipe
from flows.stages.chain import STAGES


@dataclass(frozen=True)
class Estimate:
    """One line of `gmem plan`. Minutes are known only where the store holds a finished artifact of the kind to go by."""

    stage: str
    runs: bool
    why: str
    rows: int
    bytes: int
    minutes: float | None


def estimates(recipe: Recipe) -> list[Estimate]:
    """Each stage in order; one whose inputs would be made again runs too."""
    plan = Plan(recipe)
    rows = _rows(recipe, len(plan.listing))
    return [_estimate(stage, plan, rows[stage.name]) for stage in STAGES]


def _rows(recipe: Recipe, pictures: int) -> dict[str, int]:
    """Rows of each stage from the number of pictures, before any is read."""
    views = pictures * (2 if recipe.data.mirror else 1)
    sampled = min(recipe.evaluate.samples, pictures)
    return {"ingest": pictures, "latents": views, "bank": views, "train": recipe.train.steps, "evaluate": sampled}


def _estimate(stage: Stage, plan: Plan, rows: int) -> Estimate:
    why = plan.why(stage)
    if not why:
        return Estimate(stage.name, False, "there already", rows, _bytes(stage.name, plan.recipe, rows), 0.0)
    return Estimate(stage.name, True, why, rows, _bytes(stage.name, plan.recipe, rows), _minutes(stage, plan, rows))


def _bytes(stage: str, recipe: Recipe, rows: int) -> int:
    """About the bytes a stage writes: snippets 768 wide, pictures at 1.5 bytes a pixel, no index and no checkpoints."""
    tokens = recipe.grid**2 if recipe.train.align else 0
    each = {
        "ingest": int(1.5 * recipe.data.image_size**2),
        "latents": 2 * recipe.tokenizer.channels * recipe.grid**2 + 32,
        "bank": 2 * 768 + 2000 + 2 * tokens * recipe.bank.patch_components,
        "train": 0,
        "evaluate": int(1.5 * recipe.data.image_size**2),
    }
    return each[stage] * rows


def _minutes(stage: Stage, plan: Plan, rows: int) -> float | None:
    """By the rate of the newest finished artifact of the same kind and recipe, on whatever machine made it."""
    newest = plan.newest(stage.outputs[0])
    if newest is None:
        return None
    return rows / max(newest.counts.get("rows", 0), 1) * newest.times.get("seconds", 0.0) / 60
