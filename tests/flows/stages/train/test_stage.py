"""Which checkpoint of a training a run takes: of the steps that it asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows.recipe.files import load
from flows.stages.train.stage import chosen_checkpoint
from storage.checkpoints import CheckpointManifest, save
from storage.errors import StoreError
from storage.store import Store

LOSSES = {300: 0.5, 450: 0.9, 900: 0.4}


def _chosen(tmp_path: Path, steps: int, kind: str = "last") -> int | None:
    artifact = Store(str(tmp_path)).artifact("training", "emoji", "0" * 12)
    recipe = load("emoji", {"train": {"steps": steps}, "evaluate": {"checkpoint": kind}})
    found = chosen_checkpoint(recipe, artifact)
    return found and found.step


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    artifact = Store(str(tmp_path)).artifact("training", "emoji", "0" * 12)
    for step, loss in LOSSES.items():
        manifest = CheckpointManifest(step=step, network={}, held_out_loss=loss)
        save(artifact.uri, step, {"ema.weight": torch.zeros(1)}, {}, manifest)
    return tmp_path


def test_steps_beyond_those_asked_for_are_another_runs(trained: Path) -> None:
    assert [_chosen(trained, steps) for steps in (300, 449, 450, 900, 5000)] == [300, 300, 450, 900, 900]
    assert [_chosen(trained, steps, "best") for steps in (300, 450, 900)] == [300, 300, 900]


def test_first_steps_that_are_gone_are_said_to_be(trained: Path) -> None:
    with pytest.raises(StoreError, match=r"first 60 steps .* no checkpoint is kept \(kept are 300, 450, 900\)"):
        _chosen(trained, 60)


def test_a_training_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert _chosen(tmp_path, 60) is None
