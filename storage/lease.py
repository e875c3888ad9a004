"""A lease keeps two runs from building the same artifact, and a run thought dead from committing after all.

A lease is a file `lease/<number>.json` beside the artifact, created conditionally, so of several who want a number one
gets it; the highest number is the lease in force. Its holder keeps raising a counter in it. Whoever waits watches that
counter on their own monotonic clock: it has expired when it has stood still for `ttl` seconds, whatever the clocks of
the machines say. Taking over means creating the next number, and every commit asks whether its number is still the
highest.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import BaseModel, Field, ValidationError

from storage.errors import LeaseHeld, LeaseLost, StoreError
from storage.files import Files
from storage.letting_go import let_go_by

log = logging.getLogger(__name__)

TTL = 30.0  # seconds without a sign of life
LONGEST_TTL = 3600.0  # more is no lease of ours
_BEATS = 10  # signs of life in a ttl: one may be late or lost without harm


class LeaseState(BaseModel):
    """What the lease's file says."""

    number: int
    holder: str = Field("somebody", max_length=500)
    process: str = ""  # machine, process space and pid, to recognise a dead process at once where that is possible
    token: str = ""
    counter: int = 0
    ttl: float = Field(gt=0, le=LONGEST_TTL)
    released: bool = False


class Lease:
    """A lease that is held; given by `held`."""

    def __init__(self, files: Files, artifact: str, state: LeaseState) -> None:
        self._files, self._artifact, self._state = files, artifact, state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{state.number}", daemon=True)

    @property
    def number(self) -> int:
        return self._state.number

    def check(self) -> None:
        """Raises LeaseLost if somebody has taken over. Call it right before every commit."""
        require(self._files, self._artifact, self.number)

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        """Lets others in at once. A store that cannot be reached is no reason to fail: the lease then expires."""
        self._stop.set()
        self._thread.join()
        with suppress(StoreError):
            self._write(released=True)

    def _write(self, **change: object) -> None:
        self._state = self._state.model_copy(update={"counter": self._state.counter + 1, **change})
        path = _path(self._artifact, self.number)
        self._files.write(path, self._state.model_dump_json().encode(), durable=False)

    def _beat(self) -> None:
        while not self._stop.wait(self._state.ttl / _BEATS):
            try:
                self.check()
                self._write()
            except LeaseLost as problem:
                log.warning("%s", problem)
                return
            except StoreError as problem:
                log.warning("The lease could not be renewed, trying again: %s", problem)


@contextmanager
def held(files: Files, artifact: str, holder: str, wait: float | None = None, ttl: float = TTL) -> Iterator[Lease]:
    """Holds the lease of an artifact while the block runs.

    Args:
        artifact: its URI.
        holder: what is building, in words for whoever is told, such as "stage latents"; process and machine are added.
        wait: seconds to wait for a living holder before LeaseHeld is raised; None waits as long as it takes. A holder
            counts as living once its counter was seen to move, so a dead one is waited out in any case.
        ttl: seconds after which others may take this lease over when its counter stands still.
    """
    lease = Lease(files, artifact, _acquire(files, artifact, holder, wait, ttl))
    lease.start()
    try:
        with let_go_by(lease.release):
            yield lease
    finally:
        lease.release()


def current(files: Files, artifact: str) -> LeaseState | None:
    """The lease in force (maybe released), or None where there never was one."""
    return _newest(files, artifact)[0]


def alive(files: Files, artifact: str) -> bool:
    """Whether somebody holds the lease and gives signs of life; to see that none comes takes the lease's ttl."""
    began = time.monotonic()
    state, raw = _newest(files, artifact)
    if state is None or state.released or _surely_dead(state):
        return False
    while time.monotonic() - began < state.ttl:
        time.sleep(state.ttl / _BEATS / 2)
        now, seen = _newest(files, artifact)
        if seen != raw:
            return now is not None and not now.released
    return False


def require(files: Files, artifact: str, number: int) -> None:
    """Raises LeaseLost unless `number` is the lease in force; works from any process that was told the number."""
    newest = _newest_number(files, artifact)
    if newest != number:
        raise LeaseLost(
            f"{artifact} has been taken over by another run (lease {newest}, this one was {number}): nothing was "
            "committed; let the other run finish, or start again."
        )


def _acquire(files: Files, artifact: str, holder: str, wait: float | None, ttl: float) -> LeaseState:
    began = time.monotonic()
    watched, since, living = b"", began, False
    while True:
        state, raw = _newest(files, artifact)
        now = time.monotonic()
        if raw != watched:
            living = bool(watched)
            watched, since = raw, now
        if state is None or state.released or now - since >= state.ttl or _surely_dead(state):
            number = (state.number if state else 0) + 1
            if mine := _claim(files, artifact, number, holder, ttl):
                return mine
            continue
        if wait is not None and living and now - began >= wait:
            raise LeaseHeld(
                f"{artifact} is being built by {state.holder} (lease {state.number}): wait until it has finished, or "
                f"stop it; {state.ttl:.0f} s after it stopped its lease is free."
            )
        time.sleep(min(state.ttl / _BEATS / 2, 1.0))


def _claim(files: Files, artifact: str, number: int, holder: str, ttl: float) -> LeaseState | None:
    """Tries to be the one who has this number."""
    name = f"{holder} (process {os.getpid()} on {socket.gethostname()})"
    state = LeaseState(number=number, holder=name, process=_process(), token=uuid.uuid4().hex, ttl=ttl)
    if not files.create(_path(artifact, number), state.model_dump_json().encode()):
        return None
    if _newest_number(files, artifact) != number:  # we had looked too long ago: others came and went meanwhile
        return None
    for old in _numbers(files, artifact):
        if old < number:
            files.remove(_path(artifact, old))
    return state


def _path(artifact: str, number: int) -> str:
    return f"{artifact}/lease/{number:08d}.json"


def _numbers(files: Files, artifact: str) -> list[int]:
    names = files.names(f"{artifact}/lease")
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d{8}\.json", name))


def _newest_number(files: Files, artifact: str) -> int:
    return max(_numbers(files, artifact), default=0)


def _newest(files: Files, artifact: str) -> tuple[LeaseState | None, bytes]:
    """The lease in force and its bytes, by which one sees whether it moves."""
    while number := _newest_number(files, artifact):
        try:
            raw = files.read(_path(artifact, number))
        except FileNotFoundError:  # a newer one came and cleared this away
            continue
        try:
            state = LeaseState.model_validate_json(raw)
            return state.model_copy(update={"number": number}), raw
        except ValidationError:  # just being created, or cut in half: whoever holds it will write it whole
            return LeaseState(number=number, ttl=TTL), raw or b"empty"
    return None, b""


def _process() -> str:
    return f"{_process_space()}/{os.getpid()}"


def _process_space() -> str:
    """Names the set of processes in which our pids mean something; empty where that cannot be said."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _surely_dead(state: LeaseState) -> bool:
    """Whether the holder ran here and is gone: then there is nothing to wait for."""
    space, _, pid = state.process.rpartition("/")
    if not space or space != _process_space() or not re.fullmatch(r"[1-9]\d{0,8}", pid, re.ASCII):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, and somebody else's
        return False
    return False
