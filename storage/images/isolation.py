"""Work in a process of its own, for input that may take down whoever touches it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, Literal, TypeVar

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
        self._process: Any = None
        self._pipe: Connection[Any, Any] | None = None

    def __enter__(self) -> Isolated[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, *arguments: Any) -> Result:
        """Its result. Crashed when it took the process down, or took too long, in each of a few attempts."""
        how = ""
        for _ in range(ATTEMPTS):
            pipe = self._pipe or self._begin()
            try:
                pipe.send(arguments)
                if pipe.poll(self._seconds):
                    result: Result = pipe.recv()
                    return result
                how = f"took longer than {self._seconds:.0f} s"
            except (EOFError, ConnectionError):
                self._process.join()
                how = f"ended with {_named(self._process.exitcode)}"
            self._end()
        raise Crashed(how)

    def _begin(self) -> Connection[Any, Any]:
        context = multiprocessing.get_context("spawn")  # a fork would copy whatever state this process is in
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._function, other), daemon=True)
        self._process.start()
        other.close()  # so that its death ends our reading
        try:
            self._pipe.recv()
        except EOFError as error:  # no fault of what it was to work on
            raise RuntimeError("a process for doubtful input cannot be started; see its message above") from error
        return self._pipe

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(function: Callable[..., Any], pipe: Connection[Any, Any]) -> None:
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            pipe.send(function(*pipe.recv()))


def _named(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
