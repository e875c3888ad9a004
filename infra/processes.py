"""Local processes with logs, health waits and an end that leaves none behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

HOST = "127.0.0.1"
MARK = "GMEM_TOPOLOGY"
"""In the environment of every process of a topology, by which also orphans are known."""


class Processes:
    """Started by name, stopped in reverse order, with all their descendants."""

    def __init__(self, logs: Path) -> None:
        self.logs, self.mark = logs, uuid.uuid4().hex
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running)[::-1]:
            self.stop(name)
        for process in (left := self.members()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        with (self.logs / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                command, env=environment | {MARK: self.mark}, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, user=user, start_new_session=True,
            )  # fmt: skip

    def stop(self, name: str, sign: int = signal.SIGTERM, timeout: float = 15) -> None:
        """Asks the process to end, and makes it and its descendants end if they do not."""
        process = self.running.pop(name)
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
            _, alive = psutil.wait_procs(family, timeout=3)
            for left in alive:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
        if process.poll() is None:
            process.kill()
            process.wait()

    def members(self) -> list[psutil.Process]:
        """Everything alive that was started here, or by something that was."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.pid != os.getpid():
                    found.append(process)
        return found

    def wait(self, name: str, healthy: Callable[[], bool], seconds: float = 180) -> None:
        """Until it is up; RuntimeError with the end of its log when it has died or is not up in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.running[name].poll() is None:
            if healthy():
                return
            time.sleep(0.3)
        log = (self.logs / f"{name}.log").read_text(errors="replace")
        raise RuntimeError(f"{name} did not come up: {log[-3000:]}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((HOST, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def get(url: str, token: str | None = None) -> str:
    headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return str(answer.read().decode())


def put(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()


def post(url: str, value: object, password: str) -> None:
    """A JSON document, with basic authentication."""
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(password.encode()).decode()}"}
    request = urllib.request.Request(url, json.dumps(value).encode(), headers)
    urllib.request.urlopen(request, timeout=30).close()


def answers(url: str, token: str | None = None) -> bool:
    try:
        get(url, token)
    except (urllib.error.URLError, OSError):
        return False
    return True


def listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((HOST, port), timeout=2).close()
        return True
    return False
