"""The profile of training steps, as MLflow has it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import mlflow
import torch

from flows.stages.train.profiling import SKIPPED, STEPS, StepProfile
from tests.flows.conftest import Trainings


def test_some_steps_leave_a_trace_and_a_table(trainings: Trainings, tmp_path: Path) -> None:
    context = trainings.job()
    with context.run as run:
        seen = StepProfile(run)
        for _ in range(SKIPPED + STEPS + 3):
            torch.ones(64, 64) @ torch.ones(64, 64)
            seen.step()
        seen.close()
    client = mlflow.MlflowClient(context.tracking_uri)
    trace = client.download_artifacts(context.run_id, "profile/steps.json.gz", str(tmp_path))
    assert json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]
    table = json.loads(Path(client.download_artifacts(context.run_id, "profile.json", str(tmp_path))).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    (product,) = [row for row in rows if row["operation"] == "aten::mm"]
    assert product["calls"] == STEPS and product["cpu_ms"] > 0
    assert rows == sorted(rows, key=lambda row: -row["share"]) and sum(row["share"] for row in rows) <= 1 + 1e-6
