"""Where the time of training steps goes, for those who ask: a trace that a viewer draws, and a table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

if TYPE_CHECKING:
    from storage.tracking.run import Run

SKIPPED, STEPS = 4, 5
"""Steps of a run that go unseen, the first being slow, and those that are looked at."""
LISTED = 40
"""Operations in the table, those that take longest first."""


class StepProfile:
    """Looks at some steps of a run, once; what it saw goes to MLflow as `profile/steps.json.gz` and the table `profile`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        wanted = schedule(wait=SKIPPED - 1, warmup=1, active=STEPS, repeat=1)
        activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
        self.profiler = profile(activities=activities, schedule=wanted, on_trace_ready=self._keep)
        self.profiler.start()

    def step(self) -> None:
        """To be called after each step."""
        self.profiler.step()

    def close(self) -> None:
        """What was begun and not looked at to its end is told as far as it goes."""
        self.profiler.stop()

    def _keep(self, seen: profile) -> None:
        with tempfile.TemporaryDirectory(prefix="gmem-") as folder:
            trace = Path(folder) / "steps.json.gz"
            seen.export_chrome_trace(str(trace))
            self.run.artifact("profile/steps.json.gz", trace.read_bytes())
        operations = seen.key_averages()
        on_cpu = sum(each.self_cpu_time_total for each in operations)
        on_device = sum(each.self_device_time_total for each in operations)
        rows = [
            {
                "operation": each.key,
                "calls": each.count,
                "cpu_ms": each.self_cpu_time_total / 1000,
                "device_ms": each.self_device_time_total / 1000,
                "share": (each.self_device_time_total or each.self_cpu_time_total) / max(on_device or on_cpu, 1e-9),
            }
            for each in operations
        ]
        rows.sort(key=lambda row: -row["share"])
        self.run.table("profile", rows[:LISTED])
