"""Pieces of work at once: in whose context, in what order, and what becomes of them when one fails or all are interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextvars import ContextVar
from functools import partial

import pytest

from flows.experiments.side_by_side import side_by_side

ASKED: ContextVar[str] = ContextVar("asked", default="nobody")
PATIENCE = 30.0


def test_as_many_as_wanted_are_at_work_each_in_the_callers_context() -> None:
    together = threading.Barrier(2)

    def piece(number: int) -> tuple[int, str]:
        together.wait(PATIENCE)  # breaks where fewer than two are at work
        return number, ASKED.get()

    token = ASKED.set("a person")
    made = side_by_side([partial(piece, number) for number in range(4)], 2)
    ASKED.reset(token)
    assert made == [(number, "a person") for number in range(4)]


def test_one_at_a_time_is_the_callers_own_thread() -> None:
    assert side_by_side([threading.get_ident] * 2, 1) == [threading.get_ident()] * 2


def test_what_is_at_work_beside_a_failure_comes_to_its_end_and_nothing_more_is_begun() -> None:
    failed, done = threading.Event(), list[int]()

    def fails() -> None:
        failed.set()
        raise ValueError("no such arm")

    def goes_on() -> None:
        assert failed.wait(PATIENCE)
        time.sleep(0.1)
        done.append(1)

    def never() -> None:
        done.append(2)

    with pytest.raises(ValueError, match="no such arm"):
        side_by_side([goes_on, fails, *[never] * 50], 2)
    assert 1 in done and len(done) < 51


def test_an_interrupt_reaches_what_is_at_work_which_ends_tidily() -> None:
    at_work, tidied = threading.Barrier(2), list[str]()

    def endless(name: str) -> None:
        try:
            at_work.wait(PATIENCE)
            if name == "first":
                os.kill(os.getpid(), signal.SIGINT)
            while True:
                time.sleep(0.01)
        finally:
            tidied.append(name)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what was begun in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side([partial(endless, name) for name in ("first", "second", "third")], 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(tidied) == ["first", "second"]
