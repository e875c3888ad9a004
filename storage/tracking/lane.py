"""What is to be sent to MLflow, in order, by a thread of its own: whoever hands it in waits for nothing.

When MLflow does not answer, entries are kept and tried again, so that a server may go away for a while and a training
never notices.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.addresses import without_userinfo
from storage.tracking.access import client, cut, is_final, problems

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

BATCH = 1000  # MLflow's limit for metrics in one call
KEPT = 200_000  # entries kept while MLflow does not answer
EVERY = 1.0  # seconds between two batches

Send = Callable[["MlflowClient"], object]


@dataclass(frozen=True)
class Point:
    """One value of a metric, with the time at which it was measured."""

    key: str
    value: float
    timestamp: int
    step: int


class Lane:
    """Entries of one run on their way: points, in batches, and calls, one by one."""

    def __init__(self, uri: str, run: str, what: str) -> None:
        """`what` the entries are, as warnings name them."""
        self.uri, self.run, self.what = uri, run, what
        self.queue: deque[Point | Send] = deque()
        self._changed = threading.Condition()
        self._hurry = self._closed = False
        self._thread: threading.Thread | None = None
        self._pause = 0.0  # seconds to the next attempt, while MLflow does not answer
        self._told: set[str] = set()

    def put(self, *entries: Point | Send) -> None:
        with self._changed:
            if len(self.queue) >= KEPT:
                return
            self.queue.extend(entries)
            if self._thread is None or not self._thread.is_alive():
                self._closed = False
                self._thread = threading.Thread(target=self._work, name=f"mlflow-{self.run[:6]}", daemon=True)
                self._thread.start()
                atexit.register(self.close, 10.0)
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Waits until everything is with MLflow; False if it is not yet."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self.queue, timeout)
            self._hurry = False
        return done

    def close(self, timeout: float) -> None:
        """Sends the rest; what MLflow does not take in time is given up with a warning."""
        if not self.flush(timeout):
            text = "MLflow at %s did not answer: %d %s of run %s are lost."
            log.warning(text, without_userinfo(self.uri), len(self.queue), self.what, self.run)
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(0.0 if self.queue else timeout)

    def _work(self) -> None:
        """An entry leaves the queue only when MLflow has it or never will take it."""
        while entries := self._next():
            try:
                self._send(entries)
                self._pause = 0.0
            except Exception as problem:  # noqa: BLE001 - whatever goes wrong with tracking, work goes on
                if self._may_pass(problem):
                    continue
            with self._changed:
                for _ in entries:
                    self.queue.popleft()
                self._changed.notify_all()

    def _may_pass(self, problem: Exception) -> bool:
        """Whether to try again; tells, of each kind of problem once, what is wrong."""
        reason, where = cut(without_userinfo(str(problem)), 300), without_userinfo(self.uri)
        if isinstance(problem, problems()) and not is_final(problem):
            if not self._pause:
                log.warning("MLflow at %s does not answer, %s are kept: %s", where, self.what, reason)
            self._pause = min(max(2 * self._pause, 0.5), 15.0)
            return True
        kind = f"{type(problem).__name__} {getattr(problem, 'error_code', '')}"
        if kind not in self._told:
            self._told.add(kind)
            text = "MLflow at %s does not take some %s of run %s, which goes on without them: %s"
            log.warning(text, where, self.what, self.run, reason)
        return False

    def _next(self) -> list[Point | Send]:
        """Waits for something to send, and a moment longer so that metrics gather; nothing once closed."""
        with self._changed:
            if not self.queue:
                self._changed.wait_for(lambda: self.queue or self._closed)
                self._changed.wait_for(lambda: self._hurry or self._closed, EVERY)
            elif self._pause:
                self._changed.wait_for(lambda: self._closed, self._pause)
            return [] if self._closed else self._head()

    def _head(self) -> list[Point | Send]:
        """The points at the head of the queue, or else the one other entry there."""
        points: list[Point | Send] = []
        for entry in self.queue:
            if not isinstance(entry, Point) or len(points) == BATCH:
                break
            points.append(entry)
        return points or [self.queue[0]]

    def _send(self, entries: list[Point | Send]) -> None:
        mlflow = client(self.uri)
        if not isinstance(entries[0], Point):
            entries[0](mlflow)
            return
        from mlflow.entities import Metric

        points = [Metric(p.key, p.value, p.timestamp, p.step) for p in entries if isinstance(p, Point)]
        mlflow.log_batch(self.run, metrics=points, synchronous=True)
