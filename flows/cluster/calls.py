"""How a job spreads work over a cluster: so many calls at a time, their results as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any

from flows.cluster.workers import Worker


def result(call: Any) -> Any:
    """What a remote call returns, or raises.

    The main thread waits in Python, where it hears signals whatever becomes of Ray: whoever cancels a process often ends
    Ray's as well, and what asks those waits in vain.
    """
    return call.future().result()


def _first(calls: Iterable[Any]) -> Any:
    """One of the futures of remote calls that has ended."""
    return next(iter(wait(calls, return_when=FIRST_COMPLETED).done))


def under_way(starts: Iterable[Any], limit: int, passing: tuple[type[Exception], ...] = ()) -> Iterator[Any]:
    """Results of remote calls as they end, without those that end in an error of the `passing` kinds.

    `starts` is lazy: at most `limit` calls are under way at a time.
    """
    pending: set[Future[Any]] = set()
    remaining = (start.future() for start in starts)
    pending.update(islice(remaining, limit))
    while pending:
        ended = _first(pending)
        pending.remove(ended)
        pending.update(islice(remaining, 1))
        try:
            found = ended.result()
        except passing:
            continue
        yield found


def spread(
    blocks: Iterable[Any], workers: list[Worker], run: Callable[..., Any], *args: Any, depth: int = 2
) -> Iterator[Any]:
    """Hands each block to a worker that is free and yields the results of its method `run` as they end.

    `blocks` lazily starts the remote reads. At most `depth` blocks per worker are under way, so that they never pile
    up; a slow worker only delays its own.
    """
    waiting = iter(blocks)
    free = deque(worker for _ in range(depth) for worker in workers)
    busy: dict[Future[Any], Worker] = {}
    while True:
        for block in islice(waiting, len(free)):
            worker = free.popleft()
            busy[worker.call(run, block, *args).future()] = worker
        if not busy:
            return
        ended = _first(busy)
        free.append(busy.pop(ended))
        yield ended.result()
