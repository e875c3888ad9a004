"""How a job spreads work over a cluster: so many calls at a time, their results as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import ray

from flows.cluster.workers import Worker


def under_way(starts: Iterable[Any], limit: int, passing: tuple[type[Exception], ...] = ()) -> Iterator[Any]:
    """Results of remote calls as they end, without those that end in an error of the `passing` kinds.

    `starts` is lazy: at most `limit` calls are under way at a time.
    """
    pending: set[Any] = set()
    remaining = iter(starts)
    pending.update(islice(remaining, limit))
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        pending.difference_update(ready)
        pending.update(islice(remaining, 1))
        try:
            result = ray.get(ready[0])
        except passing:
            continue
        yield result


def spread(
    blocks: Iterable[Any], workers: list[Worker], run: Callable[..., Any], *args: Any, depth: int = 2
) -> Iterator[Any]:
    """Hands each block to a worker that is free and yields the results of its method `run` as they end.

    `blocks` lazily starts the remote reads. At most `depth` blocks per worker are under way, so that they never pile
    up; a slow worker only delays its own.
    """
    waiting = iter(blocks)
    free = deque(worker for _ in range(depth) for worker in workers)
    busy: dict[Any, Worker] = {}
    while True:
        for block in islice(waiting, len(free)):
            worker = free.popleft()
            busy[worker.call(run, block, *args)] = worker
        if not busy:
            return
        ready, _ = ray.wait(list(busy), num_returns=1)
        free.append(busy.pop(ready[0]))
        yield ray.get(ready[0])
