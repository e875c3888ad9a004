"""Whether a training worker is asked to make way: by SIGTERM, or because Ray says that its node is going away."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import ray.train
from ray.train.torch import TorchConfig

ASK_SECONDS = 10.0
"""How often Ray is asked about nodes that are going away; the answer takes a round trip of all workers."""

_terminated = threading.Event()


class Notice:
    """Every rank may be told by SIGTERM; rank 0 says when it is time for all of them to ask Ray together."""

    def __init__(self) -> None:
        self.draining, self.asked = False, time.monotonic()

    def given(self) -> bool:
        return self.draining or _terminated.is_set()

    def due(self) -> bool:
        return time.monotonic() - self.asked > ASK_SECONDS

    def ask(self) -> None:
        """A barrier: every rank calls it, after the same step."""
        self.asked = time.monotonic()
        self.draining = ray.train.get_preemption_info() is not None


def listen() -> None:
    """Takes SIGTERM as a notice. Only a process's main thread may say so, and the training runs in another one."""
    _terminated.clear()
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(listen)


class Listening(TorchConfig):
    """Torch's process group, on workers that listen to SIGTERM."""

    @property
    def backend_cls(self) -> type:
        return _Backend
