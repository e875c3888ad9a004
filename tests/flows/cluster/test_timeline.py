"""Where the time went, of what a real Ray has done."""

from __future__ import annotations

import time

import ray

from flows.cluster.timeline import by_task, since


def test_tasks_are_told_with_their_calls_and_seconds(a_ray: None) -> None:
    @ray.remote
    def slow() -> None:
        time.sleep(0.2)

    @ray.remote
    def quick() -> None:
        pass

    ray.get(quick.options(name="before").remote())
    start = time.time()
    ray.get([slow.options(name="slow").remote() for _ in range(2)] + [quick.options(name="quick").remote()])
    for _ in range(100):  # Ray tells of what was done a moment later
        rows = {row["task"]: row for row in by_task(since(start))}
        if rows.get("slow", {}).get("calls") == 2 and "quick" in rows:
            break
        time.sleep(0.2)
    assert rows["slow"]["calls"] == 2 and rows["slow"]["seconds"] >= 0.4
    assert "before" not in rows and next(iter(rows)) == "slow"
    assert abs(sum(row["share"] for row in rows.values()) - 1) < 1e-9
    assert by_task([]) == []
