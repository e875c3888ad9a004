"""A cancelled process whose main thread cannot hear of it: the embedded Ray that it waits for has been ended as well.

Whoever cancels a process often ends all that belongs to it at once, as Prefect and containers do. What then asks Ray for
anything waits in Ray's own code, where Python tells no signal, until Ray ends the process after a minute without a word.
Then another thread does what the main thread would have done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from storage.letting_go import let_go

INTERRUPTED = 130
"""Exit code of a process that was interrupted."""
SAID = "interrupted; what is committed stays, and the same command goes on from there"
GRACE = 10.0
"""Seconds without Ray in which the main thread may still end by itself; Prefect kills after thirty."""
CANCELS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ends_though_stranded() -> Iterator[None]:
    """A process that is cancelled within the block leaves it in any case, or ends: with what it holds let go of, and the
    sentence said. Elsewhere than in a main thread, which alone hears signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    left = threading.Event()
    threading.Thread(target=_watch, args=(reading, left), name="cancelling", daemon=True).start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _watch(reading: int, left: threading.Event) -> None:
    with os.fdopen(reading, "rb", buffering=0) as signals:
        while (number := signals.read(1)) and number[0] not in CANCELS:
            pass
    since = time.monotonic()
    while not left.wait(1.0):
        if not _stranded():
            since = time.monotonic()
        elif time.monotonic() - since >= GRACE:
            _end()


def _stranded() -> bool:
    """Whether no Ray of this process' own runs any more, or one of the two that it cannot do without."""
    import psutil

    alive = set()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.name())
    return not alive >= {"raylet", "gcs_server"}


def _end() -> None:
    import psutil

    let_go()
    print(f"gmem: {SAID}", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.terminate()
    os._exit(INTERRUPTED)
