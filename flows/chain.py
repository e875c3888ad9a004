"""The chain: its stages, in the order in which they run."""

from __future__ import annotations

from flows import bank, evaluate, ingest, latents, train
from flows.stage import Stage

STAGES: tuple[Stage, ...] = (ingest.STAGE, latents.STAGE, bank.STAGE, train.STAGE, evaluate.STAGE)
