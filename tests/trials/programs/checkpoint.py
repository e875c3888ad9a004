"""Saves the checkpoints of steps 1 and 2, `checkpoint.py ROOT`; says so, and stays, before the second's manifest."""

from __future__ import annotations

import sys
from typing import Any

import torch

from storage.checkpoints import CheckpointManifest, save
from storage.files.local import LocalFiles
from storage.store import Store

write = LocalFiles.write


def until_the_manifest(self: LocalFiles, path: str, *rest: Any, **more: Any) -> None:
    if path.endswith("step-00000002/manifest.json"):
        print("files written", flush=True)
        sys.stdin.readline()
    write(self, path, *rest, **more)


if __name__ == "__main__":
    LocalFiles.write = until_the_manifest  # type: ignore[method-assign]
    training = Store(sys.argv[1]).artifact("training", "trial", "0" * 12)
    with training.lease("a training", ttl=2.0) as lease:
        for step in (1, 2):
            tensors = {"network.w": torch.full((1000,), float(step)), "ema.w": torch.full((1000,), float(step))}
            about = CheckpointManifest(step=step, network={}, lease=lease.number)
            save(training, step, tensors, {"step": step}, about)
