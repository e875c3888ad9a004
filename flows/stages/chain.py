"""The chain: its stages, in the order in which they run."""

from __future__ import annotations

from flows.engine.stage import Stage
from flows.stages import bank, ingest, latents
from flows.stages.evaluate import driver as evaluate
from flows.stages.train import driver as train

STAGES: tuple[Stage, ...] = (ingest.STAGE, latents.STAGE, bank.STAGE, train.STAGE, evaluate.STAGE)
