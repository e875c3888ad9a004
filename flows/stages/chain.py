"""The chain: its stages, in the order in which they run. Nothing else lists them."""

from __future__ import annotations

from flows.engine.errors import StageError
from flows.engine.stage import Stage
from flows.recipe.model import Recipe
from flows.stages.bank.stage import STAGE as BANK
from flows.stages.evaluate.stage import STAGE as EVALUATE
from flows.stages.ingest.stage import STAGE as INGEST
from flows.stages.latents.stage import STAGE as LATENTS
from flows.stages.prior.stage import STAGE as PRIOR
from flows.stages.sample.stage import STAGE as SAMPLE
from flows.stages.train.stage import STAGE as TRAIN

STAGES: tuple[Stage, ...] = (INGEST, LATENTS, BANK, PRIOR, TRAIN, SAMPLE, EVALUATE)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Those that make something for a recipe."""
    return tuple(stage for stage in STAGES if stage.wanted(recipe))


def stage_named(name: str) -> Stage:
    """The stage of this name; StageError names those there are."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise StageError(f"there is no stage '{name:.80}'; the stages are {', '.join(stage.name for stage in STAGES)}")
