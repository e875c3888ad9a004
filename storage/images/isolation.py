"""Work in a process of its own, for input that may take down whoever touches it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import signal
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from pebble import ProcessExpired, ProcessPool

ATTEMPTS = 2
SECONDS = 120.0

Care = Literal["none", "watched", "isolated"]
"""With pictures that may take down, or hold up, whoever decodes them."""

Result = TypeVar("Result")


class Crashed(Exception):
    """The process died of it, or was not done in time, every time it was tried; says how."""


class Watched(Generic[Result]):
    """Calls a function in this process, which ends when a call takes too long: for processes that are started anew.

    The watch is kept without Python's lock, so that a decoder that never gives it back ends too.
    """

    def __init__(self, function: Callable[..., Result], seconds: float = SECONDS) -> None:
        self._function, self._seconds = function, seconds

    def __enter__(self) -> Watched[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def __call__(self, *arguments: Any) -> Result:
        faulthandler.dump_traceback_later(self._seconds, exit=True)
        try:
            return self._function(*arguments)
        finally:
            faulthandler.cancel_dump_traceback_later()


class Isolated(Generic[Result]):
    """Calls a function in another process, which is started anew after a death. Use it as a context manager."""

    def __init__(self, function: Callable[..., Result], seconds: float = SECONDS) -> None:
        self._function, self._seconds = function, seconds

    def __enter__(self) -> Isolated[Result]:
        # A fork would copy whatever state this process is in.
        self._pool = ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def __call__(self, *arguments: Any) -> Result:
        """Its result. Crashed when it took the process down, or took too long, in each of a few attempts."""
        how = ""
        for _ in range(ATTEMPTS):
            try:
                result: Result = self._pool.schedule(self._function, arguments, timeout=self._seconds).result()
                return result
            except ProcessExpired as death:
                how = f"ended with {_named(death.exitcode)}"
            except TimeoutError:
                how = f"took longer than {self._seconds:.0f} s"
        raise Crashed(how)


def _named(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
