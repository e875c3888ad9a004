"""What Ray's tasks and actors did when: for a viewer of traces, and as a table of where the time went."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import ray

Event = dict[str, Any]
TASK = "task::"
"""Before the name of a task, or of an actor's method, in what kind of event it is."""


def since(start: float) -> list[Event]:
    """Events of Chrome's trace format, of what this Ray has done since a time as `time.time` gives it."""
    events: list[Event] = ray.timeline()
    return [each for each in events if each.get("ts", 0) >= start * 1e6]


def by_task(events: list[Event]) -> list[dict[str, Any]]:
    """Rows of task, calls, seconds in all, and share of the seconds of all tasks; the longest first."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for each in events:
        kind = str(each.get("cat", ""))
        if kind.startswith(TASK):
            seconds[kind.removeprefix(TASK)].append(each["dur"] / 1e6)
    total = sum(map(sum, seconds.values())) or 1.0
    rows = [
        {"task": name, "calls": len(each), "seconds": sum(each), "share": sum(each) / total}
        for name, each in seconds.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])
