"""How the prior is learned: one worker, which goes on from its newest checkpoint wherever it is made again."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.cluster.calls import result
from flows.cluster.workers import pool, set_threads_and_device
from flows.engine.context import Context, Made
from flows.engine.progress import Progress
from flows.models.memory import recipe_bank
from flows.stages.prior.stage import STAGE
from gmem.metrics.snippets import SnippetQuality, snippet_quality
from gmem.prior import PriorLearner, draw, shape_of
from storage.checkpoints import CheckpointManifest, latest, load_latest, save
from storage.images.shards import HELD_OUT
from storage.retention.checkpoints import prune
from storage.tables.bank import Bank
from storage.tables.memory import Memory

REAL = "origin != 'mixed'"
"""What somebody mixed is no picture's."""
SAVE_SECONDS = 60.0
JUDGED = 10_000
"""Drawn snippets that are compared with held-out ones, at most."""


class PriorWorker:
    """Learns in pieces, each of which ends at a step that the driver names; so a piece may be asked for twice."""

    def __init__(self, threads: int, context: Context) -> None:
        # A step is too small to be shared out: on a busy machine two threads mostly wait for each other.
        self.device = set_threads_and_device(1)
        self.context, self.artifact = context, context.artifact("prior")
        bank = recipe_bank(context)
        self.encoder = bank.encoder
        self.snippets, labels = _rows(bank, f"{REAL} AND (split IS NULL OR split != '{HELD_OUT}')")
        self.held_out, self.held_out_labels = _rows(bank, f"{REAL} AND split = '{HELD_OUT}'")
        self.learner = PriorLearner(self.snippets, labels, context.recipe.prior, self.device)
        self.saved = time.monotonic()
        if found := load_latest(self.artifact):
            _, tensors, progress = found
            self.learner.load_state(tensors, progress)

    def steps(self) -> int:
        return self.learner.steps

    def learn(self, until: int) -> dict[str, float]:
        """Steps up to this one, and what they came to; the last of all, and one now and then, leaves a checkpoint."""
        losses = [self.learner.step() for _ in range(until - self.learner.steps)]
        values = {"loss": float(np.mean(losses))} if losses else {}
        if len(self.held_out):
            values["held_out"] = self.learner.held_out_loss(self.held_out[:JUDGED], self.held_out_labels[:JUDGED])
        if until >= self.context.recipe.prior.steps or time.monotonic() - self.saved > SAVE_SECONDS:
            self._save(values.get("held_out"))
        return values

    def _save(self, held_out: float | None) -> None:
        tensors, progress = self.learner.state()
        manifest = CheckpointManifest(
            step=self.learner.steps,
            network=shape_of(self.learner),
            bank=self.context.artifact("bank").reference(self.context.versions["bank"]),
            encoder=self.encoder,
            held_out_loss=held_out,
            training=self.artifact.fingerprint,
            code_version=installed("gmem-pipeline"),
            mlflow_run=self.context.run_id,
            lease=self.context.leases["prior"],
            details={"makes": "snippets"},
        )
        save(self.artifact, self.learner.steps, tensors, progress, manifest)
        prune(self.artifact, 1)
        self.saved = time.monotonic()

    def judge(self) -> SnippetQuality | None:
        """What is drawn, beside what was held out."""
        count = min(len(self.held_out), JUDGED)
        drawn = draw(self.learner.averaged(), count, self.context.recipe.sample.seed)
        return snippet_quality(drawn, self.snippets, self.held_out)

    def about(self) -> tuple[dict[str, Any], dict[str, int]]:
        """The encoder's identity, and how many snippets it learned from, and how many were held out."""
        return self.encoder, {"learned": len(self.snippets), "held_out": len(self.held_out)}


def _rows(bank: Bank, where: str) -> tuple[Tensor, Tensor]:
    """Snippets float16 [N, D] and labels int64 [N] (-1: none) in the order of ids, each in memory once; with a memory, of
    the rows that it keeps, as far as it does."""
    ids = bank.matching(where)
    memory = bank.memory or Memory.whole()
    ids = ids[memory.keeps(ids)]
    snippets = torch.empty((len(ids), bank.dim), dtype=torch.float16)
    labels = torch.empty(len(ids), dtype=torch.int64)
    for rows in bank.batches(["label", "snippet"], where):
        kept = memory.keeps(rows["id"].to_numpy())
        place = torch.from_numpy(np.searchsorted(ids, rows["id"].to_numpy()[kept]))
        snippets[place] = torch.from_numpy(memory.seen(bank.full(rows["snippet"])[kept]))
        labels[place] = torch.from_numpy(rows["label"].fill_null(-1).to_numpy()[kept].astype(np.int64))
    return snippets, labels


def run(context: Context, progress: Progress) -> dict[str, Made]:
    """Learns to the last step, then judges what is drawn."""
    settings, artifact = context.recipe.prior, context.artifact("prior")
    reserved = replace(STAGE.resources(context.recipe.cluster), actors=1)
    with context.run as tracked, pool(context.recipe.cluster, reserved, PriorWorker, context) as (worker,):
        step = result(worker.call(PriorWorker.steps))
        progress.total(settings.steps, step)
        while step < settings.steps:
            until = min(step + settings.log_every, settings.steps)
            values = result(worker.call(PriorWorker.learn, until))
            tracked.metrics(values, until)
            progress.advance(until - step, **values)
            step = until
        quality = result(worker.call(PriorWorker.judge))
        encoder, counts = result(worker.call(PriorWorker.about))
    last = latest(artifact)
    assert last is not None, "the last step has left a checkpoint"
    metrics = {} if quality is None else asdict(quality)
    lines = [] if quality is None else [_said(quality)]
    details = {"step": last.step, "held_out": last.manifest.held_out_loss, "encoder": encoder}
    details |= {"metrics": metrics, "lines": lines}
    return {"prior": Made({"rows": last.step} | counts, last.step, details, metrics)}


def _said(quality: SnippetQuality) -> str:
    return (
        f"drawn snippets lie at a Fréchet distance of {quality.frechet:.3g} from held-out ones (real ones at "
        f"{quality.frechet_of_real:.3g}) and cover {quality.coverage:.0%} of them; the nearest that was learned from is "
        f"{quality.nearest:.3g} away (of held-out ones {quality.nearest_of_real:.3g})"
    )
