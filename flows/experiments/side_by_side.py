"""Several pieces of work at once, each of which follows its stages' jobs on a cluster."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

Value = TypeVar("Value")

POLL_SECONDS = 1.0
"""A signal that another thread took does not wake the main one: it looks by itself."""


def side_by_side(work: Sequence[Callable[[], Value]], at_once: int) -> list[Value]:
    """What each piece gives, in their order; so many are at work at a time, each in the caller's context.

    Where one fails no other is begun, those at work come to their end, and the failure is raised. What interrupts the
    caller interrupts them too, so that they stop their jobs.
    """
    if at_once == 1:
        return [each() for each in work]
    at_work: set[int] = set()
    stopped = threading.Event()

    def watched(each: Callable[[], Value]) -> Value:
        at_work.add(threading.get_ident())
        try:
            if stopped.is_set():  # between being taken up and being known of
                raise KeyboardInterrupt
            return each()
        finally:
            at_work.discard(threading.get_ident())

    with ThreadPoolExecutor(at_once, thread_name_prefix="arm") as threads:
        try:
            made = [threads.submit(copy_context().run, watched, each) for each in work]
            while _going_well(made):
                wait(made, POLL_SECONDS, FIRST_EXCEPTION)
        except BaseException:
            stopped.set()
            for thread in tuple(at_work):
                _interrupt(thread)
            while at_work:  # the pool does not know of one that it was about to begin
                time.sleep(POLL_SECONDS / 10)
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    failed = [each for each in made if not each.cancelled() and each.exception()]
    return [each.result() for each in failed or made]


def _going_well(made: Sequence[Future[Value]]) -> bool:
    return not (all(each.done() for each in made) or any(each.done() and each.exception() for each in made))


def _interrupt(thread: int) -> None:
    """Ctrl-C for a thread, at its next step in Python; as Prefect ends what has run out of time."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
